"""The pace of live calls, for all threads of a process."""

from __future__ import annotations

import threading
from datetime import timedelta

from llmrouter.domain.live import Seen
from llmrouter.domain.pacing import Pacer
from llmrouter.domain.rates import RAMP, Work
from llmrouter.engine.pace import Pace
from support.clocks import FakeClock
from support.live_api import FakeLiveApi, limited
from support.requests import LANE, MODEL, body_of


def make(clock: FakeClock, concurrency: int = 40, per_minute: float | None = None) -> Pace:
    """A pace."""
    return Pace(Pacer(concurrency=concurrency, requests_per_minute=per_minute, share=1.0, ramp=RAMP), clock)


def test_no_more_begin_than_are_wanted_or_may() -> None:
    """A tenth at first; what ended or was not sent makes room."""
    pace = make(FakeClock())
    assert pace.begin(MODEL, 3) == 3
    assert pace.begin(MODEL, 100) == 1
    assert pace.begin(MODEL, 100) == 0
    pace.cancel(MODEL, 2)
    pace.end(MODEL, FakeLiveApi().call(LANE, "req_1", body_of("hi")))

    assert pace.begin(MODEL, 100) == 3
    assert pace.ramping


def test_nothing_wanted_is_nothing_begun() -> None:
    """Nor is a number below it."""
    assert make(FakeClock()).begin(MODEL, 0) == 0


def test_whatever_ends_a_call_makes_room() -> None:
    """Also what nobody foresaw."""
    pace = make(FakeClock(), concurrency=1)
    for error in (ValueError("x"), limited(seconds=0)):
        assert pace.begin(MODEL, 1) == 1
        pace.end(MODEL, error)


def test_it_says_until_when_the_api_asked_to_wait() -> None:
    """By the machine's clock."""
    clock = FakeClock()
    pace = make(clock)
    assert pace.waits_until is None
    pace.begin(MODEL, 1)
    pace.end(MODEL, limited(seconds=30))

    assert pace.waits_until == clock.now() + timedelta(seconds=30)
    assert pace.begin(MODEL, 1) == 0
    clock.advance(timedelta(seconds=30))
    assert pace.waits_until is None


def test_what_the_application_uses_is_left_to_it() -> None:
    """Of the limit that was set."""
    clock = FakeClock()
    pace = make(clock, per_minute=60)
    before = pace.rate([MODEL]).requests
    for _ in range(20):
        pace.saw(Seen(model=MODEL, limits=None, work=Work(requests=1), ended_at=clock.now()))

    assert pace.rate([MODEL]).requests < before
    assert pace.knows_limits


def test_threads_do_not_begin_more_than_may() -> None:
    """All of them ask at once."""
    pace = make(FakeClock(), concurrency=200)
    begun: list[int] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        begun.extend(pace.begin(MODEL, 1) for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(begun) == 20
