"""Who works on a disk store: the lease, and what its holder says of its work."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llmrouter.domain.blocks import Hold as LiveHold
from llmrouter.domain.reporting import EngineReport, EngineView, Hold, HoldCause, LiveReport, Uninsured
from llmrouter.errors import LeaseLostError
from llmrouter.ports import Lease
from llmrouter.stores import _layout as layout
from llmrouter.stores._engine_lock import EngineLock
from llmrouter.stores._layout import from_us, to_us

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from llmrouter.stores._rows import Rows


class Leases:
    """Gives out the lease, and takes it back."""

    def __init__(self, rows: Rows, folder: Path) -> None:
        self._rows = rows
        self._cache = rows.cache
        self._lock = EngineLock(folder)

    def acquire(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`."""
        until = to_us(now + length)
        with self._cache.write(synced=True):
            row = self._rows.lease()
            mine = row["holder"] == holder
            fence = row["fence"] if mine else row["fence"] + 1
            if not mine:
                dead = row["locked"] and self._holder_is_dead(row["fence"], fence)
                if to_us(now) < row["until"] <= until and not dead:
                    return None
            locked = self._lock.take(fence)
            self._rows.write_lease({"holder": holder, "fence": fence, "until": until, "locked": locked})
        return Lease(holder=holder, fence=fence)

    def release(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        with self._cache.write(synced=True):
            if self._rows.lease()["fence"] == lease.fence:
                fence = lease.fence + 1
                self._rows.write_lease({"holder": "", "fence": fence, "until": 0, "locked": False})
                self._lock.release()

    def check(self, lease: Lease) -> None:
        """See `Store.check_lease`."""
        if self._rows.lease()["fence"] != lease.fence:
            raise LeaseLostError(f"{lease.holder}: lease {lease.fence} was given back or has been followed")

    def is_held_here(self) -> bool:
        """Whether this object gave out the lease that is in force."""
        return self._lock.is_held_for(self._rows.lease()["fence"])

    def report(self, lease: Lease, report: EngineReport) -> None:
        """See `Store.report`."""
        with self._cache.write(synced=False):
            self.check(lease)
            self._cache.set(layout.REPORT, _report_row(lease.fence, report))

    def view(self) -> EngineView | None:
        """See `Store.engine`."""
        row = self._rows.lease()
        if not row["holder"] or (row["locked"] and self._lock.is_free()):
            return None
        value = self._cache.get(layout.REPORT)
        fence, report = (0, None) if value is None else self._rows.parse(layout.REPORT, _read_report, value)
        return EngineView(
            holder=row["holder"],
            until=from_us(row["until"]),
            report=report if fence == row["fence"] else None,
        )

    def close(self) -> None:
        """Lets the engine lock go."""
        self._lock.release()

    def _holder_is_dead(self, fence: int, next_fence: int) -> bool:
        """Whether the kernel has dropped the engine lock of the process that held the lease."""
        if self._lock.is_held_for(fence):
            return False
        self._lock.release()  # It may be a leftover of a lease that this process has lost.
        return self._lock.take(next_fence)


def _report_row(fence: int, report: EngineReport) -> bytes:
    return layout.dump(
        {
            "fence": fence,
            "at": to_us(report.at),
            "holds": [_plain(hold) for hold in report.holds],
            "problems": dict(report.problems),
            "live": None if report.live is None else _plain(report.live),
        }
    )


def _plain(record: object) -> object:
    """A record, or a value of one, as plain JSON data; instants in microseconds."""
    if isinstance(record, datetime):
        return to_us(record)
    if isinstance(record, tuple):
        return [_plain(one) for one in record]
    if is_dataclass(record):
        return {part.name: _plain(getattr(record, part.name)) for part in fields(record)}
    return record


def _read_report(value: bytes) -> tuple[int, EngineReport]:
    row = json.loads(value)
    live = row.get("live")
    report = EngineReport(
        at=from_us(row["at"]),
        holds=tuple(
            Hold(
                **{
                    **hold,
                    "since": from_us(hold["since"]),
                    "until": from_us(hold["until"]),
                    "cause": HoldCause(hold["cause"]),
                }
            )
            for hold in row["holds"]
        ),
        problems=row["problems"],
        live=None if live is None else _read_live(live),
    )
    return row["fence"], report


def _read_live(live: dict[str, Any]) -> LiveReport:
    uninsured = [
        Uninsured(**{**one, "deadline_at": from_us(one["deadline_at"])}) for one in live["uninsured"]
    ]
    return LiveReport(
        **{
            **live,
            "hold": None if live["hold"] is None else LiveHold(live["hold"]),
            **{
                name: None if live[name] is None else from_us(live[name])
                for name in ("hold_until", "waits_until")
            },
            "uninsured": tuple(uninsured),
        }
    )
