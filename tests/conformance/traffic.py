"""What a store promises of the traffic of call sites."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.cache_use import CacheUse
from llmrouter.domain.traffic import MOST_ROWS, OTHER, TrafficRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.scene import Scene
    from llmrouter.ports import Store

    Look = Callable[[], Store]

DAY = date(2026, 11, 20)


def row(**changes: Any) -> TrafficRow:
    """Two calls, one of them without a known price."""
    given: dict[str, Any] = {
        "day": DAY,
        "site": "app:view",
        "model": "claude-haiku",
        "latency": "daily",
        "streaming": False,
        "calls": 2,
        "use": CacheUse(
            requests=2, input_tokens=5, read_tokens=7, written_5m_tokens=11, written_1h_tokens=13
        ),
        "output_tokens": 17,
        "priced": 1,
        "cost_usd": Decimal("0.000123"),
        "total_seconds": 3.5,
        "max_seconds": 2.5,
        **changes,
    }
    return TrafficRow(**given)


class TrafficContract:
    """`add_traffic` and `traffic`."""

    def test_a_new_store_has_no_traffic(self, scene: Scene) -> None:
        """Nor does adding nothing change that."""
        scene.store.add_traffic([])
        assert scene.store.traffic(None) == []

    def test_rows_come_back_as_they_were(self, scene: Scene, look: Look) -> None:
        """Every field, and names in any letters."""
        rows = [row(), row(site="büro:ゑ\x00 {}", model="", errors=1, streaming=True)]
        scene.store.add_traffic(rows)
        assert look().traffic(None) == rows

    def test_rows_of_one_key_are_added_up(self, scene: Scene, look: Look) -> None:
        """In one call, in several, and by several processes; the longest call stays the longest."""
        scene.store.add_traffic([row(), row(max_seconds=9.0)])
        scene.rival.add_traffic([row(errors=1, cost_usd=Decimal("0.1"))])
        (found,) = look().traffic(None)
        assert found == row(
            calls=6,
            errors=1,
            use=CacheUse(
                requests=6, input_tokens=15, read_tokens=21, written_5m_tokens=33, written_1h_tokens=39
            ),
            output_tokens=51,
            priced=3,
            cost_usd=Decimal("0.100246"),
            total_seconds=10.5,
            max_seconds=9.0,
        )
        assert found.unpriced == 2

    @pytest.mark.parametrize(
        "other",
        [
            {"day": DAY + timedelta(days=1)},
            {"site": "app:other"},
            {"model": "claude-opus"},
            {"latency": "real-time"},
            {"streaming": True},
        ],
    )
    def test_rows_that_differ_are_kept_apart_and_sorted(self, scene: Scene, other: dict[str, Any]) -> None:
        """By day, site, model, class, and streaming."""
        rows = [row(), row(**other)]
        scene.store.add_traffic(rows[::-1])
        found = scene.store.traffic(None)
        keys = [(one.day, one.site, one.model, one.latency, one.streaming) for one in found]
        assert keys == sorted(keys)
        assert sorted(found, key=repr) == sorted(rows, key=repr)

    def test_days_before_one_are_left_out(self, scene: Scene, look: Look) -> None:
        """That day is in."""
        rows = [row(day=DAY + timedelta(days=number)) for number in (-400, 0, 1)]
        scene.store.add_traffic(rows)
        assert look().traffic(DAY) == rows[1:]
        assert look().traffic(DAY + timedelta(days=2)) == []

    def test_a_day_has_a_bounded_number_of_rows_and_loses_no_call(self, scene: Scene) -> None:
        """The first sites keep their rows; models and classes that explode do no more harm."""
        scene.store.add_traffic([row(site=f"site:{number:05}") for number in range(MOST_ROWS)])
        scene.store.add_traffic([row(site="site:00000"), row(site="late"), row(site="later")])
        scene.store.add_traffic([row(site="x", model=f"model-{number}") for number in range(MOST_ROWS)])
        scene.store.add_traffic([row(day=DAY + timedelta(days=1), site="tomorrow")])
        found = scene.store.traffic(None)
        today = [one for one in found if one.day == DAY]
        assert len(today) <= MOST_ROWS
        assert sum(one.calls for one in today) == 2 * (2 * MOST_ROWS + 3)
        assert next(one for one in today if one.site == "site:00000").calls == 4
        assert "late" not in {one.site for one in today}
        assert any(one.site == OTHER and one.model == "claude-haiku" for one in today)
        assert found[-1].site == "tomorrow"

    def test_threads_and_processes_add_at_once(self, scene: Scene) -> None:
        """Nothing is lost."""

        def add(store: Store) -> None:
            for _ in range(20):
                store.add_traffic([row()])

        threads = [threading.Thread(target=add, args=(one,)) for one in (scene.store, scene.rival) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one.calls for one in scene.store.traffic(None)] == [160]

    def test_traffic_is_beside_the_queue(self, scene: Scene, look: Look) -> None:
        """Neither changes the other."""
        ids = scene.enqueue_alike(2)
        scene.store.add_traffic([row()])
        before = scene.snapshot(look())
        scene.store.add_traffic([replace(row(), site="b")])
        assert scene.snapshot(look()) == before
        scene.settle_all(scene.claimed())
        assert len(list(look().outcomes(ids))) == 2
        assert len(look().traffic(None)) == 2
