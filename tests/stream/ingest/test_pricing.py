"""Prices: the producer's own figure, then the operator's, then public lists; else nobody knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnfuse.event import MAX_NUMBER, UsageEvent
from stream.ingest.distinct import Distinct
from stream.ingest.pricing import NANO, Price, PriceBook, Used, split

TS = 1_750_000_000.0
OWN = PriceBook({"our-model": Price(2.0, 8.0, 0.5, 3.0), "flat": Price(1.0, 1.0)})


def cost(book: PriceBook = OWN, **fields: Any) -> float | None:
    found = book.cost(UsageEvent(agent_id="a", ts=TS, **fields), TS)
    return None if found is None else found / NANO


@pytest.mark.parametrize(
    ("fields", "dollars"),
    [
        ({"cost_usd": 0.25, "model": "our-model", "input_tokens": 10**6}, 0.25),
        ({"cost_usd": 0.0, "model": "our-model", "input_tokens": 10**6}, 0.0),
        ({"model": "our-model", "input_tokens": 10**6}, 2.0),
        ({"model": "our-model", "output_tokens": 10**6}, 8.0),
        ({"model": "our-model", "input_tokens": 10**6, "cached_input_tokens": 10**6}, 0.5),
        ({"model": "our-model", "input_tokens": 10**6, "cache_write_tokens": 10**6}, 3.0),
        ({"model": "our-model", "input_tokens": 1000, "cached_input_tokens": 600, "cache_write_tokens": 400}, 0.0015),
        ({"model": "our-model", "input_tokens": 0, "output_tokens": 0}, None),
        ({"model": "flat", "input_tokens": 10**6, "cached_input_tokens": 10**6}, 1.0),
        ({"model": "nobody-knows-this", "input_tokens": 10**6}, None),
        ({"input_tokens": 10**6}, None),
        ({}, None),
    ],
)
def test_what_a_call_costs(fields: dict[str, Any], dollars: float | None) -> None:
    assert cost(**fields) == dollars


def test_a_list_price_is_that_of_the_package() -> None:
    # OpenAI's published prices of gpt-4o: $2.50 in, $1.25 cached, $10.00 out per million.
    used = {"model": "gpt-4o", "input_tokens": 20_000, "cached_input_tokens": 10_000, "output_tokens": 1000}
    assert cost(provider="openai", **used) == pytest.approx(0.025 + 0.0125 + 0.01)


def test_an_unknown_provider_does_not_hide_a_known_model() -> None:
    known = cost(provider="openai", model="gpt-4o", input_tokens=1000)
    assert known is not None
    assert cost(provider="our-gateway", model="gpt-4o", input_tokens=1000) == known


def test_cached_tokens_beyond_the_input_do_not_make_it_negative() -> None:
    odd = UsageEvent(agent_id="a", ts=TS, input_tokens=5, cached_input_tokens=9, output_tokens=1)
    assert split(odd) == (0, 9, 0, 1)


COUNTS = st.integers(0, MAX_NUMBER)
NAMES = st.sampled_from(["gpt-4o", "claude-3-5-sonnet-latest", "our-model", "", "(", "openai/gpt-4o"]) | st.text()


@given(NAMES, st.none() | NAMES, st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), st.integers(0, 4 * 10**9))
@settings(max_examples=60)
def test_any_call_has_a_price_or_none(model: str, provider: str | None, n: tuple[int, ...], ts: int) -> None:
    used = dict(zip(("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens"), n, strict=True))
    found = OWN.cost(UsageEvent(agent_id="a", ts=float(ts), model=model, provider=provider, **used), float(ts))
    assert found is None or found >= 0


LISTED = PriceBook({"our-model": Price(2.0, 8.0, 0.5, 3.0), "odd": Price(0.1, 1 / 3, 0.7)})
MANY = st.none() | st.integers(0, 3) | st.integers(0, 200_000) | COUNTS
CALLS = st.lists(
    st.builds(
        UsageEvent,
        agent_id=st.just("a"),
        ts=st.floats(0, 4e9),
        provider=st.sampled_from([None, "openai", "anthropic", "our-gateway", ""]),
        model=st.sampled_from([None, "", "gpt-4o", "claude-3-5-sonnet-latest", "our-model", "odd", "nobody"]),
        input_tokens=MANY,
        cached_input_tokens=MANY,
        cache_write_tokens=MANY,
        output_tokens=MANY,
        cost_usd=st.none() | st.none() | st.floats(0, MAX_NUMBER),
    ),
    max_size=8,
)


@given(CALLS)
@settings(deadline=None)  # the first price of a model and day takes its time
def test_calls_priced_together_cost_what_each_costs_alone(calls: list[UsageEvent]) -> None:
    used, models = Used.of(calls), Distinct.of([call.model for call in calls])
    ts = [float(call.ts) for call in calls]
    most = 10**15  # beyond, a float holds no odd numbers; ingest cuts off below
    together = LISTED.costs(calls, np.array(ts, np.float64), models, used).tolist()
    alone = [LISTED.cost(call, at) or 0 for call, at in zip(calls, ts, strict=True)]
    assert [min(cost, most) for cost in together] == [min(cost, most) for cost in alone]
    assert [tuple(parts) for parts in zip(*(part.tolist() for part in used.split), strict=True)] == [*map(split, calls)]
