"""What the prompt cache did: read from the answers, added up by route, worth so much."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from llmrouter.domain.cache_use import CacheUse, read_token_counts, saved_tokens
from llmrouter.domain.ledger import ClassTally, count_outcome, count_outcomes, read_tally, tally_fields
from llmrouter.domain.requests import Outcome, OutcomeKind, Route
from support.clocks import START

_numbers = count()

USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 700,
    "cache_read_input_tokens": 20_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 500},
    "output_tokens": 300,
}
COUNTS = (12, 20_000, 200, 500)


def line(
    usage: object = USAGE, content: Any = "said", after: dict[str, Any] | None = None, **style: Any
) -> bytes:
    """A result line of a success."""
    message = {"role": "assistant", "content": content, "usage": usage, **(after or {})}
    result = {"custom_id": "c", "result": {"type": "succeeded", "message": message}}
    return json.dumps(result, ensure_ascii=False, **style).encode()


def outcome(raw: bytes = b"", *, route: Route = Route.BATCH, latency: str = "daily") -> Outcome:
    """An outcome in time."""
    return Outcome(
        request_id=f"req_{next(_numbers)}",
        kind=OutcomeKind.SUCCEEDED if raw else OutcomeKind.CANCELED,
        latency=latency,
        accepted_at=START,
        deadline_at=START + timedelta(hours=24),
        settled_at=START + timedelta(hours=1),
        attempts=1,
        batch_id=None,
        key=None,
        raw=raw,
        route=route,
    )


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 1}])
def test_the_tokens_stand_in_the_usage(style: dict[str, Any]) -> None:
    """However the line is spaced."""
    assert read_token_counts(line(**style)) == COUNTS


@pytest.mark.parametrize(
    "content",
    [
        'the "usage": {"input_tokens": 1} of a text',
        [{"type": "tool_use", "input": {"usage": {"input_tokens": 1}}}],
        "ends in a cut \\",
        "é \U0001f999 \u2028",
    ],
)
def test_nothing_in_the_answer_is_taken_for_it(content: object) -> None:
    """Texts are escaped, and what a tool is given stands further ahead."""
    assert read_token_counts(line(content=content)) == COUNTS


@pytest.mark.parametrize(
    "after",
    [{"note": "usage"}, {"usage_of": {"usage": 3}}, {"x": {"usage": {"tokens": 3}}}, {"x": ["usage"]}],
)
def test_what_comes_after_it_is_passed_over(after: dict[str, Any]) -> None:
    """The API may add fields."""
    assert read_token_counts(line(after=after)) == COUNTS


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 5}, (5, 0, 0, 0)),
        ({"input_tokens": 5, "cache_read_input_tokens": None, "cache_creation": None}, (5, 0, 0, 0)),
        ({"input_tokens": 5, "cache_read_input_tokens": "7"}, (5, 0, 0, 0)),
        ({"input_tokens": 5, "cache_creation_input_tokens": 7}, (5, 0, 7, 0)),
    ],
)
def test_parts_may_be_left_out(usage: dict[str, Any], counts: tuple[int, ...]) -> None:
    """What was written and not said for how long was for five minutes, the default."""
    assert read_token_counts(line(usage)) == counts


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b'{"custom_id":"c","result":{"type":"expired"}}',
        b'{"custom_id":"c","result":{"type":"errored","error":{"error":{"message":"no \\"usage\\""}}}}',
        line(None),
        line("usage"),
        b'{"usage":{"input_tokens":',
        b'"usage"' * 50,
        b'{"usage":{"input_tokens":"\xff',
        b'{"usage":' + b"[" * 100_000,
    ],
)
def test_a_line_that_does_not_tell_counts_for_nothing(raw: bytes) -> None:
    """Errors have no usage, and a broken line is no failure of a settle."""
    assert read_token_counts(raw) is None


def test_batches_and_live_calls_are_counted_apart() -> None:
    """They have caches of their own."""
    plain = line({"input_tokens": 40})
    outcomes = [outcome(line()), outcome(plain), outcome(line(), route=Route.ESCALATED), outcome()]
    batch = CacheUse(
        requests=2, input_tokens=52, read_tokens=20_000, written_5m_tokens=200, written_1h_tokens=500
    )
    live = CacheUse(
        requests=1, input_tokens=12, read_tokens=20_000, written_5m_tokens=200, written_1h_tokens=500
    )

    tally = count_outcomes({}, outcomes)["daily"]

    assert tally.cache == {Route.BATCH: batch, Route.ESCALATED: live}
    assert read_tally(json.loads(json.dumps(tally_fields(tally)))) == tally


def test_one_by_one_or_together_is_the_same() -> None:
    """Of each class what is its own."""
    outcomes = [
        outcome(line({"input_tokens": number}), latency=latency, route=route)
        for number, (latency, route) in enumerate(
            [
                ("daily", Route.BATCH),
                ("hourly", Route.ESCALATED),
                ("daily", Route.BATCH),
                ("daily", Route.ESCALATED),
            ]
        )
    ]
    apart: dict[str, ClassTally] = {}
    for one in outcomes:
        apart[one.latency] = count_outcome(apart.get(one.latency, ClassTally()), one)

    together = count_outcomes(count_outcomes({}, outcomes[:2]), outcomes[2:])

    assert together == apart
    assert together["daily"].cache[Route.BATCH] == CacheUse(requests=2, input_tokens=2)


def test_a_tally_of_an_earlier_version_has_no_cache_use() -> None:
    """It is read all the same."""
    assert read_tally({"settled": {"batch": 3}}).cache == {}


@pytest.mark.parametrize(
    ("use", "saved"),
    [
        (CacheUse(), 0),
        (CacheUse(input_tokens=500), 0),
        (CacheUse(read_tokens=1_000), 900),
        (CacheUse(written_5m_tokens=1_000), -250),
        (CacheUse(written_1h_tokens=1_000), -1_000),
        (CacheUse(read_tokens=10_000, written_5m_tokens=400, written_1h_tokens=1_000), 7_900),
    ],
)
def test_reading_saves_and_writing_costs(use: CacheUse, saved: float) -> None:
    """In tokens of uncached input."""
    assert saved_tokens(use) == pytest.approx(saved)


def test_some_models_read_for_less() -> None:
    """A fortieth on the newest."""
    assert saved_tokens(CacheUse(read_tokens=1_000), 0.025) == pytest.approx(975)


@pytest.mark.parametrize(
    ("use", "rate"),
    [
        (CacheUse(input_tokens=9), None),
        (CacheUse(written_5m_tokens=1), 0.0),
        (CacheUse(read_tokens=3, written_5m_tokens=0, written_1h_tokens=1), 0.75),
    ],
)
def test_the_hit_rate_is_of_what_was_cached(use: CacheUse, rate: float | None) -> None:
    """Not of all input."""
    assert use.hit_rate == rate
