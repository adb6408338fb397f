"""Rows, lifetimes and totals of entities."""

from __future__ import annotations

import doctest
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.types import Hashes
from stream import entities as module
from stream.entities import Entities
from stream.ingest.hashing import Hasher

TTL = 100.0
HASHER = Hasher()


def ids(keys: Sequence[str]) -> Hashes:
    return HASHER.texts("entity", keys)


def view(entities: Entities, events: list[tuple[str, float, int]], clock: float | None = None) -> list[tuple[Any, ...]]:
    """(row, new, tokens, cost) of each (key, ts, tokens); an event costs ten times its tokens."""
    keys = [key for key, _, _ in events]
    ts = np.array([ts for _, ts, _ in events], float)
    tokens = np.array([tokens for _, _, tokens in events], np.int64)
    at = (float(ts.max()) if len(ts) else 0.0) if clock is None else clock
    seen = entities.view(entities.assign(ids(keys)), ts, tokens, 10 * tokens, at)
    return list(zip(*(column.tolist() for column in (seen.row, seen.new, seen.tokens, seen.cost)), strict=True))


def new(entities: Entities, events: list[tuple[str, float, int]]) -> list[bool]:
    return [seen[1] for seen in view(entities, events)]


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(module).failed == 0


# -------------------------------------------------------------------------------------------- rows


def test_rows_are_given_out_in_order_of_appearance() -> None:
    entities = Entities(TTL)
    assert entities.assign(ids(["b", "a", "b", "c"])).tolist() == [0, 1, 0, 2]
    assert entities.assign(ids(["c", "d"])).tolist() == [2, 3]
    assert (len(entities), entities.rows) == (4, 4)


def test_no_keys_need_no_rows() -> None:
    entities = Entities(TTL)
    assert view(entities, []) == []
    assert (len(entities), entities.rows) == (0, 0)


# --------------------------------------------------------------------------------------- lifetimes


def test_an_entity_is_new_at_its_first_event_only() -> None:
    assert new(Entities(TTL), [("a", 0, 0), ("a", 0, 0), ("b", 5, 0), ("a", 5, 0)]) == [True, False, True, False]


def test_an_entity_silent_for_longer_than_its_time_to_live_is_new_again() -> None:
    entities = Entities(TTL)
    assert new(entities, [("a", 0, 0), ("a", TTL, 0), ("a", 2 * TTL + 1, 0)]) == [True, False, True]
    assert new(entities, [("a", 3 * TTL + 1, 0)]) == [False]
    assert new(entities, [("a", 4 * TTL + 2, 0)]) == [True]


def test_late_events_neither_begin_a_life_nor_shorten_it() -> None:
    entities = Entities(TTL)
    assert new(entities, [("a", 90, 0), ("a", 0, 0), ("a", 150, 0)]) == [True, False, False]
    assert new(entities, [("a", 60, 0), ("a", 240, 0)]) == [False, False]


def test_totals_begin_at_zero_with_every_life() -> None:
    entities = Entities(TTL)
    events = [("a", 0.0, 1), ("b", 0.0, 100), ("a", 50.0, 2), ("a", 500.0, 4), ("a", 501.0, 8)]
    assert [seen[2] for seen in view(entities, events)] == [1, 100, 3, 4, 12]
    assert [seen[2:] for seen in view(entities, [("a", 502.0, 16), ("b", 502.0, 1)])] == [(28, 280), (1, 10)]


Events = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0, 3 * TTL), st.integers(0, 9), st.booleans()), max_size=40
)


@given(Events)
def test_lives_and_totals_are_as_defined_however_the_stream_is_cut(events: list[tuple[str, float, int, bool]]) -> None:
    newest: dict[str, float] = {}
    total: dict[str, int] = {}
    expected = []
    for key, ts, tokens, _ in events:
        begins = ts - newest.get(key, -math.inf) > TTL
        total[key] = tokens if begins else total[key] + tokens
        newest[key] = max(ts, newest.get(key, ts))
        expected.append((begins, total[key], 10 * total[key]))

    entities = Entities(TTL)
    cuts = [0, *(i for i, event in enumerate(events) if event[3]), len(events)]
    found = [seen[1:] for low, high in pairwise(cuts) for seen in view(entities, [e[:3] for e in events[low:high]])]
    assert found == expected


@given(Events)
def test_newest_is_the_highest_time_before_each_event(events: list[tuple[str, float, int, bool]]) -> None:
    entities = Entities(TTL)
    half = len(events) // 2
    view(entities, [event[:3] for event in events[:half]])
    newest = {}
    for key, ts, _, _ in events[:half]:
        newest[key] = max(ts, newest.get(key, ts))
    expected = []
    for key, ts, _, _ in events[half:]:
        expected.append(newest.get(key, -math.inf))
        newest[key] = max(ts, newest.get(key, ts))
    rows = entities.assign(ids([key for key, *_ in events[half:]]))
    ts = np.array([ts for _, ts, *_ in events[half:]], float)
    assert entities.newest(rows, ts).tolist() == expected


# ------------------------------------------------------------------------------------------ sweeps


def test_a_sweep_takes_back_rows_of_who_was_silent_for_twice_the_time_to_live() -> None:
    entities = Entities(TTL)
    view(entities, [("a", 0, 1), ("b", 0, 2)])
    view(entities, [("b", 10, 4)])
    assert entities.sweep(2 * TTL).tolist() == []
    assert entities.sweep(2 * TTL + 1).tolist() == [0]
    assert (len(entities), entities.rows) == (1, 2)
    # The next one gets the row, and none of what was in it.
    assert view(entities, [("c", 2 * TTL + 1, 8), ("d", 2 * TTL + 1, 16)])[0] == (0, True, 8, 80)
    assert entities.assign(ids(["b", "c", "d"])).tolist() == [1, 0, 2]


def test_who_comes_back_after_a_sweep_is_new() -> None:
    entities = Entities(TTL)
    view(entities, [("a", 0, 1)])
    assert entities.sweep(1000).tolist() == [0]
    assert view(entities, [("a", 1000, 2)]) == [(0, True, 2, 20)]


def test_rows_are_bounded_by_who_is_alive() -> None:
    entities = Entities(TTL)
    for i in range(1000):
        view(entities, [(f"run {i}", 10.0 * i, 1)])
        entities.sweep(10.0 * i)
    assert entities.rows <= 2 * TTL / 10 + 2


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 2 * TTL), st.booleans()), max_size=40))
def test_sweeps_change_nothing_for_events_in_order(steps: list[tuple[str, float, bool]]) -> None:
    swept, unswept, at = Entities(TTL), Entities(TTL), 0.0
    for key, gap, sweeps in steps:
        at += gap
        if sweeps:
            swept.sweep(at)
        assert view(swept, [(key, at, 1)])[0][1:] == view(unswept, [(key, at, 1)])[0][1:]


# ------------------------------------------------------------------------------------ saved state


def test_what_was_saved_is_what_goes_on_and_only_changes_are_told() -> None:
    entities = Entities(TTL)
    view(entities, [("a", 1.0, 5), ("b", 2.0, 6)], clock=1.0)
    assert entities.changed().tolist() == [0, 1]
    assert entities.changed().tolist() == []
    view(entities, [("b", 3.0, 1)], clock=500.0)
    entities.touch(np.array([1]), 500.0)
    assert entities.sweep(500.0).tolist() == [0]
    assert entities.changed().tolist() == [0, 1]  # one has died
    again = Entities(TTL)
    again.load(np.array([1, 0]), entities.dump(np.array([1, 0])))
    again.loaded()
    assert (len(again), again.rows, again.find(ids(["a", "b"])).tolist()) == (1, 2, [-1, 1])
    assert view(again, [("b", 4.0, 1), ("c", 1.0, 2)]) == view(entities, [("b", 4.0, 1), ("c", 1.0, 2)])
