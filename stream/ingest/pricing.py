"""What a model call costs, when its producer does not say."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from genai_prices import Usage, calc_price

from burnfuse.event import UsageEvent

NANO = 10**9
_LARGE_CONTEXT = 100_000
"""From here on some models have higher tiers, and the price is asked for call by call."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    """Price of tokens read from the cache; as `input` if not given."""
    cache_write: float | None = None
    """Price of tokens written to the cache; as `input` if not given."""


class PriceBook:
    """Prices: those of the operator first, then dated public list prices (package genai-prices, offline).

    Args:
        own: Model name -> price, for negotiated rates and models served by the company itself.
    """

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        self._own = dict(own or {})
        self._listed = lru_cache(maxsize=4096)(self._listed_price)

    def cost(self, event: UsageEvent, ts: float) -> int | None:
        """Cost of the event in nano-dollars, or None if nobody knows it."""
        if event.cost_usd is not None:
            return round(event.cost_usd * NANO)
        if event.model is None or not (event.input_tokens or event.output_tokens):
            return None
        read, cached, written, output = split(event)
        own = self._own.get(event.model)
        total = read + cached + written
        if own is None and total > _LARGE_CONTEXT:
            return self._ask(event.provider, event.model, ts, total, cached, written, output)
        price = own or self._listed(event.provider, event.model, int(ts // 86400))
        if price is None:
            return None
        dollars_per_million = (
            read * price.input
            + cached * (price.input if price.cached_input is None else price.cached_input)
            + written * (price.input if price.cache_write is None else price.cache_write)
            + output * price.output
        )
        return round(dollars_per_million * (NANO // 10**6))

    def _listed_price(self, provider: str | None, model: str, day: int) -> Price | None:
        ts, n = day * 86400.0, 1000
        parts = [
            self._ask(provider, model, ts, *usage) for usage in ((n, 0, 0, 0), (0, 0, 0, n), (n, n, 0, 0), (n, 0, n, 0))
        ]
        read, output, cached, written = (None if p is None else p / n / (NANO / 10**6) for p in parts)
        if read is None or output is None:
            return None
        return Price(read, output, cached, written)

    @staticmethod
    def _ask(
        provider: str | None, model: str, ts: float, total: int, cached: int, written: int, output: int
    ) -> int | None:
        usage = Usage(input_tokens=total, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output)
        moment = dt.datetime.fromtimestamp(ts, dt.UTC)
        # An unknown provider name must not hide a known model.
        for name in dict.fromkeys((provider, None)):
            try:
                found = calc_price(usage, model_ref=model, provider_id=name, genai_request_timestamp=moment)
            except (LookupError, ValueError):
                continue
            return round(found.total_price * NANO)
        return None


def split(event: UsageEvent) -> tuple[int, int, int, int]:
    """The call's tokens as (uncached input, cached input, cache writes, output); unknown counts as 0."""
    cached = event.cached_input_tokens or 0
    written = event.cache_write_tokens or 0
    read = max(0, (event.input_tokens or 0) - cached - written)
    return read, cached, written, event.output_tokens or 0
