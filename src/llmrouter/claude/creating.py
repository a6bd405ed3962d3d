"""What became of a batch create: how much of it went out, and what its failure means."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import anthropic

from llmrouter.claude.refusing import (
    NEVER_CONNECTED,
    REDIRECTS,
    Reasons,
    describe_error,
    envelope_of,
    reasons_of,
    retry_after_of,
)
from llmrouter.errors import CreateError, CreateRefusedError, CreateUnclearError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.ports import BatchBody

_UNCLEAR_STATUSES = frozenset({408, 409})


class Upload:
    """A body on its way out, which knows how much of itself it has handed to the transport."""

    def __init__(self, body: BatchBody) -> None:
        self._body = body
        self._sent_bytes = 0
        self.content_length = body.content_length

    @property
    def whole(self) -> bool:
        """Whether all of it may have gone out. What stopped short of its length created nothing."""
        return self._sent_bytes >= self.content_length

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
    retry_after = retry_after_of(answered.response) if answered is not None else None
    if _said_no(status) or not whole or (not retried and isinstance(error.__cause__, NEVER_CONNECTED)):
        reasons = reasons_of(answered) if answered is not None else Reasons()
        return CreateRefusedError(
            f"the batch was not created: {describe_error(error)}",
            status=status,
            retry_after=retry_after,
            envelope=envelope_of(error),
            **asdict(reasons),
        )
    message = f"no clear answer to the create of a batch, which may exist now: {describe_error(error)}"
    return CreateUnclearError(message, status=status, retry_after=retry_after)


def _said_no(status: int | None) -> bool:
    if status is None or status in _UNCLEAR_STATUSES:
        return False
    return 400 <= status < 500 or status in REDIRECTS
