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
    "fast": (np.float32, 0.0, UNITS),  # S when the open second began
    "open_use": (np.int64, 0, UNITS),  # of the open minute, in thousandths
    "last_use": (np.float32, 0.0, UNITS),  # of the minute before it
    "lulls": (np.float32, 0.0, LULLS * UNITS),  # ln of the lowest two-minute mean per block, at block % LULLS
    "lull": (np.float32, 0.0, UNITS),  # the lowest of them: ln L without the open minute
    "active_minutes": (np.int32, 0),
    "usual": (np.float32, 0.0, UNITS),  # mean ln of the use of an active minute
    "high": (np.float32, -np.inf, UNITS),  # ln H
    "lull_high": (np.float32, -np.inf, UNITS),  # ln H_L
    "fresh": (np.float32, -np.inf, LAG * UNITS),  # ln of the highest S per block not learned yet, at block % LAG
    "fresh_lull": (np.float32, -np.inf, LAG * UNITS),
}
"""Columns of the statistics. Use is in effective tokens and in millionths of a dollar."""

Values = NDArray[np.float32]


def lull_now(lull: Values, use: Values, last: Values) -> Values:
    """(k, UNITS) ln L with the open minute as far as it has got.

    Args:
        lull: (k, UNITS) ln L without the open minute.
        use: (k, UNITS) of the open minute.
        last: (k, UNITS) of the minute before it.
    """
    now: Values = np.minimum(lull, _two_minutes(use, last))
    return now


def keep_fresh(table: Table, rows: Ints, minute: Ints, ln_fast: Values) -> None:
    """Remembers S (k, UNITS) for the block of the open minute (k,), to be learned when it has lagged enough."""
    _raise(table, "fresh", rows, minute // BLOCK % LAG, ln_fast)


def close_minutes(table: Table, rows: Ints, minute: Ints, learn: Bools, memory_s: float) -> None:
    """Ends the open minute of rows that go on in a later one.

    Args:
        rows: (k,) rows with an open minute.
        minute: (k,) the minute they go on in.
        learn: (k,) whether the closed minute is learned.
    """
    was = table["minute"][rows].astype(np.int64)
    gap = minute - was
    use = (table.take("open_use", rows) / 1e3).astype(np.float32)
    lowest = _two_minutes(use, table.take("last_use", rows))
    lull = np.minimum(table.take("lull", rows), lowest)
    learned = slice(None) if learn.all() else learn
    chosen, block = rows[learned], was // BLOCK
    _learn_usual(table, chosen, use[learned])
    _raise(table, "fresh_lull", chosen, block[learned] % LAG, lull[learned])

    lowest = np.minimum(lowest, _silence(block, was, minute, use))
    pairs = table["lulls"].view(np.uint64)
    slot = block % LULLS
    least = np.minimum(pairs[rows, slot].view(np.float32).reshape(-1, UNITS), lowest)
    pairs[rows, slot] = least.astype(np.float32).view(np.uint64)[:, 0]
    table.put("lull", rows, np.minimum(lull, lowest))
    _move_on(table, rows, was, minute, use)
    faded = (np.log(2) * 60 / memory_s * gap).astype(np.float32)
    for name in ("high", "lull_high"):
        table.put(name, rows, table.take(name, rows) - faded[:, None])
    table.put("last_use", rows, use * (gap == 1)[:, None])
    table["open_use"][rows] = 0
    table["minute"][rows] = minute


def _raise(table: Table, name: str, rows: Ints, slot: Ints, values: Values) -> None:
    """Keeps the highest values (k, UNITS) in a ring."""
    column = table[name]
    # Both units as one number: they are moved, not counted with.
    pairs = column.view(np.uint64).reshape(-1)
    place = rows * (column.shape[1] // UNITS) + slot
    highest = np.maximum(pairs[place].view(np.float32).reshape(-1, UNITS), values)
    pairs[place] = highest.astype(np.float32, copy=False).view(np.uint64)[:, 0]


def _ring(table: Table, name: str) -> Values:
    """(rows, blocks, UNITS) view of a column."""
    column = table[name]
    return column.reshape(len(column), -1, UNITS)


def _two_minutes(use: Values, last: Values) -> Values:
    mean: Values = np.log1p((use + last) / 2)
    return mean


def _learn_usual(table: Table, rows: Ints, use: Values) -> None:
    n = table["active_minutes"][rows] + 1
    rate = np.maximum(1 / n, 1 / _USUAL_MINUTES)[:, None]
    usual = table.take("usual", rows)
    table.put("usual", rows, usual + rate * (np.log1p(use) - usual))
    table["active_minutes"][rows] = n


def _silence(block: Ints, was: Ints, minute: Ints, use: Values) -> Values:
    """(..., UNITS) ln of the lowest use that the silent minutes between `was` and `minute` give a block (...,)."""
    # The first silent minute still has the closed one in its two-minute mean.
    first = (minute - was > 1) & (block == (was + 1) // BLOCK)
    silent = np.maximum(block * BLOCK, was + 2) < np.minimum((block + 1) * BLOCK, minute)
    value = np.where(first[..., None], np.log1p(use / 2), np.float32(np.inf))
    return np.where(silent[..., None], np.float32(0), value)


def _move_on(table: Table, rows: Ints, was: Ints, minute: Ints, use: Values) -> None:
    """Opens a block where the new minute lies in another: what has lagged enough is learned."""
    block = minute // BLOCK
    moved = (block > was // BLOCK).nonzero()[0]
    if not len(moved):
        return
    rows, was, minute, use, block = rows[moved], was[moved], minute[moved], use[moved], block[moved]
    passed = (block - was // BLOCK)[:, None]
    # From the new block backwards: each takes the place of an older one.
    left = (block[:, None] - np.arange(LAG)) % LAG < passed
    for name, high in (("fresh", "high"), ("fresh_lull", "lull_high")):
        ring = _ring(table, name)
        own = ring.take(rows, axis=0)
        learned = np.where(left[:, :, None], own, np.float32(-np.inf)).max(axis=1)
        table.put(high, rows, np.maximum(table.take(high, rows), learned))
        ring[rows] = np.where(left[:, :, None], np.float32(-np.inf), own)
    ring = _ring(table, "lulls")
    back = (block[:, None] - np.arange(LULLS)) % LULLS
    silence = _silence(block[:, None] - back, was[:, None], minute[:, None], use[:, None, :])
    own = np.where((back < passed)[:, :, None], silence, ring.take(rows, axis=0))
    ring[rows] = own
    table.put("lull", rows, own.min(axis=1))
