"""The prompt cache is warmed before a backlog leaves, where that pays, and never keeps it from leaving."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain.cache_use import CacheUse
from llmrouter.domain.ledger import ClassTally
from llmrouter.domain.live import Allowance, LiveCallError, LiveReply, RateLimits
from llmrouter.domain.pacing import Pacer
from llmrouter.domain.prompt_cache import WarmUpCall, name_prefix
from llmrouter.domain.rates import RAMP, Work
from llmrouter.domain.requests import OutcomeKind, Waiting
from llmrouter.engine.budget import Budget
from llmrouter.engine.live_faults import LiveFaults
from llmrouter.engine.pace import Pace
from llmrouter.engine.warmer import MOST_AT_ONCE, Warmer
from llmrouter.errors import StoreBusyError
from llmrouter.stores.memory import MemoryStore
from support.clocks import START, FakeClock
from support.requests import LANE, MODEL, OTHER_LANE
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from llmrouter.domain.requests import Lane

ENOUGH = 4_096
"""What `MODEL` caches at least, in tokens."""
A, B, C = (name_prefix(letter * 32, warmable=True) for letter in "abc")
FOREIGN = name_prefix("d" * 32, warmable=False)


USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 5_000,
    "cache_creation": {"ephemeral_1h_input_tokens": 5_000},
}


def reply(
    kind: OutcomeKind = OutcomeKind.SUCCEEDED,
    *,
    paid_usd: Decimal | None = Decimal("0.01"),
    limits: RateLimits | None = None,
) -> LiveReply:
    """An answer."""
    return LiveReply(
        kind=kind,
        raw=json.dumps({"result": {"message": {"usage": USAGE}}}).encode(),
        took=timedelta(seconds=1),
        work=Work(requests=1, input_tokens=5_003),
        paid_usd=paid_usd,
        limits=limits,
    )


@dataclass
class FakeLiveApi:
    """Implements `llmrouter.ports.LiveApi`: answers what it is told to."""

    answers: list[LiveReply | Exception] = field(default_factory=list)
    """Used up in turn; then all succeed."""
    serving: bool = True
    carrying: bool = True
    calls: list[tuple[Lane, bytes]] = field(default_factory=list)
    on_call: Callable[[], None] = lambda: None

    def serves(self, lane: Lane) -> bool:
        return self.serving

    def carries(self, lane: Lane) -> bool:
        return self.carrying

    def call(self, lane: Lane, request_id: str, body: bytes) -> LiveReply:
        self.calls.append((lane, body))
        self.on_call()
        answer = self.answers.pop(0) if self.answers else reply()
        if isinstance(answer, Exception):
            raise answer
        return answer


class SampleStore(MemoryStore):
    """A store with a request of each prefix but for C."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled: list[str] = []
        self.broken = False
        self.on_sample: Callable[[], None] = lambda: None

    def sample(self, waiting: Waiting, prefix: str) -> bytes | None:
        if self.broken:
            raise StoreBusyError("another process holds the lock")
        self.sampled.append(prefix)
        self.on_sample()
        return None if prefix == C else prefix.encode()

    def count_warm_up(self, latency: str, use: CacheUse, paid_usd: Decimal | None, now: datetime) -> None:
        if self.broken:
            raise StoreBusyError("another process holds the lock")
        super().count_warm_up(latency, use, paid_usd, now)


class Scene:
    """A warmer, and what it meets."""

    def __init__(
        self,
        *,
        most: Decimal | None = None,
        by_class: Mapping[str, Decimal] | None = None,
        requests_per_minute: float | None = None,
        patience: timedelta = timedelta(seconds=20),
    ) -> None:
        self.api = FakeLiveApi()
        self.clock = FakeClock()
        self.store = SampleStore()
        self.sampled = self.store.sampled
        self.tokens = ENOUGH
        self.storm = False
        self.pacer = Pacer(concurrency=32, requests_per_minute=requests_per_minute, share=0.8, ramp=RAMP)
        self.faults = LiveFaults(self.clock, max_attempts=3)
        self.warmer = Warmer(
            self.store,
            self.api,
            self.clock,
            Pace(self.pacer, self.clock),
            Budget(self.store, self.clock, most=most, by_class=by_class or {}),
            self.faults,
            shape=self.shape,
            is_storm=lambda: self.storm,
            patience=patience,
        )

    def tally(self, latency: str = "daily") -> ClassTally:
        """What was counted of a class."""
        return self.store.tally().get(latency, ClassTally())

    def shape(self, body: bytes, prefix: str) -> WarmUpCall | None:
        return WarmUpCall(body=b"warm " + body, prefix_tokens=self.tokens)

    def run(self, counts: dict[str, int], *, lane: Lane = LANE, latency: str = "daily") -> int:
        """Warms a backlog; answers with the number of prefixes that were."""
        waiting = Waiting(
            lane=lane,
            latency=latency,
            model=MODEL,
            request_count=sum(counts.values()),
            body_bytes=1,
            earliest_deadline_at=START,
            prefixes=counts,
        )
        return self.warmer.run_once(waiting)

    def warmed(self) -> list[str]:
        """The prefixes that calls were made for."""
        return [body.removeprefix(b"warm ").decode() for _, body in self.api.calls]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_each_large_group_is_warmed_by_one_call_the_largest_first(scene: Scene) -> None:
    """From ten requests on."""
    assert scene.run({A: 10, B: 500, name_prefix("e" * 32, warmable=True): 9}) == 2
    assert scene.warmed() == [B, A]
    assert scene.api.calls[0] == (LANE, b"warm " + B.encode())


def test_a_site_that_does_not_allow_it_is_not_warmed(scene: Scene) -> None:
    """Its requests are not even read."""
    assert scene.run({FOREIGN: 500}) == 0
    assert (scene.sampled, scene.api.calls) == ([], [])


def test_nothing_is_warmed_in_a_storm(scene: Scene) -> None:
    """Batches would come too late for it."""
    scene.storm = True
    assert scene.run({A: 500}) == 0
    assert (scene.sampled, scene.api.calls) == ([], [])


@pytest.mark.parametrize("lacks", ["serving", "carrying"])
def test_a_lane_that_cannot_go_live_is_not_warmed(scene: Scene, lacks: str) -> None:
    """Its key is another process's, or it asks for what only a batch can do."""
    setattr(scene.api, lacks, False)

    assert scene.run({A: 500}) == 0
    assert (scene.sampled, scene.api.calls) == ([], [])


def test_a_prefix_that_is_too_short_is_not_warmed(scene: Scene) -> None:
    """The API would not cache it; it is looked at again after a while, not at each flush."""
    scene.tokens = ENOUGH - 1

    assert [scene.run({A: 500}), scene.run({A: 500})] == [0, 0]
    assert (scene.sampled, scene.api.calls) == ([A], [])


def test_a_prefix_without_a_call_for_it_is_left(scene: Scene) -> None:
    """The others are warmed."""
    assert scene.run({C: 500, A: 20}) == 1
    assert scene.warmed() == [A]


def test_a_warm_prefix_is_warmed_again_after_fifty_minutes(scene: Scene) -> None:
    """Not at each flush."""
    paid = []
    for wait in (0, 1, 49, 1, 1):
        scene.clock.advance(timedelta(minutes=wait))
        paid.append(scene.run({A: 500}))

    assert paid == [1, 0, 0, 1, 0]


def test_setting_the_clock_does_not_make_it_cold_or_warm(scene: Scene) -> None:
    """Spans are measured by a clock that does not jump."""
    scene.run({A: 500})
    scene.clock.set(START + timedelta(days=1))
    assert scene.run({A: 500}) == 0
    scene.clock.set(START - timedelta(days=1))
    scene.clock.advance(timedelta(minutes=51))
    assert scene.run({A: 500}) == 1


def test_classes_share_a_cache_and_lanes_do_not(scene: Scene) -> None:
    """A lane has its own workspace, and the cache belongs to that."""
    assert scene.run({A: 500}) == 1
    assert scene.run({A: 500}, latency="hourly") == 0
    assert scene.run({A: 500}, lane=OTHER_LANE) == 1


@pytest.mark.parametrize(
    ("fault", "again_after"),
    [
        (LiveCallError("slow down", status=429, limited=True), timedelta(minutes=5)),
        (LiveCallError("no answer"), timedelta(minutes=5)),
        (LiveCallError("cut off", unclear=True), timedelta(minutes=50, seconds=1)),
        (RuntimeError("unforeseen"), timedelta(minutes=50, seconds=1)),
        (reply(OutcomeKind.ERRORED), timedelta(minutes=50)),
    ],
)
def test_a_warm_up_that_fails_is_not_repeated_at_once(
    scene: Scene, fault: Exception | LiveReply, again_after: timedelta
) -> None:
    """Five minutes later; as late as a warm one where it may have been paid, or the API refuses it."""
    scene.api.answers = [fault]

    assert scene.run({A: 500}) == 0
    scene.clock.advance(again_after - timedelta(seconds=1))
    assert scene.run({A: 500}) == 0
    scene.clock.advance(timedelta(seconds=1))
    assert scene.run({A: 500}) == 1


def test_after_a_call_without_an_answer_no_other_is_made(scene: Scene) -> None:
    """The backlog leaves at once, and what was paid before is told."""
    scene.api.answers = [reply(), LiveCallError("overloaded", status=529, limited=True)]

    assert scene.run({A: 30, B: 20, FOREIGN: 40, name_prefix("e" * 32, warmable=True): 10}) == 1
    assert scene.warmed() == [A, B]


def test_a_refusal_is_one_prefixs_own(scene: Scene) -> None:
    """The others are warmed."""
    scene.api.answers = [reply(OutcomeKind.ERRORED)]

    assert scene.run({A: 30, B: 20}) == 1
    assert scene.warmed() == [A, B]


def test_a_store_that_cannot_be_read_does_not_keep_the_backlog(scene: Scene) -> None:
    """The next flush tries again."""
    scene.store.broken = True
    assert scene.run({A: 30}) == 0
    scene.store.broken = False
    assert scene.run({A: 30}) == 1


def test_logs_tell_nothing_of_a_prompt_nor_the_apis_words(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Which may quote one."""
    scene.api.answers = [reply(OutcomeKind.ERRORED), LiveCallError("secret words", status=400)]

    with caplog.at_level(logging.DEBUG):
        scene.run({A: 40, B: 30})

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert not any(word in caplog.text for word in ("secret", A, B, "warm auto"))


def test_one_flush_does_not_wait_for_any_number_of_calls(scene: Scene) -> None:
    """The next flush goes on with the rest."""
    counts = {name_prefix(f"{number:032x}", warmable=True): 10 + number for number in range(MOST_AT_ONCE + 3)}

    assert [scene.run(counts), scene.run(counts), scene.run(counts)] == [MOST_AT_ONCE, 3, 0]
    assert len(set(scene.warmed())) == len(counts)


def test_two_backlogs_that_leave_together_warm_a_prefix_once(scene: Scene) -> None:
    """The second one waits for the first one's call: without it its batch would leave cold."""
    calling, go_on = threading.Event(), threading.Event()
    paid: dict[str, int] = {}

    def held() -> None:
        calling.set()
        assert go_on.wait(30)

    scene.api.on_call = held
    threads = [
        threading.Thread(
            target=lambda latency=latency: paid.update({latency: scene.run({A: 50}, latency=latency)})
        )
        for latency in ("daily", "hourly")
    ]
    for thread in threads:
        thread.start()
    assert calling.wait(30)
    assert paid == {}
    go_on.set()
    for thread in threads:
        thread.join(30)

    assert sorted(paid.values()) == [0, 1]
    assert scene.warmed() == [A]


def test_what_it_costs_is_counted_for_the_class(scene: Scene) -> None:
    """Calls, tokens and price; not of those that the API refused."""
    scene.api.answers = [reply(), reply(OutcomeKind.ERRORED), reply(paid_usd=None)]

    assert scene.run({A: 30, B: 20, name_prefix("e" * 32, warmable=True): 10}) == 2
    assert scene.tally() == ClassTally(
        warm_ups=2,
        warm_up_use=CacheUse(requests=2, input_tokens=6, written_1h_tokens=10_000),
        live_usd={START.date(): Decimal("0.01")},
    )


def test_a_call_that_cannot_be_counted_warms_all_the_same(scene: Scene) -> None:
    """The backlog leaves, and it is not made again."""
    scene.api.on_call = lambda: setattr(scene.store, "broken", True)

    assert scene.run({A: 30}) == 1
    scene.store.broken = False
    assert scene.run({A: 30}) == 0
    assert scene.tally() == ClassTally()


def test_the_backlog_does_not_wait_for_a_slow_answer() -> None:
    """It leaves; the answer is counted when it comes, and no other call is made meanwhile or instead."""
    scene = Scene(patience=timedelta(seconds=0.02))
    go_on = threading.Event()

    def held() -> None:
        assert go_on.wait(30)

    scene.api.on_call = held
    assert scene.run({A: 30, B: 20}) == 0
    wait_until(lambda: scene.warmed() == [A], what="the call to be made")
    assert scene.tally() == ClassTally()
    go_on.set()
    wait_until(lambda: scene.tally().warm_ups == 1, what="the late answer to be counted")
    assert scene.pacer.under_way == 0
    scene.clock.advance(timedelta(minutes=10))
    assert scene.run({A: 30}) == 0
    assert scene.warmed() == [A]


def test_the_time_of_all_calls_together_is_bounded(scene: Scene) -> None:
    """What there is no time for is warmed at the next flush."""
    scene.api.on_call = lambda: scene.clock.advance(timedelta(seconds=8))
    counts = {name_prefix(f"{number:032x}", warmable=True): 20 - number for number in range(5)}

    assert [scene.run(counts), scene.run(counts)] == [3, 2]


def test_nobody_waits_long_for_another_backlogs_calls() -> None:
    """Of the same lane and model; the second one leaves cold rather than late."""
    scene = Scene(patience=timedelta(seconds=0.02))
    reading, go_on = threading.Event(), threading.Event()

    def held() -> None:
        reading.set()
        assert go_on.wait(30)

    scene.store.on_sample = held
    first = threading.Thread(target=lambda: scene.run({A: 50}))
    first.start()
    assert reading.wait(30)
    assert scene.run({A: 50}, latency="hourly") == 0
    go_on.set()
    first.join(30)
    wait_until(lambda: scene.warmed() == [A], what="the first one's call to be made")


@pytest.mark.parametrize("limit", ["most", "by_class"])
def test_a_budget_that_is_used_up_is_kept(limit: str) -> None:
    """By what the store has counted, and by the calls made here; the next day there is a new one."""
    ten_cents = Decimal("0.1")
    scene = Scene(**{limit: ten_cents if limit == "most" else {"daily": ten_cents}})  # type: ignore[arg-type]
    scene.store.count_warm_up("daily", CacheUse(), Decimal("0.08"), START)
    counts = {name_prefix(f"{number:032x}", warmable=True): 20 - number for number in range(5)}

    assert [scene.run(counts), scene.run(counts)] == [2, 0]
    assert scene.run({A: 50}, latency="hourly") == (limit == "by_class")
    scene.clock.advance(timedelta(days=1))
    assert scene.run({B: 50}) == 1


def test_calls_keep_the_pace_of_live_calls() -> None:
    """One that may not begin now is left to the next flush."""
    scene = Scene(requests_per_minute=12)

    assert [scene.run({A: 50, B: 20}), scene.run({A: 50, B: 20})] == [1, 0]
    assert scene.warmed() == [A]
    scene.clock.advance(timedelta(minutes=5))
    assert scene.run({A: 50, B: 20}) == 1
    assert scene.warmed() == [A, B]
    assert scene.pacer.under_way == 0


def test_limits_that_an_answer_names_are_noted(scene: Scene) -> None:
    """The account's are the same for all live calls. What a warm-up takes says nothing of a request."""
    at = START + timedelta(minutes=1)
    allowance = Allowance(limit=50, remaining=49, reset_at=at)
    scene.api.answers = [reply(limits=RateLimits(requests=allowance))]

    assert scene.run({A: 50}) == 1
    assert scene.pacer.knows_limits
    assert scene.pacer.usual(MODEL) == Work(requests=1)


def test_a_refusal_for_too_many_calls_slows_all_live_calls(scene: Scene) -> None:
    """It waits as long as the API asks for."""
    scene.api.answers = [LiveCallError("slow", status=429, limited=True, retry_after=timedelta(minutes=2))]

    assert scene.run({A: 50, B: 20}) == 0
    assert scene.pacer.room(scene.clock.monotonic(), MODEL) == 0
    assert scene.run({B: 20}) == 0
    scene.clock.advance(timedelta(minutes=3))
    assert scene.run({B: 20}) == 1


@pytest.mark.parametrize(
    "fault", [LiveCallError("cap", status=429, spent=True), LiveCallError("no", status=401, credential=True)]
)
def test_what_stops_live_calls_stops_these(scene: Scene, fault: LiveCallError) -> None:
    """A spend limit, and a key that is not accepted."""
    scene.faults.judge(LANE, "req_1", fault)

    assert scene.run({A: 50}) == 0
    assert scene.api.calls == []
    scene.clock.advance(timedelta(hours=2))
    assert scene.run({A: 50}) == 1
