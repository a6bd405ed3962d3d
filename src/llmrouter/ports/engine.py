"""What the engine does with a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime, timedelta

    from llmrouter.domain.batches import (
        Answer,
        Batch,
        Settled,
    )
    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.live import LiveCall
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.reporting import EngineReport
    from llmrouter.domain.requests import Waiting
    from llmrouter.ports.apis import BatchBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to be the one engine that works on a store."""

    holder: str
    fence: int
    """Grows with each holder: what carries an older number is refused."""


class EngineStore(Protocol):
    """The half of a `llmrouter.ports.Store` that only the holder of its lease may use."""

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
        """Takes queued requests of one lane, class and model into a new CLAIMED batch: the intent.

        Earliest deadline first, as many as `pack` admits, and with `BatchLimits.one_fate` none due later
        than `group_span` of the first one's window after the first. None when none is left. The batch has
        the ``deadline_at`` and the ``window`` of the first one.
        """
        ...

    def escalate_waiting(
        self,
        lease: Lease,
        waiting: Waiting,
        before: datetime,
        *,
        batch_id: str,
        reason: Reason,
        insured: bool,
        now: datetime,
    ) -> Batch | None:
        """Takes queued requests of one lane, class and model into a new ESCALATING batch.

        All that are due before an instant, whatever they weigh. None when there are none. The new batch has
        no ``nonce`` (it is empty); ``claimed_at`` and ``escalated_at`` are ``now``; ``model``,
        ``deadline_at``, ``window`` and ``attempts`` are as of a claim.
        """
        ...

    def escalate_batch(
        self, lease: Lease, batch_id: str, *, into: str, reason: Reason, insured: bool, now: datetime
    ) -> Batch | None:
        """Moves the requests that are still in an open batch of the API's into a new ESCALATING one.

        The old one stays open, and its `Batch.escalated_at` is ``now``. What it still answers (a `settle`
        without ``retry``) is the outcome of those that have none yet, wherever they are by then: in the
        new one, queued again after its `release`, or claimed again. A ``retry`` changes nothing of
        them. A `release` of it queues none of them. Requests that were given up stay in it; its
        ``cancel_wanted`` stays as it is. The new batch is as that of `escalate_waiting`.

        Args:
            lease: As ever.
            batch_id: The open batch.
            into: Id of the new one; its ``raced`` is the old one's.
            reason: Of both, from then on.
            insured: Of both.
            now: When it was decided.

        Returns:
            The new batch; None, and no change, when nothing was left to move, or the old one is closed.

        Raises:
            StoreError: It is ESCALATING itself.
        """
        ...

    def note_decision(
        self, lease: Lease, batch_id: str, *, reason: Reason, insured: bool, recalled_at: datetime | None
    ) -> None:
        """Notes what was decided about an open batch's deadline, also an ESCALATING one's.

        Changes nothing when it is closed.

        Args:
            lease: As ever.
            batch_id: Which.
            reason: Why.
            insured: Whether the rate suffices for it.
            recalled_at: When its requests were wanted back; None leaves that as it is.
        """
        ...

    def begin_calls(self, lease: Lease, batch_id: str, request_ids: Sequence[str]) -> list[LiveCall]:
        """Notes that live calls for these requests of an ESCALATING batch begin: the intent. Synced.

        Answers with those that are still in it, in the order given, each once, with their bodies; with
        none when it is closed. Those that were given up are settled as canceled instead, as `release`
        does it, whether they had an intent or not. Those with an intent already (`LiveCall.again`) are
        counted in `ClassTally.resent`.

        Raises:
            StoreError: The batch is open and not ESCALATING.
        """
        ...

    def end_calls(self, lease: Lease, batch_id: str, request_ids: Collection[str]) -> None:
        """Takes intents back: the API has clearly not done these calls. Not synced.

        Ids without an intent in this batch are ignored, also when it is closed. The requests stay in it.
        """
        ...

    def body(self, batch: Batch) -> BatchBody:
        """The body to post for a batch that this process has just claimed, from the stored bytes.

        Reads piece by piece; memory stays bounded whatever the batch weighs.
        """
        ...

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """Records what has become of an open batch: its state and what the API said of it.

        The new state is an open one of the API's; `release` and `finish` are the ways out. A batch that is
        IN_FLIGHT stays so: a record that says CLAIMED or IN_DOUBT of it changes nothing.
        ``cancel_wanted`` and what `note_decision` and `escalate_batch` write is the store's own: it stays
        as it is stored.
        """
        ...

    def record_created(self, batch: Batch) -> bool:
        """Records that a create was answered: the batch, now IN_FLIGHT, with what the API said of it.

        Needs no lease: it is a fact, whoever works on the store now. Synced. False, and no change,
        when the batch is not CLAIMED or IN_DOUBT any more: it was given up meanwhile, or another
        found it at the API; nor for an ESCALATING one. Recorded twice, it is True again.
        """
        ...

    def known_batches(self, provider_batch_ids: Collection[str]) -> set[str]:
        """Those of the API's ids that belong to batches of this store, closed ones included."""
        ...

    def release(self, lease: Lease, batch_id: str) -> int:
        """Queues all requests of an open batch again that have not left it; the batch is RELEASED.

        Not of one that is IN_FLIGHT: the API has it, so nothing changes, and the answer is 0. One that
        is ESCALATING gives back what it holds; the intents of its calls are forgotten, and those of requests
        that are queued again counted in `ClassTally.resent`: they may be paid for already.
        Their attempts do not grow: the API never had them. Those that were given up are settled as
        canceled, at the instant of the last `cancel` that gave up any of them. Answers with the
        number of all. Called again, it changes nothing.
        """
        ...

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """Applies answers of an open batch: outcomes are written, the others are queued again.

        Of requests that were given up none is queued again: they end as canceled.

        Each request leaves its batch once: an answer for one that has left already, or was never
        in it, changes nothing and is counted. So reading the same results twice is harmless. Those that
        `escalate_batch` took out of it, and that have no outcome yet, take one without ``retry``: their
        ``attempts`` count this batch, which is their ``batch_id``. A repeated success (without ``retry``)
        is `Settled.wasted`, in each reading, when its request has an outcome that does not name this
        batch: it was paid for, and nobody gets it. Of requests that were pruned nobody knows: they are not
        wasted.
        """
        ...

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """Ids of the requests that are still in a batch."""
        ...

    def finish(self, lease: Lease, batch: Batch) -> None:
        """Marks a batch ENDED, also an ESCALATING one. Every request must have left it.

        ``batch.wasted`` is added to the `tally` of its class.

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
