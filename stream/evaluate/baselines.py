"""What is used today, as detectors: the naive rules that every table of `burnfuse evaluate` holds for comparison.

They are not registered: they are no part of the product's configuration, and nobody should page people with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from detectors.base import ALARM_FIELDS, Detector, DetectorConfig, Spec, Table, pace, setting
from detectors.rounds import rounds
from detectors.types import UNKNOWN, EventBatch, Finding, Floats, Ints, Kind, Scope, beyond

REARM_S = 3600.0
BUCKET_S = 300.0
DAYS = 7
"""Days of the trailing mean."""


class NaiveConfig(DetectorConfig):
    """What the naive rules share."""

    repeat_s: float = setting(
        60.0, unit="s", why="An alarm that lasts is raised again after this time.", source="as our detectors do", gt=0
    )


class SameCallConfig(NaiveConfig):
    """Setting of the rule on equal calls."""

    threshold: float = setting(
        3.0, unit="calls", why="Equal calls in a row.", source="the usual default of agent frameworks", gt=1
    )


class TimesMeanConfig(NaiveConfig):
    """Settings of the rule on multiples of the mean."""

    threshold: float = setting(
        10.0, unit="times", why="Tokens of 5 minutes over their mean.", source="the usual default of dashboards", gt=1
    )
    ready: int = setting(
        12, unit="windows", why="Active 5-minute windows until there is a mean.", source="an hour of use", ge=1
    )


class ManyMessagesConfig(NaiveConfig):
    """Setting of the rule on counts of messages."""

    threshold: float = setting(
        21.0, unit="messages", why="Messages of one task.", source="more than 20 turns: common turn limits", gt=0
    )


class Naive(Detector):
    """A rule that compares one number per entity with a fixed threshold.

    Subclasses say how the number comes about, what it is called and what to say of it.
    """

    rule: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, config: NaiveConfig) -> None:
        self.config = config
        self._table = Table({**self.fields(), **ALARM_FIELDS})
        self.tables = {"state": self._table}

    def fields(self) -> dict[str, tuple[object, ...]]:
        """Columns of the state, those of the alarm left out."""
        raise NotImplementedError

    def measure(self, batch: EventBatch, at: Ints, rows: Ints) -> tuple[Floats, Floats]:
        """Takes in one event of each row; (k,) the number that counts, (k,) what it is held against."""
        raise NotImplementedError

    def sentence(self, batch: EventBatch, i: int, observed: float) -> str:
        """What the rule says of event i."""
        raise NotImplementedError

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        entity = batch.entities[self.spec.scope]
        if not len(batch):
            return ()
        self.reserve(int(entity.row.max()) + 1)
        found: list[tuple[int, Finding]] = []
        for at in rounds(entity.row):
            rows, ts = entity.row[at], batch.ts[at]
            self.forget(rows[entity.new[at]])
            observed, expected = self.measure(batch, at, rows)
            over = (observed >= expected).astype(np.uint8)
            speak = pace(self._table, rows, over, ts, repeat_s=self.config.repeat_s, rearm_s=REARM_S)
            found += [
                (int(at[k]), self._finding(batch, int(at[k]), float(observed[k]), float(expected[k])))
                for k in np.flatnonzero(speak)
            ]
        found.sort(key=lambda pair: pair[0])
        return [finding for _, finding in found]

    def _finding(self, batch: EventBatch, i: int, observed: float, expected: float) -> Finding:
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule=self.rule,
            severity="warning",
            scope=self.spec.scope,
            score=beyond(observed, expected),
            observed=observed,
            expected=expected,
            unit=self.unit,
            reason=self.sentence(batch, i, observed),
            evidence={},
        )


class SameCall(Naive):
    """The same tool with the same arguments, three times in a row.

    Fires when: a run calls a tool three times in a row with equal arguments, whatever comes back.
    Quiet when: arguments differ or are unknown; model calls in between change nothing.
    Units: calls.
    State: per run the last call and how often it was made in a row (about 25 bytes).
    Source: the loop rule that most agent frameworks ship.
    """

    spec: ClassVar[Spec] = Spec("same_call_3", version=1, scope=Scope.RUN)
    Config: ClassVar[type[DetectorConfig]] = SameCallConfig
    rule, unit = "same_call", "calls"
    config: SameCallConfig

    def fields(self) -> dict[str, tuple[object, ...]]:
        return {"call": (np.uint64, UNKNOWN), "times": (np.int64, 0)}

    def measure(self, batch: EventBatch, at: Ints, rows: Ints) -> tuple[Floats, Floats]:
        table = self._table
        is_call = batch.kind[at] == Kind.TOOL
        call = batch.signature[at]
        again = (call == table["call"][rows]) & (call != UNKNOWN)
        table["times"][rows[is_call]] = np.where(again, table["times"][rows] + 1, call != UNKNOWN)[is_call]
        table["call"][rows[is_call]] = call[is_call]
        observed = np.where(is_call, table["times"][rows], 0).astype(np.float64)
        return observed, np.full(len(at), self.config.threshold)

    def sentence(self, batch: EventBatch, i: int, observed: float) -> str:
        tool = batch.tool[i] or "a tool"
        return f"agent {batch.agent_id[i]} has called {tool} with the same arguments {observed:.0f} times in a row"


class TimesMean(Naive):
    """Tokens of 5 minutes above ten times the agent's own mean of the last 7 days.

    Fires when: the effective tokens of the running 5 minutes reach ten times the mean of the agent's active
        5-minute windows of the last 7 days.
    Quiet when: the agent has fewer than 12 such windows; tokens are unknown.
    Units: effective tokens per 5 minutes.
    State: per agent the open window, and sum and number of windows of 7 days (about 193 bytes). A late event
        counts in the window in which it comes.
    Source: the spend alert that cost dashboards ship.
    """

    spec: ClassVar[Spec] = Spec("times_mean", version=1, scope=Scope.AGENT)
    Config: ClassVar[type[DetectorConfig]] = TimesMeanConfig
    rule, unit = "times_mean", "effective tokens per 5 min"
    config: TimesMeanConfig

    def fields(self) -> dict[str, tuple[object, ...]]:
        return {
            "window": (np.int64, -1),
            "used": (np.float64, 0.0),
            "day": (np.int64, -1, DAYS),
            "sums": (np.float64, 0.0, DAYS),
            "windows": (np.int64, 0, DAYS),
        }

    def measure(self, batch: EventBatch, at: Ints, rows: Ints) -> tuple[Floats, Floats]:
        table, config = self._table, self.config
        window = np.maximum(np.floor(batch.ts[at] / BUCKET_S).astype(np.int64), table["window"][rows])
        self._close(rows, window)
        table["used"][rows] += batch.tokens[at] / 1e3
        today = (window * BUCKET_S // 86400).astype(np.int64)[:, None]
        recent = table["day"][rows] > today - DAYS
        windows = np.where(recent, table["windows"][rows], 0).sum(axis=1)
        mean = np.where(recent, table["sums"][rows], 0.0).sum(axis=1) / np.maximum(windows, 1)
        ready = (windows >= config.ready) & (batch.tokens[at] > 0)
        return np.where(ready, table["used"][rows], -1.0), mean * config.threshold

    def _close(self, rows: Ints, window: Ints) -> None:
        """Adds windows that are over to their day."""
        table = self._table
        over = window > table["window"][rows]
        rows, window = rows[over], window[over]
        day = (table["window"][rows] * BUCKET_S // 86400).astype(np.int64)
        used = table["used"][rows]
        closed, day, used = rows[used > 0], day[used > 0], used[used > 0]
        slot = day % DAYS
        old = table["day"][closed, slot] != day
        table["sums"][closed, slot] = np.where(old, 0.0, table["sums"][closed, slot]) + used
        table["windows"][closed, slot] = np.where(old, 0, table["windows"][closed, slot]) + 1
        table["day"][closed, slot] = day
        table["window"][rows] = window
        table["used"][rows] = 0.0

    def sentence(self, batch: EventBatch, i: int, observed: float) -> str:
        times = f"{self.config.threshold:.0f} times its mean of the last {DAYS} days"
        return f"agent {batch.agent_id[i]} has used {observed:,.0f} effective tokens in 5 min, more than {times}"


class ManyMessages(Naive):
    """More than 20 messages between agents in one task.

    Fires when: a task has sent its 21st message.
    Quiet when: it has sent fewer.
    Units: messages.
    State: per task a count (about 17 bytes).
    Source: the turn limits that multi-agent frameworks ship.
    """

    spec: ClassVar[Spec] = Spec(
        "messages_20",
        version=1,
        scope=Scope.ROOT,
        waived={
            "unknown_is_never_a_repetition": "it counts messages and compares none",
            "quiet_on_healthy_traffic": "a long task is healthy, but not for this rule: that is what is measured",
        },
    )
    Config: ClassVar[type[DetectorConfig]] = ManyMessagesConfig
    rule, unit = "many_messages", "messages"
    config: ManyMessagesConfig

    def fields(self) -> dict[str, tuple[object, ...]]:
        return {"messages": (np.int64, 0)}

    def measure(self, batch: EventBatch, at: Ints, rows: Ints) -> tuple[Floats, Floats]:
        is_message = batch.kind[at] == Kind.MESSAGE
        self._table["messages"][rows] += is_message
        observed = np.where(is_message, self._table["messages"][rows], 0).astype(np.float64)
        return observed, np.full(len(at), self.config.threshold)

    def sentence(self, batch: EventBatch, i: int, observed: float) -> str:
        return f"task {batch.root_run_id[i]} has exchanged {observed:.0f} messages"


BASELINES: tuple[type[Naive], ...] = (SameCall, TimesMean, ManyMessages)
