"""What came of requests, counted: causes of misses, sums of many outcomes at once, and their JSON."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain.blocks import Reason
from llmrouter.domain.ledger import (
    ClassTally,
    MissCause,
    count_outcome,
    count_outcomes,
    count_paid,
    miss_cause,
    read_tally,
    tally_fields,
)
from llmrouter.domain.requests import Outcome, OutcomeKind, Route

DUE = datetime(2026, 11, 20, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
USAGE = b'{"result":{"message":{"usage":{"input_tokens":7,"cache_read_input_tokens":2,"output_tokens":1}}}}'


def outcome(
    *,
    late: bool = True,
    kind: OutcomeKind = OutcomeKind.SUCCEEDED,
    raw: bytes = b"{}",
    route: Route = Route.BATCH,
    reason: Reason | None = None,
    insured: bool = True,
    latency: str = "daily",
) -> Outcome:
    """The end of a request that was due at `DUE`."""
    return Outcome(
        request_id="req_0",
        kind=kind,
        latency=latency,
        accepted_at=DUE - timedelta(days=1),
        deadline_at=DUE,
        settled_at=DUE + MOMENT if late else DUE,
        attempts=1,
        batch_id="batch-1",
        key=None,
        raw=raw,
        route=route,
        reason=reason,
        insured=insured,
    )


@pytest.mark.parametrize(
    ("ended", "cause"),
    [
        (outcome(late=False, reason=Reason.BUDGET, insured=False), None),
        (outcome(kind=OutcomeKind.CANCELED, raw=b""), None),
        (outcome(kind=OutcomeKind.CANCELED), MissCause.UNATTENDED),
        (outcome(), MissCause.UNATTENDED),
        (outcome(insured=False), MissCause.NOT_INSURED),
        (outcome(reason=Reason.STORM, insured=False), MissCause.NOT_INSURED),
        (outcome(reason=Reason.LATEST_START), MissCause.LIVE_API),
        (outcome(route=Route.ESCALATED, reason=Reason.TOO_LATE, insured=False), MissCause.UNATTENDED),
        (outcome(route=Route.ESCALATED), MissCause.LIVE_API),
        (outcome(route=Route.ESCALATED, insured=False), MissCause.NOT_INSURED),
        (outcome(route=Route.ESCALATED, reason=Reason.LATEST_START), MissCause.LIVE_API),
        (outcome(reason=Reason.SPEND_CAP, insured=False), MissCause.SPEND_CAP),
        (outcome(reason=Reason.BUDGET), MissCause.BUDGET),
        (outcome(reason=Reason.BATCH_ONLY), MissCause.BATCH_ONLY),
        (outcome(reason=Reason.CREDENTIAL), MissCause.CREDENTIAL),
    ],
)
def test_a_miss_has_one_cause(ended: Outcome, cause: MissCause | None) -> None:
    """What held it before what it could not have made; at the deadline itself it is in time."""
    assert miss_cause(ended) == cause


OUTCOMES = st.builds(
    outcome,
    late=st.booleans(),
    kind=st.sampled_from(OutcomeKind),
    raw=st.sampled_from([b"", b"{}", USAGE]),
    route=st.sampled_from(Route),
    reason=st.none() | st.sampled_from(Reason),
    insured=st.booleans(),
    latency=st.sampled_from(["hourly", "daily"]),
)


@given(st.lists(OUTCOMES, max_size=12), st.lists(OUTCOMES, max_size=12))
def test_many_at_once_are_as_one_by_one(earlier: list[Outcome], more: list[Outcome]) -> None:
    """On top of what was there; a class of which nothing counts is left as it was."""
    one_by_one: dict[str, ClassTally] = {}
    for one in [*earlier, *more]:
        if not one.withdrawn:
            one_by_one[one.latency] = count_outcome(one_by_one.get(one.latency, ClassTally()), one)
    before = count_outcomes({}, earlier)
    assert count_outcomes(before, more) == one_by_one
    assert before == count_outcomes({}, earlier)


def test_nothing_to_count_is_no_change() -> None:
    """The same tally: it need not be written."""
    tally = {"daily": ClassTally(wasted=1)}
    assert count_outcomes(tally, []) is tally
    assert count_outcomes(tally, [outcome(kind=OutcomeKind.CANCELED, raw=b"")]) is tally


def test_the_last_days_are_kept() -> None:
    """Whatever the order in which they come; money is exact."""
    first = date(2026, 1, 1)
    tally = ClassTally()
    for day in [*range(45), 3, 44]:
        tally = count_paid(tally, first + timedelta(days=day), Decimal("0.1"))
    assert sorted(tally.live_usd) == [first + timedelta(days=day) for day in range(5, 45)]
    assert tally.live_usd[first + timedelta(days=44)] == Decimal("0.2")


@given(
    st.lists(OUTCOMES, max_size=8),
    st.integers(0, 9),
    st.dictionaries(st.dates(), st.decimals(0, 9999, places=7), max_size=3),
)
def test_it_survives_its_json(outcomes: list[Outcome], wasted: int, paid: dict[date, Decimal]) -> None:
    """Every field; what an older version has not written is nothing."""
    tally = ClassTally(wasted=wasted, resent=wasted + 1)
    for one in outcomes:
        tally = count_outcome(tally, one)
    for day, usd in paid.items():
        tally = count_paid(tally, day, usd)
    assert read_tally(json.loads(json.dumps(tally_fields(tally)))) == tally
    assert read_tally({}) == ClassTally()


@pytest.mark.parametrize("fields", [{"settled": {"pigeon": 1}}, {"missed": {"luck": 1}}, {"wasted": "x"}])
def test_nonsense_is_no_tally(fields: dict[str, object]) -> None:
    """It is refused, not counted on."""
    with pytest.raises(ValueError, match=r"."):
        read_tally(fields)
