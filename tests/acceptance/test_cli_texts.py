from __future__ import annotations

import json
import logging
from datetime import timedelta
from decimal import Decimal
from io import StringIO

import anthropic
import httpx2
import pytest
from rich.console import Console

from llmrouter.cli.console import OneLine
from llmrouter.cli.failures import explain
from llmrouter.cli.tables import summary_table
from llmrouter.errors import InvalidRequestError, StoreBusyError
from llmrouter.reports.formats import format_bytes, format_count, format_share, format_span, format_usd
from llmrouter.reports.summary import Finished, Tally


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0034, "3 ms"),
        (1.25, "1.2 s"),
        (42, "42 s"),
        (90, "2 min"),
        (5_000, "83 min"),
        (9_000, "2.5 h"),
        (200_000, "2.3 d"),
    ],
)
def test_spans_have_one_unit(seconds: float, text: str) -> None:
    """The one that a person would choose."""
    assert format_span(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0"),
        ("0.00001234", "$0.000012"),
        ("0.0123", "$0.0123"),
        ("234.5", "$234.50"),
        ("1234.5", "$1,234"),
    ],
)
def test_sums_have_the_digits_that_count(amount: str, text: str) -> None:
    """A cent is much for a single request, and nothing in thousands."""
    assert format_usd(Decimal(amount)) == text


def test_counts_shares_and_sizes() -> None:
    """Plurals, separators and percent, as they are written."""
    assert [format_count(number, "batch", "batches") for number in (1, 2_000)] == ["1 batch", "2,000 batches"]
    assert format_share(Decimal("0.456")) == "46 %"
    assert [format_bytes(size) for size in (540, 1_500, 33_000_000)] == ["540 B", "1.5 kB", "33 MB"]


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (InvalidRequestError("model", "is missing"), ("model: is missing", 2)),
        (StoreBusyError("locked\nfor long"), ("locked for long", 1)),
        (FileNotFoundError(2, "No such file", "x"), ("x: No such file", 1)),
        (json.JSONDecodeError("Expecting value", "", 0), ("Expecting value: line 1 column 1 (char 0)", 1)),
        (
            anthropic.APIConnectionError(request=httpx2.Request("GET", "http://x")),
            ("Connection error.", 1),
        ),
        (ZeroDivisionError("a bug"), None),
    ],
)
def test_what_goes_wrong_is_a_line_and_a_code(error: Exception, explained: tuple[str, int] | None) -> None:
    """What nobody foresaw is a bug, and keeps its traceback."""
    assert explain(error) == explained


def test_a_log_record_is_one_line() -> None:
    """With what it is about; of an exception its name and text, without the traceback."""
    error = ValueError("two\nlines")
    record = logging.makeLogRecord(
        {"msg": "poll failed", "levelname": "ERROR", "batch_id": "b1", "exc_info": (ValueError, error, None)}
    )
    assert OneLine(timed=False).format(record) == "error: poll failed (ValueError: two lines) batch_id=b1"


def test_the_table_fits_a_terminal() -> None:
    """80 columns hold it, also for an expensive job."""
    tally = Tally()
    for latency in ("real-time", "hourly", "weekly"):
        tally.add(
            Finished(
                latency=latency,
                batch_id=None if latency == "real-time" else f"batch of {latency}",
                error_type=None,
                waited=timedelta(minutes=80),
                on_time=None if latency == "real-time" else True,
                paid_usd=Decimal("12345.67"),
                list_usd=Decimal("24691.34"),
            )
        )
    screen = StringIO()
    Console(file=screen, width=80).print(summary_table(tally.rows(), tally.total()))
    shown = screen.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "$37,037" in shown
