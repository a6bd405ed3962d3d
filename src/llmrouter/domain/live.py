"""Live calls of the router's own: what is asked of the API, and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter.errors import LlmrouterError

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from decimal import Decimal

    from llmrouter.domain.rates import Work
    from llmrouter.domain.requests import OutcomeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Where one of the API's rate limits stands, as its headers say."""

    limit: float
    """A minute."""
    remaining: float
    reset_at: datetime
    """When the whole limit is there again, by the API's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What an answer says of the account's limits; None for what it does not name."""

    requests: Allowance | None = None
    input_tokens: Allowance | None = None
    output_tokens: Allowance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCall:
    """A request that is about to be sent live."""

    request_id: str
    body: bytes = field(repr=False)
    """The exact JSON bytes of its parameters."""
    again: bool
    """Whether an earlier call for it began whose answer nobody knows: it may be paid twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReply:
    """A clear answer to a live call: a message, or an error that is the request's own."""

    kind: OutcomeKind
    """SUCCEEDED or ERRORED."""
    raw: bytes = field(repr=False)
    """In the form of a batch's result line, see `llmrouter.domain.requests.Outcome.raw`."""
    took: timedelta
    work: Work
    """The tokens it used."""
    paid_usd: Decimal | None
    """None where no price is known."""
    limits: RateLimits | None
    """None where the answer does not name any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an answer to one of the application's own real-time calls tells of the account's limits."""

    model: str
    """As the call names it; limits are per model."""
    limits: RateLimits | None
    """None where the answer does not name any."""
    work: Work
    """What it counts against them: one request, and the tokens of its message if it has one."""
    ended_at: datetime


class LiveCallError(LlmrouterError):
    """A live call of the router's own did not give an answer. No caller of `Router` sees it.

    At most one of `limited`, `spent`, `credential` and `unclear` is true; none: the API is at fault.

    Attributes:
        status: The HTTP status, or None when there was no answer.
        retry_after: How long the API asks to wait, or None when it does not say.
        limited: Whether there were too many calls, or the API is overloaded (429, 529).
        spent: Whether a spend limit is reached.
        regain_at: When a spend limit lets calls through again, as the API says; None when it does not.
        credential: Whether the API did not accept the key, or its rights.
        unclear: Whether the answer got lost on its way: the call may have been done, and paid for.
        limits: What the answer says of the account's rate limits; None when it says nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: timedelta | None = None,
        limited: bool = False,
        spent: bool = False,
        regain_at: datetime | None = None,
        credential: bool = False,
        unclear: bool = False,
        limits: RateLimits | None = None,
    ) -> None:
        self.status = status
        self.retry_after = retry_after
        self.limited = limited
        self.spent = spent
        self.regain_at = regain_at
        self.credential = credential
        self.unclear = unclear
        self.limits = limits
        super().__init__(message)

    @property
    def brief(self) -> str:
        """What went wrong without the API's words, which may quote a prompt: for logs."""
        return str(self) if self.status is None else f"the API answered {self.status}"
