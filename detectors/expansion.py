"""An agent's use against its own range: how far a rate is above the highest so far, and a lull above the highest lull.

Two statistics per unit (effective tokens, dollars):

- S, the exponentially decayed sum of the last 5 minutes, against the highest S so far (H): how high it bursts.
- L, the lowest two-minute mean of the last 25 to 30 minutes, against the highest L so far (or the usual
  minute, if that is more): how long it keeps going. Bursts that people cause have lulls; a loop has none.

score = max(0, ln S/H) + max(0, ln L/max(H_L, usual)), in nats.

What an agent does now is compared with what it did 10 to 15 minutes ago and earlier: a rise is measured from
where it began, not from a minute ago. Maxima fade with a half-life of days.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Table
from detectors.types import Bools, Ints

UNITS = 2
"""Effective tokens, and millionths of a dollar."""
TOKENS, MONEY = 0, 1

FAST_S = 300.0
"""Time constant of the decayed sum."""
STEADY = float(1 / (1 - np.exp(-60 / FAST_S)))
"""The decayed sum of a steady stream, in minutes of it, right after a minute's use."""

BLOCK = 5
"""Minutes of a block. Lulls are remembered per block, and learning lags by whole blocks."""
LULLS = 6
"""Blocks whose lowest use is remembered, the open one included: 25 to 30 minutes."""
LAG = 3
"""Blocks that are not learned yet, the open one included: 10 to 15 minutes."""
_USUAL_MINUTES = 1440

FIELDS: dict[str, tuple[Any, ...]] = {
    "minute": (np.int32, -1),  # the open minute, since 1970
    "fast": (np.float32, 0.0, UNITS),  # S
    "open_use": (np.float32, 0.0, UNITS),  # of the open minute
    "last_use": (np.float32, 0.0, UNITS),  # of the minute before it
    "lulls": (np.float32, 0.0, UNITS * LULLS),  # ln of the lowest two-minute mean per block, the open one last
    "active_minutes": (np.int32, 0),
    "usual": (np.float32, 0.0, UNITS),  # mean ln of the use of an active minute
    "high": (np.float32, -np.inf, UNITS),  # ln H
    "lull_high": (np.float32, -np.inf, UNITS),  # ln H_L
    "fresh": (np.float32, -np.inf, UNITS * LAG),  # ln of the highest S per block that is not learned yet
    "fresh_lull": (np.float32, -np.inf, UNITS * LAG),
}
"""Columns of the statistics. Use is in effective tokens and in millionths of a dollar."""

Values = NDArray[np.float32]


def lull_now(table: Table, rows: Ints) -> Values:
    """(k, UNITS) ln L with the open minute as far as it has got."""
    lowest = table["lulls"][rows].reshape(-1, UNITS, LULLS).min(2)
    now: Values = np.minimum(lowest, _two_minutes(table, rows))
    return now


def _two_minutes(table: Table, rows: Ints) -> Values:
    mean: Values = np.log1p((table["open_use"][rows] + table["last_use"][rows]) / 2)
    return mean


def close_minutes(table: Table, rows: Ints, minute: Ints, learn: Bools, memory_s: float) -> None:
    """Ends the open minute of rows that go on in a later one.

    Args:
        rows: (k,) rows with an open minute.
        minute: (k,) the minute they go on in.
        learn: (k,) whether the closed minute is learned.
    """
    was = table["minute"][rows].astype(np.int64)
    gap = minute - was
    use = table["open_use"][rows]
    lulls = table["lulls"][rows].reshape(-1, UNITS, LULLS)
    lulls[:, :, -1] = np.minimum(lulls[:, :, -1], _two_minutes(table, rows))
    fresh = table["fresh"][rows].reshape(-1, UNITS, LAG)
    fresh_lull = table["fresh_lull"][rows].reshape(-1, UNITS, LAG)
    chosen = np.flatnonzero(learn)
    fresh_lull[chosen, :, -1] = np.maximum(fresh_lull[chosen, :, -1], lulls[chosen].min(2))
    _learn_usual(table, rows[chosen], use[chosen])

    # Whole blocks move on; what has lagged enough is learned.
    blocks = minute // BLOCK - was // BLOCK
    move = np.flatnonzero(blocks > 0)
    faded = (np.log(2) * 60 / memory_s * gap)[:, None].astype(np.float32)
    for name, waiting in (("high", fresh), ("lull_high", fresh_lull)):
        highest = table[name][rows]
        passed = np.arange(LAG) < blocks[move, None]
        highest[move] = np.maximum(highest[move], np.where(passed[:, None], waiting[move], -np.inf).max(2))
        table[name][rows] = highest - faded
        waiting[move] = _moved_on(waiting[move], blocks[move], -np.inf)
    lulls[move] = _moved_on(lulls[move], blocks[move], np.inf)
    _fill_silence(lulls, use, was, minute)

    table["lulls"][rows] = lulls.reshape(len(rows), -1)
    table["fresh"][rows] = fresh.reshape(len(rows), -1)
    table["fresh_lull"][rows] = fresh_lull.reshape(len(rows), -1)
    table["last_use"][rows] = np.where((gap == 1)[:, None], use, 0)
    table["open_use"][rows] = 0
    table["minute"][rows] = minute


def _learn_usual(table: Table, rows: Ints, use: Values) -> None:
    n = table["active_minutes"][rows] + 1
    rate = np.maximum(1 / n, 1 / _USUAL_MINUTES)[:, None]
    usual = table["usual"][rows]
    table["usual"][rows] = usual + rate * (np.log1p(use) - usual)
    table["active_minutes"][rows] = n


def _moved_on(values: Values, blocks: Ints, blank: float) -> Values:
    """(k, UNITS, n) with the first `blocks` (k,) of the last axis gone and blank ones behind the others."""
    n = values.shape[2]
    source = np.arange(n) + blocks[:, None]
    kept = np.take_along_axis(values, np.minimum(source, n - 1)[:, None], 2)
    moved: Values = np.where((source < n)[:, None], kept, np.float32(blank))
    return moved


def _fill_silence(lulls: Values, use: Values, was: Ints, minute: Ints) -> None:
    """Enters the minutes without events between the closed one and the one that opens."""
    quiet = np.flatnonzero(minute - was > 1)
    if not len(quiet):
        return
    was, minute = was[quiet], minute[quiet]
    own = lulls[quiet]
    block = minute[:, None] // BLOCK - (LULLS - 1) + np.arange(LULLS)
    # The first silent minute still has the closed one in its two-minute mean.
    first = (block == (was[:, None] + 1) // BLOCK)[:, None]
    own = np.where(first, np.minimum(own, np.log1p(use[quiet] / 2)[:, :, None]), own)
    begin, end = np.maximum(block * BLOCK, was[:, None] + 2), np.minimum((block + 1) * BLOCK, minute[:, None])
    lulls[quiet] = np.where((begin < end)[:, None], np.float32(0), own)
