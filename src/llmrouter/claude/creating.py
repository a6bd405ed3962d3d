"""What became of a batch create: how much of it went out, and what its failure means."""

from __future__ import annotations

import email.utils
import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

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
_CONTENT_STATUSES = frozenset({400, 413, 422})
_SPENT = re.compile(r"usage limit|spend|credit balance|billing", re.IGNORECASE)
"""A spend limit of one's own is a 400 that only its text tells from a bad request (FACTS.md)."""
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
            # Counted before it goes out, and never down: a redirect sends the body again.
            self._sent_bytes = max(self._sent_bytes, sent_bytes)
            yield piece


def classify_create_error(error: Exception, *, whole: bool, retried: bool) -> CreateError:
    """Whether a failed create has certainly created nothing.

    Args:
        error: What the SDK raised.
        whole: Whether all of the body may have gone out.
        retried: Whether a middleware of the client's may have sent it before.
    """
    status = error.status_code if isinstance(error, anthropic.APIStatusError) else None
    retry_after = _retry_after(error.response) if isinstance(error, anthropic.APIStatusError) else None
    refused = status is not None and 400 <= status < 500 and status not in _UNCLEAR_STATUSES
    if refused or not whole or (not retried and isinstance(error.__cause__, _NEVER_CONNECTED)):
        return CreateRefusedError(
            f"the batch was not created: {_describe(error)}",
            status=status,
            retry_after=retry_after,
            envelope=_envelope(error),
            blames_content=status in _CONTENT_STATUSES and _SPENT.search(_describe(error)) is None,
        )
    message = f"no clear answer to the create of a batch, which may exist now: {_describe(error)}"
    return CreateUnclearError(message, status=status, retry_after=retry_after)


def _envelope(error: Exception) -> Mapping[str, Any] | None:
    body = error.body if isinstance(error, anthropic.APIStatusError) else None
    return body if isinstance(body, dict) and isinstance(body.get("error"), dict) else None


def _describe(error: Exception) -> str:
    if isinstance(error, anthropic.APIStatusError):
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
        at = _http_date(text)
        if at is None:
            return None
        # The date is by the server's clock, like the date it was sent at.
        seconds = (at - (_http_date(response.headers.get("date", "")) or datetime.now(UTC))).total_seconds()
    if not math.isfinite(seconds) or seconds > timedelta.max.total_seconds():
        return None
    return timedelta(seconds=max(0.0, seconds))


def _http_date(text: str) -> datetime | None:
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
