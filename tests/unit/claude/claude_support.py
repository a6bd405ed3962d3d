"""What the tests of `llmrouter.claude` share: clients that answer from a function, and bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MODEL = "claude-haiku-4-5"
SECRET = b"s" * 32


def request(**changes: Any) -> dict[str, Any]:
    """A small request, with some arguments changed or added."""
    return {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}], **changes}


def client_with(handler: Callable[[httpx2.Request], httpx2.Response], **options: Any) -> anthropic.Anthropic:
    """A client whose transport is a function."""
    if not options.keys() & {"api_key", "auth_token", "credentials"}:
        options["api_key"] = "key"
    options.setdefault("max_retries", 2)
    return anthropic.Anthropic(http_client=httpx2.Client(transport=httpx2.MockTransport(handler)), **options)


def silent_client(**options: Any) -> anthropic.Anthropic:
    """A client that must not send anything."""

    def refuse(sent: httpx2.Request) -> httpx2.Response:
        raise AssertionError(f"sent {sent.method} {sent.url}")

    return client_with(refuse, **options)


class Body:
    """A batch body of fixed pieces, which counts how often it was read."""

    def __init__(self, pieces: Sequence[bytes], content_length: int | None = None) -> None:
        self.pieces = pieces
        self.content_length = sum(map(len, pieces)) if content_length is None else content_length
        self.reads = 0

    def __iter__(self) -> Iterator[bytes]:
        self.reads += 1
        yield from self.pieces


def message_body(**changes: Any) -> dict[str, Any]:
    """A message as the API answers it."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 500},
        **changes,
    }


def batch_body(batch_id: str = "msgbatch_1", **changes: Any) -> dict[str, Any]:
    """A batch as the API describes it."""
    return {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": "2026-11-20T10:00:00Z",
        "expires_at": "2026-11-21T10:00:00Z",
        "ended_at": None,
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": None,
        **changes,
    }


def error_body(error_type: str, message: str = "no", **error: Any) -> dict[str, Any]:
    """The API's error envelope."""
    return {
        "type": "error",
        "error": {"type": error_type, "message": message, **error},
        "request_id": "req_9",
    }
