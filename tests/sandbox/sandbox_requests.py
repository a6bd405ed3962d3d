"""Requests for the sandbox's tests."""

from __future__ import annotations

from typing import Any

MODEL = "claude-haiku-4-5"


def params(text: str = "hello", **more: Any) -> dict[str, Any]:
    """Parameters of one request."""
    return {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": text}], **more}


def entry(custom_id: str, **more: Any) -> dict[str, Any]:
    """One item of a batch, whose text is its custom_id."""
    return {"custom_id": custom_id, "params": params(custom_id, **more)}


def entries(count: int) -> list[dict[str, Any]]:
    """Items named r0, r1, ..."""
    return [entry(f"r{index}") for index in range(count)]
