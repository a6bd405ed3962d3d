"""A small world for the engine: an API with books, routers in one workspace, processes that can be killed.

Everything happens in one thread. A process reaches its store and the API through calls that are
counted, so a test can have it die, or stand still while the others go on, before or after any of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter.domain.batches import BatchState, Listing
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.requests import OutcomeKind, RequestState
from llmrouter.domain.scheduling import Flush, FlushReason
from llmrouter.engine.canceller import Canceller
from llmrouter.engine.collector import Collector
from llmrouter.engine.flusher import Flusher
from llmrouter.engine.janitor import Janitor
from llmrouter.engine.lease import LeaseKeeper
from llmrouter.engine.reconciler import Reconciler
from llmrouter.errors import (
    CreateError,
    CreateRefusedError,
    CreateUnclearError,
    LeaseLostError,
    StoreBusyError,
)
from support.batch_api import line
from support.clocks import FakeClock
from support.engine import GRACE, RETENTION, Inline, WireApi, make_escalation
from support.live_api import (
    FakeLiveApi,
    LostBeforeError,
    failed,
    limited,
    lost,
    not_connected,
    spent,
    unauthorized,
)
from support.requests import DAILY, LANE, OTHER_LANE, queued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from llmrouter.domain.batches import ProviderBatch, ResultLine
    from llmrouter.domain.requests import Lane, Outcome
    from llmrouter.ports import BatchBody, Lease, Store
    from support.batch_api import Posted

LANES = (LANE, OTHER_LANE)
CLASSES = ("daily", "hourly")
MOST = 3
"""Requests of the largest batch: small, so that batches of many owners have the same size."""
MAX_ATTEMPTS = 2

PARTS = ("lease", "tidy", "escalate", "send", "cancel", "flush", "reconcile", "poll", "sweep", "prune")
CALLS = {
    "claim": "flush",
    "create": "flush",
    "record_created": "flush",
    "update_batch": "reconcile",
    "listed": "reconcile",
    "known_batches": "reconcile",
    "release": "reconcile",
    "describe": "poll",
    "results": "poll",
    "settle": "poll",
    "delete": "poll",
    "finish": "poll",
    "cancel": "cancel",
    "escalate_waiting": "escalate",
    "escalate_batch": "escalate",
    "note_decision": "escalate",
    "begin_calls": "send",
    "check_lease": "send",
    "call": "send",
    "answer": "send",
    "end_calls": "send",
}
"""Calls that matter most, and what makes them."""
TURN = ("lease", "tidy", "escalate", "send", "send", "cancel", "flush", "reconcile", "poll", "send")
"""What a process does all the time."""

_LIFE = timedelta(hours=24)
_READABLE = timedelta(days=29)
_RUN_OUT = timedelta(seconds=31)
"""After so long a lease that was not prolonged has run out."""

FAULTS: Mapping[str, Callable[[], CreateError]] = {
    "400": lambda: CreateRefusedError("HTTP 400", status=400, blames_content=True),
    "400 naming": lambda: CreateRefusedError("HTTP 400", status=400, blames_content=True, names_request=True),
    "401": lambda: CreateRefusedError("HTTP 401", status=401, credential=True),
    "413": lambda: CreateRefusedError("HTTP 413", status=413, blames_content=True),
    "429": lambda: CreateRefusedError(
        "HTTP 429", status=429, limited=True, retry_after=timedelta(seconds=40)
    ),
    "spent": lambda: CreateRefusedError("HTTP 400 usage limits", status=400, spent=True),
    "not connected": lambda: CreateRefusedError("the batch was not created: ConnectError"),
    "unclear": lambda: CreateUnclearError("no clear answer: ReadTimeout"),
    "unclear, created": lambda: CreateUnclearError("no clear answer: HTTP 504", status=504),
}
"""What can come of the next create. Those that blame the content do it once, whatever is in it."""


LIVE_FAULTS: Mapping[str, Callable[[], Exception | OutcomeKind]] = {
    "400": lambda: OutcomeKind.ERRORED,
    "401": unauthorized,
    "429": lambda: limited(seconds=40),
    "429 without a word": limited,
    "500": failed,
    "529": lambda: limited(status=529),
    "spent": spent,
    "not connected": not_connected,
    "lost": lost,
    "lost before": LostBeforeError,
    "unforeseen": lambda: KeyError("usage"),
}
"""What can come of the next live call."""
MOST_USD = Decimal(3)
"""What the second router may spend on live calls a day: six calls, and those that are under way."""


def fault_named(name: str) -> CreateError:
    """What a create raises."""
    return FAULTS[name]()


class Crash(BaseException):
    """The process is dead; nothing it does from now on happens."""


class Workspace(WireApi):
    """The API as routers in one workspace meet it, with its troubles and its books."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.faults: list[str] = []
        """Of the next creates."""
        self.bad: set[str] = set()
        """Requests that the API refuses at once, and any batch with them."""
        self.names_bad = False
        """Whether it says which one it is."""
        self.lag = timedelta(0)
        """How long a batch is missing in the list after its create."""
        self.down_until: datetime | None = None
        self.cut_until: datetime | None = None
        self.cut_after = 0
        """How many lines of results come while they are cut."""
        self.shy_until: datetime | None = None
        """Until then batches are not found by their ids."""
        self.read = self._cut

    def create(self, lane: Lane, body: BatchBody) -> ProviderBatch:
        """See `BatchApi.create`."""
        if self._lasts(self.down_until):
            raise fault_named("not connected")
        fault = self.faults.pop(0) if self.faults else None
        self.before_create = lambda items: self._refuse(items, fault)
        described = super().create(lane, body)
        if fault is not None:
            raise fault_named(fault)
        return described

    def describe(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        """See `BatchApi.describe`."""
        self._reach()
        return {} if self._lasts(self.shy_until) else super().describe(lane, wanted)

    def listed(self, lane: Lane, since: datetime) -> Listing:
        """See `BatchApi.listed`."""
        self._reach()
        listing = super().listed(lane, since)
        newest, oldest = self.now() - self.lag, self.now() - _READABLE
        shown = tuple(one for one in listing.batches if oldest < one.created_at <= newest)
        return Listing(batches=shown, listed_at=listing.listed_at)

    def cancel(self, lane: Lane, provider_batch_id: str) -> None:
        """See `BatchApi.cancel`."""
        self._reach()
        super().cancel(lane, provider_batch_id)

    def delete(self, lane: Lane, provider_batch_id: str) -> None:
        """See `BatchApi.delete`."""
        self._reach()
        super().delete(lane, provider_batch_id)

    def results(self, lane: Lane, provider_batch_id: str) -> Iterator[ResultLine]:
        """See `BatchApi.results`."""
        self._reach()
        if self.named(provider_batch_id).created_at < self.now() - _READABLE:
            response = httpx2.Response(404, request=httpx2.Request("GET", "http://api"))
            raise anthropic.NotFoundError("no results any more", response=response, body=None)
        yield from super().results(lane, provider_batch_id)

    def named(self, provider_batch_id: str) -> Posted:
        """A batch by its id."""
        return next(one for one in self.posted if one.provider_batch_id == provider_batch_id)

    def running(self) -> list[Posted]:
        """Batches that have not ended."""
        return [posted for posted in self.posted if posted.ended_at is None]

    def finish(self, posted: Posted, ends: Sequence[tuple[str, str | None]]) -> None:
        """Ends a batch: its requests by turns as ``ends`` says; a cancel was in time for some."""
        posted.lines = []
        for place, name in enumerate(posted.custom_ids):
            kind, error_type = ends[place % len(ends)]
            if posted.canceled_at is not None and kind != "succeeded":
                kind, error_type = "canceled", None
            posted.lines.append(line(name, kind, error_type))
        self.end(posted)

    def expire(self) -> None:
        """Ends what has run for a day."""
        for posted in self.running():
            if self.now() - posted.created_at >= _LIFE:
                self.finish(posted, [("expired", None)])

    def heal(self) -> None:
        """All goes well from now on."""
        self.faults, self.lag = [], timedelta(0)
        self.down_until = self.cut_until = self.shy_until = None

    def charges(self) -> Counter[str]:
        """How often each request was paid for, by our ids."""
        return Counter(
            one.custom_id.rpartition("-")[0]
            for posted in self.posted
            for one in posted.lines or ()
            if one.kind == "succeeded"
        )

    def _refuse(self, items: list[dict[str, Any]], fault: str | None) -> None:
        if any(item["custom_id"].rpartition("-")[0] in self.bad for item in items):
            raise fault_named("400 naming" if self.names_bad else "400")
        if fault is not None and fault != "unclear, created":
            raise fault_named(fault)

    def _cut(self, _: Posted, lines: list[ResultLine]) -> list[ResultLine]:
        return lines[: self.cut_after] if self._lasts(self.cut_until) else lines

    def _lasts(self, until: datetime | None) -> bool:
        return until is not None and self.now() < until

    def _reach(self) -> None:
        if self._lasts(self.down_until):
            raise anthropic.APIConnectionError(request=httpx2.Request("GET", "http://api"))


class Counted:
    """A store or an API as one process reaches it: each call is counted before and after."""

    def __init__(self, target: object, process: Process, *, is_store: bool) -> None:
        self._target = target
        self._process = process
        self._is_store = is_store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*args: Any, **options: Any) -> Any:
            self._process.count(f"before {name}")
            if self._is_store:
                self._process.meet_lock()
            else:
                self._process.check_owner(name, args)
            if name == "create":
                args = (args[0], _CountedBody(args[1], self._process))
            answer = method(*args, **options)
            self._process.note(name, args, answer)
            # Between its last look at the lease and the end of its create a process must not stand
            # still for longer than the grace time: nobody could tell that it is not dead.
            self._process.count(f"after {name}", may_rest=name != "check_lease")
            return self._lines(name, answer) if name == "results" else answer

        return call

    def _lines(self, name: str, lines: Iterator[Any]) -> Iterator[Any]:
        for one in lines:
            self._process.count(f"amid {name}")
            yield one


class _CountedBody:
    """A body whose pieces are counted as they go out, but for the last."""

    def __init__(self, body: BatchBody, process: Process) -> None:
        self._body = body
        self._process = process
        self.content_length = body.content_length

    def __iter__(self) -> Iterator[bytes]:
        left = self.content_length
        for piece in self._body:
            left -= len(piece)
            if left:
                self._process.count("amid create")
            yield piece


@dataclass
class Process:
    """An engine that works on a router's store."""

    router: OneRouter
    name: str
    dead: bool = False
    fuse: int | str | None = None
    """So many calls from now on, or at the next one of this name, it dies or stands still."""
    rest: Callable[[], None] | None = None
    """What the others do while it stands still; None: it dies."""
    locked: int = 0
    """So many of its next calls to the store find it locked."""
    met_lock: bool = False
    doing: list[str] = field(default_factory=list)
    paid: Counter[str] = field(default_factory=Counter)
    """Live answers that came and are not yet written, by request."""

    def __post_init__(self) -> None:
        world = self.router.world
        self.kept = self.router.opening()
        store: Any = Counted(self.kept, self, is_store=True)
        api: Any = Counted(world.api, self, is_store=False)
        limits = dict.fromkeys(CLASSES, BatchLimits(max_requests=MOST))
        self.store = store
        self.clock = world.clock
        self.keeper = LeaseKeeper(store)
        self.flusher = Flusher(store, api, world.clock, limits, max_attempts=MAX_ATTEMPTS)
        live: Any = Counted(world.live, self, is_store=False)
        parts = make_escalation(
            store,
            live,
            world.clock,
            executor=Inline(),
            classes=dict.fromkeys(CLASSES, DAILY),
            most=MOST_USD if self.router.deletes else None,
            max_attempts=MAX_ATTEMPTS,
        )
        self.sender, self.escalator = parts.sender, parts.escalator
        self.collector = Collector(
            store,
            api,
            world.clock,
            fixed_poll=True,
            max_attempts=MAX_ATTEMPTS,
            delete_after_collect=self.router.deletes,
            leftover=self.escalator.leftover,
        )
        self.reconciler = Reconciler(
            store, api, world.clock, grace=GRACE, under_way=self.flusher.creator.under_way
        )
        self.canceller = Canceller(store, api, world.clock)
        self.janitor = Janitor(store, world.clock, RETENTION)

    def run(self, *parts: str) -> None:
        """Does some of its work, as the worker would."""
        try:
            for part in parts:
                if part not in self.doing and not self.dead:
                    self._run(part)
        except Crash:
            assert self.dead
            self.kept.close()

    def die(self) -> None:
        """Ends it between two calls."""
        self.dead = True
        self._forget()
        if not self.doing:
            self.kept.close()

    def count(self, name: str, *, may_rest: bool = True) -> None:
        """A call is about to be made, or has been."""
        if self.dead:
            raise Crash(name)
        if isinstance(self.fuse, int):
            self.fuse -= 1
        if self.fuse is None or (self.fuse >= 0 if isinstance(self.fuse, int) else self.fuse != name):
            return
        if self.rest is None:
            self.dead = True
            self._forget()
            raise Crash(name)
        if may_rest:
            rest, self.rest, self.fuse = self.rest, None, None
            rest()
            if self.dead:
                raise Crash(name)

    def note(self, name: str, args: tuple[Any, ...], answer: Any) -> None:
        """Keeps the books of what was raced, called again, answered and written."""
        match name:
            case "call" if answer.kind is OutcomeKind.SUCCEEDED:
                self.paid[args[1]] += 1
            case "answer":
                written = Counter(one.request_id for one in args[0] if one.kind is OutcomeKind.SUCCEEDED)
                self.router.written += written
                self.paid -= written
            case "begin_calls":
                self.router.again.update(call.request_id for call in answer if call.again)
                begun = self.router.begun.setdefault(args[1], set())
                begun.update(call.request_id for call in answer)
            case "end_calls":
                self.router.begun[args[1]] -= set(args[2])
            case "release":
                begun = self.router.begun.pop(args[1], set())
                queued = {
                    view.request_id
                    for one in begun
                    if (view := self.kept.find(one)) and view.state == "queued"
                }
                self.router.again.update(queued)
            case "escalate_batch" if answer is not None:
                self.router.raced.update(self.kept.unsettled(answer.batch_id))

    def _forget(self) -> None:
        """It is dead: so are the answers that it had not written."""
        self.router.forgotten += self.paid
        self.router.is_disturbed = True
        self.paid = Counter()

    def meet_lock(self) -> None:
        """Other processes may keep the store locked."""
        if self.locked:
            self.locked -= 1
            self.met_lock = True
            raise StoreBusyError("locked")

    def check_owner(self, name: str, args: tuple[Any, ...]) -> None:
        """No router touches another's batches."""
        if name in ("cancel", "delete"):
            assert self.router.owns(self.router.world.api.named(args[1])), f"{name} of another's batch"

    def _run(self, part: str) -> None:
        self.doing.append(part)
        self.met_lock = False
        try:
            if part == "lease":
                if self.keeper.run_once(self.clock.now()) is None:
                    self.flusher.creator.tidy(None)
            elif part == "send":
                self.sender.run_once()
            elif self.keeper.lease is not None:
                self._work(part, self.keeper.lease)
        except LeaseLostError:
            self.keeper.lose()
        except StoreBusyError:
            assert self.met_lock
        finally:
            self.doing.pop()

    def _work(self, part: str, lease: Lease) -> None:
        match part:
            case "tidy":
                self.flusher.creator.tidy(lease)
            case "escalate":
                self.escalator.run_once(lease)
            case "cancel":
                self.canceller.run_once(lease)
            case "flush":
                for waiting in self.store.waiting():
                    self.flusher.run_once(lease, Flush(waiting=waiting, reason=FlushReason.SCHEDULED))
            case "reconcile":
                self.reconciler.run_once(lease)
            case "poll":
                self.collector.run_once(lease)
            case "sweep":
                self.janitor.run_once(lease)
            case "prune":
                self.janitor.prune(lease)
            case _:
                raise AssertionError(part)


class OneRouter:
    """A store, the processes that work on it, and what was promised to those who submitted."""

    def __init__(self, world: World, name: str, opening: Callable[[], Store], *, deletes: bool) -> None:
        self.world = world
        self.name = name
        self.opening = opening
        self.deletes = deletes
        self.store = opening()
        self.accepted: list[str] = []
        self.outcomes: dict[str, Outcome] = {}
        self.cursor = self.store.outcome_cursor()
        self.processes: list[Process] = []
        self.raced: Counter[str] = Counter()
        """How often each request was taken out of a batch that might answer."""
        self.again: Counter[str] = Counter()
        """How often it was to be sent again though the end of an earlier call for it was not known."""
        self.begun: dict[str, set[str]] = {}
        """Requests with an intent, by the id of their escalating batch."""
        self.written: Counter[str] = Counter()
        """Live answers that the store has, the wasted ones too."""
        self.forgotten: Counter[str] = Counter()
        """Live answers that a process died with."""
        self.is_disturbed = False
        """Whether a process died, or another one took over."""
        self.born = 0
        self.spawn()

    def spawn(self) -> Process:
        """Another process begins."""
        self.born += 1
        self.is_disturbed = self.born > 1
        self.processes.append(Process(self, f"{self.name}-{self.born}"))
        return self.processes[-1]

    def alive(self) -> list[Process]:
        """Processes that have not died."""
        self.processes = [process for process in self.processes if not process.dead]
        return self.processes or [self.spawn()]

    def submit(
        self,
        count: int,
        lane: Lane,
        latency: str,
        key: str | None,
        *,
        bad: bool,
        window: timedelta = timedelta(days=1),
    ) -> None:
        """Takes requests in; with a key, one."""
        now = self.world.clock.now()
        text = None if key is None else key
        requests = [
            queued(text, lane=lane, latency=latency, key=key, accepted_at=now, window=window)
            for _ in range(1 if key else count)
        ]
        for accepted in self.store.enqueue(requests):
            if not accepted.duplicate:
                self.accepted.append(accepted.request_id)
                if bad:
                    self.world.api.bad.add(accepted.request_id)

    def owns(self, posted: Posted) -> bool:
        """Whether a batch at the API is of this router's requests."""
        return set(posted.request_ids) <= set(self.accepted)

    def follow(self) -> None:
        """Reads the log of outcomes: none comes twice."""
        while True:
            outcomes, self.cursor = self.store.outcomes_since(self.cursor)
            if not outcomes:
                return
            for outcome in outcomes:
                assert outcome.request_id not in self.outcomes, "a second outcome"
                self.outcomes[outcome.request_id] = outcome

    def open_ids(self) -> list[str]:
        """Requests without an outcome."""
        return [request_id for request_id in self.accepted if request_id not in self.outcomes]

    def check(self) -> None:
        """What must be true at any time."""
        self.follow()
        live = {one for posted in self.world.api.running() for one in posted.request_ids}
        for request_id in self.open_ids():
            view = self.store.find(request_id)
            assert view is not None, "an unsettled request is gone"
            assert view.state is not RequestState.SETTLED
            if view.state is RequestState.QUEUED:
                assert request_id not in live, "queued, and in a batch that runs"
        for batch in self.store.open_batches():
            if batch.provider_batch_id is not None:
                assert self.owns(self.world.api.named(batch.provider_batch_id)), "another's batch was adopted"


class World:
    """Two routers in one workspace."""

    def __init__(self, openings: Sequence[Callable[[], Store]]) -> None:
        self.clock = FakeClock()
        self.api = Workspace(self.clock)
        self.live = FakeLiveApi()
        self.routers = [
            OneRouter(self, f"router{place}", opening, deletes=place == 1)
            for place, opening in enumerate(openings)
        ]

    def advance(self, span: timedelta) -> None:
        """Time passes; batches that have run for a day end."""
        self.clock.advance(span)
        self.api.expire()

    def set_clock(self, by: timedelta) -> None:
        """Somebody sets the machine's clock; the API's goes on."""
        self.clock.set(self.clock.now() + by)
        self.api.ahead -= by
        for router in self.routers:
            for process in router.alive():
                process.reconciler.note_clock()

    def in_doubt(self) -> bool:
        """Whether a batch has no clear answer yet."""
        states = {batch.state for router in self.routers for batch in router.store.open_batches()}
        return bool(states & {BatchState.CLAIMED, BatchState.IN_DOUBT})

    def check(self) -> None:
        """What must be true at any time."""
        for router in self.routers:
            router.check()
        batches, live = self.api.charges(), self.live.charged
        for router in self.routers:
            for name in router.accepted:
                # What nobody got to read was paid for all the same; it is looked at in the end.
                delivered = batches[name] + router.written[name]
                assert delivered <= 1 + router.raced[name] + router.again[name], f"paid twice: {name}"
                in_memory = sum(process.paid[name] for process in router.processes if not process.dead)
                known = router.written[name] + router.forgotten[name] + in_memory
                assert live[name] == known + self.live.lost[name], f"an answer was dropped: {name}"
                if not router.is_disturbed:
                    assert router.again[name] <= self.live.unclear[name], f"called again for nothing: {name}"

    def drain(self) -> None:
        """With an API that is well, every request comes to its one end."""
        self.api.heal()
        self.live.down = None
        self.live.next.clear()
        for router in self.routers:
            for latency in CLASSES:
                router.store.resume(latency)
        for _ in range(100):
            for router in self.routers:
                for process in router.alive():
                    process.fuse, process.rest, process.locked = None, None, 0
                    process.run(*TURN)
            for posted in self.api.running():
                self.api.finish(posted, [("succeeded", None)])
            self.advance(timedelta(minutes=20))
            self.check()
            if not any(router.open_ids() or router.store.open_batches() for router in self.routers):
                break
        for router in self.routers:
            assert router.open_ids() == [], "never answered"
            assert router.store.open_batches() == [], "never closed"
            self._check_paid(router)

    def close(self) -> None:
        """Lets go of the stores."""
        for router in self.routers:
            for process in router.processes:
                process.die()
            router.store.close()

    def _check_paid(self, router: OneRouter) -> None:
        """What was paid for was handed over, unless the API had dropped it by then."""
        late = {
            one
            for posted in self.api.posted
            if self.api.now() - posted.created_at > _READABLE
            for one in posted.request_ids
        }
        batches = self.api.charges()
        for request_id, outcome in router.outcomes.items():
            if request_id in late:
                continue
            delivered = batches[request_id] + router.written[request_id]
            went_live = router.raced[request_id] or self.live.charged[request_id]
            if outcome.kind == "succeeded":
                assert delivered >= 1, outcome
            elif not went_live:
                assert delivered == 0, outcome
        if not late:
            self._check_tally(router, batches + router.written)

    def _check_tally(self, router: OneRouter, delivered: Counter[str]) -> None:
        """What was paid twice is counted, once."""
        tallies = router.store.tally().values()
        assert sum(tally.resent for tally in tallies) == router.again.total()
        succeeded = {name for name, outcome in router.outcomes.items() if outcome.kind == "succeeded"}
        wasted = sum(delivered[name] - (name in succeeded) for name in router.accepted)
        assert sum(tally.wasted for tally in tallies) == wasted
