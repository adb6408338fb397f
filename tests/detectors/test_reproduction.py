"""The running test on the reproduction number, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detectors.base import Table
from detectors.reproduction import FIELDS, advance


def starts(events: list[tuple[float, bool]]) -> list[tuple[float, float]]:
    """(evidence, estimate) after each start (s, child) of one tree; healthy 0.6, kernel 5 s."""
    table, row = Table(FIELDS), np.array([0])
    told = []
    for ts, child in events:
        evidence, each = advance(table, row, np.array([ts]), np.array([child]), healthy=0.6, kernel_s=5.0)
        told.append((float(evidence[0]), float(each[0])))
    return told


def test_a_child_adds_the_log_of_the_ratio_and_waiting_takes_away() -> None:
    # After 5 s the first run's kernel has spent 1 - 1/e of its mass; nothing is left to take from zero.
    told = starts([(0.0, False), (5.0, True), (5.0, True)])
    assert told[0] == (0.0, pytest.approx(0.6))
    assert told[1][0] == pytest.approx(math.log(2.5 / 0.6))
    assert told[2][0] == pytest.approx(2 * math.log(2.5 / 0.6))
    # Five seconds on, two runs at full and the first at 1/e of its strength have spent that share again.
    spent = (2 + math.exp(-1)) * (1 - math.exp(-1))
    (*_, last) = starts([(0.0, False), (5.0, True), (5.0, True), (10.0, True)])
    assert last[0] == pytest.approx(max(3 * math.log(r / 0.6) - spent * (r - 0.6) for r in (1.5, 1.0)), abs=1.0)


def test_starts_from_outside_are_no_evidence() -> None:
    assert all(evidence == 0 for evidence, _ in starts([(0.1 * i, False) for i in range(500)]))


def test_a_start_out_of_order_counts_at_the_newest_time() -> None:
    assert starts([(10.0, False), (3.0, True)])[1] == starts([(10.0, False), (10.0, True)])[1]
