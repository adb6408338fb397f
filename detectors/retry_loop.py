"""Runs that do the same thing again and learn nothing from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    Spec,
    Table,
    pace,
    register,
    setting,
    severity_of,
)
from detectors.rounds import rounds
from detectors.types import UNKNOWN, Bools, EventBatch, Finding, Floats, Hashes, Ints, Kind, Scope, beyond

PERIODS = 5
"""Longest cycle looked for; the public detectors that look for cycles stop at 4 or 5."""

_PERIOD = np.arange(1, PERIODS + 1)
# Salts keep apart what must never be equal: a call whose result was seen, one whose result was not, and
# a failed call from a successful one with the same text.
_MIX, _BLIND, _FAILED = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class RetryLoopConfig(DetectorConfig):
    """The thresholds of the repetition rules."""

    repeat_warning: int = setting(
        4,
        unit="calls",
        why="Same call with the same result, one after the other: warning.",
        source="OpenHands stuck detector: 4 identical action-observation pairs",
        ge=2,
    )
    repeat_critical: int = setting(
        6,
        unit="calls",
        why="Same call with the same result, one after the other: critical.",
        source="hermes-agent halts at 5, cline at 5; one more, because we page people",
        ge=2,
    )
    blind_extra: int = setting(
        2,
        unit="calls or laps",
        why="Added to the thresholds when the producer sends no results.",
        source="gemini-cli, qwen-code: 5 equal calls when results are not seen",
        ge=0,
    )
    laps_warning: int = setting(
        3,
        unit="laps",
        why="Laps of a cycle of 2 to 5 calls with equal results: warning.",
        source="stella, hermes-agent: 3 laps",
        ge=2,
    )
    laps_critical: int = setting(
        5,
        unit="laps",
        why="Laps of a cycle of 2 to 5 calls with equal results: critical.",
        source="hermes-agent halts at 5 laps; gemini-cli 5 laps",
        ge=2,
    )
    failing_warning: int = setting(
        4,
        unit="calls",
        why="The same call failing again, whatever the error says: warning.",
        source="OpenHands: 3 errors nudge, 4 stop",
        ge=2,
    )
    failing_critical: int = setting(
        6,
        unit="calls",
        why="The same call failing again, whatever the error says: critical.",
        source="hermes-agent blocks the same failing call at 5",
        ge=2,
    )
    said_warning: int = setting(
        4,
        unit="messages",
        why="The same text written again, nothing else in between: warning.",
        source="OpenHands monologue rule: 3; one more, because short acknowledgements repeat",
        ge=2,
    )
    said_critical: int = setting(
        8,
        unit="messages",
        why="The same text written again, nothing else in between: critical.",
        source="OpenRouter doom loop stops at 6 identical texts",
        ge=2,
    )
    storm_warning: float = setting(
        10.0,
        unit="errors",
        why="Failed model calls within the storm window: warning.",
        source="10 in 5 minutes cannot be a doubling backoff, which makes 9 attempts in 5 minutes",
        gt=1,
    )
    storm_critical: float = setting(
        30.0,
        unit="errors",
        why="Failed model calls within the storm window: critical.",
        source="three times the warning",
        gt=1,
    )
    storm_window_s: float = setting(
        300.0,
        unit="s",
        why="Window of the provider error storm (errors fade exponentially).",
        source="OpenSwarm#262: errors of the provider are an outage, told apart by rate",
        gt=0,
    )
    paced_gap_s: float = setting(
        60.0,
        unit="s",
        why="Repeats at least this far apart on average are polling, not a loop.",
        source="software-agent-sdk#762: polling every few minutes was stopped as stuck",
        gt=0,
    )
    paced_factor: int = setting(
        3,
        unit="times",
        why="Paced calls that fail warn at so many times the warning threshold.",
        source="openclaw: known pollers get 10/20 where others get 3/5",
        ge=1,
    )
    repeat_s: float = setting(
        60.0,
        unit="s",
        why="A loop that lasts is reported again after this time.",
        source="keeps the incident alive; well under the quiet time of incidents",
        gt=0,
    )
    rearm_s: float = setting(
        300.0,
        unit="s",
        why="After this time without firing, a loop of the same run is new.",
        source="equal to the quiet time of incidents",
        gt=0,
    )


_MARK: dict[str, tuple[Any, ...]] = {
    # Where a streak began: event time, and the run's totals before it.
    "since": (np.float64, 0.0),
    "since_tokens": (np.int64, 0),
    "since_cost": (np.int64, 0),
}
_LANE_FIELDS: dict[str, tuple[Any, ...]] = {
    "items": (np.uint64, 0, PERIODS),  # the latest items, newest first
    "matches": (np.int32, 0, PERIODS),  # how often in a row an item equalled the one p before it
    "round": (np.uint64, 0),
    **_MARK,
    **ALARM_FIELDS,
}


class _Lane:
    """A sequence of items per run, and how long it has been repeating with periods 1 to 5."""

    def __init__(self, fields: dict[str, tuple[Any, ...]]) -> None:
        self.table = Table(_LANE_FIELDS | fields)

    def mark(self, rows: Ints, where: NDArray[Any], ts: Floats, tokens: Ints, cost: Ints, prefix: str = "") -> None:
        """Notes that a streak begins with this event, for the rows chosen by `where`."""
        chosen = rows[where]
        self.table[f"{prefix}since"][chosen] = ts[where]
        self.table[f"{prefix}since_tokens"][chosen] = tokens[where]
        self.table[f"{prefix}since_cost"][chosen] = cost[where]

    def push(self, rows: Ints, item: Hashes, ts: Floats, tokens: Ints, cost: Ints) -> tuple[Ints, Ints]:
        """Appends one item per row.

        Returns:
            laps (k, 5): laps of the current cycle of period 1..5, at least 1;
            calls (k, 5): items in them.
        """
        table = self.table
        ring = table["items"][rows]
        matches = np.where(ring == item[:, None], table["matches"][rows] + 1, 0)
        table["matches"][rows] = matches
        table["items"][rows] = np.concatenate([item[:, None], ring[:, :-1]], axis=1)
        # A streak of period p begins at the last item before its first match: that is exact for p = 1
        # and late by at most p - 1 items otherwise.
        self.mark(rows, np.all(matches == 0, axis=1), ts, tokens, cost)
        return matches // _PERIOD + 1, matches + _PERIOD


def _levels(count: NDArray[Any], warning: Any, critical: Any) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.add(count >= warning, count >= critical, dtype=np.uint8)
    return levels


@register
class RetryLoop(Detector):
    """A run repeats itself: the same call with the same result, a failing call, a cycle, the same words,
    or a storm of provider errors.

    Fires when: a call and its result repeat 4 (6) times in a row; a cycle of 2 to 5 calls with equal
        results makes 3 (5) laps; the same call fails 4 (6) times in a row even if the error text changes;
        the same text is written 4 (8) times in a row; 10 (30) model calls fail within 5 minutes. In
        brackets: critical. Two more of each are needed when the producer sends no results.
    Quiet when: the result of a repeated call changes (polling that makes progress, edit then re-test,
        paging); arguments change; calls belong to one round of parallel calls; repeats are a minute or
        more apart (polling), unless they fail; arguments are not observed.
    Units: calls, laps, messages, errors; spend since the loop began in effective tokens and dollars.
    State: per run, two lanes (calls, words) of the 5 latest items with 5 match counters, and a decayed
        count of provider errors; about 300 bytes.
    Source: the rules on which the public loop detectors converged: key-order-free signatures, results
        before arguments, thresholds of 3 to 5, cycles up to 5.
    """

    spec: ClassVar[Spec] = Spec("retry_loop", version=1, scope=Scope.RUN)
    Config: ClassVar[type[DetectorConfig]] = RetryLoopConfig

    def __init__(self, config: RetryLoopConfig) -> None:
        self.config = config
        # A call that fails with a new text each time does not match itself: it has a mark of its own.
        failing = {"signature": (np.uint64, 0), "failures": (np.int32, 0)} | {
            f"failing_{k}": v for k, v in _MARK.items()
        }
        self._calls = _Lane(failing)
        self._words = _Lane({})
        self._storm = Table({"errors": (np.float64, 0.0), "ts": (np.float64, 0.0), **ALARM_FIELDS})
        self.tables = {"calls": self._calls.table, "words": self._words.table, "storm": self._storm}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        entity = batch.entities[self.spec.scope]
        if not len(batch):
            return ()
        self.reserve(int(entity.row.max()) + 1)
        is_call = (batch.kind == Kind.TOOL) & (batch.signature != UNKNOWN)
        words = np.where(batch.kind == Kind.MESSAGE, batch.signature, batch.result)
        is_words = (((batch.kind == Kind.LLM) & ~batch.failed) | (batch.kind == Kind.MESSAGE)) & (words != UNKNOWN)
        is_llm = batch.kind == Kind.LLM
        found: list[tuple[int, Finding]] = []
        for at in rounds(entity.row):
            if entity.new[at].any():
                self.forget(entity.row[at[entity.new[at]]])
            found += self._update_calls(batch, at[is_call[at]])
            found += self._update_words(batch, at[is_words[at]], words)
            found += self._update_storm(batch, at[is_llm[at]])
        found.sort(key=lambda pair: pair[0])
        return [finding for _, finding in found]

    # ------------------------------------------------------------------------------------ calls

    def _update_calls(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        entity, config, table = batch.entities[self.spec.scope], self.config, self._calls.table
        signature, result, failed = batch.signature, batch.result, batch.failed
        blind = result == UNKNOWN
        with np.errstate(over="ignore"):
            item = signature * _MIX ^ np.where(blind, _BLIND, result) ^ np.where(failed, _FAILED, UNKNOWN)
        # Identical calls fanned out in one round are one decision of the model, not a repetition.
        rows = entity.row[at]
        parallel = (
            (batch.round[at] != UNKNOWN)
            & (batch.round[at] == table["round"][rows])
            & (item[at] == table["items"][rows, 0])
        )
        at, rows = at[~parallel], rows[~parallel]
        if not len(at):
            return []
        table["round"][rows] = batch.round[at]
        again = (signature[at] == table["signature"][rows]) & failed[at]
        failures = np.where(again, table["failures"][rows] + 1, failed[at].astype(np.int32))
        table["signature"][rows], table["failures"][rows] = signature[at], failures

        before_tokens, before_cost = entity.tokens[at] - batch.tokens[at], entity.cost[at] - batch.cost[at]
        laps, calls = self._calls.push(rows, item[at], batch.ts[at], before_tokens, before_cost)
        self._calls.mark(rows, failures == 1, batch.ts[at], before_tokens, before_cost, "failing_")
        extra = np.where(blind[at], config.blind_extra, 0)[:, None]
        warning = np.array([config.repeat_warning] + [config.laps_warning] * (PERIODS - 1)) + extra
        critical = np.array([config.repeat_critical] + [config.laps_critical] * (PERIODS - 1)) + extra
        cycle_level = _levels(laps, warning, critical)
        failing_level = _levels(failures, config.failing_warning, config.failing_critical)

        # The shortest period at the highest level names the loop; "failing" only if it alone fires.
        best = cycle_level.argmax(axis=1)
        each = np.arange(len(rows))
        cycle_level[self._paced(batch.ts[at] - table["since"][rows], calls[each, best])] = 0
        paced = self._paced(batch.ts[at] - table["failing_since"][rows], failures)
        failing_level[paced] = failures[paced] >= config.failing_warning * config.paced_factor
        level = np.maximum(cycle_level.max(axis=1), failing_level)
        by_failing = failing_level > cycle_level.max(axis=1)
        speak = pace(table, rows, level, batch.ts[at], repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        found = []
        for k in np.flatnonzero(speak):
            i, period = int(at[k]), int(best[k]) + 1
            if by_failing[k]:
                rule, count, threshold, unit = "failing_repeat", int(failures[k]), config.failing_warning, "calls"
                what = f"has called {_tool(batch, i)} {count} times in a row and it failed every time"
            elif period == 1:
                rule, count, threshold, unit = "same_call", int(calls[k, 0]), int(warning[k, 0]), "calls"
                outcome = "with no result sent" if blind[i] else f"with the same {'error' if failed[i] else 'result'}"
                what = f"has made the same call of {_tool(batch, i)} {count} times in a row {outcome}"
            else:
                rule, count, threshold, unit = "cycle", int(laps[k, period - 1]), int(warning[k, period - 1]), "laps"
                what = f"has gone round the same {period} calls {count} times with the same results"
            n_calls = count * period if rule == "cycle" else count
            evidence = {"calls": n_calls, "period": period if rule == "cycle" else 1, "tool": batch.tool[i]}
            prefix = "failing_" if by_failing[k] else ""
            mark = [table[f"{prefix}{name}"][rows[k]] for name in _MARK]
            found.append(
                (i, self._finding(batch, i, mark, rule, int(level[k]), count, threshold, unit, what, evidence))
            )
        return found

    def _paced(self, seconds: Floats, calls: Ints) -> Bools:
        """Whether so many calls over so many seconds are polling rather than a loop."""
        paced: Bools = seconds >= self.config.paced_gap_s * np.maximum(calls - 1, 1)
        return paced

    # ------------------------------------------------------------------------------------ words

    def _update_words(self, batch: EventBatch, at: Ints, words: Hashes) -> list[tuple[int, Finding]]:
        if not len(at):
            return []
        entity, config, table = batch.entities[self.spec.scope], self.config, self._words.table
        rows = entity.row[at]
        before_tokens, before_cost = entity.tokens[at] - batch.tokens[at], entity.cost[at] - batch.cost[at]
        _, calls = self._words.push(rows, words[at], batch.ts[at], before_tokens, before_cost)
        count = calls[:, 0]
        level = _levels(count, config.said_warning, config.said_critical)
        level[self._paced(batch.ts[at] - table["since"][rows], count)] = 0
        speak = pace(table, rows, level, batch.ts[at], repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (
                int(at[k]),
                self._finding(
                    batch,
                    int(at[k]),
                    [table[m][rows[k]] for m in _MARK],
                    "same_words",
                    int(level[k]),
                    int(count[k]),
                    config.said_warning,
                    "messages",
                    f"has written the same text {int(count[k])} times in a row",
                    {},
                ),
            )
            for k in np.flatnonzero(speak)
        ]

    # ------------------------------------------------------------------------------------ storms

    def _update_storm(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        if not len(at):
            return []
        config, table = self.config, self._storm
        rows, ts = batch.entities[self.spec.scope].row[at], batch.ts[at]
        last = table["ts"][rows]
        fade = np.exp(-np.abs(ts - last) / config.storm_window_s)
        late = ts < last
        errors = table["errors"][rows] * np.where(late, 1.0, fade) + batch.failed[at] * np.where(late, fade, 1.0)
        table["errors"][rows], table["ts"][rows] = errors, np.maximum(ts, last)
        level = np.where(batch.failed[at], _levels(errors, config.storm_warning, config.storm_critical), 0)
        speak = pace(table, rows, level, ts, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        found = []
        minutes = config.storm_window_s / 60
        for k in np.flatnonzero(speak):
            i, count = int(at[k]), float(errors[k])
            status = int(batch.http_status[i])
            why = f" (last: HTTP {status})" if status else ""
            what = f"keeps calling a failing model: about {count:.0f} errors within {minutes:.0f} min{why}"
            found.append(
                (
                    i,
                    self._finding(
                        batch,
                        i,
                        None,
                        "provider_errors",
                        int(level[k]),
                        round(count, 1),
                        config.storm_warning,
                        "errors",
                        what,
                        {"window_s": config.storm_window_s, "http_status": status or None},
                    ),
                )
            )
        return found

    # ---------------------------------------------------------------------------------- findings

    def _finding(
        self,
        batch: EventBatch,
        i: int,
        mark: Sequence[Any] | None,
        rule: str,
        level: int,
        observed: float,
        threshold: float,
        unit: str,
        what: str,
        evidence: dict[str, Any],
    ) -> Finding:
        spent = ""
        if mark is not None:
            entity = batch.entities[self.spec.scope]
            since, tokens_before, cost_before = mark
            tokens = (int(entity.tokens[i]) - int(tokens_before)) / 1e3
            dollars = (int(entity.cost[i]) - int(cost_before)) / 1e9
            seconds = max(0.0, float(batch.ts[i] - since))
            evidence = evidence | {
                "since": float(since),
                "effective_tokens": tokens,
                "cost_usd": round(dollars, 6),
            }
            money = f", ${dollars:.2f}" if dollars >= 0.005 else ""
            used = f" ({tokens:,.0f} effective tokens{money} since it began)" if tokens else ""
            spent = f" in {_duration(seconds)}{used}"
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule=rule,
            severity=severity_of(level),
            scope=self.spec.scope,
            score=beyond(observed, threshold),
            observed=float(observed),
            expected=float(threshold),
            unit=unit,
            reason=f"agent {batch.agent_id[i]} {what}{spent}",
            evidence=evidence,
        )


def _tool(batch: EventBatch, i: int) -> str:
    return batch.tool[i] or "a tool"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
