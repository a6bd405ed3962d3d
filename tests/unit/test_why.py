"""Why a request has no answer yet, or how it got one: a sentence for every case."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.blocks import Hold as LiveHold
from llmrouter.domain.blocks import Reason
from llmrouter.domain.latency import CronLine, LatencyClass
from llmrouter.domain.ledger import MissCause
from llmrouter.domain.reporting import Hold, HoldCause, LiveReport, Uninsured
from llmrouter.domain.requests import Outcome, OutcomeKind, RequestState, RequestView, Route, Waiting
from llmrouter.reports.reasons import because, is_hold, name_causes, why_missed
from llmrouter.reports.status import EngineStatus, RouterStatus, describe_backlog, describe_batch
from llmrouter.reports.why import Case, why, why_unknown
from support.clocks import START
from support.requests import DAILY, LANE, MODEL, OTHER_LANE

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
    model=MODEL,
    deadline_at=DUE,
    window=timedelta(hours=24),
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


def waiting_in(
    lane: Any,
    *,
    hold: Hold | None = None,
    served: bool = True,
    paused: bool = False,
    model: str = MODEL,
    batch_only: bool = False,
) -> Any:
    """A line of the backlog."""
    line = Waiting(
        lane=lane, latency="daily", model=model, request_count=3, body_bytes=9, earliest_deadline_at=DUE
    )
    return describe_backlog(line, NOW, served=served, batch_only=batch_only, paused=paused, hold=hold)


def case(
    view: RequestView = VIEW,
    *,
    backlog: tuple[Any, ...] = (),
    engine: EngineStatus | None = ENGINE,
    paused: dict[str, Any] | None = None,
    batch: Batch | None = None,
    served: bool = True,
    live: LiveReport | None = None,
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
        live=live,
        turnaround=(),
        tally=(),
        used_up=fields.pop("used_up", ()),
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
    (
        replace(ANSWER, settled_at=DUE + HOUR),
        None,
        "; that was 60 min after its deadline: nothing was done in time, as when no process works",
    ),
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


LIVE = LiveReport(
    requests_per_minute=250.0,
    going=12,
    under_way=3,
    storm=False,
    hold=None,
    hold_until=None,
    waits_until=None,
    uninsured=(),
)
CAPPED = replace(LIVE, hold=LiveHold.SPEND_CAP, hold_until=NOW + HOUR)
OVERSOLD = replace(
    LIVE,
    uninsured=(Uninsured(latency="daily", model=MODEL, request_count=500, deadline_at=DUE),),
)
LATEST = "if no batch answers it in time, it goes live at the latest at 2026-11-21 11:00:00 UTC, in 22.0 h"
NO_INSURANCE = "the rate of live calls does not suffice for it as well: it is late if no batch answers it"
TWO_MODELS = (waiting_in(LANE), waiting_in(LANE, model="another"))


@pytest.mark.parametrize(("view", "batch"), [(VIEW, None), (IN_BATCH, FLYING)])
@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"live": LIVE}, LATEST),
        (
            {"live": CAPPED},
            "it cannot go live before 2026-11-20 14:00:00 UTC, in 60 min, because a spend limit of the",
        ),
        (
            {"live": LIVE, "used_up": ("daily",)},
            "it cannot go live, because max_escalation_usd was used up: it is late",
        ),
        ({"live": OVERSOLD}, NO_INSURANCE),
        ({"live": LIVE, "now": DUE - HOUR / 2}, "its deadline is in danger, with 30 min left"),
    ],
)
def test_by_when_it_goes_live_is_told(
    view: RequestView, batch: Batch | None, known: dict[str, Any], reason: str
) -> None:
    """Waiting or in flight; and where it does not, why."""
    said = why(case(view, batch=batch, **known))
    assert reason in said
    assert (LATEST in said) == (reason == LATEST)


def test_nothing_is_promised_that_nobody_keeps() -> None:
    """No engine that looks, a paused class, a request that was given up, another class's risk."""
    assert "goes live" not in why(case())
    assert "goes live" not in why(case(live=LIVE, paused=PAUSED))
    assert "goes live" not in why(case(replace(IN_BATCH, given_up=True), batch=FLYING, live=LIVE))
    (risk,) = OVERSOLD.uninsured
    for other in (replace(risk, latency="hourly"), replace(risk, model="another")):
        assert LATEST in why(case(live=replace(LIVE, uninsured=(other,))))
    later = replace(risk, deadline_at=DUE + HOUR)
    assert LATEST in why(case(live=replace(LIVE, uninsured=(later,))))


def test_what_only_a_batch_can_do_waits_for_it() -> None:
    """Waiting or in flight."""
    words = "it cannot go live, because it asks for what only a batch can do"
    assert words in why(case(backlog=(waiting_in(LANE, batch_only=True),), live=LIVE))
    known = case(IN_BATCH, batch=FLYING, live=LIVE)
    assert known.batch is not None
    assert words in why(replace(known, batch=replace(known.batch, batch_only=True)))


def test_of_several_models_it_is_not_known_whether_it_is_insured() -> None:
    """The store does not say what model a request is for."""
    said = why(case(backlog=TWO_MODELS, live=OVERSOLD))
    assert "500 requests of its class cannot be insured, perhaps this one too" in said


RECALLED = replace(FLYING, recalled_at=START + HOUR / 2, reason=Reason.LATEST_START)
ASKED = replace(RECALLED, cancel_asked_at=START + HOUR / 2)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (
            RECALLED,
            "it was asked back at 2026-11-20 12:30:00 UTC, 30 min ago, because no batch had answered when",
        ),
        (
            RECALLED,
            "came near; the API will be asked to cancel its batch; what that has not answered is sent",
        ),
        (ASKED, "the API was asked to cancel its batch at 2026-11-20 12:30:00 UTC, 30 min ago; what that"),
        (replace(ASKED, reason=Reason.OVERTAKEN), "because younger batches of its kind had come back"),
        (replace(ASKED, cancel_wanted=True), "all that is left of it was canceled, and the API was asked to"),
        (
            replace(FLYING, reason=Reason.BUDGET, insured=False),
            "it should go live and cannot, because max_escalation_usd was used up",
        ),
        (replace(FLYING, insured=False), NO_INSURANCE),
    ],
)
def test_what_was_decided_about_a_batch_is_told(batch: Batch, reason: str) -> None:
    """That it is wanted back and why; that it should be and cannot; that it is not insured."""
    assert reason in why(case(IN_BATCH, batch=batch, live=LIVE))


def test_a_recall_that_a_hold_overtook_does_not_blame_it() -> None:
    """The budget is not why it was asked back."""
    said = why(case(IN_BATCH, batch=replace(RECALLED, reason=Reason.BUDGET), live=LIVE))
    assert "it was asked back at 2026-11-20 12:30:00 UTC, 30 min ago; the API" in said


GOING = replace(
    FLYING,
    batch_id="batch_2",
    state=BatchState.ESCALATING,
    nonce="",
    provider_batch_id=None,
    created_at=None,
    expires_at=None,
    escalated_at=START + HOUR / 2,
    reason=Reason.CANCEL_NOT_FINAL,
)


@pytest.mark.parametrize(
    ("batch", "known", "reason"),
    [
        (
            GOING,
            {"live": LIVE},
            "goes live since 2026-11-20 12:30:00 UTC, 30 min ago, because its batch had not ended when its",
        ),
        (
            GOING,
            {"live": LIVE},
            "; its call is under way, or waits for its turn among 12 at about 250 a minute.",
        ),
        (
            GOING,
            {"live": replace(LIVE, waits_until=NOW + HOUR)},
            "; the API asked to wait with calls until 2026-11-20 14:00:00 UTC, in 60 min",
        ),
        (GOING, {}, "its call is under way, or waits for its turn."),
        (GOING, {"live": CAPPED}, "; it cannot for now, because a spend limit of the account was reached"),
        (
            replace(GOING, reason=Reason.CREDENTIAL),
            {"live": LIVE},
            "30 min ago; it cannot for now, because the API did not accept the key for live calls",
        ),
        (replace(GOING, insured=False), {"live": LIVE}, "it comes after the others"),
        (GOING, {"engine": None}, "no process works on this store"),
        (GOING, {"live": LIVE, "served": False}, "this process does not hold its credential"),
    ],
)
def test_a_request_that_goes_live_is_told(batch: Batch, known: dict[str, Any], reason: str) -> None:
    """Since when and why, whether a call can be under way, and at what rate."""
    assert reason in why(case(replace(IN_BATCH, batch_id="batch_2"), batch=batch, **known))


def test_a_race_names_the_batch_that_may_still_answer() -> None:
    """By the API's id where it is known."""
    view, racing = replace(IN_BATCH, batch_id="batch_2"), replace(GOING, raced="batch_1")
    old = describe_batch(FLYING, NOW, served=True)
    assert "batch msgbatch_1 may still answer it first" in why(case(view, batch=racing, raced=old))
    assert "batch batch_1 may still answer it first" in why(case(view, batch=racing))
    given_up = case(replace(view, given_up=True), batch=racing)
    assert "it was canceled, and ends so unless it is answered first" in why(given_up)


LIVE_ANSWER = replace(ANSWER, batch_id=None, attempts=0, route=Route.ESCALATED, reason=Reason.LATEST_START)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (
            LIVE_ANSWER,
            "req_1 was answered live at 2026-11-20 12:30:00 UTC, 30 min ago, because no batch had answered",
        ),
        (LIVE_ANSWER, " when its latest start came near; that was in time."),
        (
            replace(LIVE_ANSWER, settled_at=DUE + HOUR),
            "; that was 60 min after its deadline: it went live, and the live API did not answer in time.",
        ),
        (
            replace(LIVE_ANSWER, settled_at=DUE + HOUR, insured=False),
            "after its deadline: the rate of live calls did not suffice for it as well, which was known.",
        ),
        (
            replace(ANSWER, settled_at=DUE + HOUR / 20, reason=Reason.BUDGET),
            "UTC, in 23.1 h; that was 3 min after its deadline: max_escalation_usd was used up.",
        ),
        (
            replace(ANSWER, reason=Reason.CANCEL_NOT_FINAL),
            "30 min ago; it was to go live, because its batch had not ended when its latest start came",
        ),
        (replace(ANSWER, reason=Reason.STORM), ", and its batch answered first; that was in time."),
    ],
)
def test_an_outcome_tells_which_way_it_came_and_why(outcome: Outcome, said: str) -> None:
    """Live or by its batch, in time or not, and what kept it."""
    batch = FLYING if outcome.batch_id else None
    view = replace(VIEW, state=RequestState.SETTLED)
    assert said in why(case(view, outcome=outcome, batch=batch))


def test_each_reason_and_each_cause_has_words() -> None:
    """Those for not going live are holds."""
    assert len({because(reason) for reason in Reason}) == len(Reason)
    assert len({why_missed(cause) for cause in MissCause}) == len(MissCause)
    assert [reason.value for reason in Reason if is_hold(reason)] == [hold.value for hold in LiveHold]


def test_causes_are_named_the_most_frequent_first() -> None:
    """In a few words each."""
    missed = {MissCause.BUDGET: 1, MissCause.LIVE_API: 2_000, MissCause.NOT_INSURED: 3}
    assert name_causes(missed) == "2,000 live API, 3 not insured, 1 budget"
