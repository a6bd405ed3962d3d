"""The engine on APScheduler's clockwork: inside an application, or as its own process."""

from __future__ import annotations

import logging
import threading
from concurrent import futures
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from llmrouter.domain.latency import CronLine, Interval, name_weekdays
from llmrouter.domain.scheduling import Flush, FlushReason, plan_early_flushes
from llmrouter.engine.lease import RENEW_EVERY
from llmrouter.errors import LeaseLostError, StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from zoneinfo import ZoneInfo

    from apscheduler.job import Job

    from llmrouter.domain.latency import Schedule
    from llmrouter.engine.flusher import Hold
    from llmrouter.ports import Lease
    from llmrouter.wiring import Engine

_WATCH_SECONDS = 1
_POLL_SECONDS = 5
_SWEEP_SECONDS = 30
_THREADS = 3
_FLUSHES = "flushes"

log = logging.getLogger("llmrouter.worker")
_quiet = logging.getLogger("llmrouter.worker.clockwork")
_quiet.setLevel(logging.CRITICAL)
"""APScheduler warns when a job is still busy at its next time, and reports an error when the interpreter
ends before `stop` was called: nothing to tell a user of. What jobs raise goes to `log`."""


class Worker:
    """Runs the parts of the engine while this process holds the lease of the store.

    Any number of processes may have one; the store lets a single one work, and another takes over
    when it ends.
    """

    def __init__(self, engine: Engine, *, poll: timedelta | None, timezone: ZoneInfo | None) -> None:
        """Makes a worker that does nothing yet.

        Args:
            engine: What it runs.
            poll: How often open batches are looked at; None leaves it to their age.
            timezone: Of cron lines; None for the machine's.
        """
        self._engine = engine
        self._flushing = threading.Lock()
        self._callers = futures.ThreadPoolExecutor(1, thread_name_prefix="llmrouter-flush")
        self._reconciled: Lease | None = None
        self._flush_jobs: dict[str, Job] = {}
        self.problems: dict[str, str] = {}
        self._scheduler = BackgroundScheduler(
            # Flushes wait for each other, so one thread is enough; a slow create leaves the rest theirs.
            executors={"default": ThreadPoolExecutor(_THREADS), _FLUSHES: ThreadPoolExecutor(1)},
            logger=_quiet,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            **({} if timezone is None else {"timezone": timezone}),
        )
        self._add_jobs(poll, timezone)

    @property
    def holds(self) -> Mapping[str, Hold]:
        """Lanes that are held back after a refusal, by lane id."""
        return self._engine.flusher.holds

    @property
    def working(self) -> bool:
        """Whether this process holds the lease."""
        return self._engine.keeper.lease is not None

    def start(self) -> None:
        """Takes the lease if it is free, and begins to work."""
        self._guarded("lease", self._keep_lease)
        self._scheduler.start()

    def stop(self) -> None:
        """Ends cleanly: waits for a create or a settle that is under way, and gives the lease back."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        self._callers.shutdown(wait=True)
        self._guarded("lease", self._engine.keeper.release)

    def flush(self) -> int:
        """Sends everything that waits now; answers with the batches it created when it has.

        Where another process works on the store, it is asked to do so, and the answer is 0.
        """
        lease = self._engine.keeper.lease
        if lease is not None:
            try:
                return self._flush_in_thread(lease)
            except LeaseLostError:
                self._engine.keeper.lose()
        self._engine.store.request_flush()
        return 0

    def _flush_in_thread(self, lease: Lease) -> int:
        """Flushes so that Ctrl-C ends the wait, and not a create in the middle of it."""
        try:
            flushing = self._callers.submit(self._flush_all, lease)
        except RuntimeError:
            # The interpreter ends, and no thread begins any more; or this worker has been stopped.
            return self._flush_all(lease) if self._scheduler.running else 0
        return flushing.result()

    def _add_jobs(self, poll: timedelta | None, timezone: ZoneInfo | None) -> None:
        for name, latency in self._engine.classes.items():
            # An interval begins with a flush: of what an earlier process left behind.
            at_once = isinstance(latency.flush, Interval)
            self._flush_jobs[name] = self._add(
                f"flush:{name}", _trigger(latency.flush, timezone), self._flush_class(name), _FLUSHES, at_once
            )
        poll_seconds = _POLL_SECONDS if poll is None else poll.total_seconds()
        self._add("lease", _every(RENEW_EVERY.total_seconds()), self._keep_lease)
        self._add("watch", _every(_WATCH_SECONDS), self._leased(self._watch), _FLUSHES)
        self._add("poll", _every(poll_seconds), self._leased(self._engine.collector.run_once))
        self._add("sweep", _every(_SWEEP_SECONDS), self._leased(self._engine.janitor.run_once))

    def _add(
        self,
        name: str,
        trigger: CronTrigger | IntervalTrigger,
        job: Callable[[], object],
        executor: str = "default",
        at_once: bool = False,
    ) -> Job:
        first = {"next_run_time": datetime.now(UTC)} if at_once else {}
        return self._scheduler.add_job(
            self._guarded, trigger, args=(name, job), id=name, name=name, executor=executor, **first
        )

    def _guarded(self, name: str, job: Callable[[], object]) -> None:
        """Runs a job; whatever goes wrong is logged and shown in the status, and does not end the rest."""
        try:
            job()
        except LeaseLostError as error:
            self._engine.keeper.lose()
            log.warning("%s: %s", name, error)
        except StoreBusyError as error:
            self.problems[name] = str(error)
            log.warning("%s: %s", name, error)
        except Exception as error:
            self.problems[name] = f"{type(error).__name__}: {error}"
            log.exception("%s failed; it will be tried again", name)
        else:
            self.problems.pop(name, None)

    def _leased(self, job: Callable[[Lease], object]) -> Callable[[], None]:
        def run() -> None:
            lease = self._engine.keeper.lease
            if lease is not None:
                job(lease)

        return run

    def _keep_lease(self) -> None:
        lease = self._engine.keeper.run_once(self._engine.clock.now())
        if lease is not None and lease != self._reconciled:
            self._engine.reconciler.run_once(lease)
            self._reconciled = lease

    def _flush_class(self, name: str) -> Callable[[], None]:
        def flush(lease: Lease) -> None:
            backlog = [waiting for waiting in self._engine.store.waiting() if waiting.latency == name]
            self._send(lease, [Flush(waiting=waiting, reason=FlushReason.SCHEDULED) for waiting in backlog])

        return self._leased(flush)

    def _watch(self, lease: Lease) -> None:
        if self._engine.store.take_flush_request(lease):
            self._flush_all(lease)
            return
        flushes = plan_early_flushes(
            self._engine.clock.now(),
            self._engine.store.waiting(),
            self._engine.classes,
            self._engine.limits,
            self._next_slots(),
            self._engine.margin,
        )
        self._send(lease, flushes)

    def _flush_all(self, lease: Lease) -> int:
        backlog = self._engine.store.waiting()
        return self._send(lease, [Flush(waiting=waiting, reason=FlushReason.ASKED) for waiting in backlog])

    def _send(self, lease: Lease, flushes: list[Flush]) -> int:
        # One at a time: two flushes of a lane would only split its batches.
        with self._flushing:
            return self._engine.flusher.run_once(lease, flushes)

    def _next_slots(self) -> dict[str, datetime]:
        # Not by get_job: it takes a lock that the scheduler keeps while it waits for this job to end.
        slots = {name: getattr(job, "next_run_time", None) for name, job in self._flush_jobs.items()}
        return {name: slot for name, slot in slots.items() if slot is not None}


def _every(seconds: float) -> IntervalTrigger:
    return IntervalTrigger(seconds=seconds)


def _trigger(schedule: Schedule, timezone: ZoneInfo | None) -> CronTrigger | IntervalTrigger:
    if isinstance(schedule, CronLine):
        return CronTrigger.from_crontab(name_weekdays(schedule.line), timezone)
    return _every(schedule.every.total_seconds())
