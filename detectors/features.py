"""What a window of an agent's work looks like in numbers, gathered in columns.

What was not observed is NaN: it is left out, never taken for zero.
"""

from __future__ import annotations

import numpy as np

from detectors.base import Table
from detectors.types import UNKNOWN, EventBatch, Floats, Ints, Kind

FEATURES = ("tokens", "calls", "size", "dollars", "errors", "cached", "answer", "tools", "novelty")
"""Amounts and ratios are natural logarithms, shares lie between 0 and 1:

tokens: effective tokens. calls: model and tool calls. size: effective tokens per call that used any.
dollars: known cost. errors: share of calls that failed. cached: share of the input read from the cache.
answer: tokens written per token read. tools: different tools called. novelty: share of the observed
(signature, result) pairs that were not among the agent's last eight.
"""

RECENT = 8
"""Pairs remembered per agent."""

_SUMS = ("calls", "failed", "sized", "pairs", "fresh", "tokens", "cost", "input", "output", "read", "cached", "tools")
_CALLS = (int(Kind.LLM), int(Kind.TOOL))


class Windows:
    """The open window of every agent.

    A window is closed by the agent's first call in a later one; a late call counts in the open one.
    """

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        counts = dict.fromkeys(_SUMS[:5], (np.int32, 0))
        amounts = dict.fromkeys(_SUMS[5:-1], (np.float32, 0.0))
        self.table = Table(
            {
                "window": (np.int32, -1),
                **counts,
                **amounts,
                "tools": (np.uint64, 0),  # a bit per tool, by its hash
                "recent": (np.uint32, 0, RECENT),
            }
        )

    def take(self, batch: EventBatch, at: Ints, row: Ints) -> tuple[Ints, Floats]:
        """Counts events of distinct rows in; gives what they closed.

        Returns:
            (m,) positions of the events that closed a window, (m, len(FEATURES)) what the windows were like.
        """
        call = np.isin(batch.kind[at], _CALLS)
        at, row = at[call], row[call]
        table = self.table
        window = np.clip(np.floor(batch.ts[at] / self._length_s), 0, 2**31 - 1).astype(np.int32)
        opened = table["window"][row]
        over = (window > opened) & (opened >= 0)
        closing = row[over]
        values = self._values(closing)
        for name in _SUMS:
            table[name][closing] = 0
        table["window"][row] = np.maximum(window, opened)
        self._count(batch, at, row)
        return at[over], values

    def _count(self, batch: EventBatch, at: Ints, row: Ints) -> None:
        table = self.table
        tokens, given, cached, written = batch.tokens[at], batch.input[at], batch.cached[at], batch.output[at]
        table["calls"][row] += 1
        table["failed"][row] += batch.failed[at]
        table["sized"][row] += tokens > 0
        table["tokens"][row] += (tokens / 1e3).astype(np.float32)
        table["cost"][row] += (batch.cost[at] / 1e9).astype(np.float32)
        both = (given > 0) & (written >= 0)
        table["input"][row] += np.where(both, given, 0).astype(np.float32)
        table["output"][row] += np.where(both, written, 0).astype(np.float32)
        both = (given > 0) & (cached >= 0)
        table["read"][row] += np.where(both, given, 0).astype(np.float32)
        table["cached"][row] += np.where(both, np.minimum(cached, given), 0).astype(np.float32)
        tool = batch.tool_id[at]
        bit = np.left_shift(np.uint64(1), tool % np.uint64(64))
        table["tools"][row] |= np.where(tool != UNKNOWN, bit, np.uint64(0))

        asked, answered = batch.signature[at], batch.result[at]
        seen = (asked != UNKNOWN) & (answered != UNKNOWN)
        asked, answered, row = asked[seen], answered[seen], row[seen]
        # An odd number: never zero, the blank of the ring.
        pair = ((asked * np.uint64(0x9E3779B97F4A7C15) ^ answered) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        recent = table["recent"][row]
        fresh = ~(recent == pair[:, None]).any(axis=1)
        table["pairs"][row] += 1
        table["fresh"][row] += fresh
        table["recent"][row[fresh]] = np.concatenate([recent[fresh, 1:], pair[fresh, None]], axis=1)

    def _values(self, row: Ints) -> Floats:
        sums = {name: self.table[name][row].astype(np.float64) for name in _SUMS if name != "tools"}
        bits = self.table["tools"][row][:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
        known = {
            "tokens": sums["tokens"],
            "calls": sums["calls"],
            "size": _ratio(sums["tokens"], sums["sized"]),
            "dollars": sums["cost"],
            "answer": _ratio(sums["output"], sums["input"]),
            "tools": bits.sum(axis=1).astype(np.float64),
        }
        values = {name: np.log(np.where(value > 0, value, np.nan)) for name, value in known.items()}
        values["errors"] = _ratio(sums["failed"], sums["calls"])
        values["cached"] = _ratio(sums["cached"], sums["read"])
        values["novelty"] = _ratio(sums["fresh"], sums["pairs"])
        return np.stack([values[name] for name in FEATURES], axis=1)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where there is no whole."""
    return part / np.where(whole > 0, whole, np.nan)
