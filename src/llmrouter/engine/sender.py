"""Makes the live calls of requests that go live, and writes their answers down.

Each call has an intent on disk before it begins (`Store.begin_calls`). Its answer is a fact, written
without a lease, whoever works on the store by then. What the API has clearly not done is tried again
when it may fare better; a call whose answer got lost may have been paid for, and is made again only
since nobody can ask for that answer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from llmrouter import failpoints
from llmrouter.domain.batches import Answer, BatchState
from llmrouter.domain.blocks import Hold
from llmrouter.domain.live import LiveCallError
from llmrouter.engine.live_work import LiveWork
from llmrouter.errors import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.live import LiveCall, LiveReply
    from llmrouter.engine.budget import Budget
    from llmrouter.engine.live_faults import LiveFaults
    from llmrouter.engine.pace import Pace
    from llmrouter.ports import Clock, Lease, LiveApi, Store

_AT_ONCE = 32
"""Intents of one transaction: their bodies are in memory from then on."""

_LOOK_SECONDS = 0.05
"""How often it is looked whether a call may begin, while some wait and may not."""

_IDLE_SECONDS = 1.0
_WRITE_SECONDS = 30.0
"""How long a process that ends goes on trying to write the last answers."""

log = logging.getLogger("llmrouter.engine")


class Sender:
    """Sends what goes live, the most urgent first, as fast as the pace allows.

    A thread of its own begins calls and writes answers; the calls are made by others.
    """

    def __init__(
        self,
        store: Store,
        api: LiveApi,
        clock: Clock,
        pace: Pace,
        budget: Budget,
        faults: LiveFaults,
        *,
        concurrency: int,
        on_settled: Callable[[], None],
        executor: Executor | None = None,
    ) -> None:
        """Makes a sender that does nothing yet.

        Args:
            store: Where the requests are.
            api: Where they go.
            clock: The machine's.
            pace: Says how many may begin.
            budget: Says whether any may.
            faults: Judges failed calls.
            concurrency: Calls that may be under way at once.
            on_settled: Called when outcomes were written.
            executor: Makes the calls, and whoever gives it calls `run_once`; None: threads of its own,
                which begin with the first work.
        """
        self._store = store
        self._api = api
        self._clock = clock
        self._pace = pace
        self._budget = budget
        self._faults = faults
        self._concurrency = concurrency
        self._on_settled = on_settled
        self._changed = threading.Condition()
        self.problem: Exception | None = None
        """What went wrong with the store when it last tried; None since then."""
        self._lease: Lease | None = None
        self._works: dict[str, LiveWork] = {}
        """In the order in which they are served."""
        self._done: list[tuple[LiveWork, LiveCall, LiveReply | Exception]] = []
        self._flying = 0
        """Calls whose end was not yet looked at."""
        self._unwritten: list[tuple[LiveWork, Answer]] = []
        self._undone: dict[str, set[str]] = {}
        """Requests whose intent is to be taken back, by the id of their batch."""
        self._looked_at = clock.monotonic()
        self._stopping = False
        self._stop_by: float | None = None
        self._calls = executor
        self._thread: threading.Thread | None = None

    # What others ask of it

    def serve(self, lease: Lease, batches: Sequence[Batch]) -> None:
        """Says what is to be sent: escalating batches, the most urgent first. The last word counts."""
        with self._changed:
            known = dict(self._works)
        # Without the lock: the store may be slow, and calls that end wait for nobody.
        works = {batch.batch_id: self._work_of(batch, known.get(batch.batch_id)) for batch in batches}
        with self._changed:
            self._lease, self._works = lease, works
            if works and self._calls is None and not self._stopping:
                self._start_threads()
            self._changed.notify()

    def left(self, batch_id: str) -> int | None:
        """How many requests of an escalating batch have no answer yet; None for one it does not serve."""
        with self._changed:
            work = self._works.get(batch_id)
            return None if work is None else work.left

    def under_way(self, batch_id: str | None = None) -> int:
        """Calls that are under way: of a batch, or all of them."""
        with self._changed:
            works = [work for name, work in self._works.items() if batch_id in (None, name)]
            return sum(len(work.under_way) for work in works)

    def hold(self) -> tuple[Hold | None, datetime | None]:
        """What stops every call, and until when none is tried; None for what is not so."""
        if self._faults.doubts_spending:
            return Hold.SPEND_CAP, self._faults.spent_until
        return (Hold.BUDGET, None) if self._budget.is_used_up() else (None, None)

    def lane_hold(self, lane_id: str) -> Hold | None:
        """What stops the calls of one lane, but for those that try whether it still does."""
        return self._faults.lane_doubt(lane_id)

    def stop_soon(self) -> None:
        """Begins no more calls."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self) -> None:
        """Begins no more calls, and waits until the answers of those under way are written."""
        self.stop_soon()
        if self._calls is not None:
            self._calls.shutdown(wait=True)
        if self._thread is not None:
            self._thread.join()

    # Its thread

    def _start_threads(self) -> None:
        """Raises RuntimeError when the interpreter ends, and no thread begins any more."""
        thread = threading.Thread(target=self._run, name="llmrouter-sender", daemon=True)
        self._calls = ThreadPoolExecutor(self._concurrency, thread_name_prefix="llmrouter-call")
        try:
            thread.start()
        except RuntimeError:
            self._calls = None
            raise
        self._thread = thread

    def _run(self) -> None:
        while True:
            try:
                self.run_once()
            except LeaseLostError:
                self.problem = None  # Whoever has it now goes on.
            except Exception as error:  # noqa: BLE001  (one bad moment must not end all calls; the worker tells it)
                self.problem = error
                if self._gives_up():
                    return
                with self._changed:
                    self._changed.wait(_IDLE_SECONDS)
            else:
                self.problem = self._stop_by = None
                if self._is_over():
                    return
            self._rest()

    def run_once(self) -> None:
        """Looks at the calls that ended, writes their answers, and begins those that may begin.

        Raises:
            LeaseLostError: Another process works on the store now. Answers that came are written.
            StoreError: The store cannot be used now; what was not written is kept.
        """
        try:
            is_lost = self._take_done()
            self._write()
            self._take_back()
            if not is_lost:
                self._drop_answered()
                self._finish_empty()
                if not self._stopping:
                    self._begin()
        except LeaseLostError:
            self._drop_works()
            raise
        if is_lost:
            self._drop_works()
            raise LeaseLostError("another process has taken over; some calls were not made")

    def _is_over(self) -> bool:
        with self._changed:
            busy = self._flying or self._unwritten or self._undone
            return self._stopping and not busy

    def _gives_up(self) -> bool:
        """Whether the store refuses the last answers for so long that this process ends without them."""
        now = self._clock.monotonic()
        with self._changed:
            last = self._stopping and not self._flying
        if last and self._stop_by is None:
            self._stop_by = now + _WRITE_SECONDS
        if not last or self._stop_by is None or now < self._stop_by:
            return False
        log.error("%d live answers could not be written; they were paid for", len(self._unwritten))
        return True

    def _rest(self) -> None:
        """Waits for an answer, for other work, or until some call may begin."""
        with self._changed:
            if not self._done:
                waits = any(work.waiting or work.paused for work in self._works.values())
                self._changed.wait(_LOOK_SECONDS if waits or self._stopping else _IDLE_SECONDS)

    def _drop_works(self) -> None:
        """Another process works on the store: what is under way here is still written."""
        self._undone.clear()
        with self._changed:
            self._lease = None
            for work in self._works.values():
                work.is_stale = True
                work.drop()

    def _work_of(self, batch: Batch, known: LiveWork | None) -> LiveWork:
        """What is to be sent of a batch: as it is known, or else as the store says."""
        work = known or LiveWork(batch, deque(), is_stale=True)
        if work.is_stale:
            left = list(self._store.unsettled(batch.batch_id))
            with self._changed:
                work.reload(left)
        return work

    def _begin(self) -> None:
        """Begins as many calls as may begin now."""
        with self._changed:
            lease, works = self._lease, list(self._works.values())
        if lease is None or self._faults.spent_until is not None or self._budget.is_used_up():
            return
        now = self._clock.monotonic()
        for work in works:
            with self._changed:
                work.wake(now)
            held = self._faults.lane_hold(work.batch.lane.lane_id) is not None
            if work.waiting and not held and not self._budget.is_used_up(work.batch.latency):
                self._begin_some(lease, work)

    def _begin_some(self, lease: Lease, work: LiveWork) -> None:
        model = work.batch.model
        while not self._stopping and (room := self._pace.begin(model, min(len(work.waiting), _AT_ONCE))):
            with self._changed:
                chosen = work.choose(room)
            calls: Sequence[LiveCall] = ()
            try:
                calls = self._store.begin_calls(lease, work.batch.batch_id, chosen)
            except BaseException:
                with self._changed:
                    work.waiting.extendleft(reversed(chosen))
                raise
            finally:
                # The others were canceled, or answered by their batch.
                with self._changed:
                    self._flying += len(calls)
                    work.under_way.difference_update({*chosen} - {call.request_id for call in calls})
                self._pace.cancel(model, room - len(calls))
            failpoints.reach("calling")
            for call in calls:
                self._start(lease, work, call)
            if len(calls) < room:
                self._on_settled()

    def _start(self, lease: Lease, work: LiveWork, call: LiveCall) -> None:
        def run() -> None:
            came: LiveReply | Exception = LiveCallError("the call broke off", unclear=True)
            try:
                self._store.check_lease(lease)
                came = self._api.call(work.batch.lane, call.request_id, call.body)
                failpoints.reach("answered")
            except Exception as error:  # noqa: BLE001  (whatever it is, it is judged as this call's end)
                came = error
            finally:
                self._end(work, call, came)

        assert self._calls is not None
        try:
            self._calls.submit(run)
        except RuntimeError:  # It has been stopped, or the interpreter ends: nothing was sent.
            self._end(work, call, LiveCallError("the call was not made: this process is stopping"))

    def _end(self, work: LiveWork, call: LiveCall, came: LiveReply | Exception) -> None:
        with self._changed:
            self._done.append((work, call, came))
            self._changed.notify()

    def _take_done(self) -> bool:
        """Turns what calls came to into answers to be written, or into another try.

        True when some were not made since the lease is lost.
        """
        with self._changed:
            done, self._done = self._done, []
            self._flying -= len(done)
        for work, call, came in done:
            self._pace.end(work.batch.model, came)
            if isinstance(came, Exception):
                if self._take_failure(work, call.request_id, came):
                    self._undone.setdefault(work.batch.batch_id, set()).add(call.request_id)
            else:
                self._take_reply(work, call.request_id, came)
        return any(isinstance(came, LeaseLostError) for _, _, came in done)

    def _take_reply(self, work: LiveWork, request_id: str, reply: LiveReply) -> None:
        self._faults.forgive(request_id)
        self._budget.note(work.batch.latency, reply.paid_usd)
        paid_usd = reply.paid_usd
        answer = Answer(request_id=request_id, kind=reply.kind, raw=reply.raw, retry=False, paid_usd=paid_usd)
        self._unwritten.append((work, answer))

    def _take_failure(self, work: LiveWork, request_id: str, error: Exception) -> bool:
        """True when the API has clearly not done the call."""
        said = error.brief if isinstance(error, LiveCallError) else type(error).__name__
        log.warning("a live call was not answered: %s", said, extra={"request_id": request_id})
        verdict = self._faults.judge(work.batch.lane, request_id, error)
        if verdict.answer is not None:
            self._unwritten.append((work, verdict.answer))
            return False
        until = self._clock.monotonic() + verdict.pause.total_seconds() if verdict.pause else None
        with self._changed:
            work.pause(request_id, until)
        return verdict.undone

    def _write(self) -> None:
        """Writes the answers that came; they are kept until the store has them."""
        if not self._unwritten:
            return
        settled = self._store.answer([answer for _, answer in self._unwritten], self._clock.now())
        written, self._unwritten = self._unwritten, []
        with self._changed:
            for work, answer in written:
                work.under_way.discard(answer.request_id)
        if settled.wasted:
            log.info("%d requests were answered by their batch and live: paid twice", settled.wasted)
        log.debug("%d requests were answered live", settled.outcomes)
        self._on_settled()

    def _take_back(self) -> None:
        """Takes the intents of calls back that were not done: made again, they are not paid twice."""
        with self._changed:
            lease = self._lease
        if lease is None:
            self._undone.clear()
        while lease is not None and self._undone:
            batch_id, request_ids = next(iter(self._undone.items()))
            self._store.end_calls(lease, batch_id, request_ids)
            del self._undone[batch_id]

    def _drop_answered(self) -> None:
        """Forgets batches whose requests were all answered otherwise while their calls are held back."""
        now = self._clock.monotonic()
        if now - self._looked_at < _IDLE_SECONDS:
            return
        self._looked_at = now
        with self._changed:
            works = [work for work in self._works.values() if not work.under_way]
        for work in works:
            if next(iter(self._store.unsettled(work.batch.batch_id)), None) is None:
                with self._changed:
                    work.drop()

    def _finish_empty(self) -> None:
        """Closes escalating batches of which nothing is left."""
        with self._changed:
            lease, empty = self._lease, [work for work in self._works.values() if not work.left]
        if lease is None:
            return
        for work in empty:
            left = list(self._store.unsettled(work.batch.batch_id))
            if not left:
                stored = self._store.find_batch(work.batch.batch_id)
                # What is served may have been looked up before it was closed here.
                if stored is not None and stored.state is BatchState.ESCALATING:
                    self._store.finish(lease, stored)
            with self._changed:
                work.waiting.extend(left)
                if not left:
                    self._works.pop(work.batch.batch_id, None)
