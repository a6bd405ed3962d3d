"""Requests, drafts and lanes that tests send through the router."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from llmrouter.domain.latency import Interval, LatencyClass
from llmrouter.domain.requests import Group, Lane, QueuedRequest, format_request_id
from llmrouter.engine.intake import Draft
from support.clocks import START

MODEL = "claude-haiku-4-5"
LANE = Lane(
    lane_id="lane-a",
    base_url="http://api",
    credential="credential-a",
    headers=(("anthropic-version", "2026-10-21"),),
)
OTHER_LANE = Lane(
    lane_id="lane-b",
    base_url="http://api",
    credential="credential-a",
    headers=(("anthropic-beta", "b"), ("anthropic-version", "2026-10-21")),
)
FOREIGN_LANE = Lane(lane_id="lane-c", base_url="http://api", credential="credential-c", headers=())

DAILY = LatencyClass(name="daily", deadline=timedelta(hours=24), flush=Interval(every=timedelta(minutes=10)))

_numbers = count()


def ask(text: object = "hi", **changes: Any) -> dict[str, Any]:
    """The arguments of `messages.create`, told apart by their text."""
    return {
        "model": MODEL,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": str(text)}],
        **changes,
    }


def body_of(text: object) -> bytes:
    """The body of `ask(text)`."""
    return json.dumps(ask(text), separators=(",", ":")).encode()


def group_in(lane: Lane = LANE, latency: str = "daily", model: str = MODEL, prefix: str = "") -> Group:
    """A group of one lane, class and model, whose prompts begin alike."""
    return Group(lane=lane, latency=latency, site="tests:site", model=model, prefix=prefix)


def draft(
    text: object = "hi",
    *,
    key: str | None = None,
    deadline: timedelta | datetime | None = None,
    lane: Lane = LANE,
) -> Draft:
    """A checked request, as the router hands it to the intake."""
    return Draft(group=group_in(lane), latency=DAILY, body=body_of(text), deadline=deadline, key=key)


def queued(
    text: object | None = None,
    *,
    lane: Lane = LANE,
    latency: str = "daily",
    model: str = MODEL,
    prefix: str = "",
    key: str | None = None,
    accepted_at: datetime = START,
    window: timedelta = timedelta(hours=24),
) -> QueuedRequest:
    """A request with an id of its own, as a store takes it in. Ids grow from call to call."""
    number = next(_numbers)
    request_id = format_request_id(f"{number // 1000:020d}", number % 1000)
    return QueuedRequest(
        request_id=request_id,
        group=group_in(lane, latency, model, prefix),
        accepted_at=accepted_at,
        deadline_at=accepted_at + window,
        body=body_of(request_id if text is None else text),
        key=key,
    )
