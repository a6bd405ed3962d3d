"""Why the API did not take a batch, as far as its answer tells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.claude.instants import named_end

if TYPE_CHECKING:
    from datetime import datetime

    import anthropic

REDIRECTS = frozenset({301, 302, 307, 308})
"""Not 303, which says that the request was dealt with."""

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
    if _is_spent(error, code, text, named=named):
        return Reasons(spent=True, regain_at=named_end(text))
    if status in (401, 403) or code == _DISABLED_CODE or (status == 400 and _DISABLED.search(text)):
        return Reasons(credential=True)
    if status == 429:
        return Reasons(limited=True)
    if status in _CONTENT_STATUSES:
        return Reasons(blames_content=True, names_request=named)
    return Reasons()


def _is_spent(error: anthropic.APIStatusError, code: str, text: str, *, named: bool) -> bool:
    if code.endswith(_SPENT_CODE):
        return True
    match error.status_code:
        case 402:
            return True
        case 429:
            # Any other 429 says how long to wait (docs/api.md).
            return not any(name in error.response.headers for name in _WAITS) or named_end(text) is not None
        case 400 | 403:
            # A text that names a request may quote it.
            return not named and _SPENT.search(text) is not None
        case _:
            return False


def _code_of(error: anthropic.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    details = inner.get("details") if isinstance(inner, dict) else None
    code = details.get("error_code") if isinstance(details, dict) else None
    return code if isinstance(code, str) else ""
