"""The k-th events of all entities, at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.rounds import rounds

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
