"""A summary as a table of at most 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from llmrouter.reports.formats import format_share, format_span, format_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.reports.summary import SummaryRow

_COLUMNS = ("count", "batches", "wait\np50", "wait\nmax", "in\ntime", "late", "paid", "all\nlive", "saved")
_MONEY = ("paid", "all\nlive")
_DASH = "–"  # noqa: RUF001  (a dash, as people write it)


def summary_table(
    rows: Mapping[str, SummaryRow], total: SummaryRow | None = None, *, title: str | None = None
) -> Table:
    """A line for each latency class, and one for all of them.

    Args:
        rows: By latency class, in the order to show.
        total: All together; None leaves that line out.
        title: Above it.
    """
    table = new_table(title)
    table.add_column("class", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=name not in _MONEY, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *_cells(row))
    if total is not None:
        table.add_section()
        count, sent, _, _, *rest = _cells(total)
        # Waits of different classes have no common median.
        table.add_row("total", count, sent, "", "", *rest, style="bold")
    return table


def new_table(title: str | None = None) -> Table:
    """An empty table in the manner of all commands."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        header_style="dim",
    )


def _cells(row: SummaryRow) -> tuple[str, ...]:
    promised = row.on_time_count + row.late_count
    return (
        f"{row.request_count:,}",
        _sent_as(row),
        format_span(row.wait_p50),
        format_span(row.wait_max),
        f"{row.on_time_count:,}" if promised else _DASH,
        f"{row.late_count:,}" if promised else _DASH,
        format_usd(row.paid_usd),
        format_usd(row.list_usd),
        format_share(row.saved_share or None),
    )


def _sent_as(row: SummaryRow) -> str:
    """``live``, or in how many batches."""
    if not row.batch_count:
        return "live" if row.live_count else _DASH
    return f"{row.batch_count:,}+live" if row.live_count else f"{row.batch_count:,}"
