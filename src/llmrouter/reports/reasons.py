"""Reasons and causes in words: clauses that stand after "because", or after a colon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain.blocks import Hold, Reason
from llmrouter.domain.ledger import MissCause

if TYPE_CHECKING:
    from collections.abc import Mapping

_HOLDS = frozenset(hold.value for hold in Hold)

_REASONS = {
    Reason.LATEST_START: "no batch had answered when its latest start came near",
    Reason.STORM: "no batch came back at that time, and its window is short",
    Reason.SHORT_WINDOW: "it was accepted with too little time for a batch",
    Reason.LITTLE_LEFT: "too little time was left for a batch",
    Reason.CANCEL_NOT_FINAL: "its batch had not ended when its latest start came",
    Reason.TOO_LATE: "its latest start had passed when somebody looked at it",
    Reason.OVERTAKEN: "younger batches of its kind had come back",
    Reason.SPEND_CAP: "a spend limit of the account was reached",
    Reason.BUDGET: "max_escalation_usd was used up",
    Reason.BATCH_ONLY: "it asks for what only a batch can do",
    Reason.CREDENTIAL: "the API did not accept the key for live calls",
}

_CAUSES = {
    MissCause.NOT_INSURED: "the rate of live calls did not suffice for it as well, which was known",
    MissCause.LIVE_API: "it went live, and the live API did not answer in time",
    MissCause.UNATTENDED: "nothing was done in time, as when no process works or its class is paused",
}

_NAMES = {MissCause.SPEND_CAP: "spend limit", MissCause.LIVE_API: "live API"}


def because(reason: Reason | Hold) -> str:
    """Why requests go live, or why they cannot."""
    return _REASONS[Reason(reason.value)]


def is_hold(reason: Reason | None) -> bool:
    """Whether a reason is one for not going live."""
    return reason is not None and reason.value in _HOLDS


def why_missed(cause: MissCause) -> str:
    """Why a deadline was missed."""
    return _CAUSES[cause] if cause in _CAUSES else because(Hold(cause.value))


def name_causes(missed: Mapping[MissCause, int]) -> str:
    """How many deadlines were missed by cause, the most frequent first: ``2 budget, 1 live API``."""
    most_first = sorted(missed.items(), key=lambda one: -one[1])
    return ", ".join(
        f"{count:,} {_NAMES.get(cause, cause.value.replace('_', ' '))}" for cause, count in most_first
    )
