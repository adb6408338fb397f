"""The k-th events, or ticks, of all entities, at once: always what a plain loop over the events gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.checks import Event, batch_of
from detectors.rounds import bits, changes, lives, rounds, running, segments, ticks, unlike_recent
from detectors.types import UNKNOWN, Scope

Rows = st.lists(st.integers(0, 8), max_size=60).map(lambda rows: np.array(rows, np.int64))


def test_no_events_make_no_rounds() -> None:
    assert list(rounds(np.empty(0, np.int64))) == []


@given(Rows)
def test_the_kth_round_holds_the_kth_event_of_every_row(rows: np.ndarray) -> None:
    expected: list[list[int]] = []
    seen: dict[int, int] = {}
    for position, row in enumerate(rows.tolist()):
        k = seen.get(row, 0)
        seen[row] = k + 1
        if k == len(expected):
            expected.append([])
        expected[k].append(position)
    assert [list(round_) for round_ in rounds(rows)] == expected


@given(Rows)
def test_every_event_is_in_one_round_and_a_round_has_no_row_twice(rows: np.ndarray) -> None:
    found = list(rounds(rows))
    assert sorted(position for round_ in found for position in round_) == list(range(len(rows)))
    assert all(len(set(rows[round_])) == len(round_) for round_ in found)


# ---------------------------------------------------------------------------------------- segments

Steps = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(-9, 9)), min_size=1, max_size=60)
"""Row, tick and value of events in order."""


def by_row(steps: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, tick, value = np.array(sorted(steps, key=lambda step: step[0]), np.int64).T
    return row, tick, value


@given(Steps, st.lists(st.integers(-1, 6), min_size=5, max_size=5))
def test_a_segment_lasts_as_long_as_its_rows_clock_stands_still(
    steps: list[tuple[int, int, int]], newest: list[int]
) -> None:
    row, tick, value = by_row(steps)
    clock = dict(enumerate(newest))
    expected: list[tuple[int, int, list[int]]] = []
    for i, (r, t) in enumerate(zip(row.tolist(), tick.tolist(), strict=True)):
        goes_on = expected != [] and expected[-1][0] == r and t <= clock[r]
        clock[r] = max(clock[r], t)
        if goes_on:
            expected[-1][2].append(i)
        else:
            expected.append((r, clock[r], [i]))
    found = segments(row, tick, np.array(newest, np.int32))
    events = [list(range(start, start + size)) for start, size in zip(found.starts, found.sizes, strict=True)]
    assert list(zip(found.row.tolist(), found.tick.tolist(), events, strict=True)) == expected
    assert found.sums(value).tolist() == [sum(value[i] for i in own) for _, _, own in expected]
    assert found.spread(found.tick).tolist() == [t for _, t, own in expected for _ in own]


@given(Steps)
def test_the_kth_round_of_segments_holds_the_kth_segment_of_every_row(steps: list[tuple[int, int, int]]) -> None:
    row, tick, _ = by_row(steps)
    parts = segments(row, tick, np.full(5, -1))
    assert [list(k) for k in parts.rounds()] == [list(k) for k in rounds(parts.row)]


@given(Steps, st.data())
def test_the_events_of_some_segments_are_found_again(steps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    row, tick, _ = by_row(steps)
    parts = segments(row, tick, np.full(5, -1))
    chosen = data.draw(st.lists(st.integers(0, len(parts.row) - 1), min_size=1, unique=True))
    of, position = parts.events(np.array(chosen))
    expected = [(j, int(parts.starts[s]) + i) for j, s in enumerate(chosen) for i in range(int(parts.sizes[s]))]
    assert list(zip(of.tolist(), position.tolist(), strict=True)) == expected


@given(Steps)
def test_running_sums_begin_anew_with_every_row(steps: list[tuple[int, int, int]]) -> None:
    row, _, value = by_row(steps)
    sums: dict[int, int] = {}
    expected = []
    for r, v in zip(row.tolist(), value.tolist(), strict=True):
        sums[r] = sums.get(r, 0) + v
        expected.append(sums[r])
    assert running(value, changes(row)).tolist() == expected
    pairs = np.stack([value, 2 * value], 1)
    assert running(pairs, changes(row))[:, 1].tolist() == [2 * v for v in expected]


def test_ticks_of_times_before_1970_and_far_ahead_stay_within_bounds() -> None:
    assert ticks(np.array([-5.0, 0.0, 119.9, 1e300]), 60.0).tolist() == [0, 0, 1, 2**36 // 60]


# ------------------------------------------------------------------------------- what came recently


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=60),
    st.integers(0, 60),
    st.integers(1, 4),
)
def test_a_value_is_new_if_none_of_the_few_before_it_is_equal(
    steps: list[tuple[int, int]], cut: int, width: int
) -> None:
    ring, latest = np.zeros((3, width), np.uint32), {row: [0] * width for row in range(3)}
    for part in (steps[:cut], steps[cut:]):
        ordered = sorted(part, key=lambda step: step[0])
        expected = []
        for row, value in ordered:
            expected.append(value not in latest[row])
            latest[row] = [*latest[row][1:], value]
        rows, values = (np.array([step[i] for step in ordered], np.int64) for i in (0, 1))
        assert unlike_recent(ring, rows, values.astype(np.uint32)).tolist() == expected
        assert ring.tolist() == list(latest.values())


def test_a_bit_is_the_same_for_the_same_hash_and_none_for_what_is_unknown() -> None:
    assert bits(np.array([UNKNOWN, 3, 67, 63], np.uint64)).tolist() == [0, 8, 8, 2**63]


# ------------------------------------------------------------------------------------------- lives


def test_a_batch_is_cut_only_where_a_row_begins_another_life() -> None:
    batch = batch_of([Event(agent=name) for name in "abacab"])
    entity = batch.entities[Scope.AGENT]
    assert [len(part) for part in lives(batch, Scope.AGENT)] == [6]
    new = np.array([True, True, True, True, False, True])
    again = replace(batch, entities={Scope.AGENT: replace(entity, new=new)})
    assert [list(part.agent_id) for part in lives(again, Scope.AGENT)] == [["a", "b"], ["a", "c", "a", "b"]]
