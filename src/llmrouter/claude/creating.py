"""What became of a batch create: how much of it went out, and what its failure means."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter.claude.instants import http_date
from llmrouter.claude.refusing import REDIRECTS, Reasons, reasons_of
from llmrouter.errors import CreateError, CreateRefusedError, CreateUnclearError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmrouter.ports import BatchBody

_UNCLEAR_STATUSES = frozenset({408, 409})
_NEVER_CONNECTED = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
_MESSAGE_CHARS = 300


class Upload:
    """A batch body on its way out, which knows how much of itself it has handed to the transport."""

    def __init__(self, body: BatchBody) -> None:
        self._body = body
        self._sent_bytes = 0

    @property
    def whole(self) -> bool:
        """Whether all of it may have gone out. What stopped short of its length created nothing."""
        return self._sent_bytes >= self._body.content_length

    def __iter__(self) -> Iterator[bytes]:
        sent_bytes = 0
        for piece in self._body:
            sent_bytes += len(piece)
            # Counted before it goes out, and never down: a middleware may send the body again.
            self._sent_bytes = max(self._sent_bytes, sent_bytes)
            yield piece


def classify_create_error(error: Exception, *, whole: bool, retried: bool) -> CreateError:
    """Whether a failed create has certainly created nothing.

    Args:
        error: What the SDK raised.
        whole: Whether all of the body may have gone out.
        retried: Whether a middleware of the client's may have sent it before.
    """
    answered = error if isinstance(error, anthropic.APIStatusError) else None
    status = answered.status_code if answered is not None else None
    retry_after = _retry_after(answered.response) if answered is not None else None
    if _said_no(status) or not whole or (not retried and isinstance(error.__cause__, _NEVER_CONNECTED)):
        reasons = reasons_of(answered) if answered is not None else Reasons()
        return CreateRefusedError(
            f"the batch was not created: {_describe(error)}",
            status=status,
            retry_after=retry_after,
            envelope=_envelope(error),
            **asdict(reasons),
        )
    message = f"no clear answer to the create of a batch, which may exist now: {_describe(error)}"
    return CreateUnclearError(message, status=status, retry_after=retry_after)


def redirect_text(response: httpx2.Response) -> str:
    """What to say of an answer that points elsewhere. Names no path: it may carry a secret."""
    return (
        f"HTTP {response.status_code}, a redirect; none is followed, since it would take keys and prompts "
        "along: set the client's base URL to where the API is"
    )


def _said_no(status: int | None) -> bool:
    if status is None or status in _UNCLEAR_STATUSES:
        return False
    return 400 <= status < 500 or status in REDIRECTS


def _envelope(error: Exception) -> Mapping[str, Any] | None:
    body = error.body if isinstance(error, anthropic.APIStatusError) else None
    return body if isinstance(body, dict) and isinstance(body.get("error"), dict) else None


def _describe(error: Exception) -> str:
    if isinstance(error, anthropic.APIStatusError):
        if error.status_code in REDIRECTS:
            return redirect_text(error.response)
        said = error.api_message or error.type or ""
        return f"HTTP {error.status_code} {said}".strip()[:_MESSAGE_CHARS]
    cause = error.__cause__
    return type(error).__name__ if cause is None else f"{type(error).__name__} ({type(cause).__name__})"


def _retry_after(response: httpx2.Response) -> timedelta | None:
    """The `retry-after` header, in seconds or as an HTTP date; never negative."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        at = http_date(text)
        if at is None:
            return None
        # The date is by the server's clock, like the date it was sent at.
        seconds = (at - (http_date(response.headers.get("date", "")) or datetime.now(UTC))).total_seconds()
    if not math.isfinite(seconds) or seconds > timedelta.max.total_seconds():
        return None
    return timedelta(seconds=max(0.0, seconds))
