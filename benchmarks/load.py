"""What is measured with: requests of a given size, a client that calls nobody, filled stores."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anthropic

from llmrouter import Router, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = "http://127.0.0.1:9"
"""Nothing listens there: who enqueues calls nobody."""

MANY = 1_000
"""Requests in one call of `submit_many`, and rows in one commit of raw SQLite."""

_WHEN_ASKED = {"daily": {"flush": "0 0 1 1 *"}}
"""A schedule that leaves flushing to who measures it: an interval begins with a flush of its own."""

_MODELS = ("claude-opus-4-6", "claude-opus-4-7")
_WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew a potion and "


def request(place: int, body_bytes: int, *, model: str = _MODELS[0]) -> dict[str, Any]:
    """The arguments of a `messages.create` whose JSON has exactly so many bytes."""
    content = f"{place:08d} "
    made = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": content}]}
    missing = body_bytes - len(encode(made))
    made["messages"] = [
        {"role": "user", "content": content + (_WORDS * (missing // len(_WORDS) + 1))[:missing]}
    ]
    return made


def encode(made: dict[str, Any]) -> bytes:
    """A request as the SDK would send it."""
    return json.dumps(made, separators=(",", ":")).encode()


def client(url: str = NOBODY) -> anthropic.Anthropic:
    """A client of a loopback address."""
    return anthropic.Anthropic(api_key="bench", base_url=url, max_retries=0)


@contextmanager
def router(
    folder: Path | str, *, url: str = NOBODY, worker: bool = False, **settings: Any
) -> Iterator[Router]:
    """A router over the store in a folder."""
    chosen = Settings(classes=_WHEN_ASKED, **settings)
    with Router(client(url), store=f"disk://{folder}", settings=chosen, worker=worker) as made:
        yield made


def fill_by_submit(folder: str, url: str, count: int, body_bytes: int) -> None:
    """Fills a store with one call of `submit` for each request."""
    with router(folder, url=url) as made:
        for place in range(count):
            made.submit(request(place, body_bytes), latency="daily")


def fill_by_submit_many(folder: str, url: str, count: int, body_bytes: int) -> None:
    """Fills a store with a call of `submit_many` for each thousand requests."""
    with router(folder, url=url) as made:
        for start in range(0, count, MANY):
            places = range(start, min(start + MANY, count))
            made.submit_many([request(place, body_bytes) for place in places], latency="daily")


def fill_rows(folder: str, url: str, first: int, count: int, body_bytes: int) -> None:
    """Fills a store with the rows that `submit` writes, a thousand of them in one transaction.

    Neighbours of different models do not share a row, so each request gets one of its own, as it
    does when it comes alone. A million single commits would take minutes.
    """
    with router(folder, url=url) as made:
        for start in range(first, first + count, MANY):
            places = range(start, min(start + MANY, first + count))
            requests = [request(place, body_bytes, model=_MODELS[place % 2]) for place in places]
            made.submit_many(requests, latency="daily")
