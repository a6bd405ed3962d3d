"""Why the API did not do a call, as far as its answer, or what there is of one, tells."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter.claude.instants import http_date, named_end

if TYPE_CHECKING:
    from collections.abc import Mapping

REDIRECTS = frozenset({301, 302, 307, 308})
"""Not 303, which says that the request was dealt with."""

NEVER_CONNECTED = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
"""What the transport raises before it has sent anything."""

_CONTENT_STATUSES = frozenset({400, 413, 422})
_WAITS = ("retry-after", "retry-after-ms")
_SPENT_CODE = "spend_limit_reached"
"""How the codes of spend limits end, in an error's details (the SDK's table of exceptions)."""
_SPENT = re.compile(
    r"\busage limits?\b|\bspend(?:ing)? (?:limit|cap)|credit balance|regain access", re.IGNORECASE
)
"""A spend limit of one's own is a 400 that only its text tells from a bad request (docs/api.md)."""
_DISABLED_CODE = "organization_on_hold"
_DISABLED = re.compile(r"organization has been disabled", re.IGNORECASE)
"""A 400, too, without a code unless trust and safety was the reason."""
_REQUEST = re.compile(r"\brequests\s*(?:\.\s*|\[\s*)\d|\bcustom_id\b|\bparams\b")
_FIELD = re.compile(r"(?!error\b)[a-z_]+(?:\.[a-z0-9_]+)*: ")
"""How a text begins that is about a field of a request."""
_MESSAGE_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Why, in the words of `CreateError`. At most one is true, `names_request` aside."""

    spent: bool = False
    regain_at: datetime | None = None
    credential: bool = False
    limited: bool = False
    blames_content: bool = False
    names_request: bool = False


def reasons_of(error: anthropic.APIStatusError) -> Reasons:
    """What an error status says of why."""
    status, text = error.status_code, str(error.api_message or "")
    code = _code_of(error)
    named = _REQUEST.search(text) is not None
    # Such a text may quote the request.
    about = "" if named or _FIELD.match(text) else text
    if _is_spent(error, code, text, about):
        return Reasons(spent=True, regain_at=named_end(text))
    if status in (401, 403) or code == _DISABLED_CODE or (status == 400 and _DISABLED.search(about)):
        return Reasons(credential=True)
    if status == 429:
        return Reasons(limited=True)
    if status in _CONTENT_STATUSES:
        return Reasons(blames_content=True, names_request=named)
    return Reasons()


def envelope_of(error: Exception) -> Mapping[str, Any] | None:
    """The API's error body, or None where there is none: an answer of a proxy's, or no answer."""
    body = error.body if isinstance(error, anthropic.APIStatusError) else None
    return body if isinstance(body, dict) and isinstance(body.get("error"), dict) else None


def redirect_text(response: httpx2.Response) -> str:
    """What to say of an answer that points elsewhere. Names no path: it may carry a secret."""
    return (
        f"HTTP {response.status_code}, a redirect; none is followed, since it would take keys and prompts "
        "along: set the client's base URL to where the API is"
    )


def describe_error(error: Exception) -> str:
    """What went wrong, in at most 300 characters: the API's own words, which may quote a prompt."""
    if isinstance(error, anthropic.APIStatusError):
        if error.status_code in REDIRECTS:
            return redirect_text(error.response)
        said = error.api_message or error.type or ""
        return f"HTTP {error.status_code} {said}".strip()[:_MESSAGE_CHARS]
    cause = error.__cause__
    return type(error).__name__ if cause is None else f"{type(error).__name__} ({type(cause).__name__})"


def retry_after_of(response: httpx2.Response) -> timedelta | None:
    """How long to wait: `retry-after-ms`, or `retry-after` in seconds or as an HTTP date; never negative."""
    seconds = _number(response.headers.get("retry-after-ms", "")) / 1000
    text = response.headers.get("retry-after", "")
    if math.isnan(seconds):
        seconds = _number(text)
    if math.isnan(seconds):
        at = http_date(text)
        if at is None:
            return None
        # The date is by the server's clock, like the date it was sent at.
        seconds = (at - (http_date(response.headers.get("date", "")) or datetime.now(UTC))).total_seconds()
    if not math.isfinite(seconds) or seconds > timedelta.max.total_seconds():
        return None
    return timedelta(seconds=max(0.0, seconds))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_spent(error: anthropic.APIStatusError, code: str, text: str, about: str) -> bool:
    if code.endswith(_SPENT_CODE):
        return True
    match error.status_code:
        case 402:
            return True
        case 429:
            # Any other 429 says how long to wait (docs/api.md).
            return not any(name in error.response.headers for name in _WAITS) or named_end(text) is not None
        case 400 | 403:
            return _SPENT.search(about) is not None
        case _:
            return False


def _code_of(error: anthropic.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    details = inner.get("details") if isinstance(inner, dict) else None
    code = details.get("error_code") if isinstance(details, dict) else None
    return code if isinstance(code, str) else ""
