"""The traffic of call sites in the disk store: a row for each day."""

from __future__ import annotations

import json
from datetime import date
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from llmrouter.domain.traffic import add_rows, read_traffic, traffic_fields
from llmrouter.stores import _layout as layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.domain.traffic import TrafficRow
    from llmrouter.stores._rows import Rows

_PREFIX = "t"


def add_traffic(rows: Rows, more: Sequence[TrafficRow]) -> None:
    """See `Store.add_traffic`."""
    by_day = {day: list(each) for day, each in groupby(sorted(more, key=_day), key=_day)}
    if not by_day:
        return
    with rows.cache.write(synced=False):
        for day, added in by_day.items():
            total = add_rows(_of_day(rows, day), added)
            rows.cache.set(f"{_PREFIX}{day}", layout.dump([traffic_fields(row) for row in total]))


def traffic(rows: Rows, since: date | None) -> list[TrafficRow]:
    """See `Store.traffic`."""
    days = (date.fromisoformat(key.removeprefix(_PREFIX)) for key in rows.keys_with(_PREFIX))
    return [row for day in days if since is None or day >= since for row in _of_day(rows, day)]


_day = attrgetter("day")


def _of_day(rows: Rows, day: date) -> list[TrafficRow]:
    key = f"{_PREFIX}{day}"
    stored = rows.cache.get(key)
    return [] if stored is None else rows.parse(key, partial(_read, day), stored)


def _read(day: date, stored: bytes) -> list[TrafficRow]:
    return [read_traffic(day, fields) for fields in json.loads(stored)]
