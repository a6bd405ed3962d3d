"""What became of a live call that gave no message: whose fault it is, and whether it may be paid for."""

from __future__ import annotations

from typing import Any

import anthropic

from llmrouter.claude.rate_limits import read_limits
from llmrouter.claude.refusing import (
    NEVER_CONNECTED,
    describe_error,
    envelope_of,
    reasons_of,
    retry_after_of,
)
from llmrouter.domain.live import LiveCallError

LIMITED_TYPES = frozenset({"overloaded_error", "rate_limit_error"})
"""Error types that ask for fewer calls, whatever the status."""

_UNCLEAR_STATUSES = frozenset({303, 408, 504})
_NOT_PASSED_ON = frozenset({503, 529})
"""Of a gateway's own error statuses those that say that the API was not asked."""


def refusal_of(error: Exception) -> dict[str, Any] | None:
    """The API's error in the form of a batch's result, where the request itself is refused; else None.

    A gateway's error without the API's envelope refuses nothing: it may be gone at the next call.
    """
    envelope = envelope_of(error)
    if envelope is None or not isinstance(error, anthropic.APIStatusError):
        return None
    not_found = error.status_code == 404 and envelope["error"].get("type") == "not_found_error"
    if not (not_found or reasons_of(error).blames_content):
        return None
    request_id = {} if error.request_id is None else {"request_id": error.request_id}
    return {"type": "error", **request_id, **envelope}


def classify_live_error(error: Exception, *, sent: bool, retried: bool) -> LiveCallError:
    """Why a call that is not refused for its content gave no answer.

    Args:
        error: What the SDK raised before there was an answer to read.
        sent: Whether all of the request may have gone out.
        retried: Whether a middleware of the client's may have sent it before.
    """
    if isinstance(error, anthropic.APIStatusError):
        return _classify_status(error)
    never_sent = not sent or (not retried and isinstance(error.__cause__, NEVER_CONNECTED))
    return LiveCallError(f"the live call failed: {describe_error(error)}", unclear=not never_sent)


def _classify_status(error: anthropic.APIStatusError) -> LiveCallError:
    status, envelope, reasons = error.status_code, envelope_of(error), reasons_of(error)
    error_type = envelope["error"].get("type") if envelope is not None else None
    # Of the API's own 429s those of a spend limit do not say how long to wait; a gateway's need not.
    spent = reasons.spent and not (status == 429 and envelope is None)
    limited = not spent and (status in (429, 529) or error_type in LIMITED_TYPES)
    credential = reasons.credential and not limited
    lost = status in _UNCLEAR_STATUSES or error_type == "timeout_error"
    if status >= 500 and envelope is None:
        # The API charges for no call that it answers with an error; a gateway may have lost its answer.
        lost = lost or status not in _NOT_PASSED_ON
    return LiveCallError(
        f"the live call failed: {describe_error(error)}",
        status=status,
        retry_after=retry_after_of(error.response),
        limited=limited,
        spent=spent,
        regain_at=reasons.regain_at,
        credential=credential,
        unclear=lost and not (spent or limited or credential),
        limits=read_limits(error.response.headers),
    )
