"""What anybody may do with a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmrouter.ports.engine import EngineStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import date, datetime
    from decimal import Decimal

    from llmrouter.domain.batches import (
        Answer,
        Batch,
        Canceled,
        Settled,
    )
    from llmrouter.domain.cache_use import CacheUse
    from llmrouter.domain.ledger import Tally
    from llmrouter.domain.reporting import EngineView
    from llmrouter.domain.requests import Accepted, Outcome, QueuedRequest, RequestView, Waiting
    from llmrouter.domain.runs import RunProgress
    from llmrouter.domain.traffic import TrafficRow


class Store(EngineStore, Protocol):
    """The durable queue: requests, the batches they are in, and how they ended.

    Several threads and several processes use one store at once. Each call is atomic: it happens
    wholly or not at all, also when the process is killed in the middle of it, and from its return
    on every process sees it. A call that waits for a lock waits a bounded time, then raises
    `StoreBusyError`; nothing has happened then. Calls block their thread; none may be made on an
    event loop.

    A request is QUEUED, CLAIMED into exactly one batch, or SETTLED with exactly one outcome.
    Nothing removes an unsettled request. An ESCALATING batch is none of the API's: it holds requests
    that go live, each by itself.

    Calls that take a `Lease` are the engine's, made through the instance that acquired it. They
    raise `LeaseLostError` before anything else, and change nothing, when a later lease has been
    given out, however much time has passed since the caller looked. They are on stable storage
    when they return, power cuts included. `update_batch`, `settle` and `finish` raise `StoreError`
    for a batch that is not open, `update_batch` and `settle` for an ESCALATING one too: it has no news,
    and its answers come by `answer`.

    An outcome's ``reason`` and ``insured`` are those that its batch had then: for `settle` the one that
    answered, for `answer` the one that the request was in. Else, and for what is canceled without an
    answer by `cancel`, `release` or `begin_calls`, they have their defaults.
    """

    def secret(self) -> bytes:
        """32 random bytes that belong to this store, made once and the same in every process."""
        ...

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """Takes requests in, all of them or none, and answers in their order.

        From its return on they survive a killed process (and a power cut, where the store was
        opened with ``durability="power"``). Request ids are the caller's and new.

        A request whose key is known, from before or from earlier in the same call, is not stored:
        the answer names the one that has the key, whatever its state.

        Raises:
            KeyConflictError: A key is known with another body or latency class (another site, lane
                or deadline is no conflict); its ``index`` says
                which request. Nothing was stored.
        """
        ...

    def find(self, request_id: str) -> RequestView | None:
        """Where a request is, or None when the store does not have it, whatever the text is."""
        ...

    def find_key(self, key: str) -> str | None:
        """The id of the request that has an idempotency key."""
        ...

    def outcomes(self, request_ids: Collection[str]) -> Iterator[Outcome]:
        """How these requests ended, those of them that have, in no particular order.

        Holds one stored chunk of outcomes in memory at a time, however many are asked for.
        """
        ...

    def outcome_cursor(self) -> int:
        """The place in the log of outcomes after the newest one."""
        ...

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """A chunk of the outcomes written at or after a cursor, oldest first, and the next cursor.

        Empty when there is nothing new. Every outcome is in the log exactly once, in the order of
        settling; a reader that starts from `outcome_cursor` and goes on misses none. Cheap when
        nothing is new: waiting processes call it many times a second.
        """
        ...

    def find_keys(self, pattern: str) -> Iterator[str]:
        """Ids of the unsettled requests whose idempotency key matches a shell pattern (`fnmatchcase`).

        Reads the keys of the whole backlog: for people, not for loops.
        """
        ...

    def runs(self) -> list[RunProgress]:
        """How far each run has come of which the store has a request, the one that began last first.

        Each request is counted once, as it was at some moment of the call. Those that were pruned are
        not there any more. Reads the keys of the whole backlog and all outcomes: for people, not for
        loops.
        """
        ...

    def find_batch(self, batch_id: str) -> Batch | None:
        """A batch by our id or the API's, open or not, until it is pruned."""
        ...

    def cancel(self, request_ids: Collection[str], now: datetime, *, in_batches: bool) -> Canceled:
        """Settles those that are QUEUED as canceled, all in one transaction.

        Args:
            request_ids: Which; unknown ones are left out.
            now: When they are settled.
            in_batches: What to do with CLAIMED ones. False: nothing. True: mark them as given up:
                what would queue such a request again (a `settle` with ``retry``, a `release`)
                settles it as canceled instead; an answer that comes first stays its outcome. A
                batch in which every unsettled request is given up gets ``cancel_wanted``.
        """
        ...

    def deliver(self, request_ids: Collection[str]) -> None:
        """Notes that the outcomes of these settled requests have reached somebody who waited.

        `prune` keeps the others, but for those that their owner canceled: they have no answer that
        could be picked up. Not synced; ids of other requests are ignored.
        """
        ...

    def pause(self, latency: str, now: datetime) -> None:
        """Notes that a latency class is not to be flushed; whoever works on the store obeys."""
        ...

    def resume(self, latency: str) -> bool:
        """Takes that back. False when it was not paused."""
        ...

    def paused(self) -> Mapping[str, datetime]:
        """The classes that are paused, and since when."""
        ...

    def engine(self) -> EngineView | None:
        """Who works on the store, and what it last said; None when nobody does.

        That is when nobody holds the lease, or its holder is known to be dead. A holder that is
        silent for longer than its lease is still named: see `EngineView.until`.
        """
        ...

    def request_flush(self) -> None:
        """Asks whichever process holds the lease to flush everything now."""
        ...

    def waiting(self) -> list[Waiting]:
        """The backlog, a line for each lane, class and model with any. Does not read bodies.

        How a line is cut into cohorts is the store's choice: each of its requests is in exactly one, and
        one lies no wider than `group_span` of the widest window in it. `escalate_waiting` with the
        ``before`` of a cohort takes that cohort and those before it. Of equal deadlines any may give
        the ``window``.
        """
        ...

    def sample(self, waiting: Waiting, prefix: str) -> bytes | None:
        """The body of one queued request of a line whose `Group.prefix` is this; None when none is left.

        A read: needs no lease. Which one is the store's choice.
        """
        ...

    def open_batches(self) -> list[Batch]:
        """Batches that are claimed, in doubt, in flight or escalating, oldest first."""
        ...

    def closed_batches(self, limit: int) -> list[Batch]:
        """The latest batches of the API's that ENDED, newest claim first.

        Of the API's are those with a ``provider_batch_id``; pruned ones are gone.
        """
        ...

    def tally(self) -> Tally:
        """What came of all requests so far, by latency class; pruning does not change it.

        A class of which nothing was counted yet may be left out.
        """
        ...

    def answer(self, answers: Sequence[Answer], now: datetime) -> Settled:
        """Writes the outcomes that live calls gave.

        Needs no lease: an answer is a fact, whoever works on the store now. Synced. A request that is
        QUEUED or in any batch gets its outcome by it, with ``route`` ESCALATED and ``batch_id`` None;
        one that has its outcome keeps it, whatever that is: the answer is `Settled.repeated`, and
        `Settled.wasted` when it succeeded. ``reason`` and ``insured`` are those of the batch it was in.
        ``attempts`` do not grow. ``retry`` is not looked at. What the calls cost, and what was wasted, is
        added to the `tally` of the request's class, the cost on the day (UTC) of ``now``, also of answers
        that came second. An id that the store does not have, or not any more, is `Settled.unknown`:
        nothing is counted for it.
        """
        ...

    def count_warm_up(self, latency: str, use: CacheUse, paid_usd: Decimal | None, now: datetime) -> None:
        """Adds a live call that warmed the prompt cache to the `tally` of a class.

        Needs no lease: it was made, whoever works on the store now. Not synced.

        Args:
            latency: The class whose requests were about to leave.
            use: The call's input tokens.
            paid_usd: What it cost, counted on the day (UTC) of ``now``; None where no price is known.
            now: When it was answered.
        """
        ...

    def add_traffic(self, rows: Sequence[TrafficRow]) -> None:
        """Adds live calls to the traffic of their call sites; see `add_rows` for how many are kept apart.

        Needs no lease. Not synced.
        """
        ...

    def traffic(self, since: date | None) -> list[TrafficRow]:
        """What call sites sent live, sorted by day, site, model, class and streaming.

        Args:
            since: The first day (UTC); None: all there is.
        """
        ...

    def close(self) -> None:
        """Lets go of files and connections. The store cannot be used after it. May be repeated."""
        ...
