"""Being the one engine of a store."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from llmrouter.engine import lease
from llmrouter.engine.lease import LEASE_LENGTH, RENEW_EVERY, LeaseKeeper
from llmrouter.errors import LeaseLostError, StoreBusyError
from llmrouter.stores.memory import MemoryStore
from support.clocks import START, FakeClock
from support.stores import FailingStore
from support.waiting import wait_until


def test_the_first_who_asks_gets_the_lease() -> None:
    """And the next one does not."""
    store = MemoryStore()
    first, second = LeaseKeeper(store), LeaseKeeper(store)

    assert first.run_once(START) is not None
    assert second.run_once(START) is None
    assert (first.lease is not None, second.lease) == (True, None)


def test_two_keepers_are_two_holders() -> None:
    """Also in one process."""
    store = MemoryStore()

    assert LeaseKeeper(store).holder != LeaseKeeper(store).holder


def test_a_lease_that_is_renewed_in_time_is_kept() -> None:
    """The same one, for as long as its holder lives."""
    store = MemoryStore()
    keeper, other = LeaseKeeper(store), LeaseKeeper(store)
    lease, now = keeper.run_once(START), START
    for _ in range(100):
        now += RENEW_EVERY
        assert keeper.run_once(now) == lease
        assert other.run_once(now) is None


def test_it_is_renewed_well_before_it_runs_out() -> None:
    """A hiccup of a few renewals does not lose it."""
    assert RENEW_EVERY * 4 < LEASE_LENGTH


def test_a_silent_holder_is_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    """When its time has run out; it learns of it when it asks again, and whatever it writes is refused."""
    store = MemoryStore()
    silent, next_one = LeaseKeeper(store), LeaseKeeper(store)
    lease = silent.run_once(START)
    assert lease is not None
    assert next_one.run_once(START + LEASE_LENGTH - timedelta(seconds=1)) is None
    taken = next_one.run_once(START + LEASE_LENGTH)

    assert taken is not None
    assert taken.fence > lease.fence
    with pytest.raises(LeaseLostError):
        store.take_flush_request(lease)
    assert silent.run_once(START + LEASE_LENGTH) is None
    assert "another process has taken the store over" in caplog.text


def test_a_lease_that_is_given_back_is_free_at_once() -> None:
    """Nobody has to wait for a process that ended in order."""
    store = MemoryStore()
    first, second = LeaseKeeper(store), LeaseKeeper(store)
    first.run_once(START)
    first.release()

    assert first.lease is None
    assert second.run_once(START) is not None
    first.release()
    assert second.run_once(START) is not None


def test_a_lease_that_turned_out_to_be_lost_is_asked_for_anew() -> None:
    """With a greater number, if it can be had."""
    store = MemoryStore()
    keeper, other = LeaseKeeper(store), LeaseKeeper(store)
    before = keeper.run_once(START)
    other.run_once(START + LEASE_LENGTH)
    other.release()
    keeper.lose()
    assert keeper.lease is None
    again = keeper.run_once(START + LEASE_LENGTH)

    assert before is not None
    assert again is not None
    assert again.fence > before.fence


def test_a_lease_that_was_given_back_is_refused() -> None:
    """Whoever still works with it comes too late, also before anybody else has asked."""
    store = MemoryStore()
    keeper = LeaseKeeper(store)
    lease = keeper.run_once(START)
    assert lease is not None
    store.check_lease(lease)
    keeper.release()
    with pytest.raises(LeaseLostError):
        store.check_lease(lease)
    again = keeper.run_once(START)

    assert again is not None
    assert again.fence > lease.fence


def test_losing_a_lease_by_mistake_costs_nothing() -> None:
    """A thread with an older one was refused: the keeper asks again, and has the same as before."""
    store = MemoryStore()
    keeper = LeaseKeeper(store)
    lease = keeper.run_once(START)
    keeper.lose()

    assert keeper.run_once(START + RENEW_EVERY) == lease


def test_a_store_that_is_busy_takes_no_lease_away() -> None:
    """It is asked again in time; whether it is still held shows in each write."""
    store = FailingStore()
    keeper = LeaseKeeper(store)
    lease = keeper.run_once(START)
    store.failures = {"acquire_lease": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        keeper.run_once(START + RENEW_EVERY)

    assert keeper.lease == lease
    assert keeper.run_once(START + 2 * RENEW_EVERY) == lease


def test_giving_back_a_lease_that_was_lost_takes_it_from_nobody() -> None:
    """The other one works on."""
    store = MemoryStore()
    late, other = LeaseKeeper(store), LeaseKeeper(store)
    late.run_once(START)
    taken = other.run_once(START + LEASE_LENGTH)
    assert taken is not None
    late.release()

    store.check_lease(taken)
    assert LeaseKeeper(store).run_once(START + LEASE_LENGTH) is None


def test_a_clock_set_back_does_not_lock_the_store_for_hours() -> None:
    """A lease that would last longer than any does has run out."""
    store = MemoryStore()
    silent, next_one = LeaseKeeper(store), LeaseKeeper(store)
    silent.run_once(START)

    assert next_one.run_once(START - timedelta(hours=5)) is not None


def test_a_holder_goes_on_when_the_clock_is_set_back() -> None:
    """It asks again, and has it anew for the usual time."""
    store = MemoryStore()
    keeper, other = LeaseKeeper(store), LeaseKeeper(store)
    lease = keeper.run_once(START)
    earlier = START - timedelta(hours=5)

    assert keeper.run_once(earlier) == lease
    assert other.run_once(earlier + RENEW_EVERY) is None


def test_a_lease_is_prolonged_for_the_length_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping waits for a create that may take longer than the lease lasts."""
    monkeypatch.setattr(lease, "RENEW_EVERY", timedelta(milliseconds=5))
    store, clock = MemoryStore(), FakeClock()
    keeper = LeaseKeeper(store)
    keeper.run_once(clock.now())
    with keeper.prolonging(clock):
        clock.advance(lease.LEASE_LENGTH * 3)
        wait_until(lambda: _until(store) > clock.now(), what="the lease to be prolonged")
    clock.advance(lease.LEASE_LENGTH * 3)

    assert _until(store) < clock.now()


def _until(store: MemoryStore) -> datetime:
    view = store.engine()
    assert view is not None
    return view.until
