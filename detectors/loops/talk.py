"""Loops that are not of tool calls: the same words, cut-off answers, compactions, refusals, and equal steps."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import ALARM_FIELDS, Table, levels, pace
from detectors.loops.config import RetryLoopConfig
from detectors.loops.verdicts import SCOPE, Found, finding, totals_before
from detectors.types import UNKNOWN, Bools, EventBatch, Finish, Ints, Kind

# Where a streak began: event time, and the run's totals before it.
_MARK: Final = {"since": (np.float64, 0.0), "since_tokens": (np.int64, 0), "since_cost": (np.int64, 0)}

_FEW_CALLS: Final = 2
"""Model calls and messages between two compactions that do not count as work."""
_GROWING: Final = 3
"""Gaps in a row that each are longer than the one before: the caller backs off."""
_GROWTH: Final = 1.25
"""A gap so many times the one before is longer; less may be jitter."""
_INPUT_SHARE, _OUTPUT_SHARE = 0.02, 0.05
"""How far equal steps may differ."""


class _Streak:
    """Counts, per run, something that goes on, with an alarm of its own."""

    def __init__(self, fields: dict[str, tuple[Any, ...]]) -> None:
        self.table = Table({"count": (np.int32, 0), **_MARK, **ALARM_FIELDS, **fields})

    def mark(self, batch: EventBatch, at: Ints, begins: Bools) -> None:
        """Notes that a streak begins with these events."""
        at = at[begins]
        if not len(at):
            return
        rows = batch.entities[SCOPE].row[at]
        tokens, cost = totals_before(batch, at)
        for name, value in zip(_MARK, (batch.ts[at], tokens, cost), strict=True):
            self.table[name][rows] = value

    def verdicts(
        self,
        config: RetryLoopConfig,
        batch: EventBatch,
        at: Ints,
        counts: NDArray[Any],
        *,
        rule: str,
        warning: float,
        critical: float,
        unit: str,
        what: str,
        paced: int,
    ) -> Found:
        """Findings about the streaks that these events carry on.

        Args:
            what: What the agent does, with {} for how often.
            paced: Times the warning threshold at which paced streaks warn; 0: never.
        """
        if not (counts >= warning).any():
            return []
        level = levels(counts, warning, critical)
        table, rows, ts = self.table, batch.entities[SCOPE].row[at], batch.ts[at]
        slow = ts - table["since"][rows] >= config.paced_gap_s * np.maximum(counts - 1, 1)
        level[slow] = (counts[slow] >= paced * warning) if paced else 0
        speak = pace(table, rows, level, ts, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (
                int(at[j]),
                finding(
                    batch,
                    int(at[j]),
                    rule=rule,
                    level=int(level[j]),
                    observed=float(counts[j]),
                    threshold=warning,
                    unit=unit,
                    what=what.format(f"{int(counts[j])} times in a row"),
                    mark=[table[name][rows[j]] for name in _MARK],
                    evidence={},
                ),
            )
            for j in np.flatnonzero(speak)
        ]


class TalkState:
    """What lasts from batch to batch."""

    def __init__(self) -> None:
        self.words = _Streak({"last": (np.uint64, 0)})
        self.cut = _Streak({})
        self.compactions = _Streak({"calls": (np.int32, 0)})  # model calls and messages since the latest
        self.steps = _Streak(
            {
                "hashed": (np.bool_, False),  # the producer sends hashes: the other rules see more
                "input": (np.int64, -1),
                "grown": (np.int64, -1),
                "output": (np.int64, -1),
            }
        )
        self.storm = Table(
            {
                "errors": (np.float64, 0.0),
                "ts": (np.float64, 0.0),
                "refused": (np.float64, -np.inf),
                "gap": (np.float64, np.inf),
                "growing": (np.int16, 0),
                **ALARM_FIELDS,
            }
        )
        self.tables = {
            "words": self.words.table,
            "cut": self.cut.table,
            "compactions": self.compactions.table,
            "steps": self.steps.table,
            "storm": self.storm,
        }

    def used(self, rows: Ints) -> Bools:
        """Where a run has had an event that was no tool call, or one with hashes."""
        table = self.compactions.table
        used: Bools = (table["calls"][rows] > 0) | (table["count"][rows] > 0) | self.steps.table["hashed"][rows]
        return used


class Talk:
    """Rules over the model calls, messages and compactions of one batch."""

    def __init__(self, config: RetryLoopConfig, state: TalkState, batch: EventBatch) -> None:
        self._config, self._batch = config, batch
        self._words, self._cut, self._compactions = state.words, state.cut, state.compactions
        self._steps, self._storm = state.steps, state.storm
        self._row = batch.entities[SCOPE].row
        kind = batch.kind
        self._llm = kind == Kind.LLM
        self._tool = kind == Kind.TOOL
        self._said = np.where(kind == Kind.MESSAGE, batch.signature, batch.result)
        speaks = (self._llm & ~batch.failed) | (kind == Kind.MESSAGE)
        self._words_seen = speaks & (self._said != UNKNOWN) & ~batch.empty
        self._ended = self._llm & ~batch.failed & (batch.finish != Finish.UNKNOWN)
        self._compacts = kind == Kind.COMPACTION
        self._hashed = (batch.signature != UNKNOWN) | (batch.result != UNKNOWN)
        self._metered = self._llm & ~batch.failed & (batch.input >= 0) & (batch.output > 0)

    def step(self, at: Ints) -> Found:
        """One event per run, of any kind."""
        # What is done in between ends a streak of words, and an outcome one of compactions.
        done = self._row[at[self._tool[at]]]
        self._words.table["last"][done] = UNKNOWN
        self._steps.table["hashed"][self._row[at[self._hashed[at]]]] = True
        found: Found = []
        for mask, rule in (
            (self._words_seen, self._say),
            (self._ended, self._end),
            (self._compacts, self._compact),
            (self._metered, self._grow),
            (self._llm, self._ask),
        ):
            chosen = at[mask[at]]
            if len(chosen):
                found += rule(chosen)
        talked = self._row[at[(~self._tool & ~self._compacts)[at]]]
        self._compactions.table["calls"][talked] += 1
        return found

    def work(self, rows: Ints) -> None:
        """These runs got something new, or finished something."""
        self._compactions.table["count"][rows] = 0

    # ---------------------------------------------------------------------------------- rules

    def _say(self, at: Ints) -> Found:
        batch, config, table = self._batch, self._config, self._words.table
        rows, words = self._row[at], self._said[at]
        same = words == table["last"][rows]
        counts = np.where(same, table["count"][rows] + 1, 1)
        table["count"][rows], table["last"][rows] = counts, words
        self._words.mark(batch, at, ~same)
        return self._words.verdicts(
            config,
            batch,
            at,
            counts,
            rule="same_words",
            warning=config.said_warning,
            critical=config.said_critical,
            unit="messages",
            what="has written the same text {}",
            paced=0,
        )

    def _end(self, at: Ints) -> Found:
        batch, config, table = self._batch, self._config, self._cut.table
        rows = self._row[at]
        cut = batch.finish[at] == Finish.TRUNCATED
        known = table["count"][rows]
        counts = np.where(cut, known + 1, 0)
        table["count"][rows] = counts
        self._cut.mark(batch, at, cut & (known == 0))
        return self._cut.verdicts(
            config,
            batch,
            at,
            counts,
            rule="truncated",
            warning=config.truncated_warning,
            critical=config.truncated_critical,
            unit="answers",
            what="has run into its limit of output tokens {}",
            paced=config.paced_factor,
        )

    def _compact(self, at: Ints) -> Found:
        batch, config, table = self._batch, self._config, self._compactions.table
        rows = self._row[at]
        known = np.where(table["calls"][rows] <= _FEW_CALLS, table["count"][rows], 0)
        counts = known + 1
        table["count"][rows], table["calls"][rows] = counts, 0
        self._compactions.mark(batch, at, known == 0)
        return self._compactions.verdicts(
            config,
            batch,
            at,
            counts,
            rule="compactions",
            warning=config.compaction_warning,
            critical=config.compaction_critical,
            unit="compactions",
            what="has had its context compacted {} without doing anything new",
            paced=config.paced_factor,
        )

    def _grow(self, at: Ints) -> Found:
        """A producer without hashes shows its loops by steps of one size."""
        batch, config, table = self._batch, self._config, self._steps.table
        rows = self._row[at]
        read, written = batch.input[at], batch.output[at]
        grown = np.where(table["input"][rows] >= 0, read - table["input"][rows], -1)
        before, output = table["grown"][rows], table["output"][rows]
        alike = (grown > 0) & (before > 0) & (np.abs(grown - before) <= np.maximum(_INPUT_SHARE * before, 1.0))
        alike &= np.abs(written - output) <= np.maximum(_OUTPUT_SHARE * output, 1.0)
        known = table["count"][rows]
        counts = np.where(alike & ~table["hashed"][rows], np.maximum(known, 1) + 1, 1)
        table["count"][rows], table["input"][rows] = counts, read
        table["grown"][rows], table["output"][rows] = grown, written
        self._steps.mark(batch, at, counts == 1)
        return self._steps.verdicts(
            config,
            batch,
            at,
            counts,
            rule="equal_steps",
            warning=config.weak_warning,
            critical=config.weak_critical,
            unit="calls",
            what="has added as much to its context and written as much {} (its calls are not sent)",
            paced=config.paced_factor,
        )

    def _ask(self, at: Ints) -> Found:
        """A storm of refusals: many in a short time, with gaps that do not grow."""
        batch, config, table = self._batch, self._config, self._storm
        rows, ts, failed = self._row[at], batch.ts[at], batch.failed[at]
        last = table["ts"][rows]
        table["ts"][rows] = np.maximum(ts, last)
        # Most models answer.
        storms = (failed | (table["errors"][rows] > 0)).nonzero()[0]
        if not len(storms):
            return []
        at, rows, ts, failed, last = at[storms], rows[storms], ts[storms], failed[storms], last[storms]
        fade = np.exp(-np.abs(ts - last) / config.storm_window_s)
        late = ts < last
        errors = table["errors"][rows] * np.where(late, 1.0, fade) + failed * np.where(late, fade, 1.0)
        table["errors"][rows] = errors
        gap = ts - table["refused"][rows]
        longer = gap >= _GROWTH * table["gap"][rows]
        growing = np.where(failed, np.where(longer, table["growing"][rows] + 1, 0), table["growing"][rows])
        table["growing"][rows] = np.minimum(growing, _GROWING)
        table["gap"][rows] = np.where(failed, np.where(gap > 0, gap, np.inf), table["gap"][rows])
        table["refused"][rows] = np.where(failed, np.maximum(ts, table["refused"][rows]), table["refused"][rows])
        if not (errors >= config.storm_warning).any():
            return []
        level = np.where(failed & (growing < _GROWING), levels(errors, config.storm_warning, config.storm_critical), 0)
        speak = pace(table, rows, level, ts, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (int(at[j]), self._refusals(int(at[j]), int(level[j]), float(errors[j]))) for j in np.flatnonzero(speak)
        ]

    def _refusals(self, i: int, level: int, errors: float) -> Any:
        config, status = self._config, int(self._batch.http_status[i])
        why = f" (last: HTTP {status})" if status else ""
        return finding(
            self._batch,
            i,
            rule="provider_errors",
            level=level,
            observed=round(errors, 1),
            threshold=config.storm_warning,
            unit="errors",
            what=f"keeps calling a failing model: about {errors:.0f} errors within "
            f"{config.storm_window_s / 60:.0f} min{why}",
            mark=None,
            evidence={"window_s": config.storm_window_s, "http_status": status or None},
        )
