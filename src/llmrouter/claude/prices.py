"""What a message cost, by the prices in `genai-prices`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import datetime

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
