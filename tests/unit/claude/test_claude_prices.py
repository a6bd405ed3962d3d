"""What a message cost: by the price library where it knows, by half where it does not, never nothing."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from claude_support import message_body
from genai_prices import data_snapshot
from hypothesis import example, given
from hypothesis import strategies as st

from llmrouter.claude.prices import Price, live_price_usd, price_of

NOW = datetime(2026, 11, 20, tzinfo=UTC)
HAIKU = "claude-haiku-4-5"
OPUS_3 = "claude-3-opus-20240229"


def test_a_live_call_costs_the_list_price() -> None:
    """1,000 tokens in for $1 and 500 out for $5 a million."""
    price = price_of(message_body(model=HAIKU), processing="standard", at=NOW)

    assert price == Price(paid_usd=Decimal("0.0035"), list_usd=Decimal("0.0035"), estimated=False)


def test_a_batch_costs_half() -> None:
    """Cache writes and reads, too."""
    usage = {"input_tokens": 1000, "output_tokens": 500, "cache_read_input_tokens": 4000}
    price = price_of(message_body(model=HAIKU, usage=usage), processing="batch", at=NOW)

    assert price is not None
    assert price.paid_usd == price.list_usd / 2
    assert price.list_usd > Decimal("0.0035")
    assert not price.estimated


@pytest.mark.parametrize(
    ("model", "at"),
    [(HAIKU, datetime(2026, 10, 1, tzinfo=UTC)), (OPUS_3, NOW)],
    ids=["before batch prices were known", "a retired model"],
)
def test_an_unknown_batch_price_is_taken_for_half(model: str, at: datetime) -> None:
    """The library gives the standard price in silence; the half is flagged."""
    price = price_of(message_body(model=model), processing="batch", at=at)

    assert price is not None
    assert price.paid_usd == price.list_usd / 2
    assert price.estimated


@pytest.mark.parametrize("at", [NOW, datetime(2026, 10, 1, tzinfo=UTC)], ids=["known", "taken for half"])
def test_searches_are_not_halved(at: datetime) -> None:
    """Three searches cost three cents, in a batch as well."""
    usage = {"input_tokens": 1000, "output_tokens": 500, "server_tool_use": {"web_search_requests": 3}}
    price = price_of(message_body(model=HAIKU, usage=usage), processing="batch", at=at)
    plain = price_of(message_body(model=HAIKU), processing="batch", at=at)

    assert price is not None
    assert plain is not None
    assert price.paid_usd - plain.paid_usd == price.list_usd - plain.list_usd == Decimal("0.03")


@pytest.mark.parametrize(
    ("place", "estimated"), [("us", True), ("global", False), ("not_available", False), (None, False)]
)
@pytest.mark.parametrize("processing", ["standard", "batch"])
def test_a_regional_price_is_flagged(place: str | None, estimated: bool, processing: Any) -> None:
    """The library knows nothing of it."""
    usage = {"input_tokens": 1000, "output_tokens": 500, "inference_geo": place}
    price = price_of(message_body(model=HAIKU, usage=usage), processing=processing, at=NOW)

    assert price is not None
    assert price.estimated == estimated


@pytest.mark.parametrize(
    "message",
    [{}, message_body(model="claude-opus-99"), message_body(model=None), message_body(usage=None),
     message_body(usage={"input_tokens": "many"})],
)  # fmt: skip
@pytest.mark.parametrize("processing", ["standard", "batch"])
def test_what_cannot_be_priced_has_no_price(message: dict[str, Any], processing: Any) -> None:
    """None, and not nothing."""
    assert price_of(message, processing=processing, at=NOW) is None


def test_nothing_used_costs_nothing_for_sure() -> None:
    """Half of zero is no estimate."""
    price = price_of(
        message_body(model=HAIKU, usage={"input_tokens": 0, "output_tokens": 0}), processing="batch", at=NOW
    )

    assert price == Price(paid_usd=Decimal(0), list_usd=Decimal(0), estimated=False)


def test_the_price_library_is_loaded_when_it_is_needed() -> None:
    """It takes 200 ms to import."""
    code = "import sys, llmrouter.claude.prices; sys.exit('genai_prices' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


COUNTS = st.one_of(st.none(), st.integers(0, 3_000), st.integers(0, 400_000))
USAGES = st.fixed_dictionaries(
    {"input_tokens": COUNTS, "output_tokens": COUNTS},
    optional={
        "cache_read_input_tokens": COUNTS,
        "cache_creation_input_tokens": COUNTS,
        "cache_creation": st.one_of(
            st.none(),
            st.fixed_dictionaries({"ephemeral_5m_input_tokens": COUNTS, "ephemeral_1h_input_tokens": COUNTS}),
        ),
        "server_tool_use": st.one_of(st.none(), st.just({"web_search_requests": 2})),
        "service_tier": st.just("standard"),
        "inference_geo": st.just("us"),
    },
)
MODELS = [
    "claude-sonnet-4-5",
    "claude-opus-4-6",
    "claude-3-haiku-20240307",
    "claude-sonnet-4-0",
    HAIKU,
    OPUS_3,
]


SPLIT_WRONGLY = {
    "input_tokens": 1,
    "output_tokens": 1,
    "cache_creation_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 500},
}


@example(model=HAIKU, usage=SPLIT_WRONGLY)
@given(model=st.sampled_from([*MODELS, "claude-nobody-knows"]), usage=USAGES)
def test_the_price_of_many_is_that_of_each(model: str, usage: dict[str, Any]) -> None:
    """To the last digit, with long inputs, searches, and a usage that does not add up."""
    price = price_of({"model": model, "usage": usage}, processing="standard", at=NOW)
    assert live_price_usd(model, usage, NOW) == (None if price is None else price.paid_usd)


def test_long_inputs_cost_what_they_do_of_every_model() -> None:
    """Some have another price from some length on, which is none of ours to know."""
    (provider,) = [one for one in data_snapshot.get_snapshot().providers if one.id == "anthropic"]
    tiered = 0
    for model in provider.models:
        prices = []
        for kind in ("input_tokens", "cache_read_input_tokens"):
            for count in (1_000, 30_000, 99_999, 100_000, 199_999, 250_000, 900_000):
                usage = {"input_tokens": 0, "output_tokens": 10, kind: count}
                price = price_of({"model": model.id, "usage": usage}, processing="standard", at=NOW)
                assert live_price_usd(model.id, usage, NOW) == (price and price.paid_usd), (model.id, usage)
                prices.append(None if price is None else price.paid_usd)
        low, high = prices[2], prices[6]
        tiered += low is not None and high is not None and high > 10 * low
    assert tiered
