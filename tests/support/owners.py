"""Futures without a router: an owner that answers from what a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from anthropic.types import Message

from llmrouter import MessageFuture
from llmrouter.domain.requests import Outcome, OutcomeKind
from support.clocks import START

if TYPE_CHECKING:
    from collections.abc import Callable


def message(text: str = "hello") -> Message:
    """A message with this text."""
    return Message.construct(id=f"msg_{text}", type="message", role="assistant", content=[])


def outcome(
    request_id: str = "req_1",
    kind: OutcomeKind = OutcomeKind.SUCCEEDED,
    *,
    batch_id: str | None = "batch_1",
    raw: bytes = b"{}",
) -> Outcome:
    """How a request ended."""
    return Outcome(
        request_id=request_id,
        kind=kind,
        latency="daily",
        accepted_at=START,
        deadline_at=START + timedelta(hours=24),
        settled_at=START + timedelta(hours=1),
        attempts=1 if batch_id else 0,
        batch_id=batch_id,
        key=None,
        raw=raw,
    )


def canceled(request_id: str = "req_1") -> Outcome:
    """The outcome of a request that was canceled in the queue."""
    return outcome(request_id, OutcomeKind.CANCELED, batch_id=None, raw=b"")


@dataclass
class FakeOwner:
    """Implements `llmrouter.futures.Owner`."""

    cancels: bool = False
    """What `cancel` answers: whether the request was still queued."""
    answer: Callable[[Outcome], Message | Exception] = lambda outcome: message(outcome.request_id)
    on_cancel: Callable[[], None] = lambda: None
    """Happens in the middle of a `cancel`, before it answers."""
    where: str = "queued"
    canceled: list[str] = field(default_factory=list)
    pinned: list[MessageFuture] = field(default_factory=list)

    def cancel(self, request_id: str) -> bool:
        """See `Owner.cancel`."""
        self.canceled.append(request_id)
        self.on_cancel()
        return self.cancels

    def state(self, request_id: str) -> str:
        """See `Owner.state`."""
        return self.where

    def decode(self, outcome: Outcome) -> Message | Exception:
        """See `Owner.decode`."""
        return self.answer(outcome)

    def pin(self, future: MessageFuture) -> None:
        """See `Owner.pin`."""
        self.pinned.append(future)

    def future(self, request_id: str = "req_1") -> MessageFuture:
        """A future of this owner."""
        return MessageFuture(
            self,
            request_id=request_id,
            key=None,
            latency="daily",
            deadline=START + timedelta(hours=24),
        )
