"""What the engine needs of the world, as Protocols. The prose here is the contract.

Adapters live in ``stores/`` and ``claude/``; ``wiring.py`` puts them together. The conformance
suite in ``tests/conformance`` proves that a store keeps what is promised here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from llmrouter.domain.batches import (
        Answer,
        Batch,
        Canceled,
        Listing,
        ProviderBatch,
        ResultLine,
        Settled,
    )
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.reporting import EngineReport, EngineView
    from llmrouter.domain.requests import Accepted, Lane, Outcome, QueuedRequest, RequestView, Waiting

__all__ = ["BatchApi", "BatchBody", "Clock", "Lease", "Store"]


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The present instant, aware, UTC. It may jump: somebody sets the machine's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment in the past. Never jumps; means nothing in another process."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to be the one engine that works on a store."""

    holder: str
    fence: int
    """Grows with each holder: what carries an older number is refused."""


class BatchBody(Protocol):
    """The body of a batch create: can be iterated more than once, and knows its length."""

    content_length: int

    def __iter__(self) -> Iterator[bytes]:
        """The JSON, piece by piece, from the start."""
        ...


class Store(Protocol):
    """The durable queue: requests, the batches they are in, and how they ended.

    Several threads and several processes use one store at once. Each call is atomic: it happens
    wholly or not at all, also when the process is killed in the middle of it, and from its return
    on every process sees it. A call that waits for a lock waits a bounded time, then raises
    `StoreBusyError`; nothing has happened then. Calls block their thread; none may be made on an
    event loop.

    A request is QUEUED, CLAIMED into exactly one batch, or SETTLED with exactly one outcome.
    Nothing removes an unsettled request.

    Calls that take a `Lease` are the engine's, made through the instance that acquired it. They
    raise `LeaseLostError` before anything else, and change nothing, when a later lease has been
    given out, however much time has passed since the caller looked. They are on stable storage
    when they return, power cuts included. `update_batch`, `settle` and `finish` raise `StoreError`
    for a batch that is not open.
    """

    def secret(self) -> bytes:
        """32 random bytes that belong to this store, made once and the same in every process."""
        ...

    # What applications do

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
        """The backlog, a line for each lane and class with any. Does not read bodies."""
        ...

    def open_batches(self) -> list[Batch]:
        """Batches that are claimed, in doubt or in flight, oldest first."""
        ...

    # What the engine does

    def acquire_lease(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """Takes the lease for ``length`` if it is free, has run out, or its holder is dead.

        A holder that asks again gets the same lease, prolonged, as long as nobody else has taken it.
        None when another live holder has it. One that would last longer than ``length`` from now
        has run out too: the clock was set back since.
        """
        ...

    def release_lease(self, lease: Lease) -> None:
        """Gives the lease back, so that another process can take it at once. A lost one is ignored.

        It is lost from then on: what still carries it is refused.
        """
        ...

    def check_lease(self, lease: Lease) -> None:
        """Raises `LeaseLostError` when the lease is lost. A read; waits for nobody."""
        ...

    def report(self, lease: Lease, report: EngineReport) -> None:
        """Leaves word for `engine`. Not synced."""
        ...

    def take_flush_request(self, lease: Lease) -> bool:
        """True once after `request_flush`."""
        ...

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """Takes queued requests of one lane and class into a new CLAIMED batch: the intent.

        Earliest deadline first, as many as `pack` admits. None when none is left.
        """
        ...

    def body(self, batch: Batch) -> BatchBody:
        """The body to post for a batch that this process has just claimed, from the stored bytes.

        Reads piece by piece; memory stays bounded whatever the batch weighs.
        """
        ...

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """Records what has become of an open batch: its state and what the API said of it.

        The new state is an open one; `release` and `finish` are the ways out. A batch that is
        IN_FLIGHT stays so: a record that says CLAIMED or IN_DOUBT of it changes nothing.
        ``cancel_wanted`` is the store's own: it stays as it is stored.
        """
        ...

    def record_created(self, batch: Batch) -> bool:
        """Records that a create was answered: the batch, now IN_FLIGHT, with what the API said of it.

        Needs no lease: it is a fact, whoever works on the store now. Synced. False, and no change,
        when the batch is not CLAIMED or IN_DOUBT any more: it was given up meanwhile, or another
        found it at the API. Recorded twice, it is True again.
        """
        ...

    def known_batches(self, provider_batch_ids: Collection[str]) -> set[str]:
        """Those of the API's ids that belong to batches of this store, closed ones included."""
        ...

    def release(self, lease: Lease, batch_id: str) -> int:
        """Queues all requests of an open batch again that have not left it; the batch is RELEASED.

        Not of one that is IN_FLIGHT: the API has it, so nothing changes, and the answer is 0.
        Their attempts do not grow: the API never had them. Those that were given up are settled as
        canceled, at the instant of the last `cancel` that gave up any of them. Answers with the
        number of all. Called again, it changes nothing.
        """
        ...

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """Applies answers of an open batch: outcomes are written, the others are queued again.

        Of requests that were given up none is queued again: they end as canceled.

        Each request leaves its batch once: an answer for one that has left already, or was never
        in it, changes nothing and is counted. So reading the same results twice is harmless.
        """
        ...

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """Ids of the requests that are still in a batch."""
        ...

    def finish(self, lease: Lease, batch: Batch) -> None:
        """Marks a batch ENDED. Every request must have left it.

        Raises:
            StoreError: Some are still in it.
        """
        ...

    def sweep(self, lease: Lease, limit: int) -> int:
        """Drops stored bodies of settled requests until ``limit`` are gone; answers with how many were.

        Bodies that are stored together go together, so it can be some more. A request's prompt is
        not needed once it is settled; its outcome stays.
        """
        ...

    def prune(self, lease: Lease, before: datetime, limit: int, *, undelivered: bool) -> int:
        """Forgets requests that were settled before an instant; answers with how many.

        Their outcomes, ids and idempotency keys are gone then, and batches that ended before it and
        have no request left. Nothing unsettled is ever touched. The caller repeats it until it is 0.

        Args:
            lease: As ever.
            before: Of `Outcome.settled_at`.
            limit: About how many at once. What is stored together goes together, so it can be more.
            undelivered: Whether to forget those too whose outcome never reached anybody.
        """
        ...

    def close(self) -> None:
        """Lets go of files and connections. The store cannot be used after it. May be repeated."""
        ...


class BatchApi(Protocol):
    """The Message Batches API, as little of it as the engine needs."""

    def serves(self, lane: Lane) -> bool:
        """Whether this process holds the credential of a lane, and reaches its base URL."""
        ...

    def create(self, lane: Lane, body: BatchBody) -> ProviderBatch:
        """Posts a batch once: no retry of any kind, since the API has no idempotency key.

        Raises:
            CreateRefusedError: The API said no; nothing was created.
            CreateUnclearError: There was no clear answer; it may have been created.
        """
        ...

    def describe(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        """What the API says of some batches, by their provider ids; those it did not name are left out.

        A batch that is left out is not gone: the API can answer 404 for a fresh batch (docs/api.md).

        Args:
            lane: Where they were created.
            wanted: Provider batch id to the API's ``created_at``.

        Raises:
            anthropic.APIError: The API could not be asked.
        """
        ...

    def listed(self, lane: Lane, since: datetime) -> Listing:
        """All batches of a lane's workspace that were created at or after an instant by the API's clock.

        Raises:
            anthropic.APIError: The API could not be asked, or not for all of them.
        """
        ...

    def cancel(self, lane: Lane, provider_batch_id: str) -> None:
        """Asks the API to cancel a batch; one that has ended or is being canceled is left as it is.

        Raises:
            anthropic.APIError: The API could not be asked, or does not know it (yet).
        """
        ...

    def delete(self, lane: Lane, provider_batch_id: str) -> None:
        """Deletes an ended batch and its results at the API; one that is gone already is no error.

        Raises:
            anthropic.APIError: The API could not be asked.
        """
        ...

    def results(self, lane: Lane, provider_batch_id: str) -> Generator[ResultLine]:
        """Reads an ended batch's results line by line, in any order, with bounded memory.

        A generator: closing it ends the reading.

        It may end early without an error when the connection is cut: the caller checks that every
        request was answered. A last line that was cut is left out.

        Raises:
            anthropic.APIError: The API could not be asked.
        """
        ...
