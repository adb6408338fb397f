"""The detectors alone: batches of 1,000 events over 100,000 agents, each detector and all together.

    python -m pytest benchmarks/test_detectors.py

Once with every agent in turn, and once with Zipf's law, where one agent has a twelfth of all events. What
counts are events of the input, also for detectors of trees, which see a part of them. Half of the batches go
through before anything is measured, so that state for the agents is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from benchmarks.batches import batches
from benchmarks.load import Load
from detectors.base import Detector, registered
from detectors.types import EventBatch, Scope

EVENTS = int(os.environ.get("BENCHMARK_EVENTS", "400000"))
AGENTS = 100_000
SIZE = 1_000
ZIPF = {"even": 0.0, "zipf": 1.0}


@cache
def _given(skew: str) -> list[dict[Scope, list[EventBatch]]]:
    return batches(Load(events=EVENTS, agents=AGENTS, zipf=ZIPF[skew]), SIZE)


def _measure(benchmark: Any, chosen: Sequence[Detector], skew: str) -> None:
    given = _given(skew)
    half = len(given) // 2

    def feed(batch: Mapping[Scope, list[EventBatch]]) -> None:
        for detector in chosen:
            for part in batch[detector.spec.scope]:
                detector.update(part)

    for batch in given[:half]:
        feed(batch)
    rest: Iterator[Any] = iter(given[half:])
    benchmark.extra_info.update(events=SIZE, skew=skew)
    benchmark.pedantic(feed, setup=lambda: ((next(rest),), {}), rounds=len(given) - half, iterations=1)


@pytest.mark.parametrize("skew", ZIPF)
@pytest.mark.parametrize("name", registered())
def test_one_detector(benchmark: Any, name: str, skew: str) -> None:
    cls = registered()[name]
    benchmark.extra_info["detector"] = name
    _measure(benchmark, [cls(cls.Config())], skew)


@pytest.mark.parametrize("skew", ZIPF)
def test_all_detectors(benchmark: Any, skew: str) -> None:
    benchmark.extra_info["detector"] = "all"
    _measure(benchmark, [cls(cls.Config()) for cls in registered().values()], skew)
