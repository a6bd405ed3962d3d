"""The engine on APScheduler's clockwork: inside an application, or as its own process."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from concurrent import futures
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from llmrouter.domain.latency import CronLine, Interval, name_weekdays
from llmrouter.domain.reporting import EngineReport
from llmrouter.domain.scheduling import Flush, FlushReason, plan_early_flushes
from llmrouter.engine.clock_guard import ClockGuard
from llmrouter.engine.lease import RENEW_EVERY
from llmrouter.errors import LeaseLostError, LlmrouterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from zoneinfo import ZoneInfo

    from apscheduler.job import Job

    from llmrouter.domain.latency import Schedule
    from llmrouter.domain.reporting import Hold, LiveReport
    from llmrouter.ports import Lease
    from llmrouter.wiring import Engine

_WATCH_SECONDS = 1
_POLL_SECONDS = 5
_SWEEP_SECONDS = 30
_PRUNE_SECONDS = 3600
_THREADS = 6
_ALONE = "alone"
"""The executor of what keeps the lease: nothing may make it wait for a thread."""
_CREATES = 8
"""Backlogs that may leave side by side: a create that hangs holds back its own lane and class only."""

log = logging.getLogger("llmrouter.worker")
_quiet = logging.getLogger("llmrouter.worker.clockwork")
_quiet.setLevel(logging.CRITICAL)
"""APScheduler warns when a job is still busy at its next time, and reports an error when the interpreter
ends before `stop` was called: nothing to tell a user of. What jobs raise goes to `log`."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A job, and what makes its times anew when the machine's clock was set."""

    name: str
    job: Callable[[], object]
    trigger: Callable[[], CronTrigger | IntervalTrigger]
    at_once: bool = False
    executor: str = "default"


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
        self._creates = futures.ThreadPoolExecutor(_CREATES, thread_name_prefix="llmrouter-create")
        self._leaving: dict[tuple[str, ...], futures.Future[int]] = {}
        self._again: dict[tuple[str, ...], Flush] = {}
        self._leaving_lock = threading.Lock()
        self._escalating = threading.Lock()
        self._reported: tuple[object, ...] = ()
        self._flush_jobs: dict[str, Job] = {}
        self.problems: dict[str, str] = {}
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(_THREADS), _ALONE: ThreadPoolExecutor(1)},
            logger=_quiet,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            **({} if timezone is None else {"timezone": timezone}),
        )
        self._tasks = self._all_tasks(poll, timezone)
        for task in self._tasks:
            self._add(task)
        self._guard = ClockGuard(self._schedule_anew)

    @property
    def holds(self) -> Mapping[str, Hold]:
        """Lanes that are held back after a refusal, by lane id."""
        return self._engine.flusher.holds.all()

    @property
    def live(self) -> LiveReport | None:
        """What the escalator last saw; None before it has looked, or when another process works."""
        return self._engine.escalator.report if self.working else None

    @property
    def working(self) -> bool:
        """Whether this process holds the lease."""
        return self._engine.keeper.lease is not None

    def start(self) -> None:
        """Takes the lease if it is free, and begins to work."""
        self._guarded("lease", self._keep_lease)
        self._scheduler.start()
        self._guard.start()

    def stop(self) -> None:
        """Ends cleanly: waits for a create or a settle that is under way, and gives the lease back."""
        self._guard.stop()
        self._engine.flusher.stopping.set()
        self._engine.canceller.stopping.set()
        self._engine.sender.stop_soon()
        # A create may take longer than the lease lasts.
        with self._engine.keeper.prolonging(self._engine.clock):
            if self._scheduler.running:
                self._scheduler.shutdown(wait=True)
            # Those that have not begun find that it is stopping. Canceled, they would be waited for in vain.
            self._creates.shutdown(wait=True)
            self._engine.sender.stop()
        self._guarded("tidy", lambda: self._engine.flusher.creator.tidy(self._engine.keeper.lease))
        self._guarded("lease", self._engine.keeper.release)

    def flush(self, *, wait: bool = True) -> int:
        """Sends everything that waits now; answers with the batches it created when it has.

        Where another process works on the store, it is asked to do so, and the answer is 0.

        Args:
            wait: False: do not wait for the creates, and answer 0.
        """
        lease = self._engine.keeper.lease
        if lease is not None:
            try:
                if wait:  # What is leaving may leave some of it behind.
                    with self._leaving_lock:
                        leaving = list(self._leaving.values())
                    futures.wait(leaving)
                leaving = self._flush_all(lease)
                if not wait:
                    return 0
                futures.wait(leaving)
                return sum(one.result() for one in leaving if not one.cancelled())
            except LeaseLostError:
                self._engine.keeper.lose()
        self._engine.store.request_flush()
        return 0

    def prune(self, older_than: timedelta | None, *, undelivered: bool) -> int | None:
        """See `llmrouter.engine.janitor.Janitor.prune`; None where another process works on the store."""
        lease = self._engine.keeper.lease
        return (
            None if lease is None else self._engine.janitor.prune(lease, older_than, undelivered=undelivered)
        )

    def _all_tasks(self, poll: timedelta | None, timezone: ZoneInfo | None) -> list[_Task]:
        engine = self._engine
        look_every = _every(_POLL_SECONDS if poll is None else poll.total_seconds())
        # Who wants to hear of answers sooner wants deadlines kept as closely.
        watch_every = _every(_WATCH_SECONDS if poll is None else min(_WATCH_SECONDS, poll.total_seconds()))
        tasks = [
            # An interval begins with a flush: of what an earlier process left behind.
            _Task(
                f"flush:{name}",
                self._flush_class(name),
                _trigger(latency.flush, timezone),
                at_once=isinstance(latency.flush, Interval),
            )
            for name, latency in engine.classes.items()
        ]
        return [
            *tasks,
            _Task("lease", self._keep_lease, _every(RENEW_EVERY.total_seconds()), executor=_ALONE),
            _Task("watch", self._watch, watch_every),
            _Task("poll", self._leased(engine.collector.run_once), look_every, at_once=True),
            _Task("cancel", self._leased(engine.canceller.run_once), watch_every),
            _Task("reconcile", self._leased(engine.reconciler.run_once), look_every, at_once=True),
            _Task("sweep", self._leased(engine.janitor.run_once), _every(_SWEEP_SECONDS)),
            _Task("prune", self._leased(engine.janitor.prune), _every(_PRUNE_SECONDS)),
        ]

    def _add(self, task: _Task) -> None:
        first = {"next_run_time": datetime.now(UTC)} if task.at_once else {}
        job = self._scheduler.add_job(
            self._guarded,
            task.trigger(),
            args=(task.name, task.job),
            id=task.name,
            name=task.name,
            executor=task.executor,
            **first,
        )
        kind, _, latency = task.name.partition(":")
        if kind == "flush":
            self._flush_jobs[latency] = job

    def _schedule_anew(self, seconds: float) -> None:
        """The machine's clock was set, or it slept.

        What was scheduled by the old clock would come hours late when it was set back. Forward,
        what has become due by it is due.
        """
        log.warning("the machine's clock went %+.0f s", seconds)
        self._engine.reconciler.note_clock()
        if seconds < 0:
            for task in self._tasks:
                self._guarded("clock", partial(self._reschedule, task, timedelta(seconds=seconds)))

    def _reschedule(self, task: _Task, jump: timedelta) -> None:
        """By the new clock: a cron line's next time, or what was left of an interval."""
        trigger, job = task.trigger(), self._scheduler.get_job(task.name)
        if job is None:
            return
        if isinstance(trigger, CronTrigger):
            self._scheduler.reschedule_job(task.name, trigger=trigger)
        else:
            now = datetime.now(UTC)
            due = max(job.next_run_time.astimezone(UTC) + jump, now)
            self._scheduler.modify_job(task.name, trigger=trigger, next_run_time=due)

    def _guarded(self, name: str, job: Callable[[], object]) -> None:
        """Runs a job; whatever goes wrong is logged and shown in the status, and does not end the rest."""
        with contextlib.suppress(Exception):  # `_noted` has told of it, and the next run may fare better.
            self._noted(name, job)

    def _noted(self, name: str, job: Callable[[], object]) -> None:
        """Runs a job, and notes what goes wrong."""
        try:
            job()
        except LeaseLostError as error:
            self._engine.keeper.lose()
            log.warning("%s: %s", name, error)
            raise
        except Exception as error:
            self._note_problem(name, error)
            raise
        else:
            self.problems.pop(name, None)

    def _note_problem(self, name: str, error: Exception) -> None:
        """Logs a problem when it is new: a full disk would fill the log too."""
        said = str(error) if isinstance(error, LlmrouterError) else type(error).__name__
        if self.problems.get(name) != said:
            # The place without the words, which may be of a prompt or an answer.
            place = "" if isinstance(error, LlmrouterError) else "\n" + _place(error)
            log.error("%s failed; it will be tried again: %s%s", name, said, place)
        self.problems[name] = said

    def _leased(self, job: Callable[[Lease], object]) -> Callable[[], None]:
        def run() -> None:
            lease = self._engine.keeper.lease
            if lease is not None:
                job(lease)

        return run

    def _keep_lease(self) -> None:
        engine = self._engine
        lease = engine.keeper.run_once(engine.clock.now())
        if lease is None:
            return
        holds = tuple(engine.flusher.holds.all().values())
        said = (lease, holds, tuple(self.problems.items()), self.live)
        if said != self._reported:
            report = EngineReport(
                at=engine.clock.now(), holds=holds, problems=dict(self.problems), live=self.live
            )
            engine.store.report(lease, report)
            self._reported = said

    def _flush_class(self, name: str) -> Callable[[], None]:
        def flush(lease: Lease) -> None:
            # What has no time for a batch goes live, and is not sent off just before that.
            self._guarded("escalate", partial(self._escalate, lease))
            backlog = [waiting for waiting in self._engine.store.waiting() if waiting.latency == name]
            self._send(lease, [Flush(waiting=one, reason=FlushReason.SCHEDULED) for one in backlog])

        return self._leased(flush)

    def _watch(self) -> None:
        engine, lease = self._engine, self._engine.keeper.lease
        engine.flusher.creator.tidy(lease)
        if lease is None:
            return
        self._guarded("escalate", partial(self._escalate, lease))
        if engine.store.take_flush_request(lease):
            self._flush_all(lease)
            return
        flushes = plan_early_flushes(
            engine.clock.now(),
            engine.store.waiting(),
            engine.classes,
            engine.limits,
            self._next_slots(),
            engine.margin,
            reserve=engine.escalator.reserve,
        )
        self._send(lease, flushes)

    def _escalate(self, lease: Lease) -> None:
        engine = self._engine
        with self._escalating:
            engine.escalator.run_once(lease)
        for name, latency in engine.classes.items():
            engine.limits[name] = engine.limit_of(latency, engine.escalator.per_minute)
        if engine.sender.problem is not None:
            raise engine.sender.problem

    def _flush_all(self, lease: Lease) -> list[futures.Future[int]]:
        self._guarded("escalate", partial(self._escalate, lease))
        backlog = self._engine.store.waiting()
        return self._send(lease, [Flush(waiting=waiting, reason=FlushReason.ASKED) for waiting in backlog])

    def _send(self, lease: Lease, flushes: Iterable[Flush]) -> list[futures.Future[int]]:
        """Lets each backlog leave in a thread of its own, unless it is leaving already.

        What somebody asked for leaves again then: a thread that only waits for its turn would be
        missing to the others.
        """
        return [self._start(lease, flush) for flush in flushes if not self._is_leaving(flush)]

    def _is_leaving(self, flush: Flush) -> bool:
        with self._leaving_lock:
            leaving = flush.name in self._leaving
            if leaving and flush.reason is FlushReason.ASKED:
                self._again[flush.name] = flush
            return leaving

    def _start(self, lease: Lease, flush: Flush) -> futures.Future[int]:
        def run() -> int:
            created = 0

            def leave() -> None:
                nonlocal created
                created = self._engine.flusher.run_once(lease, flush)

            self._noted(f"create:{flush.waiting.latency}", leave)
            return created

        try:
            leaving = self._creates.submit(run)
        except RuntimeError:
            # The interpreter ends, and no thread begins any more; or this worker has been stopped.
            leaving = futures.Future()
            leaving.set_result(run() if self._scheduler.running else 0)
            return leaving
        with self._leaving_lock:
            self._leaving[flush.name] = leaving
        leaving.add_done_callback(lambda done: self._forget(flush.name, done))
        return leaving

    def _forget(self, name: tuple[str, ...], done: futures.Future[int]) -> None:
        with self._leaving_lock:
            if self._leaving.get(name) is done:
                del self._leaving[name]
            again, lease = self._again.pop(name, None), self._engine.keeper.lease
        if again is not None and lease is not None:
            self._start(lease, again)

    def _next_slots(self) -> dict[str, datetime]:
        # Not by get_job: it takes a lock that the scheduler keeps while it waits for this job to end.
        slots = {name: getattr(job, "next_run_time", None) for name, job in self._flush_jobs.items()}
        return {name: slot for name, slot in slots.items() if slot is not None}


def _place(error: Exception) -> str:
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()


class _EveryTrigger(IntervalTrigger):  # type: ignore[misc]
    """An interval that skips what was missed: a year slept over is 30 million seconds, each one listed."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The next time, at most one interval before ``now``."""
        following: datetime | None = super().get_next_fire_time(previous_fire_time, now)
        if following is None or following >= now:
            return following
        interval: timedelta = self.interval
        return following + (now - following) // interval * interval


def _every(seconds: float) -> Callable[[], IntervalTrigger]:
    return lambda: _EveryTrigger(seconds=seconds)


def _trigger(schedule: Schedule, timezone: ZoneInfo | None) -> Callable[[], CronTrigger | IntervalTrigger]:
    if isinstance(schedule, CronLine):
        line = name_weekdays(schedule.line)
        return lambda: CronTrigger.from_crontab(line, timezone)
    return _every(schedule.every.total_seconds())
