"""Being the one engine of a store."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llmrouter.engine.lease import LEASE_LENGTH, RENEW_EVERY, LeaseKeeper
from llmrouter.errors import LeaseLostError
from llmrouter.stores.memory import MemoryStore
from support.clocks import START


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
