"""What a burn rate does not show: contexts that grow, spending without an outcome, a budget that is used up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import ALARM_FIELDS, Table, levels, pace
from detectors.types import EventBatch, Floats, Ints, Kind, Scope

CONTEXT_S = 1800.0
"""Time constant of the count of calls with a large context."""
_DAY_S, _HOUR_S = 86400.0, 3600.0
_CONTEXT_DAYS = 2
_FADE_PER_OUTCOME = 0.99


@dataclass(frozen=True, slots=True)
class Excess:
    """What one rule found at one event."""

    index: int
    rule: str
    level: int
    observed: float
    expected: float
    unit: str
    says: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Thresholds; `RunawayConfig` says what they mean."""

    context_times: float
    context_calls: float
    context_floor: float
    outcome_times: float
    outcome_history: int
    outcome_floor: float
    hour_usd: float
    memory_s: float
    habit: float
    repeat_s: float
    rearm_s: float


class Limits:
    """Three rules over an agent's calls, each with its own table of state."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self.contexts = Table(
            {
                "day": (np.int32, -1),
                "days": (np.uint8, 0),
                "high": (np.float32, 0.0),  # largest input of a call on earlier days, faded
                "today": (np.float32, 0.0),
                "count": (np.float32, 0.0),
                "ts": (np.float64, -np.inf),
                **ALARM_FIELDS,
            }
        )
        self.outcomes = Table(
            {
                "outcomes": (np.uint32, 0),
                "calls": (np.uint32, 0),  # since the last outcome
                "tokens": (np.int64, 0),  # the agent's totals at the last outcome
                "cost": (np.int64, 0),
                "ts": (np.float64, np.nan),
                "most_calls": (np.float32, 0.0),  # between two outcomes
                "most_tokens": (np.float32, 0.0),
                **ALARM_FIELDS,
            }
        )
        self.hours = Table({"hour": (np.int32, -1), "cost": (np.int64, 0), **ALARM_FIELDS})
        self.tables = {"contexts": self.contexts, "outcomes": self.outcomes, "hours": self.hours}

    def update(self, batch: EventBatch, at: Ints) -> Iterator[Excess]:
        """Takes in one event of each of some agents (k,)."""
        kind = batch.kind[at]
        calls = at[(kind == Kind.LLM) & (batch.input[at] > 0)]
        if len(calls):
            yield from self._context(batch, calls)
        done = at[kind == Kind.OUTCOME]
        if len(done):
            self._outcome(batch, done)
        calls = at[kind == Kind.LLM]
        if len(calls):
            yield from self._without_outcome(batch, calls)
        if self._settings.hour_usd > 0:
            yield from self._hour(batch, at[batch.cost[at] > 0])

    def _pace(self, table: Table, rows: Ints, level: NDArray[Any], ts: Floats) -> Ints:
        settings = self._settings
        speak = pace(table, rows, level, ts, repeat_s=settings.repeat_s, rearm_s=settings.rearm_s)
        return np.flatnonzero(speak)

    # ------------------------------------------------------------------------------------ contexts

    def _context(self, batch: EventBatch, at: Ints) -> Iterator[Excess]:
        table, settings = self.contexts, self._settings
        rows, ts = batch.entities[Scope.AGENT].row[at], batch.ts[at]
        size = batch.input[at].astype(np.float64)
        self._close_days(rows, np.floor(ts / _DAY_S).astype(np.int64))
        high = table["high"][rows].astype(np.float64)
        last = table["ts"][rows]
        gap = np.where(np.isfinite(last), np.maximum(ts - last, 0.0), 0.0)
        table["ts"][rows] = np.maximum(ts, last)
        large = (size >= settings.context_times * high) & (size >= settings.context_floor)
        large &= table["days"][rows] >= _CONTEXT_DAYS
        count = table["count"][rows] * np.exp(-gap / CONTEXT_S) + large
        table["count"][rows] = count
        table["today"][rows] = np.maximum(table["today"][rows], size)
        # Decayed, five calls in a row are a little less than five.
        calls = settings.context_calls
        level = np.where(large, levels(np.ceil(count - 0.1 * calls), calls, 5 * calls), 0)
        for k in self._pace(table, rows, level, ts).tolist():
            yield Excess(
                index=int(at[k]),
                rule="context_growth",
                level=int(level[k]),
                observed=float(size[k]),
                expected=float(round(high[k], 1)),
                unit="input tokens per call",
                says=f"reads {size[k]:,.0f} tokens per call, {size[k] / max(high[k], 1.0):.1f}x the most on earlier "
                f"days, in {np.ceil(count[k]):.0f} calls of the last half hour",
                evidence={
                    "threshold": settings.context_times,
                    "window_s": CONTEXT_S,
                    "days": int(table["days"][rows[k]]),
                },
            )

    def _close_days(self, rows: Ints, day: Ints) -> None:
        table, settings = self.contexts, self._settings
        over = day > table["day"][rows]
        rows, day = rows[over], day[over]
        known = table["day"][rows] >= 0
        before = np.where(known, day - table["day"][rows], 0)
        high, today = table["high"][rows].astype(np.float64), table["today"][rows]
        # What was far beyond is learned as little as an alarm is.
        highest = np.where(table["days"][rows] >= _CONTEXT_DAYS, np.minimum(today, settings.habit * high), today)
        faded = np.exp2(-before * _DAY_S / settings.memory_s)
        table["high"][rows] = np.maximum(high * faded, highest)
        table["days"][rows] = np.minimum(table["days"][rows].astype(np.int64) + known, 255)
        table["today"][rows] = 0.0
        table["day"][rows] = day

    # ------------------------------------------------------------------------------------ outcomes

    def _outcome(self, batch: EventBatch, at: Ints) -> None:
        table, entity = self.outcomes, batch.entities[Scope.AGENT]
        rows = entity.row[at]
        # Before the first outcome nothing says how long one takes.
        known = table["outcomes"][rows] > 0
        for name, spent in (
            ("most_calls", table["calls"][rows].astype(np.float64)),
            ("most_tokens", (entity.tokens[at] - table["tokens"][rows]) / 1e3),
        ):
            most = table[name][rows]
            capped = np.where(most > 0, np.minimum(spent, self._settings.habit * most), spent)
            table[name][rows] = np.where(known, np.maximum(most * _FADE_PER_OUTCOME, capped), 0.0)
        table["outcomes"][rows] += 1
        table["calls"][rows] = 0
        table["tokens"][rows], table["cost"][rows] = entity.tokens[at], entity.cost[at]
        table["ts"][rows] = batch.ts[at]

    def _without_outcome(self, batch: EventBatch, at: Ints) -> Iterator[Excess]:
        table, settings, entity = self.outcomes, self._settings, batch.entities[Scope.AGENT]
        rows = entity.row[at]
        table["calls"][rows] += 1
        known = table["outcomes"][rows] >= settings.outcome_history
        if not known.any():
            return
        at, rows = at[known], rows[known]
        calls = table["calls"][rows].astype(np.float64)
        tokens = (entity.tokens[at] - table["tokens"][rows]) / 1e3
        most_calls, most_tokens = table["most_calls"][rows], table["most_tokens"][rows]
        # Both must be far beyond: many small calls are cheap, and one large one may be what the task takes.
        times = np.minimum(calls / np.maximum(most_calls, 1), tokens / np.maximum(most_tokens, 1))
        level = np.where(
            tokens >= settings.outcome_floor, levels(times, settings.outcome_times, 3 * settings.outcome_times), 0
        )
        for k in self._pace(table, rows, level, batch.ts[at]).tolist():
            row = rows[k]
            dollars = (int(entity.cost[at[k]]) - int(table["cost"][row])) / 1e9
            hours = max(0.0, float(batch.ts[at[k]] - table["ts"][row])) / _HOUR_S
            spent = f"${dollars:,.2f}" if dollars >= 0.005 else f"{tokens[k]:,.0f} effective tokens"
            yield Excess(
                index=int(at[k]),
                rule="no_outcome",
                level=int(level[k]),
                observed=float(calls[k]),
                expected=float(round(float(most_calls[k]), 1)),
                unit="calls since the last outcome",
                says=f"has made {calls[k]:.0f} calls without an outcome in {hours:.1f} hours ({spent}), "
                f"{times[k]:.0f}x the most that one took before",
                evidence={
                    "since": float(table["ts"][row]),
                    "threshold": settings.outcome_times,
                    "outcomes": int(table["outcomes"][row]),
                    "effective_tokens": float(tokens[k]),
                    "cost_usd": round(dollars, 6),
                },
            )

    # --------------------------------------------------------------------------------------- hours

    def _hour(self, batch: EventBatch, at: Ints) -> Iterator[Excess]:
        table, budget = self.hours, self._settings.hour_usd
        rows, ts = batch.entities[Scope.AGENT].row[at], batch.ts[at]
        hour = np.floor(ts / _HOUR_S).astype(np.int64)
        begins = rows[hour > table["hour"][rows]]
        table["cost"][begins] = 0
        table["hour"][rows] = np.maximum(hour, table["hour"][rows])
        table["cost"][rows] += batch.cost[at]
        spent = table["cost"][rows] / 1e9
        for k in self._pace(table, rows, np.where(spent >= budget, 2, 0), ts).tolist():
            yield Excess(
                index=int(at[k]),
                rule="hour_budget",
                level=2,
                observed=round(float(spent[k]), 6),
                expected=budget,
                unit="dollars per clock hour",
                says=f"has spent ${spent[k]:,.2f} in this clock hour, with a budget of ${budget:,.2f}",
                evidence={"threshold": budget, "window_s": _HOUR_S},
            )
