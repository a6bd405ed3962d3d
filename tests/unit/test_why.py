"""Why a request has no answer yet, or how it got one: a sentence for every case."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.latency import CronLine, LatencyClass
from llmrouter.domain.reporting import Hold, HoldCause
from llmrouter.domain.requests import Outcome, OutcomeKind, RequestState, RequestView, Waiting
from llmrouter.reports.status import EngineStatus, RouterStatus, describe_backlog, describe_batch
from llmrouter.reports.why import Case, why, why_unknown
from support.clocks import START
from support.requests import DAILY, LANE, OTHER_LANE

HOUR = timedelta(hours=1)
NOW = START + HOUR
DUE = START + timedelta(hours=24)
ENGINE = EngineStatus(holder="host:7:ab", until=NOW + HOUR, silent=False, working_here=False, said_at=NOW)
SILENT = replace(ENGINE, until=NOW - HOUR, silent=True)
HOLD = Hold(
    lane_id=LANE.lane_id,
    since=START,
    until=NOW + HOUR,
    cause=HoldCause.LIMITED,
    reason="slow down",
    refusals=2,
)
VIEW = RequestView(
    request_id="req_1",
    state=RequestState.QUEUED,
    latency="daily",
    accepted_at=START,
    deadline_at=DUE,
    attempts=0,
    batch_id=None,
    key="k",
    lane_id=LANE.lane_id,
)
IN_BATCH = replace(VIEW, state=RequestState.CLAIMED, batch_id="batch_1")
FLYING = Batch(
    batch_id="batch_1",
    lane=LANE,
    latency="daily",
    nonce="n" * 10,
    state=BatchState.IN_FLIGHT,
    request_count=5,
    body_bytes=500,
    claimed_at=START,
    fence=1,
    provider_batch_id="msgbatch_1",
    created_at=START,
    expires_at=DUE,
)
DOUBTFUL = replace(
    FLYING,
    state=BatchState.IN_DOUBT,
    provider_batch_id=None,
    created_at=None,
    expires_at=None,
    in_doubt_at=START,
)
ANSWER = Outcome(
    request_id="req_1",
    kind=OutcomeKind.SUCCEEDED,
    latency="daily",
    accepted_at=START,
    deadline_at=DUE,
    settled_at=START + HOUR / 2,
    attempts=1,
    batch_id="batch_1",
    key="k",
    raw=b'{"result": "the secret answer"}',
)
PAUSED = {"daily": START}
SUBJECT = "req_1 (daily, due 2026-11-21 12:00:00 UTC, in 23.0 h)"


def waiting_in(lane: Any, *, hold: Hold | None = None, served: bool = True, paused: bool = False) -> Any:
    """A line of the backlog."""
    line = Waiting(lane=lane, latency="daily", request_count=3, body_bytes=9, earliest_deadline_at=DUE)
    return describe_backlog(line, NOW, served=served, paused=paused, hold=hold)


def case(
    view: RequestView = VIEW,
    *,
    backlog: tuple[Any, ...] = (),
    engine: EngineStatus | None = ENGINE,
    paused: dict[str, Any] | None = None,
    batch: Batch | None = None,
    served: bool = True,
    **fields: Any,
) -> Case:
    """What is known of the request."""
    status = RouterStatus(
        at=fields.pop("now", NOW),
        working=False,
        engine=engine,
        backlog=backlog or (waiting_in(LANE),),
        batches=(),
        holds=(),
        paused=paused or {},
        problems={},
    )
    known = describe_batch(batch, status.at, served=served) if batch else None
    given = {"latency": DAILY, "danger_at": DUE - HOUR, "has_credential": True, "batch": known, **fields}
    return Case(request=view, status=status, **given)


QUEUED = [
    (case(), "it leaves with the next flush of its class (every 10 min), or earlier when a batch is full"),
    (
        case(latency=LatencyClass(name="daily", deadline=24 * HOUR, flush=CronLine(line="0 22 * * *"))),
        "it leaves with the next flush of its class (at '0 22 * * *')",
    ),
    (case(latency=None), "its class is not in the settings here"),
    (
        case(paused=PAUSED),
        "its class is paused since 2026-11-20 12:00:00 UTC, 60 min ago; llmrouter resume daily",
    ),
    (
        case(backlog=(waiting_in(LANE, hold=HOLD),)),
        "last batch of its lane (limited: slow down), which is tried again at 2026-11-20 14:00:00 UTC, in 60",
    ),
    (
        case(backlog=(waiting_in(LANE), waiting_in(OTHER_LANE, hold=HOLD))),
        "it leaves with the next flush of its class",
    ),
    (case(backlog=(waiting_in(LANE, served=False),)), "does not hold the credential of its lane"),
    (case(engine=None), "no process works on this store; llmrouter worker starts one"),
    (case(engine=SILENT), "(host:7:ab) is silent since 2026-11-20 12:00:00 UTC, 60 min ago"),
    (case(replace(VIEW, attempts=2)), "it was in 2 batches before, without an answer"),
]


@pytest.mark.parametrize(("known", "reason"), QUEUED)
def test_a_queued_request_waits_for_something(known: Case, reason: str) -> None:
    """A schedule, a person, the API, a credential or a worker."""
    said = why(known)
    assert said.startswith(f"{SUBJECT} waits in the queue: ")
    assert reason in said
    assert said.endswith(".")


def test_reasons_come_together() -> None:
    """Paused, and nobody there: both are to be dealt with."""
    said = why(case(paused=PAUSED, engine=None))
    assert "is paused since" in said
    assert "no process works on this store" in said
    assert "next flush" not in said


def test_a_process_without_a_credential_tells_nothing_of_lanes() -> None:
    """It serves none: that says nothing."""
    assert "credential" not in why(case(backlog=(waiting_in(LANE, served=False),), has_credential=False))
    assert "credential" not in why(case(IN_BATCH, batch=FLYING, served=False, has_credential=False))


IN_BATCHES = [
    (replace(FLYING, state=BatchState.CLAIMED), "is in a batch that is being created since 2026-11-20"),
    (
        DOUBTFUL,
        "is in a batch in doubt since 2026-11-20 12:00:00 UTC, 60 min ago: perhaps created, so it is not",
    ),
    (DOUBTFUL, "when the API lists none that may be it for the grace time, it is queued again"),
    (replace(DOUBTFUL, candidates=("a",)), "1 batch at the API may be it, and the results will tell"),
    (replace(DOUBTFUL, candidates=("a", "b")), "2 batches at the API may be it, and the results will tell"),
    (
        FLYING,
        "12:00:00 UTC, 60 min ago; the API ends that at the latest at 2026-11-21 12:00:00 UTC, in 23.0 h.",
    ),
    (
        FLYING,
        "is in flight in msgbatch_1, created 2026-11-20 12:00:00 UTC, 60 min ago; the API",
    ),
    (
        replace(FLYING, cancel_wanted=True),
        "all that is left of it was canceled, and the API will be asked to",
    ),
    (
        replace(FLYING, cancel_wanted=True, cancel_asked_at=START),
        "all that is left of it was canceled, and the API was asked to at 2026-11-20 12:00:00 UTC",
    ),
    (replace(FLYING, state=BatchState.ENDED), "has just left its batch; ask again"),
    (replace(FLYING, state=BatchState.RELEASED), "has just left its batch; ask again"),
]


@pytest.mark.parametrize(("batch", "reason"), IN_BATCHES)
def test_a_request_in_a_batch_waits_for_the_api(batch: Batch, reason: str) -> None:
    """Whatever state the batch is in."""
    said = why(case(IN_BATCH, batch=batch))
    assert said.startswith(f"{SUBJECT} ")
    assert reason in said


@pytest.mark.parametrize("batch", [replace(FLYING, state=BatchState.CLAIMED), DOUBTFUL, FLYING])
def test_a_batch_that_nobody_looks_after_is_told(batch: Batch) -> None:
    """It goes on when a worker is started."""
    assert "no process works on this store" in why(case(IN_BATCH, batch=batch, engine=None))


def test_a_request_that_was_given_up_in_its_batch_is_told() -> None:
    """Its neighbours still want their answers, so the batch goes on."""
    said = why(case(replace(IN_BATCH, given_up=True), batch=FLYING))
    assert "it was canceled, and ends so unless the API answers it first" in said


def test_a_batch_of_another_credential_is_told() -> None:
    """A process that has it must look."""
    assert "this process does not hold its credential" in why(case(IN_BATCH, batch=FLYING, served=False))
    assert "a process with its credential" in why(case(IN_BATCH, batch=DOUBTFUL, served=False))


def test_a_request_whose_batch_is_not_found_is_on_its_way() -> None:
    """It moved between two looks."""
    assert why(case(IN_BATCH)).endswith("is on its way from one place to another; ask again.")


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (DUE - HOUR, "its deadline is in danger, with 60 min left"),
        (DUE + HOUR, "was due 2026-11-21 12:00:00 UTC, 60 min ago)"),
    ],
)
def test_a_deadline_in_danger_is_told(now: Any, reason: str) -> None:
    """And one that has passed."""
    assert "danger" not in why(case(IN_BATCH, batch=FLYING, now=DUE - HOUR * 2))
    assert reason in why(case(IN_BATCH, batch=FLYING, now=now))


def test_results_that_nobody_collected_are_an_alarm() -> None:
    """With the day on which they will be gone."""
    said = why(case(IN_BATCH, batch=FLYING, now=START + timedelta(days=21)))
    assert (
        "were not collected for long, and the API deletes them at 2026-12-19 12:00:00 UTC, in 8.0 d" in said
    )
    assert "not collected" not in why(case(IN_BATCH, batch=FLYING, now=START + timedelta(days=19)))


SETTLED = [
    (
        ANSWER,
        None,
        "req_1 was answered in batch msgbatch_1 at 2026-11-20 12:30:00 UTC, 30 min ago; that was in time.",
    ),
    (
        replace(ANSWER, kind=OutcomeKind.ERRORED),
        "BadRequestError",
        "req_1 failed with BadRequestError in batch",
    ),
    (replace(ANSWER, kind=OutcomeKind.EXPIRED, attempts=3), None, "req_1 expired in batch msgbatch_1"),
    (replace(ANSWER, attempts=3), None, "; it was in 3 batches; that was in time."),
    (replace(ANSWER, settled_at=DUE + HOUR), None, "; that was 60 min after its deadline."),
    (
        replace(ANSWER, kind=OutcomeKind.CANCELED, batch_id=None, attempts=0),
        None,
        "req_1 was canceled at 2026-11-20 12:30:00 UTC, 30 min ago.",
    ),
]


@pytest.mark.parametrize(("outcome", "error", "said"), SETTLED)
def test_a_settled_request_tells_how(outcome: Outcome, error: str | None, said: str) -> None:
    """How it ended, when, in which batch, after how many, and whether in time."""
    view = replace(VIEW, state=RequestState.SETTLED)
    batch = FLYING if outcome.batch_id else None
    sentence = why(case(view, outcome=outcome, error=error, batch=batch))
    assert said in sentence
    assert "secret" not in sentence


def test_a_batch_that_was_pruned_keeps_our_name() -> None:
    """The API's is not known any more."""
    view = replace(VIEW, state=RequestState.SETTLED)
    assert "in batch batch_1 at" in why(case(view, outcome=ANSWER))
    assert why(case(view)) == "req_1 has just got its outcome; ask again."


def test_an_unknown_request_is_told() -> None:
    """Real-time ones never were in the store."""
    assert (
        why_unknown("req_2") == "the store has no request 'req_2': it is in another store, or it was pruned"
    )
    assert why_unknown("live_2") == "live_2 was a real-time request: those are not stored"
