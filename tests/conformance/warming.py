"""What a store promises for warming the prompt cache: a body to warm it with, and what that cost."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

from conformance.scene import LANE, OTHER_LANE, START, Scene, again, body_of, cancel_queued
from llmrouter.domain.cache_use import CacheUse
from llmrouter.domain.ledger import ClassTally

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

USE = CacheUse(requests=1, input_tokens=3, read_tokens=20, written_5m_tokens=100, written_1h_tokens=4_000)


class SampleContract:
    """`sample`."""

    def test_it_is_a_body_with_this_prefix(self, scene: Scene, look: Look) -> None:
        """Of this lane, class and model, whatever else begins alike."""
        scene.enqueue(
            scene.request(body=b'{"a":1}'),
            scene.request(prefix="q", body=b'{"a":2}'),
            scene.request(prefix="p", body=b'{"a":3}'),
            scene.request(prefix="p", body=b'{"a":3}', site="other:site"),
            scene.request(prefix="p", body=b'{"a":4}', lane=OTHER_LANE),
            scene.request(prefix="p", body=b'{"a":5}', latency="hourly"),
            scene.request(prefix="p", body=b'{"a":6}', model="other"),
        )
        store = look()
        assert store.sample(scene.line(), "p") == b'{"a":3}'
        assert store.sample(scene.line(), "q") == b'{"a":2}'
        assert store.sample(scene.line(OTHER_LANE), "p") == b'{"a":4}'
        assert store.sample(scene.line(latency="hourly"), "p") == b'{"a":5}'
        assert store.sample(scene.line(model="other"), "p") == b'{"a":6}'
        assert store.sample(scene.line(OTHER_LANE), "q") is None
        assert store.sample(scene.line(), "r") is None
        assert store.sample(scene.line(latency="weekly"), "p") is None

    def test_it_is_of_a_request_that_waits(self, scene: Scene, work: Work) -> None:
        """Not of one that was claimed, canceled or answered, and of one that waits again."""
        hours = range(1, 5)
        ids = scene.enqueue(
            *(scene.request(prefix="p", due=timedelta(hours=h), body=body_of(50, str(h))) for h in hours)
        )
        line = scene.line()
        batch = scene.claimed(max_requests=2)
        assert work().sample(line, "p") in (body_of(50, "3"), body_of(50, "4"))
        cancel_queued(scene.rival, ids[2])
        assert work().sample(line, "p") == body_of(50, "4")
        scene.going_live()
        assert work().sample(line, "p") is None
        scene.settle(batch, [again(ids[1])])
        assert work().sample(line, "p") == body_of(50, "2")

    def test_it_is_one_of_those_that_are_left(self, scene: Scene, work: Work) -> None:
        """Of what was enqueued together, some have gone."""
        requests = [scene.request(prefix="p", body=body_of(50, str(place))) for place in range(5)]
        scene.enqueue(*requests)
        line = scene.line()
        gone = scene.inside(scene.claimed(max_requests=2))
        first_left, *left = [one for one in requests if one.request_id not in gone]
        cancel_queued(scene.rival, first_left.request_id)
        assert work().sample(line, "p") in [one.body for one in left]

    def test_it_needs_no_lease_and_changes_nothing(self, scene: Scene) -> None:
        """Nobody works on the store."""
        scene.enqueue(*(scene.request(prefix="p", lane=LANE) for _ in range(3)))
        before = scene.snapshot()
        assert scene.store.sample(scene.line(), "p") is not None
        assert scene.rival.sample(scene.line(), "p") is not None
        assert scene.snapshot() == before


class WarmUpContract:
    """`count_warm_up`."""

    def test_its_price_and_its_tokens_are_counted(self, scene: Scene, look: Look) -> None:
        """Under its class, on the UTC day; one without a known price too."""
        midnight = datetime(2026, 11, 21, tzinfo=START.tzinfo)
        ahead = (midnight - timedelta(seconds=1)).astimezone(timezone(timedelta(hours=5)))
        for paid_usd, now in ((Decimal("0.1"), ahead), (None, midnight), (Decimal("0.02"), midnight)):
            look().count_warm_up("daily", USE, paid_usd, now)
        look().count_warm_up("hourly", CacheUse(), None, START)
        assert scene.tally_of() == ClassTally(
            warm_ups=3,
            warm_up_use=CacheUse(
                requests=3, input_tokens=9, read_tokens=60, written_5m_tokens=300, written_1h_tokens=12_000
            ),
            live_usd={date(2026, 11, 20): Decimal("0.1"), date(2026, 11, 21): Decimal("0.02")},
        )
        assert scene.tally_of("hourly") == ClassTally(warm_ups=1)

    def test_it_is_added_to_what_was_counted(self, scene: Scene, look: Look) -> None:
        """Whoever counts: outcomes, waste and other prices stay."""
        scene.settled(scene.request(due=timedelta(hours=1)))
        before = scene.tally_of()
        scene.rival.count_warm_up("daily", USE, Decimal("0.3"), START)
        scene.settled(scene.request(due=timedelta(hours=1)))
        after = scene.tally_of(store=look())
        assert after.warm_ups == 1
        assert after.live_usd == {START.date(): Decimal("0.3")}
        assert sum(after.settled.values()) == 1 + sum(before.settled.values())


__all__ = ["SampleContract", "WarmUpContract"]
