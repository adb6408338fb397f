"""Runs that do the same thing again and learn nothing from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    Spec,
    Table,
    levels,
    pace,
    register,
    setting,
    severity_of,
)
from detectors.rounds import rounds
from detectors.types import UNKNOWN, Bools, EventBatch, Finding, Floats, Hashes, Ints, Kind, Scope, beyond

PERIODS = 5
"""Longest cycle looked for; the public detectors that look for cycles stop at 4 or 5."""

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


# Where a streak began: event time, and the run's totals before it.
_MARK: dict[str, Any] = {"since": np.float64, "since_tokens": np.int64, "since_cost": np.int64}


class _Lane:
    """A sequence of items per run, and how long it has been repeating with each period 1, 2 ... `periods`."""

    def __init__(self, periods: int, fields: dict[str, tuple[Any, ...]]) -> None:
        self.table = Table(
            {
                "items": (np.uint64, 0, periods),  # the latest, newest first
                "matches": (np.int32, 0, periods),  # how often in a row an item equalled the one p before it
                **{name: (dtype, 0, periods) for name, dtype in _MARK.items()},
                **ALARM_FIELDS,
                **fields,
            }
        )

    def mark(self, rows: Ints, begins: Bools, ts: Floats, tokens: Ints, cost: Ints, prefix: str = "") -> None:
        """Notes that a streak begins with this event; `begins` has the columns' shape."""
        for name, value in zip(_MARK, (ts, tokens, cost), strict=True):
            column = self.table[prefix + name]
            value = value.reshape(-1, *[1] * (begins.ndim - 1))
            column[rows] = np.where(begins, value, column[rows])

    def push(self, rows: Ints, item: Hashes, ts: Floats, tokens: Ints, cost: Ints) -> Ints:
        """Appends one item per row; (k, periods) how often in a row items have equalled the ones p before."""
        table = self.table
        ring = table["items"][rows]
        matches = np.where(ring == item[:, None], table["matches"][rows] + 1, 0)
        table["matches"][rows] = matches
        table["items"][rows] = np.concatenate([item[:, None], ring[:, :-1]], axis=1)
        # The last item before the first match: the streak's first for p = 1, late by p - 1 items otherwise.
        self.mark(rows, matches == 0, ts, tokens, cost)
        return matches


def _items(batch: EventBatch, at: Ints) -> Hashes:
    """(k,) what makes two calls the same: signature, outcome and result, or that no result was sent."""
    result, failed = batch.result[at], batch.failed[at]
    with np.errstate(over="ignore"):
        items: Hashes = (
            batch.signature[at] * _MIX
            ^ np.where(result == UNKNOWN, _BLIND, result)
            ^ np.where(failed, _FAILED, UNKNOWN)
        )
    return items


@register
class RetryLoop(Detector):
    """A run repeats itself: the same call with the same result, a failing call, a cycle, the same words,
    or a storm of provider errors.

    Fires when: a call and its result repeat 4 (6) times in a row; a cycle of 2 to 5 calls with equal
        results makes 3 (5) laps; the same call fails 4 (6) times in a row even if the error text changes;
        the same text is written 4 (8) times in a row with no tool call between; 10 (30) model calls fail
        within 5 minutes. In brackets: critical. Repeated calls and cycles need two more when the producer
        sends no results.
    Quiet when: the result of a repeated call changes (polling that makes progress, edit then re-test,
        paging); arguments change; calls belong to one round of parallel calls; repeats are a minute or
        more apart (polling), unless they fail; arguments are not observed.
    Units: calls, laps, messages, errors; spend since the loop began in effective tokens and dollars.
    State: per run, the 5 latest calls with a match counter and a mark for each period, the latest words
        likewise, and a decayed count of provider errors; about 300 bytes.
    Source: the rules on which the public loop detectors converged: key-order-free signatures, results
        before arguments, thresholds of 3 to 5, cycles up to 5.
    """

    spec: ClassVar[Spec] = Spec("retry_loop", version=1, scope=Scope.RUN)
    Config: ClassVar[type[DetectorConfig]] = RetryLoopConfig

    def __init__(self, config: RetryLoopConfig) -> None:
        self.config = config
        self._calls = _Lane(
            PERIODS,
            {
                "round": (np.uint64, 0),
                "in_round": (np.uint8, 0),  # how many of the latest items are of that round
                # A call that fails with a new text each time does not match itself: it is counted apart.
                "signature": (np.uint64, 0),
                "failures": (np.int32, 0),
                **{f"failing_{name}": (dtype, 0) for name, dtype in _MARK.items()},
            },
        )
        self._words = _Lane(1, {})
        self._storm = Table({"errors": (np.float64, 0.0), "ts": (np.float64, 0.0), **ALARM_FIELDS})
        self.tables = {"calls": self._calls.table, "words": self._words.table, "storm": self._storm}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        entity = batch.entities[self.spec.scope]
        if not len(batch):
            return ()
        self.reserve(int(entity.row.max()) + 1)
        is_tool = batch.kind == Kind.TOOL
        is_call = is_tool & (batch.signature != UNKNOWN)
        words = np.where(batch.kind == Kind.MESSAGE, batch.signature, batch.result)
        is_words = (((batch.kind == Kind.LLM) & ~batch.failed) | (batch.kind == Kind.MESSAGE)) & (words != UNKNOWN)
        is_llm = batch.kind == Kind.LLM
        found: list[tuple[int, Finding]] = []
        for at in rounds(entity.row):
            if entity.new[at].any():
                self.forget(entity.row[at[entity.new[at]]])
            found += self._update_calls(batch, at[is_call[at]])
            # What is done in between ends a streak of words.
            self._words.table["items"][entity.row[at[is_tool[at]]]] = UNKNOWN
            found += self._update_words(batch, at[is_words[at]], words)
            found += self._update_storm(batch, at[is_llm[at]])
        found.sort(key=lambda pair: pair[0])
        return [finding for _, finding in found]

    # ------------------------------------------------------------------------------------ calls

    def _update_calls(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        entity, config, table = batch.entities[self.spec.scope], self.config, self._calls.table
        # Identical calls fanned out in one round are one decision of the model, not a repetition.
        rows, item = entity.row[at], _items(batch, at)
        same_round = (batch.round[at] != UNKNOWN) & (batch.round[at] == table["round"][rows])
        of_round = np.arange(PERIODS) < table["in_round"][rows][:, None]
        told = same_round & ((table["items"][rows] == item[:, None]) & of_round).any(axis=1)
        at, rows, item, same_round = at[~told], rows[~told], item[~told], same_round[~told]
        if not len(at):
            return []
        ts, signature, failed, blind = batch.ts[at], batch.signature[at], batch.failed[at], batch.result[at] == UNKNOWN
        table["in_round"][rows] = np.where(same_round, np.minimum(table["in_round"][rows] + 1, PERIODS), 1)
        table["round"][rows] = batch.round[at]

        known = np.where(signature == table["signature"][rows], table["failures"][rows], 0)
        failures = np.where(failed, np.maximum(known + ~same_round, 1), 0)
        table["signature"][rows], table["failures"][rows] = signature, failures

        before_tokens, before_cost = entity.tokens[at] - batch.tokens[at], entity.cost[at] - batch.cost[at]
        matches = self._calls.push(rows, item, ts, before_tokens, before_cost)
        self._calls.mark(rows, failed & (known == 0), ts, before_tokens, before_cost, "failing_")
        laps = matches // np.arange(1, PERIODS + 1) + 1
        extra = np.where(blind, config.blind_extra, 0)[:, None]
        warning = np.array([config.repeat_warning] + [config.laps_warning] * (PERIODS - 1)) + extra
        critical = np.array([config.repeat_critical] + [config.laps_critical] * (PERIODS - 1)) + extra
        cycle_level = levels(laps, warning, critical)
        cycle_level[self._paced(ts[:, None] - table["since"][rows], matches)] = 0
        failing_level = levels(failures, config.failing_warning, config.failing_critical)
        paced = self._paced(ts - table["failing_since"][rows], failures - 1)
        failing_level[paced] = failures[paced] >= config.failing_warning * config.paced_factor

        # The shortest period at the highest level names the loop; "failing" only if it alone fires.
        best = cycle_level.argmax(axis=1)
        level = np.maximum(cycle_level.max(axis=1), failing_level)
        by_failing = failing_level > cycle_level.max(axis=1)
        speak = pace(table, rows, level, ts, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        found = []
        for k in np.flatnonzero(speak):
            i, period = int(at[k]), int(best[k]) + 1
            mark = [table[name][rows[k], best[k]] for name in _MARK]
            if by_failing[k]:
                mark = [table[f"failing_{name}"][rows[k]] for name in _MARK]
                rule, count, threshold, unit = "failing_repeat", int(failures[k]), config.failing_warning, "calls"
                what = f"has called {_tool(batch, i)} {count} times in a row and it failed every time"
            elif period == 1:
                rule, count, threshold, unit = "same_call", int(laps[k, 0]), int(warning[k, 0]), "calls"
                outcome = "with no result sent" if blind[k] else f"with the same {'error' if failed[k] else 'result'}"
                what = f"has made the same call of {_tool(batch, i)} {count} times in a row {outcome}"
            else:
                rule, count, threshold, unit = "cycle", int(laps[k, period - 1]), int(warning[k, period - 1]), "laps"
                what = f"has gone round the same {period} calls {count} times with the same results"
            n_calls = count * period if rule == "cycle" else count
            evidence = {"calls": n_calls, "period": period if rule == "cycle" else 1, "tool": batch.tool[i]}
            found.append(
                (i, self._finding(batch, i, mark, rule, int(level[k]), count, threshold, unit, what, evidence))
            )
        return found

    def _paced(self, seconds: Floats, repeats: Ints) -> Bools:
        """Whether so many repeats within so many seconds are polling rather than a loop."""
        paced: Bools = seconds >= self.config.paced_gap_s * np.maximum(repeats, 1)
        return paced

    # ------------------------------------------------------------------------------------ words

    def _update_words(self, batch: EventBatch, at: Ints, words: Hashes) -> list[tuple[int, Finding]]:
        if not len(at):
            return []
        entity, config, table = batch.entities[self.spec.scope], self.config, self._words.table
        rows = entity.row[at]
        before_tokens, before_cost = entity.tokens[at] - batch.tokens[at], entity.cost[at] - batch.cost[at]
        count = self._words.push(rows, words[at], batch.ts[at], before_tokens, before_cost)[:, 0] + 1
        level = levels(count, config.said_warning, config.said_critical)
        level[self._paced(batch.ts[at] - table["since"][rows, 0], count - 1)] = 0
        speak = pace(table, rows, level, batch.ts[at], repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (
                int(at[k]),
                self._finding(
                    batch,
                    int(at[k]),
                    [table[name][rows[k], 0] for name in _MARK],
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
        level = np.where(batch.failed[at], levels(errors, config.storm_warning, config.storm_critical), 0)
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
