"""The made-up work of the demo: a small shop's calls, no two of them alike."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

LATENCIES = ("real-time", "hourly", "daily", "weekly")

# One in ten waits for its answer, two can wait an hour, six a day, one a week: the mix of docs/policy.md.
_PATTERN = (
    "daily",
    "hourly",
    "daily",
    "real-time",
    "daily",
    "weekly",
    "daily",
    "hourly",
    "daily",
    "daily",
)
_SITES = {
    "real-time": "support.chat:reply",
    "hourly": "catalog.listing:describe",
    "daily": "crm.nightly:classify_ticket",
    "weekly": "reports.digest:summarize",
}
_SYSTEMS = {
    "real-time": "You are the support desk of Northwind Outdoor. Answer in two friendly sentences.",
    "hourly": "You write product texts for an outdoor shop: one plain paragraph, no superlatives.",
    "daily": "Classify the ticket as delivery, returns, product, payment or other, and give one reason.",
    "weekly": "Summarize the store's week for the regional manager in three sentences.",
}
_ITEMS = ("tent", "down jacket", "trail shoe", "headlamp", "water filter", "climbing rope", "camp stove")
_CITIES = ("Lisbon", "Tromsø", "Zürich", "Kraków", "Porto", "Malmö", "Gdańsk", "Bergen")
_TROUBLES = (
    "arrived with a torn seam, and the replacement that was promised on the phone never came",
    "was charged twice on my card, once in the shop and once again three days later",
    "is a size too small; I would like to exchange it before we leave on the 14th",
    "has not moved from the depot since last Thursday, although it was sent by express",
    "worked for two nights and then stopped; I have followed the manual to the letter",
    "came without the pegs that are listed on the box, so we could not use it",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """One call of the shop's."""

    latency: str
    site: str
    params: dict[str, Any]


def make_requests(count: int, *, model: str, max_tokens: int, seed: int) -> list[DemoRequest]:
    """Requests of all latency classes, mixed; each has a number of its own in its prompt.

    Args:
        count: How many.
        model: Which model is to answer.
        max_tokens: How long an answer may be.
        seed: Decides what they say.
    """
    dice = random.Random(seed)  # noqa: S311  (made-up texts, no secrets)
    requests = []
    for number in range(count):
        latency = _PATTERN[number % len(_PATTERN)]
        params = {
            "model": model,
            "max_tokens": max_tokens,
            "system": _SYSTEMS[latency],
            "messages": [{"role": "user", "content": _prompt(latency, 40_000 + number, dice)}],
        }
        requests.append(DemoRequest(latency=latency, site=_SITES[latency], params=params))
    return requests


def _prompt(latency: str, number: int, dice: random.Random) -> str:
    item, city, trouble = dice.choice(_ITEMS), dice.choice(_CITIES), dice.choice(_TROUBLES)
    match latency:
        case "real-time":
            return f"Order {number}: my {item} {trouble}. What can you do for me?"
        case "hourly":
            weight = dice.randrange(120, 4_800)
            return (
                f"Describe article {number}: a {item}, {weight} g, sold since {dice.randrange(2015, 2027)}."
            )
        case "daily":
            return f"Ticket {number}, from {city}: The {item} I ordered {trouble}. Please advise."
        case _:
            orders, returns = dice.randrange(90, 900), dice.randrange(2, 60)
            return (
                f"Week of store {number} in {city}: {orders} orders, {returns} returns, best seller {item}."
            )
