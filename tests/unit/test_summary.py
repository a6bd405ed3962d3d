from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain.ledger import MissCause
from llmrouter.reports.summary import Finished, Tally

ANSWERED = Finished(
    latency="daily",
    batch_id="batch_1",
    error_type=None,
    waited=timedelta(minutes=10),
    on_time=True,
    paid_usd=Decimal("0.01"),
    list_usd=Decimal("0.02"),
)
FREE = Decimal(0)


def tally_of(*finished: Finished) -> Tally:
    tally = Tally()
    for one in finished:
        tally.add(one)
    return tally


def test_each_class_has_a_row_and_all_have_a_total() -> None:
    """Requests are counted by their latency class, and once more together."""
    tally = tally_of(ANSWERED, ANSWERED, replace(ANSWERED, latency="hourly", batch_id="batch_2"))
    rows = tally.rows()
    assert {name: row.request_count for name, row in rows.items()} == {"daily": 2, "hourly": 1}
    assert (tally.total().request_count, tally.total().batch_count) == (3, 2)


def test_requests_of_one_batch_are_one_batch() -> None:
    """Batches are counted once, however many requests they answered; what went live is in none."""
    row = tally_of(ANSWERED, ANSWERED, replace(ANSWERED, batch_id=None)).total()
    assert (row.batch_count, row.live_count) == (1, 1)


def test_a_request_canceled_in_the_queue_was_sent_nowhere() -> None:
    """It is a failure, and neither live nor in a batch."""
    row = tally_of(
        replace(ANSWERED, batch_id=None, error_type="canceled", paid_usd=FREE, list_usd=FREE)
    ).total()
    assert (row.live_count, row.batch_count, row.failed_count) == (0, 0, 1)


def test_what_went_live_to_be_in_time_is_counted_as_live() -> None:
    """Apart from what was real-time from the beginning, and whatever came of it."""
    escalated = replace(ANSWERED, batch_id=None, escalated=True)
    failed = replace(escalated, error_type="canceled")
    row = tally_of(ANSWERED, escalated, failed, replace(ANSWERED, batch_id=None)).total()
    assert (row.live_count, row.escalated_count, row.batch_count) == (3, 2, 1)


def test_missed_deadlines_are_counted_by_cause() -> None:
    """The most frequent cause first, over all classes too."""
    budget = replace(ANSWERED, on_time=False, missed=MissCause.BUDGET)
    risk = replace(budget, missed=MissCause.NOT_INSURED)
    tally = tally_of(risk, budget, replace(budget, latency="hourly"), ANSWERED)
    assert list(tally.total().missed.items()) == [(MissCause.BUDGET, 2), (MissCause.NOT_INSURED, 1)]
    assert tally.rows()["hourly"].missed == {MissCause.BUDGET: 1}


@pytest.mark.parametrize(
    ("minutes", "p50"), [([7], 7), ([1, 9], 1), ([9, 1, 5], 5), ([4, 3, 2, 1], 2), ([5, 5, 5, 60, 60], 5)]
)
def test_the_median_wait_is_that_of_a_request(minutes: list[int], p50: int) -> None:
    """By nearest rank: the wait of the request in the middle, the shorter one of two."""
    row = tally_of(*(replace(ANSWERED, waited=timedelta(minutes=wait)) for wait in minutes)).total()
    assert (row.wait_p50, row.wait_max) == (timedelta(minutes=p50), timedelta(minutes=max(minutes)))


def test_nothing_has_no_waits_and_saves_nothing() -> None:
    """An empty summary has no numbers that would have to be made up."""
    row = Tally().total()
    assert (row.request_count, row.wait_p50, row.wait_max, row.saved_share) == (0, None, None, None)


def test_deadlines_are_kept_or_missed_or_none_was_given() -> None:
    """What was promised nothing is in neither count."""
    row = tally_of(
        ANSWERED, replace(ANSWERED, on_time=False), replace(ANSWERED, on_time=None, batch_id=None)
    ).total()
    assert (row.on_time_count, row.late_count) == (1, 1)


def test_what_is_saved_is_the_part_of_the_live_price_that_was_not_paid() -> None:
    """A batched and a live request of the same price save a quarter."""
    live = replace(ANSWERED, batch_id=None, paid_usd=Decimal("0.02"))
    row = tally_of(ANSWERED, live).total()
    assert (row.paid_usd, row.list_usd, row.saved_share) == (
        Decimal("0.03"),
        Decimal("0.04"),
        Decimal("0.25"),
    )


def test_an_unknown_price_is_counted_and_not_taken_for_nothing() -> None:
    """The sums leave it out on both sides, so that the saved share stays true."""
    tally = tally_of(ANSWERED, replace(ANSWERED, paid_usd=None, list_usd=None))
    row = tally.total()
    assert (row.unpriced_count, tally.unpriced) == (1, 1)
    assert (row.paid_usd, row.saved_share) == (Decimal("0.01"), Decimal("0.5"))


def test_errors_are_counted_by_type_the_most_frequent_first() -> None:
    """Types come in the order a person wants to read them in."""
    bad = replace(ANSWERED, error_type="invalid_request_error", paid_usd=FREE, list_usd=FREE)
    row = tally_of(replace(bad, error_type="expired"), bad, ANSWERED, bad).total()
    assert list(row.errors.items()) == [("invalid_request_error", 2), ("expired", 1)]
    assert row.failed_count == 3


@given(
    st.lists(
        st.builds(
            Finished,
            latency=st.sampled_from(["hourly", "daily"]),
            batch_id=st.sampled_from([None, "batch_1", "batch_2"]),
            error_type=st.none(),
            waited=st.timedeltas(timedelta(0), timedelta(days=1)),
            on_time=st.sampled_from([True, False, None]),
            paid_usd=st.decimals(0, 1, places=4),
            list_usd=st.decimals(0, 1, places=4),
        )
    )
)
def test_rows_add_up_to_the_total(finished: list[Finished]) -> None:
    """Counts and sums of the classes are those of the total, in whatever order requests end."""
    tally = tally_of(*finished)
    rows, total = tally.rows().values(), tally.total()
    for name in ("request_count", "live_count", "on_time_count", "late_count", "paid_usd", "list_usd"):
        assert sum(getattr(row, name) for row in rows) == getattr(total, name)
    assert (tally.done, tally.paid_usd) == (total.request_count, total.paid_usd)
    assert total.wait_max == max((row.wait_max for row in rows if row.wait_max is not None), default=None)
