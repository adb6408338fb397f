"""What a window of an agent's work looks like in numbers, gathered in columns.

What was not observed is NaN: it is left out, never taken for zero.
"""

from __future__ import annotations

import math

import numpy as np

from detectors.base import Table
from detectors.rounds import bits, segments, ticks, unlike_recent
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

_LLM, _TOOL = int(Kind.LLM), int(Kind.TOOL)
_SUMS = ("calls", "failed", "sized", "pairs", "fresh", "tokens", "cost", "input", "output", "read", "cached")


class Windows:
    """The open window of every agent.

    A window is closed by the agent's first call in a later one; a late call counts in the open one.
    """

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._seen_from = -math.inf
        """Windows before this one were seen in part, if at all."""
        self.table = Table(
            {
                "window": (np.int32, -1),
                "sums": (np.int64, 0, len(_SUMS)),
                "tools": (np.uint64, 0),  # a bit per tool, by its hash
                "recent": (np.uint32, 0, RECENT),
            }
        )

    def drop(self, clock: float) -> None:
        """Events before `clock` (s) were not shown: windows that were seen in part are not closed but forgotten."""
        if math.isfinite(clock):
            self._seen_from = clock // self._length_s + 1
        for name, blank in (("window", -1), ("sums", 0), ("tools", 0)):
            self.table[name][:] = blank

    def take(self, batch: EventBatch, row: Ints) -> tuple[Ints, Floats]:
        """Counts events in, a window of every agent at once; gives what they closed.

        Args:
            row: (n,) row of each event; a row holds one agent only.

        Returns:
            (m,) positions of the events that closed a window, (m, len(FEATURES)) what the windows were like.
        """
        table = self.table
        order, calls = np.argsort(row, kind="stable"), (batch.kind == _LLM) | (batch.kind == _TOOL)
        at = order[calls[order]]
        if math.isfinite(self._seen_from):
            at = at[ticks(batch.ts[at], self._length_s) >= self._seen_from]
        if not len(at):
            return at, np.empty((0, len(FEATURES)))
        parts = segments(row[at], ticks(batch.ts[at], self._length_s), table["window"])
        sums = parts.sums(self._amounts(batch, at, row[at]))
        tools = np.bitwise_or.reduceat(bits(batch.tool_id[at]), parts.starts)
        closing, values = [], []
        for k in parts.rounds():
            rows, window = parts.row[k], parts.tick[k]
            opened = table["window"][rows]
            over = np.flatnonzero(window > opened)
            if len(over):
                table["window"][rows] = window
                over = over[opened[over] >= 0]
                closed = rows[over]
                closing.append(at[parts.starts[k[over]]])
                values.append(self._values(closed))
                table["sums"][closed] = 0
                table["tools"][closed] = 0
            table["sums"][rows] += sums[k]
            table["tools"][rows] |= tools[k]
        if not closing:
            return at[:0], np.empty((0, len(FEATURES)))
        return np.concatenate(closing), np.concatenate(values)

    def _amounts(self, batch: EventBatch, at: Ints, row: Ints) -> Ints:
        """(n, len(_SUMS)) what events add to their window; row by row, as it remembers pairs."""
        tokens, given, cached, written = batch.tokens[at], batch.input[at], batch.cached[at], batch.output[at]
        asked, answered = batch.signature[at], batch.result[at]
        seen = np.flatnonzero((asked != UNKNOWN) & (answered != UNKNOWN))
        # An odd number: never zero, the blank of the ring.
        pair = ((asked[seen] * np.uint64(0x9E3779B97F4A7C15) ^ answered[seen]) >> np.uint64(32)).astype(np.uint32)
        both = (given > 0) & (written >= 0)
        read = (given > 0) & (cached >= 0)
        amounts = np.zeros((len(at), len(_SUMS)), np.int64)
        amounts[:, 0] = 1
        amounts[:, 1] = batch.failed[at]
        amounts[:, 2] = tokens > 0
        amounts[seen, 3] = 1
        amounts[seen, 4] = unlike_recent(self.table["recent"], row[seen], pair | np.uint32(1))
        amounts[:, 5] = tokens
        amounts[:, 6] = batch.cost[at]
        amounts[:, 7] = given * both
        amounts[:, 8] = written * both
        amounts[:, 9] = given * read
        amounts[:, 10] = np.minimum(cached, given) * read
        return amounts

    def _values(self, row: Ints) -> Floats:
        sums = dict(zip(_SUMS, self.table["sums"][row].T.astype(np.float64), strict=True))
        bits = self.table["tools"][row][:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
        known = {
            "tokens": sums["tokens"] / 1e3,
            "calls": sums["calls"],
            "size": _ratio(sums["tokens"] / 1e3, sums["sized"]),
            "dollars": sums["cost"] / 1e9,
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
