"""What a burn rate does not show: contexts that grow, spending without an outcome, a budget that is used up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import ALARM_FIELDS, Sparse, Table, levels, pace_in_order
from detectors.rounds import changes, rounds, running, segments, sizes, ticks
from detectors.types import EventBatch, Floats, Ints, Kind, Scope

CONTEXT_S = 1800.0
"""Time constant of the count of calls with a large context."""
_LLM, _OUTCOME = int(Kind.LLM), int(Kind.OUTCOME)
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
                "count": (np.float32, 0.0),  # of large calls, when the open second began
                "second": (np.int64, -1),
                "open_calls": (np.int32, 0),  # large ones in the open second
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
        self.hours = Sparse({"hour": (np.int32, -1), "cost": (np.int64, 0), **ALARM_FIELDS})
        self.tables: dict[str, Table] = {"contexts": self.contexts, "outcomes": self.outcomes, "hours": self.hours}

    def update(self, batch: EventBatch, order: Ints) -> list[Excess]:
        """Takes in events, of which none follows on another life of its row; `order`: (n,) them row by row."""
        llm = batch.kind == _LLM
        found: list[Excess] = []
        calls = order[(llm & (batch.input > 0)).take(order)]
        if len(calls):
            found += self._context(batch, calls)
        steps = order[(llm | (batch.kind == _OUTCOME)).take(order)]
        if len(steps):
            found += self._without_outcome(batch, steps)
        if self._settings.hour_usd > 0:
            paid = order[batch.cost[order] > 0]
            if len(paid):
                found += self._hour(batch, paid)
        return found

    def _pace(self, table: Table, rows: Ints, level: NDArray[Any], ts: Floats) -> Sequence[int]:
        settings = self._settings
        # By whole seconds, as everything else: so a second asks once, however many calls it has.
        speak: Sequence[int] = pace_in_order(
            table, rows, level, np.floor(ts), repeat_s=settings.repeat_s, rearm_s=settings.rearm_s
        ).tolist()
        return speak

    # ------------------------------------------------------------------------------------ contexts

    def _context(self, batch: EventBatch, at: Ints) -> Iterator[Excess]:
        table, settings = self.contexts, self._settings
        rows = batch.entities[Scope.AGENT].row[at]
        parts = segments(rows, ticks(batch.ts[at], _DAY_S), table["day"])
        size = batch.input[at].astype(np.float32)
        most = np.maximum.reduceat(size, parts.starts)
        high, days = np.empty(len(parts.row), np.float32), np.empty(len(parts.row), np.uint8)
        for these in parts.rounds():
            who = parts.row[these]
            self._close_days(who, parts.tick[these])
            table["today"][who] = np.maximum(table["today"][who], most[these])
            high[these], days[these] = table["high"][who], table["days"][who]
        # Hardly ever is a day known well enough, and a call large enough, to be looked at.
        known = (days >= _CONTEXT_DAYS) & (most >= settings.context_floor) & (most >= settings.context_times * high)
        if not known.any():
            return
        of = parts.spread(np.arange(len(known)))
        large = np.flatnonzero(
            known[of] & (size >= settings.context_times * high[of]) & (size >= settings.context_floor)
        )
        at, rows, size, of = at[large], rows[large], size[large], of[large]
        count = self._large(batch, at, rows)
        # Decayed, five calls in a row are a little less than five.
        calls_limit = settings.context_calls
        level = levels(np.ceil(count - 0.1 * calls_limit), calls_limit, 5 * calls_limit)
        for k in self._pace(table, rows, level, batch.ts[at]):
            before = float(high[of[k]])
            yield Excess(
                index=int(at[k]),
                rule="context_growth",
                level=int(level[k]),
                observed=float(size[k]),
                expected=round(before, 1),
                unit="input tokens per call",
                says=f"reads {size[k]:,.0f} tokens per call, {size[k] / max(before, 1.0):.1f}x the most on earlier "
                f"days, in {np.ceil(count[k]):.0f} calls of the last half hour",
                evidence={
                    "threshold": settings.context_times,
                    "window_s": CONTEXT_S,
                    "days": int(days[of[k]]),
                },
            )

    def _large(self, batch: EventBatch, at: Ints, rows: Ints) -> Floats:
        """(n,) large calls of the last half hour as of each of these, row by row; it fades between seconds."""
        table = self.contexts
        parts = segments(rows, ticks(batch.ts[at], 1.0), table["second"])
        before = np.empty(len(parts.row))
        for k in parts.rounds():
            who, now = parts.row[k], parts.tick[k]
            gap = now - table["second"][who]
            open_calls = np.where(gap > 0, 0, table["open_calls"][who])
            ended = table["open_calls"][who] - open_calls
            faded = ((table["count"][who] + ended) * np.exp(gap / -CONTEXT_S)).astype(np.float32)
            before[k] = faded + open_calls.astype(np.float64)
            table["count"][who], table["second"][who] = faded, now
            table["open_calls"][who] = open_calls + parts.sizes[k]
        begins = np.zeros(len(at), np.bool_)
        begins[parts.starts] = True
        counts: Floats = parts.spread(before) + running(np.ones(len(at), np.int64), begins)
        return counts

    def _close_days(self, rows: Ints, day: Ints) -> None:
        table, settings = self.contexts, self._settings
        was = table["day"][rows]
        over = (day > was).nonzero()[0]
        if not len(over):
            return
        rows, day, was = rows[over], day[over], was[over]
        table["day"][rows] = day
        known = (was >= 0).nonzero()[0]
        if not len(known):
            return
        rows, passed = rows[known], (day - was)[known]
        high, today, days = table["high"][rows].astype(np.float64), table["today"][rows], table["days"][rows]
        # What was far beyond is learned as little as an alarm is.
        highest = np.where(days >= _CONTEXT_DAYS, np.minimum(today, settings.habit * high), today)
        table["high"][rows] = np.maximum(high * np.exp2(-passed * _DAY_S / settings.memory_s), highest)
        table["days"][rows] = days + (days < 255)
        table["today"][rows] = 0.0

    # ------------------------------------------------------------------------------------ outcomes

    def _without_outcome(self, batch: EventBatch, steps: Ints) -> Iterator[Excess]:
        """Takes in model calls and outcomes: of each agent at once what lies between two outcomes."""
        table, entity = self.outcomes, batch.entities[Scope.AGENT]
        row, done = entity.row[steps], batch.kind[steps] == _OUTCOME
        # A task begins with the outcome of the one before, or goes on from the batch before.
        begins = changes(row) | done
        starts = begins.nonzero()[0]
        who, closes = row[starts], done[starts]
        calls = sizes(starts, len(steps)) - closes
        for k in rounds(who):
            closed = k[closes[k]]
            if len(closed):
                self._outcome(batch, steps[starts[closed]])
            rows = who[k]
            before = table["calls"][rows]
            table["calls"][rows] = before + calls[k]
            known = ((table["outcomes"][rows] >= self._settings.outcome_history) & (calls[k] > 0)).nonzero()[0]
            if len(known):
                some = k[known]
                of = np.repeat(np.arange(len(some)), calls[some])
                number = running(np.ones(len(of), np.int64), changes(of))
                yield from self._overdue(
                    batch,
                    steps[(starts + closes)[some][of] + number - 1],
                    before[known][of].astype(np.float64) + number,
                )

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

    def _overdue(self, batch: EventBatch, at: Ints, calls: Floats) -> Iterator[Excess]:
        """Looks at model calls, row by row; `calls`: the row's since its last outcome, as of each."""
        table, settings, entity = self.outcomes, self._settings, batch.entities[Scope.AGENT]
        rows = entity.row[at]
        tokens = (entity.tokens[at] - table["tokens"][rows]) / 1e3
        most_calls, most_tokens = table["most_calls"][rows], table["most_tokens"][rows]
        # Both must be far beyond: many small calls are cheap, and one large one may be what the task takes.
        times = np.minimum(calls / np.maximum(most_calls, 1), tokens / np.maximum(most_tokens, 1))
        level = np.where(
            tokens >= settings.outcome_floor, levels(times, settings.outcome_times, 3 * settings.outcome_times), 0
        )
        for k in self._pace(table, rows, level, batch.ts[at]):
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
        # Where no budget is set, nothing is kept.
        row = batch.entities[Scope.AGENT].row[at]
        table.open(row[changes(row)])
        rows = table.find(row)
        parts = segments(rows, ticks(batch.ts[at], _HOUR_S), table["hour"])
        before = np.empty(len(parts.row), np.int64)
        cost = parts.sums(batch.cost[at])
        for these in parts.rounds():
            who, hour = parts.row[these], parts.tick[these]
            before[these] = np.where(hour > table["hour"][who], 0, table["cost"][who])
            table["hour"][who], table["cost"][who] = hour, before[these] + cost[these]
        begins = np.zeros(len(at), np.bool_)
        begins[parts.starts] = True
        spent = (parts.spread(before) + running(batch.cost[at], begins)) / 1e9
        for k in self._pace(table, rows, np.where(spent >= budget, 2, 0), batch.ts[at]):
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
