"""Somebody sets the machine's clock: it is noticed, once, whatever the way."""

from __future__ import annotations

import threading

import pytest

from llmrouter.engine import clock_guard
from llmrouter.engine.clock_guard import ClockGuard
from support.waiting import wait_until


class Clocks:
    """One that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall_seconds = 1_800_000_000.0
        self.elapsed = 50.0
        self.jumps: list[float] = []
        self.guard = ClockGuard(
            self.jumps.append, wall=lambda: self.wall_seconds, monotonic=lambda: self.elapsed
        )

    def passes(self, seconds: float) -> None:
        """Both go on."""
        self.wall_seconds += seconds
        self.elapsed += seconds


@pytest.mark.parametrize("by", [-31_536_000, -3600, -5, 5, 3600, 31_536_000])
def test_a_jump_is_told_once(by: float) -> None:
    """With its length and direction."""
    clocks = Clocks()
    clocks.passes(10)
    clocks.wall_seconds += by

    assert [clocks.guard.run_once() for _ in range(3)] == [True, False, False]
    assert clocks.jumps == [pytest.approx(by)]
    clocks.wall_seconds -= by
    assert clocks.guard.run_once()
    assert clocks.jumps[1] == pytest.approx(-by)


def test_time_that_passes_is_no_jump() -> None:
    """However much of it between two looks."""
    clocks = Clocks()
    for seconds in (0, 1, 3600, 86_400 * 30):
        clocks.passes(seconds)
        assert not clocks.guard.run_once()
    assert clocks.jumps == []


def test_small_steps_add_up() -> None:
    """A clock that is set a second at a time has been set all the same."""
    clocks = Clocks()
    told = []
    for _ in range(12):
        clocks.passes(1)
        clocks.wall_seconds += 1
        told.append(clocks.guard.run_once())

    assert told.count(True) == 2
    assert sum(clocks.jumps) == pytest.approx(10)


def test_it_looks_by_itself_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of its own; it may be stopped before it began, and twice."""
    monkeypatch.setattr(clock_guard, "_LOOK_EVERY_SECONDS", 0.01)
    clocks = Clocks()
    clocks.guard.stop()
    clocks = Clocks()
    clocks.guard.start()
    clocks.wall_seconds += 60
    wait_until(lambda: clocks.jumps, what="the jump to be noticed")
    clocks.guard.stop()
    clocks.guard.stop()
    clocks.wall_seconds += 60

    assert not any(thread.name == "llmrouter-clock" for thread in threading.enumerate())
    assert len(clocks.jumps) == 1


def test_a_listener_that_fails_does_not_end_the_looking(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next jump is told as well."""
    monkeypatch.setattr(clock_guard, "_LOOK_EVERY_SECONDS", 0.01)
    clocks = Clocks()
    told = threading.Event()

    def listen(seconds: float) -> None:
        if seconds > 0:
            raise ValueError("odd")
        told.set()

    guard = ClockGuard(listen, wall=lambda: clocks.wall_seconds, monotonic=lambda: clocks.elapsed)
    guard.start()
    clocks.wall_seconds += 60
    wait_until(lambda: "could not make the schedules anew" in caplog.text, what="the failure to be logged")
    clocks.wall_seconds -= 60
    assert told.wait(10)
    guard.stop()


def test_the_listener_may_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own thread, without waiting for itself."""
    monkeypatch.setattr(clock_guard, "_LOOK_EVERY_SECONDS", 0.01)
    clocks = Clocks()
    stopped = threading.Event()

    def stop(_: float) -> None:
        guard.stop()
        stopped.set()

    guard = ClockGuard(stop, wall=lambda: clocks.wall_seconds, monotonic=lambda: clocks.elapsed)
    guard.start()
    clocks.wall_seconds += 60

    assert stopped.wait(10)
