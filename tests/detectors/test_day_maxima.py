"""Values per agent and day: what counts, for how long, and that order does not matter."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.base import StateError
from detectors.day_maxima import DAYS, GROUPS, DayMaxima

BINS = 8
Value = tuple[int, int, int]
VALUES = st.lists(st.tuples(st.integers(0, 3), st.integers(20_000, 20_012), st.integers(0, BINS - 1)), max_size=40)


def filled(values: list[Value]) -> DayMaxima:
    maxima = DayMaxima(BINS)
    for group, day, index in values:
        maxima.add(np.array([group], np.uint64), np.array([day]), np.array([index]))
    return maxima


@given(VALUES)
def test_the_newest_week_counts_and_nothing_else(values: list[Value]) -> None:
    newest = max((day for _, day, _ in values), default=0)
    expected: dict[int, list[int]] = {}
    for group, day, index in values:
        if day > newest - DAYS:
            expected.setdefault(group, [0] * BINS)[index] += 1
    assert filled(values).counts() == expected


@given(VALUES, st.integers(0, 2**32), st.integers(0, 40))
def test_neither_order_nor_batches_matter(values: list[Value], seed: int, cut: int) -> None:
    mixed = random.Random(seed).sample(values, len(values))
    maxima = DayMaxima(BINS)
    for part in (mixed[:cut], mixed[cut:]):
        columns = np.array(part, np.int64).reshape(-1, 3)
        maxima.add(columns[:, 0].astype(np.uint64), columns[:, 1], columns[:, 2])
    assert maxima.dump() == filled(values).dump()


@given(VALUES)
def test_it_comes_back_as_it_was(values: list[Value]) -> None:
    before, after = filled(values), DayMaxima(BINS)
    after.load(before.dump())
    assert after.dump() == before.dump()
    for maxima in (before, after):
        maxima.add(np.array([1], np.uint64), np.array([20_013]), np.array([0]))
    assert after.counts() == before.counts()


def test_damage_is_told() -> None:
    maxima = filled([(1, 20_000, 1)])
    newest, pages = maxima.dump()
    for bad in ({"1": b"123"}, {"no group": pages[f"{1:016x}"]}):
        with pytest.raises(StateError):
            maxima.load((newest, bad))
    assert maxima.counts() == {1: [0, 1, 0, 0, 0, 0, 0, 0]}


def test_further_groups_count_for_the_fleet_alone() -> None:
    maxima = filled([(group, 20_000, 2) for group in range(1, GROUPS + 50)])
    counts = maxima.counts()
    assert len(counts) == GROUPS
    assert sum(sum(histogram) for histogram in counts.values()) == GROUPS + 49
