"""A claimed batch is created once, and what became of it is written down, whatever becomes of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.engine.creator import CREATE_WITHIN
from llmrouter.errors import (
    CreateRefusedError,
    CreateUnclearError,
    LeaseLostError,
    StoreBusyError,
    StoreError,
)
from llmrouter.stores import framing
from llmrouter.stores.memory import MemoryStore
from support.engine import GRACE, LEASE, Bench, allow, lose_answer, refuse, unreachable
from support.stores import FailingStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Lease


class HookedStore(MemoryStore):
    """Lets a test do something right after the open batches were read."""

    def __init__(self) -> None:
        super().__init__()
        self.after_reading: Callable[[], object] = lambda: None

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        read = super().open_batches()
        hook, self.after_reading = self.after_reading, lambda: None
        hook()
        return read


def claimed(bench: Bench, count: int = 2, batch_id: str = "batch_1") -> Batch:
    """A batch that is about to be created."""
    bench.enqueue(count)
    bench.flusher.creator.begin(batch_id)
    return bench.claim(batch_id)


def give_up(bench: Bench, batch: Batch) -> Lease:
    """Another process takes the store over and gives the batch up, as if nothing had been created."""
    lease = bench.hand_over()
    bench.store.release(lease, batch.batch_id)
    return lease


def regain(bench: Bench, other: Lease) -> Lease:
    """The other process ends, and this one works again."""
    bench.store.release_lease(other)
    lease = bench.store.acquire_lease("tests again", bench.clock.now(), LEASE)
    assert lease is not None
    return lease


def test_a_created_batch_is_in_flight() -> None:
    """One create, recorded with what the API said; nothing is under way any more."""
    bench = Bench()
    batch = claimed(bench)

    assert bench.flusher.creator.create(bench.lease, batch) is None
    (stored,) = bench.store.open_batches()
    assert (stored.state, stored.provider_batch_id) == (BatchState.IN_FLIGHT, "msgbatch_0")
    assert bench.flusher.creator.under_way() == frozenset()
    bench.flusher.creator.tidy(bench.lease)
    assert len(bench.api.sizes) == 1
    assert bench.states() == [BatchState.IN_FLIGHT]


def test_a_refused_batch_is_still_claimed_and_the_callers_to_deal_with() -> None:
    """Nobody else touches it meanwhile."""
    bench = Bench()
    batch = claimed(bench)
    bench.api.before_create = refuse(400)
    error = bench.flusher.creator.create(bench.lease, batch)
    bench.flusher.creator.tidy(bench.lease)

    assert isinstance(error, CreateRefusedError)
    assert bench.states() == [BatchState.CLAIMED]
    assert bench.flusher.creator.under_way() == {"batch_1"}
    bench.flusher.creator.drop("batch_1")
    bench.flusher.creator.tidy(bench.lease)
    assert (bench.states(), bench.queued_count()) == ([], 2)


@pytest.mark.parametrize("exists", [True, False])
def test_an_unclear_create_leaves_a_doubt(exists: bool) -> None:
    """With the time of it; the batch is not created again, whatever is tidied up."""
    bench = Bench()
    batch = claimed(bench)
    setattr(bench.api, "after_create" if exists else "before_create", lose_answer)
    bench.clock.advance(timedelta(minutes=3))
    error = bench.flusher.creator.create(bench.lease, batch)
    bench.flusher.creator.tidy(bench.lease)

    assert isinstance(error, CreateUnclearError)
    (stored,) = bench.store.open_batches()
    assert (stored.state, stored.in_doubt_at) == (BatchState.IN_DOUBT, bench.clock.now())
    assert len(bench.api.sizes) == 1


@pytest.mark.parametrize("odd", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_whatever_ends_a_create_leaves_a_doubt(odd: BaseException) -> None:
    """It may have been under way."""
    bench = Bench()
    batch = claimed(bench)

    def break_down(_: object) -> None:
        raise odd

    bench.api.after_create = break_down
    with pytest.raises(type(odd)):
        bench.flusher.creator.create(bench.lease, batch)

    assert bench.states() == [BatchState.IN_DOUBT]
    assert bench.flusher.creator.under_way() == frozenset()


def pieces_of(bench: Bench, batch: Batch) -> int:
    """Into how many pieces a body is cut."""
    return len(list(bench.store.body(batch)))


@pytest.mark.parametrize("held", [0, 1, -1])
def test_a_lease_lost_while_the_body_goes_out_creates_nothing(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first piece, after it, or before the last: the body's end is never sent."""
    monkeypatch.setattr(framing, "PIECE_BYTES", 10)
    bench = Bench()
    batch = claimed(bench)
    pieces = pieces_of(bench, batch)
    others: list[Lease] = []

    def on_piece(number: int) -> None:
        assert number < pieces, "the last piece went out"
        if number == (held if held >= 0 else pieces - 1):
            others.append(bench.hand_over())

    bench.api.on_piece = on_piece
    error = bench.flusher.creator.create(bench.lease, batch)

    assert pieces > 5
    assert len(others) == 1
    assert isinstance(error, CreateRefusedError)
    assert isinstance(error.__cause__, LeaseLostError)
    assert bench.api.sizes == []


@pytest.mark.parametrize("by", ["time passes", "the clock is set forward"])
@pytest.mark.parametrize("piece", [0, 3])
def test_a_claim_older_than_an_hour_is_not_created(
    by: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still between claim and create: it is refused and goes back to the queue."""
    monkeypatch.setattr(framing, "PIECE_BYTES", 10)
    bench = Bench()
    bench.enqueue(2)
    late = CREATE_WITHIN + timedelta(seconds=1)

    def on_piece(number: int) -> None:
        if number == piece and by == "time passes":
            bench.clock.advance(late)
        elif number == piece:
            bench.clock.set(bench.clock.now() + late)

    bench.api.on_piece = on_piece

    assert bench.flush() == 0
    assert bench.api.sizes == []
    assert (bench.states(), bench.queued_count()) == ([], 2)


def test_a_clock_set_back_does_not_make_a_slow_create_young() -> None:
    """The other clock tells how long it takes."""
    bench = Bench()
    bench.enqueue(2)

    def on_piece(number: int) -> None:
        if number == 0:
            bench.clock.advance(CREATE_WITHIN + timedelta(seconds=1))
            bench.clock.set(bench.clock.now() - timedelta(days=1))

    bench.api.on_piece = on_piece

    assert bench.flush() == 0
    assert bench.api.sizes == []


def test_a_create_within_the_hour_goes_through() -> None:
    """Slowness is no reason to refuse."""
    bench = Bench()
    bench.enqueue(2)
    bench.api.on_piece = lambda number: bench.clock.advance(timedelta(minutes=25))

    assert bench.flush() == 1


@pytest.mark.parametrize("doubted", [False, True])
def test_a_create_answered_after_the_lease_was_lost_is_recorded_all_the_same(doubted: bool) -> None:
    """It is a fact, whoever works now: the next holder's doubt becomes certainty."""
    bench = Bench()
    batch = claimed(bench)
    taken: list[Lease] = []

    def take_over(_: object) -> None:
        taken.append(bench.hand_over())
        if doubted:
            bench.another_reconciler().mark_orphans(taken[0])
            assert bench.states() == [BatchState.IN_DOUBT]

    bench.api.after_create = take_over

    assert bench.flusher.creator.create(bench.lease, batch) is None
    assert bench.states() == [BatchState.IN_FLIGHT]
    bench.api.end()
    assert bench.collector.run_once(taken[0]) == 1
    assert bench.api.cancels == []


def test_an_unclear_create_after_the_lease_was_lost_is_the_next_holders() -> None:
    """It puts the intent in doubt itself; here nothing is kept of it."""
    bench = Bench()
    batch = claimed(bench)

    def take_over(_: object) -> None:
        bench.hand_over()
        raise CreateUnclearError("the connection was dropped")

    bench.api.after_create = take_over
    with pytest.raises(LeaseLostError):
        bench.flusher.creator.create(bench.lease, batch)

    assert bench.states() == [BatchState.CLAIMED]
    assert bench.flusher.creator.under_way() == frozenset()


def test_a_batch_created_though_it_was_given_up_is_canceled(caplog: pytest.LogCaptureFixture) -> None:
    """Its requests may have been sent again: as little as can be is to be paid for it."""
    bench = Bench()
    batch = claimed(bench)
    bench.api.after_create = lambda _: give_up(bench, batch) and None
    bench.flusher.creator.create(bench.lease, batch)

    assert bench.api.cancels == ["msgbatch_0"]
    assert (bench.states(), bench.queued_count()) == ([], 2)
    assert "was given up while its create was under way" in caplog.text
    bench.flusher.creator.tidy(None)
    assert bench.api.cancels == ["msgbatch_0"]


@pytest.mark.parametrize("has_lease", [True, False])
def test_a_stray_that_cannot_be_canceled_now_is_canceled_later(has_lease: bool) -> None:
    """Also by a process that has no lease: nobody else knows of it."""
    bench = Bench()
    batch = claimed(bench)
    taken: list[Lease] = []
    bench.api.after_create = lambda _: taken.append(give_up(bench, batch))
    bench.api.before_cancel = unreachable
    bench.flusher.creator.create(bench.lease, batch)
    lease = regain(bench, taken[0]) if has_lease else None
    for _ in range(3):
        bench.flusher.creator.tidy(lease)
    assert len(bench.api.cancels) == 1
    bench.clock.advance(timedelta(seconds=10))
    bench.flusher.creator.tidy(lease)
    assert bench.api.posted[0].canceled_at is None
    bench.api.before_cancel = allow
    bench.clock.advance(timedelta(seconds=10))
    bench.flusher.creator.tidy(lease)

    assert bench.api.posted[0].canceled_at is not None
    bench.clock.advance(timedelta(seconds=10))
    bench.flusher.creator.tidy(lease)
    assert len(bench.api.cancels) == 3


def test_a_stray_that_has_run_out_is_let_go() -> None:
    """After a day there is nothing left to cancel, and nobody is asked for ever."""
    bench = Bench()
    batch = claimed(bench)
    bench.api.after_create = lambda _: give_up(bench, batch) and None
    bench.api.before_cancel = unreachable
    bench.flusher.creator.create(bench.lease, batch)
    bench.clock.advance(timedelta(days=1))
    for _ in range(5):
        bench.flusher.creator.tidy(None)
        bench.clock.advance(timedelta(minutes=1))

    assert len(bench.api.cancels) == 2


@pytest.mark.parametrize(
    ("method", "hook", "state"),
    [
        ("record_created", allow, BatchState.IN_FLIGHT),
        ("update_batch", lose_answer, BatchState.IN_DOUBT),
    ],
)
def test_what_the_store_cannot_record_is_recorded_later(
    method: str, hook: Callable[[Any], None], state: BatchState
) -> None:
    """The API's answer is kept until then; nothing is sent again, and nobody tidies the batch away."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(2)
    bench.api.after_create = hook
    store.failures = {method: [StoreBusyError("locked")] * 3}
    with pytest.raises(StoreBusyError):
        bench.flush()
    assert bench.states() == [BatchState.CLAIMED]
    for _ in range(2):
        with pytest.raises(StoreBusyError):
            bench.flusher.creator.tidy(bench.lease)
        assert bench.flush() == 0
    assert bench.states() == [BatchState.CLAIMED]
    bench.flusher.creator.tidy(bench.lease)

    assert bench.states() == [state]
    assert bench.flusher.creator.under_way() == frozenset()
    assert len(bench.api.posted) == 1
    assert bench.queued_count() == 0


def test_a_fact_is_recorded_without_a_lease() -> None:
    """A batch that was created is in flight, also when another process works by the time of writing."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(2)
    store.failures = {"record_created": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.flush()
    bench.hand_over()
    bench.flusher.creator.tidy(None)

    assert bench.states() == [BatchState.IN_FLIGHT]


@pytest.mark.parametrize("noticed", [True, False])
def test_a_doubt_that_could_not_be_recorded_is_the_next_holders(noticed: bool) -> None:
    """It has given the batch up by the time this process works again: that is no error, and no doubt."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(2)
    bench.api.before_create = lose_answer
    store.failures = {"update_batch": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.flush()
    (batch,) = bench.store.open_batches()
    other = give_up(bench, batch)
    if noticed:
        bench.flusher.creator.tidy(None)
    lease = regain(bench, other)
    bench.flusher.creator.tidy(lease)
    bench.flusher.creator.tidy(lease)

    assert (bench.states(), bench.queued_count()) == ([], 2)


def test_what_was_claimed_but_never_sent_is_queued_again() -> None:
    """A claim whose process gave the create up, by the same lease."""
    bench = Bench()
    bench.enqueue(2)
    bench.claim()
    bench.flusher.creator.tidy(None)
    assert bench.states() == [BatchState.CLAIMED]
    bench.flusher.creator.tidy(bench.lease)

    assert (bench.states(), bench.queued_count()) == ([], 2)


def test_an_intent_of_an_earlier_lease_is_not_tidied_away() -> None:
    """It may have been sent: the reconciler looks after it."""
    bench = Bench()
    bench.enqueue(2)
    bench.claim()
    bench.flusher.creator.tidy(bench.hand_over())

    assert bench.states() == [BatchState.CLAIMED]


def test_tidying_leaves_alone_what_another_thread_creates() -> None:
    """However long that takes: it is claimed, by this lease, and not forgotten."""
    bench = Bench()
    bench.enqueue(2)
    creating, answer = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        creating.set()
        assert answer.wait(30)

    bench.api.before_create = hang
    leaving = threading.Thread(target=bench.flush)
    leaving.start()
    try:
        assert creating.wait(10)
        bench.flusher.creator.tidy(bench.lease)
        assert bench.states() == [BatchState.CLAIMED]
        assert bench.queued_count() == 0
    finally:
        answer.set()
        leaving.join(10)
    assert bench.states() == [BatchState.IN_FLIGHT]


@pytest.mark.parametrize("end", [allow, lose_answer])
def test_a_create_that_ends_while_tidying_looks_is_not_tidied_away(end: Callable[[Any], None]) -> None:
    """It was read as claimed, and is in doubt by the time it is looked for among what is under way."""
    store = HookedStore()
    bench = Bench(store=store)
    batch = claimed(bench)
    bench.api.after_create = end
    store.after_reading = lambda: bench.flusher.creator.create(bench.lease, batch)
    bench.flusher.creator.tidy(bench.lease)

    assert bench.states() == [BatchState.IN_FLIGHT if end is allow else BatchState.IN_DOUBT]
    assert bench.queued_count() == 0


def test_a_body_that_cannot_be_read_creates_nothing() -> None:
    """The store fails in the middle of it: what lacks its end is no create."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(2)
    store.failures = {"check_lease": [StoreError("disk full")]}

    assert bench.flush() == 0
    assert bench.api.sizes == []
    assert (bench.states(), bench.queued_count()) == ([], 2)


def test_a_create_whose_thread_stands_still_while_it_is_recorded_is_not_recorded_for_it() -> None:
    """Else the rest of the engine would have gone on with it by the time the thread goes on."""

    class Slow(MemoryStore):
        def update_batch(self, lease: Lease, batch: Batch) -> None:
            bench.flusher.creator.tidy(bench.lease)
            for _ in range(3):
                bench.reconcile(passes=GRACE)
            super().update_batch(lease, batch)

    bench = Bench(store=Slow())
    batch = claimed(bench)
    bench.api.before_create = lose_answer
    bench.flusher.creator.create(bench.lease, batch)

    assert bench.states() == [BatchState.IN_DOUBT]


def test_a_doubt_that_could_not_be_recorded_is_kept_while_nobody_knows_of_a_lease() -> None:
    """The lease was taken for lost by mistake: forgotten, the batch would look as if it was never sent."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(2)
    bench.api.after_create = lose_answer
    store.failures = {"update_batch": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.flush()
    bench.flusher.creator.tidy(None)
    bench.flusher.creator.tidy(bench.lease)

    assert bench.states() == [BatchState.IN_DOUBT]
    assert bench.queued_count() == 0
