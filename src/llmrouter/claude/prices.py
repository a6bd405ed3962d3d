"""What a message cost, by the prices in `genai-prices`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from genai_prices.types import ExtractedUsage, PriceCalculation

_HALF = Decimal("0.5")
_EVERYWHERE = frozenset({"global", "not_available"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one message cost, in US dollars."""

    paid_usd: Decimal
    list_usd: Decimal
    """What it would have cost live."""
    estimated: bool
    """True when the prices do not quite cover it: half is taken for a batch, or a surcharge is missing."""


def price_of(
    message: Mapping[str, Any], *, processing: Literal["standard", "batch"], at: datetime
) -> Price | None:
    """The price of a message, or None when it cannot be told; it is never guessed to be nothing.

    Prices are those of the installed `genai-prices`. It gives the standard price for a batch of a
    retired model, or from before it knew batch prices: then half of the token price is taken.

    Args:
        message: The message as JSON data.
        processing: How it was processed.
        at: When it was, aware.
    """
    # Takes 200 ms to import, of no use to who only submits.
    from genai_prices import extract_usage  # noqa: PLC0415  (see above)

    try:
        usage = extract_usage(dict(message), provider_id="anthropic")
        standard = usage.calc_price(genai_request_timestamp=at)
        if processing == "standard":
            return Price(
                paid_usd=standard.total_price,
                list_usd=standard.total_price,
                estimated=_has_surcharge(message),
            )
        return _batch_price(message, usage, standard, at)
    except (LookupError, ValueError):
        return None


def live_price_usd(model: str, usage: Mapping[str, Any], at: datetime) -> Decimal | None:
    """What `price_of` says of a live message, for a tenth of the work where it is many messages.

    Args:
        model: That answered.
        usage: Of the message.
        at: When it was, aware.
    """
    try:
        counts = _plain_counts(usage)
    except (TypeError, AttributeError):  # Not numbers.
        counts = None
    rates = None if counts is None else _rates(model, at.date())
    if counts is None or rates is None:
        price = price_of({"model": model, "usage": usage}, processing="standard", at=at)
        return None if price is None else price.paid_usd
    return sum((count * rate for count, rate in zip(counts, rates, strict=True)), Decimal(0))


def _plain_counts(usage: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The tokens of a message by `_KINDS`, where its price is the sum of theirs; None where it may not be."""
    if not {name for name, value in usage.items() if value} <= _PRICED_BY_TOKEN:
        return None
    input_tokens, read, written = (usage.get(name) or 0 for name in _INPUT_COUNTS)
    by_ttl = usage.get("cache_creation") or {}
    written_5m, written_1h = (by_ttl.get(name) or 0 for name in _TTL_COUNTS) if by_ttl else (written, 0)
    if written_5m + written_1h != written or None in (usage.get("input_tokens"), usage.get("output_tokens")):
        return None
    counts = (input_tokens, read, written_5m, written_1h, usage["output_tokens"])
    # Models can have another price from 200,000 tokens of input on.
    return counts if min(counts) >= 0 and sum(counts[:-1]) < _LONG_INPUT else None


@lru_cache(maxsize=256)
def _rates(model: str, day: date) -> tuple[Decimal, ...] | None:
    """What a token of each of `_KINDS` costs on a day."""
    noon = datetime.combine(day, time(12), UTC)
    prices = [
        price_of({"model": model, "usage": {**_NO_TOKENS, **kind}}, processing="standard", at=noon)
        for kind in _KINDS
    ]
    known = [price.paid_usd / _STEP for price in prices if price is not None]
    return tuple(known) if len(known) == len(_KINDS) else None


_STEP = 1_000
_LONG_INPUT = 100_000
_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_TTL_COUNTS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_NO_TOKENS = {"input_tokens": 0, "output_tokens": 0}
_KINDS: tuple[dict[str, Any], ...] = (
    {"input_tokens": _STEP},
    {"cache_read_input_tokens": _STEP},
    {
        "cache_creation_input_tokens": _STEP,
        "cache_creation": {"ephemeral_5m_input_tokens": _STEP, "ephemeral_1h_input_tokens": 0},
    },
    {
        "cache_creation_input_tokens": _STEP,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": _STEP},
    },
    {"output_tokens": _STEP},
)
_PRICED_BY_TOKEN = frozenset({name for kind in _KINDS for name in kind} | {"service_tier", "inference_geo"})


def _batch_price(
    message: Mapping[str, Any], usage: ExtractedUsage, standard: PriceCalculation, at: datetime
) -> Price:
    batch = usage.calc_price(genai_request_timestamp=at, price_context={"processing": "batch"})
    tokens_usd = standard.input_price + standard.output_price
    known = batch.input_price + batch.output_price < tokens_usd or not tokens_usd
    # Web searches are not halved.
    halved_usd = standard.total_price - tokens_usd * _HALF
    return Price(
        paid_usd=batch.total_price if known else halved_usd,
        list_usd=standard.total_price,
        estimated=not known or _has_surcharge(message),
    )


def _has_surcharge(message: Mapping[str, Any]) -> bool:
    """Whether it was processed in a region at a price that `genai-prices` does not know."""
    usage = message.get("usage")
    place = usage.get("inference_geo") if isinstance(usage, Mapping) else None
    return place is not None and place not in _EVERYWHERE
