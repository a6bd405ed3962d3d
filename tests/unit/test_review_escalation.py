"""What keeps live calls and cancels from doing harm: short windows, an API that is down, refusals."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llmrouter.domain.blocks import Block, BlockKind, Conditions, Rules
from llmrouter.domain.escalation import live_order, plan_latest_starts
from llmrouter.domain.live import LiveCallError, LiveReply
from llmrouter.domain.pacing import Pacer
from llmrouter.domain.rates import PerMinute, Work
from llmrouter.domain.requests import Lane, OutcomeKind
from llmrouter.domain.scheduling import Margin
from llmrouter.engine.live_faults import LiveFaults
from support.clocks import START, FakeClock
from support.engine import Bench

MODEL = "claude-haiku"
MINUTE = timedelta(minutes=1)
LANE = Lane(lane_id="lane", base_url="https://api.example", credential="key", headers=())


def block(name: str, window: timedelta, requests: int) -> Block:
    """Requests that go live, accepted at `START`."""
    return Block(
        block_id=name,
        kind=BlockKind.LIVE,
        work=Work(requests=requests),
        deadline_at=START + window,
        window=window,
    )


@pytest.mark.parametrize("window", [timedelta(seconds=20), timedelta(seconds=40), 2 * MINUTE, 3 * MINUTE])
def test_a_window_shorter_than_the_margin_goes_live_before_what_has_more_time(window: timedelta) -> None:
    """The margin of at least two minutes does not make it late from the first moment on."""
    blocks = [block("hourly", timedelta(hours=1), 200), block("quick", window, 1)]
    plan = plan_latest_starts(START, blocks, Conditions(rate=PerMinute(requests=60.0)), Rules())

    assert [start.insured for start in plan] == [True, True]
    assert live_order(plan)[0].block.block_id == "quick"


def test_the_margin_leaves_half_of_any_window() -> None:
    """From four minutes on it is what docs/policy.md says."""
    margin = Margin(at_least=2 * MINUTE, at_most=60 * MINUTE)
    windows = [timedelta(seconds=10), 3 * MINUTE, 4 * MINUTE, 60 * MINUTE, timedelta(days=7)]

    assert [margin.of(one) for one in windows] == [
        timedelta(seconds=5),
        1.5 * MINUTE,
        2 * MINUTE,
        5 * MINUTE,
        60 * MINUTE,
    ]


def pacer() -> Pacer:
    """No limit is known: only calls under way are limited."""
    return Pacer(concurrency=32, requests_per_minute=None, share=0.8, ramp=MINUTE)


def failing_calls(paced: Pacer, error: LiveCallError, *, seconds: int, since: float = 0.0) -> list[int]:
    """How many calls begin in each minute when each of them fails at once."""
    begun = [0] * (seconds // 60)
    for tenth in range(10 * seconds):
        now = since + tenth / 10
        for _ in range(paced.room(now, MODEL)):
            paced.begin(now, MODEL)
            paced.failed(now, START, MODEL, error)
            begun[tenth // 600] += 1
    return begun


@pytest.mark.parametrize(
    "error",
    [
        LiveCallError("the connection was dropped", unclear=True),
        LiveCallError("no connection"),
        LiveCallError("internal server error", status=500),
    ],
)
def test_while_the_api_answers_nobody_few_calls_are_made(error: LiveCallError) -> None:
    """Thousands of requests that wait would else be sent as fast as their calls fail."""
    begun = failing_calls(pacer(), error, seconds=600)

    assert begun[0] < 200
    assert all(0 < count <= 64 for count in begun[1:])


def test_calls_go_on_at_once_when_the_api_answers_again() -> None:
    """A rate that was not too high is not lowered, and the next failures count from the start."""
    paced, reply = pacer(), answered()
    failing_calls(paced, LiveCallError("internal server error", status=500), seconds=600)
    for _ in range(3):
        paced.begin(700, MODEL)
        paced.end(700, START, MODEL, reply)

    for _ in range(7):
        paced.begin(700, MODEL)
        paced.failed(700, START, MODEL, LiveCallError("internal server error", status=500))
    assert paced.room(700, MODEL) == 32
    paced.begin(700, MODEL)
    paced.failed(700, START, MODEL, LiveCallError("internal server error", status=500))
    assert paced.room(700, MODEL) == 0
    assert paced.room(701, MODEL) == 32


def test_single_failures_between_answers_slow_nothing() -> None:
    """They are the requests' own."""
    paced, reply = pacer(), answered()
    for now in range(600):
        paced.begin(now, MODEL)
        paced.failed(now, START, MODEL, LiveCallError("internal server error", status=500))
        paced.begin(now, MODEL)
        paced.end(now, START, MODEL, reply)

    assert paced.room(600, MODEL) == 32


def answered() -> LiveReply:
    """A message of the API's."""
    return LiveReply(
        kind=OutcomeKind.SUCCEEDED,
        raw=b"{}",
        took=timedelta(seconds=1),
        work=Work(requests=1),
        paid_usd=None,
        limits=None,
    )


def test_a_spend_limit_that_names_no_end_is_asked_about_soon_and_then_less_often() -> None:
    """It may be a 429 whose `retry-after` got lost: an hour would miss every hourly deadline."""
    clock = FakeClock()
    faults = LiveFaults(clock, max_attempts=3)
    lasted = []
    for _ in range(9):
        for request_id in ("one", "two", "three"):  # Under way together, and refused together.
            faults.judge(LANE, request_id, LiveCallError("429", status=429, spent=True))
        until = faults.spent_until
        assert until is not None
        lasted.append((until - clock.now()) / MINUTE)
        clock.advance(until - clock.now())

    assert lasted == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    faults.forgive("one")
    faults.judge(LANE, "one", LiveCallError("429", status=429, spent=True))
    assert faults.spent_until == clock.now() + MINUTE


def test_no_cancel_is_begun_once_the_process_stops() -> None:
    """Each may take a minute while the API hangs, and there may be hundreds."""
    bench = Bench()
    requests = bench.enqueue(1)
    bench.flush()
    requests += bench.enqueue(1)
    bench.flush()
    bench.store.cancel([one.request_id for one in requests], bench.clock.now(), in_batches=True)
    bench.api.before_cancel = lambda *_: bench.canceller.stopping.set()

    assert bench.canceller.run_once(bench.lease) == 1
    assert len(bench.api.cancels) == 1
