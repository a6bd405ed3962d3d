"""The prompt cache is warmed before a backlog leaves, and only when it does."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain.scheduling import FlushReason
from llmrouter.engine.flusher import Flusher
from llmrouter.errors import LeaseLostError, StoreBusyError
from support.engine import Bench, allow, refuse
from support.requests import FOREIGN_LANE, OTHER_LANE

if TYPE_CHECKING:
    from llmrouter.domain.requests import Waiting

PREFIX = "auto-" + "a" * 32


class WarmBench(Bench):
    """A bench whose flusher warms, and tells when."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.warmed: list[tuple[str, int, int]] = []
        """Lane, requests that waited then, and batches that had been created."""
        self.trouble: Exception | None = None
        self.flusher = Flusher(self.store, self.api, self.clock, self.limits, max_attempts=3, warm=self._warm)

    def _warm(self, waiting: Waiting) -> None:
        self.warmed.append((waiting.lane.lane_id, self.queued_count(), len(self.api.posted)))
        if self.trouble is not None:
            raise self.trouble


def test_a_backlog_is_warmed_once_before_its_first_batch() -> None:
    """However many batches it becomes."""
    bench = WarmBench(max_requests=4)
    bench.enqueue(10, prefix=PREFIX)

    assert bench.flush() == 3
    assert bench.warmed == [("lane-a", 10, 0)]


def test_each_lane_is_warmed_before_it_leaves() -> None:
    """One that is another process's is not, nor is one whose prompts share nothing."""
    bench = WarmBench()
    bench.enqueue(2, prefix=PREFIX)
    bench.enqueue(2, prefix=PREFIX, lane=OTHER_LANE)
    bench.enqueue(2, prefix=PREFIX, lane=FOREIGN_LANE)
    bench.enqueue(2, latency="nightly")

    assert bench.flush() == 3
    assert [lane_id for lane_id, *_ in bench.warmed] == ["lane-a", "lane-b"]


def test_a_paused_class_is_not_warmed() -> None:
    """It stays."""
    bench = WarmBench()
    bench.enqueue(2, prefix=PREFIX)
    bench.store.pause("daily", bench.clock.now())

    assert (bench.flush(), bench.warmed) == (0, [])
    bench.store.resume("daily")
    assert (bench.flush(), len(bench.warmed)) == (1, 1)


def test_a_lane_that_is_held_back_is_not_warmed() -> None:
    """Its batch would not be taken."""
    bench = WarmBench()
    bench.enqueue(2, prefix=PREFIX)
    bench.api.before_create = refuse(529)
    bench.flush()
    bench.api.before_create = allow

    assert len(bench.warmed) == 1
    assert bench.flush() == 0
    assert len(bench.warmed) == 1
    bench.clock.advance(timedelta(hours=1))
    assert bench.flush() == 1
    assert len(bench.warmed) == 2


def test_nothing_is_warmed_when_the_process_ends() -> None:
    """What has not begun to leave stays."""
    bench = WarmBench()
    bench.enqueue(2, prefix=PREFIX)
    bench.flusher.stopping.set()

    assert (bench.flush(), bench.warmed) == (0, [])


def test_nothing_is_warmed_for_a_store_that_another_process_works_on() -> None:
    """It would do so, too."""
    bench = WarmBench()
    bench.enqueue(2, prefix=PREFIX)
    bench.lose_lease()

    with pytest.raises(LeaseLostError):
        bench.flush()
    assert bench.warmed == []


@pytest.mark.parametrize("trouble", [StoreBusyError("secret"), RuntimeError("secret")])
def test_a_backlog_leaves_whatever_is_wrong_with_its_warm_up(
    trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, without words that may quote a prompt."""
    bench = WarmBench()
    bench.enqueue(2, prefix=PREFIX)
    bench.trouble = trouble

    with caplog.at_level(logging.DEBUG):
        assert bench.flush(FlushReason.DEADLINE) == 1
    assert type(trouble).__name__ in caplog.text
    assert "secret" not in caplog.text


def test_a_flusher_that_is_given_nothing_warms_nothing() -> None:
    """And sends all the same."""
    bench = Bench()
    bench.enqueue(2, prefix=PREFIX)

    assert bench.flush() == 1
