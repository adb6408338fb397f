"""What a model call costs, when its producer does not say."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from genai_prices import Usage, calc_price

from burnfuse.event import UsageEvent
from detectors.types import Floats, Ints
from stream.ingest.distinct import Distinct

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

    @property
    def rates(self) -> tuple[float, float, float, float]:
        """The prices in the order of `split`."""
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        return self.input, cached, written, self.output


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
        of = price.rates
        dollars_per_million = read * of[0] + cached * of[1] + written * of[2] + output * of[3]
        return round(dollars_per_million * (NANO // 10**6))

    def costs(self, events: Sequence[UsageEvent], ts: Floats, models: Distinct[str | None], used: Used) -> Floats:
        """(n,) `cost` of each event as a whole number, 0 where nobody knows it.

        Args:
            ts: (n,) event times, s.
            models: The events' models.
            used: The events' tokens.
        """
        said = [event.cost_usd for event in events]
        dollars = np.array(said, np.float64) if said.count(None) < len(said) else np.full(len(said), np.nan)
        silent = np.isnan(dollars)  # which None becomes
        costs = np.where(silent, 0.0, np.rint(dollars * NANO))
        named = models.each(lambda model: model is not None, bool)
        rows = np.flatnonzero(silent & named & ((used.input > 0) | (used.output > 0)))
        providers = Distinct.of([events[i].provider for i in rows.tolist()])
        days = Distinct.of((ts[rows] // 86400).astype(np.int64).tolist())
        calls = Distinct.together(providers, models.take(rows), days)
        prices = [self._own.get(model) or self._listed(provider, model, day) for provider, model, day in calls.values]
        unknown = (0.0, 0.0, 0.0, 0.0)
        rates = calls.all(np.array([unknown if price is None else price.rates for price in prices]).reshape(-1, 4)).T
        read, cached, written, output = (tokens[rows] for tokens in used.split)
        dollars_per_million = read * rates[0] + cached * rates[1] + written * rates[2] + output * rates[3]
        costs[rows] = np.rint(dollars_per_million * (NANO // 10**6))
        listed = calls.each(lambda call: call[1] not in self._own, bool)
        for i in rows[listed & (read + cached + written > _LARGE_CONTEXT)].tolist():
            costs[i] = self.cost(events[i], float(ts[i])) or 0
        return costs

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


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens of n calls, -1 where unknown."""

    input: Ints
    cached: Ints
    written: Ints
    output: Ints

    @classmethod
    def of(cls, events: Sequence[UsageEvent]) -> Used:
        """The events' tokens."""
        counts = (
            [-1 if (n := e.input_tokens) is None else n for e in events],
            [-1 if (n := e.cached_input_tokens) is None else n for e in events],
            [-1 if (n := e.cache_write_tokens) is None else n for e in events],
            [-1 if (n := e.output_tokens) is None else n for e in events],
        )
        return cls(*(np.fromiter(count, np.int64, len(events)) for count in counts))

    @property
    def split(self) -> tuple[Floats, Floats, Floats, Floats]:
        """`split` of all calls: whole numbers, which these floats hold exactly."""
        cached, written = np.maximum(self.cached, 0), np.maximum(self.written, 0)
        read = np.maximum(np.maximum(self.input, 0) - cached - written, 0)
        parts = (read, cached, written, np.maximum(self.output, 0))
        read_, cached_, written_, output_ = (part.astype(np.float64) for part in parts)
        return read_, cached_, written_, output_
