"""Agents whose last half hour looks unlike anything their group did before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from pydantic import Field, model_validator

from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    Spec,
    StateError,
    Table,
    pace,
    register,
    setting,
)
from detectors.estimators import Model
from detectors.features import FEATURES, Windows
from detectors.rounds import lives
from detectors.types import EventBatch, Finding, Floats, Scope

KEPT, GENERATION = 512, 256
"""A group's model is made anew from its latest `KEPT` windows after every `GENERATION` windows, and learns on
in between: so it forgets, and a saved model is nothing but the windows it is made of."""

MAXIMA = 512
"""Agent-days a group's threshold is taken from: at one alarm in 30, the 17 highest of them are beyond it."""

GROUPS = 64
"""Groups a partition has models of; the one unused for the longest makes room."""

SETTLED = 48
"""Odd windows in a row after which odd is the new usual: a day of half hours."""

FLOOR = np.array([0.2 if name not in ("errors", "cached", "novelty") else 0.05 for name in FEATURES])
"""Least spread of a feature: an agent that always did the very same is not odd at the first percent."""

AMOUNTS = np.array([name in ("tokens", "calls", "dollars") for name in FEATURES])

FEW = 10.0
"""Calls at which half of a distance counts: the noise of a share of 10 calls is as large as 0.16."""

CLIP = 30.0
"""Largest distance from the usual, in spreads."""


class OddWindowConfig(DetectorConfig):
    """Which model judges, and how many false alarms it may cost."""

    enabled: bool = Field(
        default=False,
        description="Whether the detector runs. Off: twice the false alarms it promises (docs/detection.md).",
    )
    steps: list[str] = setting(
        [],
        unit="dotted paths",
        why="Transformers of river before the estimator, such as river.preprocessing.MinMaxScaler.",
        source="the default estimator needs none",
    )
    estimator: str = setting(
        "detectors.estimators.Farthest",
        unit="dotted path",
        why="What scores windows: any estimator of river.anomaly (one of single values gets a copy per feature), "
        "or the largest distance of a feature, without a model.",
        source="mean recall on simulated changes: 0.58 without a model, 0.42 by river's best (docs/detection.md)",
    )
    parameters: dict[str, float | int | str | bool | None] = setting(
        {}, unit="arguments", why="What the estimator is made with.", source="river's defaults"
    )
    window_s: float = setting(
        1800.0,
        unit="s",
        why="Length of a window.",
        source="30 minutes: 10 found no more and cost three times as much",
        ge=60,
    )
    budget: float = setting(
        1 / 30,
        unit="alarms per agent-day",
        why="False alarms the threshold is set to.",
        source="one a month and agent, as for rates",
        gt=0,
        le=0.5,
    )
    agent_windows: int = setting(
        24,
        unit="windows",
        why="An agent with fewer has no usual of its own.",
        source="half a day of half hours: the mean of 24 is known to a fifth of the spread",
        ge=2,
    )
    group_windows: int = setting(
        256,
        unit="windows",
        why="A group with fewer learned windows has no model.",
        source="a half-space forest scores from its 250th observation on",
        ge=1,
    )
    repeat_s: float = setting(
        3600.0, unit="s", why="Pause between two findings of an oddness that lasts.", source="two windows", gt=0
    )
    rearm_s: float = setting(
        7200.0, unit="s", why="After so long without an odd window the next one is new.", source="four windows", gt=0
    )

    @model_validator(mode="after")
    def _the_model_can_be_made(self) -> Self:
        self.model()
        return self

    def model(self) -> Model:
        """A fresh model."""
        return Model(self.steps, self.estimator, self.parameters, FEATURES)


@register
class OddWindow(Detector):
    """An agent's last half hour is unlike what its group does, each agent measured by its own usual.

    Nine features of a window (effective tokens, calls, tokens per call, dollars, failures, cache use, output
    per input, tools, novelty) are taken as distances from the agent's own mean in units of its own spread. An
    estimator shared by the group, of river or the largest distance, scores them; then it learns them, unless odd.

    Fires when: the score is above what all but one in 30 agent-days of the group reached (warning only).
    Quiet when: the agent has fewer than 24 windows, the group fewer than 256 or fewer than 30 agent-days: its
        verdict is "warming up" then. The first window after 48 odd ones in a row is the new usual.
    Units: share of the group's agent-days whose highest score was lower; scores themselves mean nothing.
    State: about 231 bytes per agent (the open window, mean and spread of nine features, the day's highest
        score); per group of a partition its latest 768 windows and 512 highest scores (30 kB), and the model
        made of them.
    Source: river.anomaly for the models, of which none beat the largest distance (the default); thresholds by
        block-conformal calibration as measured on 185 production clients.
    """

    spec: ClassVar[Spec] = Spec(
        "odd_window",
        version=2,
        scope=Scope.AGENT,
        shaped_by=("window_s",),
        second_stage=True,
        waived={
            "entities_do_not_influence_each_other": "agents of a group share one model and one threshold on purpose"
        },
    )
    Config: ClassVar[type[DetectorConfig]] = OddWindowConfig

    def __init__(self, config: OddWindowConfig) -> None:
        self.config = config
        self._windows = Windows(config.window_s)
        n = len(FEATURES)
        self._agents = Table(
            {
                "windows": (np.int32, 0),
                "usual": (np.float32, np.nan, n),
                "spread": (np.float32, np.nan, n),
                "day": (np.int32, -1),
                "day_max": (np.float32, np.nan),
                "odd": (np.int16, 0),
                "quantile": (np.float32, np.nan),  # of the last closed window; NaN is warming up
                **ALARM_FIELDS,
            }
        )
        self.tables = {"windows": self._windows.table, "agents": self._agents}
        self._groups: dict[int, _Group] = {}
        self._judged = 0
        self._before = np.empty(0)
        self._verdicts: dict[int, list[tuple[int, float]]] = {}

    # --------------------------------------------------------------------------------- the events

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        entity = batch.entities[self.spec.scope]
        self._verdicts, self._before = {}, np.empty(0)
        if not len(batch):
            return ()
        self.reserve(int(entity.row.max()) + 1)
        self._before = self._agents["quantile"][entity.row]
        found: list[Finding] = []
        seen = 0
        for part in lives(batch, self.spec.scope):
            found += self._update(part, seen)
            seen += len(part)
        return found

    def _update(self, batch: EventBatch, seen: int) -> list[Finding]:
        """What is found in events of which none follows on another life of its row; `seen` came before them."""
        entity = batch.entities[self.spec.scope]
        born = np.flatnonzero(entity.new)
        born = born[self._windows.table["window"][entity.row[born]] >= 0]
        if len(born):
            self.forget(entity.row[born])
        for i in born.tolist():
            self._verdicts.setdefault(int(entity.row[i]), []).append((seen + i, math.nan))
        closing, values = self._windows.take(batch, entity.row)
        found: list[Finding] = []
        # Windows of a group are judged and learned in the order in which they were closed.
        for k in np.argsort(closing, kind="stable").tolist():
            i, row = int(closing[k]), int(entity.row[closing[k]])
            found += self._judge(batch, i, row, values[k])
            self._verdicts.setdefault(row, []).append((seen + i, float(self._agents["quantile"][row])))
        return found

    def resume(self, clock: float) -> None:
        self._windows.drop(clock)

    def _judge(self, batch: EventBatch, i: int, row: int, window: Floats) -> list[Finding]:
        config, agents = self.config, self._agents
        group = self._group(int(batch.group[i]))
        ts = float(batch.ts[i])
        self._end_day(row, math.floor(ts / 86400), group)

        known = agents["windows"][row] >= config.agent_windows
        usual, spread = agents["usual"][row].astype(np.float64), agents["spread"][row].astype(np.float64)
        relative = _relative(window, usual, spread)
        score = group.model.score(relative.tolist()) if known and group.learned >= config.group_windows else None
        limit = group.limit(config.budget)
        quantile = math.nan if score is None or limit is None else group.quantile(score)
        odd = score is not None and limit is not None and score > limit
        agents["quantile"][row] = quantile
        agents["odd"][row] = agents["odd"][row] + 1 if odd else 0
        if score is not None:
            agents["day_max"][row] = np.fmax(agents["day_max"][row], score)
        if not odd or agents["odd"][row] > SETTLED:
            if known:
                group.learn(relative, config)
            self._learn_usual(row, window)

        at = np.array([row])
        level, now = np.array([int(odd)]), np.array([ts])
        if not pace(agents, at, level, now, repeat_s=config.repeat_s, rearm_s=config.rearm_s)[0]:
            return []
        return [self._finding(batch, i, window, usual, relative, quantile)]

    def _end_day(self, row: int, day: int, group: _Group) -> None:
        """Gives the highest score of an agent's day to its group."""
        agents = self._agents
        if day > agents["day"][row]:
            if not math.isnan(agents["day_max"][row]):
                group.add_day(float(agents["day_max"][row]))
            agents["day"][row], agents["day_max"][row] = day, np.nan

    def _learn_usual(self, row: int, window: Floats) -> None:
        """Mean and mean distance, of the latest weeks; one window moves them by three spreads at most."""
        agents = self._agents
        agents["windows"][row] += 1
        rate = max(1 / float(agents["windows"][row]), 1 / 500)
        usual, spread = agents["usual"][row].astype(np.float64), agents["spread"][row].astype(np.float64)
        first = np.isnan(usual)
        usual = np.where(first, window, usual)
        spread = np.where(first, FLOOR, spread)
        off = window - usual
        if agents["windows"][row] > 5:  # before, nobody knows what is far
            reach = 3 * np.maximum(spread, FLOOR)
            off = np.clip(off, -reach, reach)
        seen = ~np.isnan(off)
        agents["usual"][row] = np.where(seen, usual + rate * off, usual)
        agents["spread"][row] = np.where(seen, spread + rate * (np.abs(off) - spread), spread)

    def _finding(
        self, batch: EventBatch, i: int, window: Floats, usual: Floats, relative: Floats, quantile: float
    ) -> Finding:
        config = self.config
        far = [k for k in np.argsort(-np.abs(np.nan_to_num(relative)), kind="stable")[:3].tolist() if relative[k]]
        said = [f"{_TOLD[FEATURES[k]](window[k])} instead of {_TOLD[FEATURES[k]](usual[k])}" for k in far]
        minutes = config.window_s / 60
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule="odd",
            severity="warning",
            scope=self.spec.scope,
            score=1 - (1 - quantile) / config.budget,
            observed=round(quantile, 4),
            expected=round(1 - config.budget, 4),
            unit="share of agent-days less odd",
            reason=f"agent {batch.agent_id[i]} had an odd window of {minutes:.0f} min: {', '.join(said)}",
            evidence={
                "window_s": config.window_s,
                "estimator": config.estimator,
                "features": {name: round(float(v), 4) for name, v in zip(FEATURES, window, strict=True) if v == v},
                "usual": {name: round(float(v), 4) for name, v in zip(FEATURES, usual, strict=True) if v == v},
            },
        )

    # ------------------------------------------------------------------------ what others have found

    def review(self, batch: EventBatch, found: Sequence[Finding]) -> Sequence[Finding]:
        """Adds to each finding what the agent's last closed window before it was like."""
        place = {event_id: i for i, event_id in enumerate(batch.event_id)}
        rows = batch.entities[self.spec.scope].row
        reviewed = []
        for finding in found:
            if finding.detector != self.spec.name:
                i = place[finding.event_id]
                past = [quantile for at, quantile in self._verdicts.get(int(rows[i]), ()) if at <= i]
                verdict = self._verdict(past[-1] if past else float(self._before[i]))
                finding = replace(finding, evidence={**finding.evidence, self.spec.name: verdict})
            reviewed.append(finding)
        return reviewed

    def _verdict(self, quantile: float) -> dict[str, Any]:
        if math.isnan(quantile):
            return {"quantile": None, "verdict": "warming up"}
        verdict = "confirms" if quantile > 1 - self.config.budget else "usual"
        return {"quantile": round(quantile, 4), "verdict": verdict}

    # ------------------------------------------------------------------------------------ the groups

    def _group(self, key: int) -> _Group:
        self._judged += 1
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS:
                del self._groups[min(self._groups, key=lambda other: self._groups[other].used)]
            group = self._groups[key] = _Group(self.config)
        group.used = self._judged
        return group

    def dump_shared(self) -> bytes:
        groups = [(key, *group.dump()) for key, group in self._groups.items()]
        return msgspec.msgpack.encode((self.spec.name, self.spec.version, self._judged, groups))

    def load_shared(self, page: bytes) -> None:
        if not page:
            return
        try:
            name, version, judged, groups = msgspec.msgpack.decode(
                page, type=tuple[str, int, int, list[tuple[int, int, int, bytes, int, bytes]]]
            )
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("saved shared state is damaged: it is not a page of a detector") from error
        if (name, version) != (self.spec.name, self.spec.version):
            raise StateError(
                f"saved state is of {name} version {version}, this is {self.spec.name} version {self.spec.version}"
            )
        self._groups = {key: _Group.loaded(self.config, saved) for key, *saved in groups}
        self._judged = judged


class _Group:
    """What the agents of a group share: a model and the windows it is made of, and its days' highest scores."""

    def __init__(self, config: OddWindowConfig) -> None:
        self.used = 0
        self.learned = 0
        self.model = config.model()
        self._kept = np.full((KEPT + GENERATION, len(FEATURES)), np.nan, np.float32)
        self._days = 0
        self._maxima = np.full(MAXIMA, np.nan, np.float32)

    def learn(self, relative: Floats, config: OddWindowConfig) -> None:
        """Takes a window for normal."""
        self._kept[self.learned % len(self._kept)] = relative
        self.learned += 1
        if self.learned % GENERATION:
            self.model.learn(relative.tolist())
        else:
            self._remake(config)

    def _remake(self, config: OddWindowConfig) -> None:
        """The model as it is after the windows that are kept, since the last generation began."""
        begun = self.learned - self.learned % GENERATION
        self.model = config.model()
        for k in range(max(0, begun - KEPT), self.learned):
            self.model.learn(self._kept[k % len(self._kept)].tolist())

    def add_day(self, highest: float) -> None:
        """Takes the highest score of an agent-day."""
        self._maxima[self._days % MAXIMA] = highest
        self._days += 1

    def limit(self, budget: float) -> float | None:
        """The score that so many of the agent-days pass; None where too few are known."""
        n = min(self._days, MAXIMA)
        beyond = math.floor(budget * (n + 1))
        return float(np.partition(self._maxima[:n], n - beyond)[n - beyond]) if beyond else None

    def quantile(self, score: float) -> float:
        """Share of agent-days less odd than this: one minus its conformal p-value."""
        n = min(self._days, MAXIMA)
        return 1 - (1 + int((self._maxima[:n] >= score).sum())) / (n + 1)

    def dump(self) -> tuple[int, int, bytes, int, bytes]:
        return self.used, self.learned, self._kept.tobytes(), self._days, self._maxima.tobytes()

    @classmethod
    def loaded(cls, config: OddWindowConfig, saved: Sequence[Any]) -> Self:
        """The group of a `dump`.

        Raises:
            StateError: the dump is damaged.
        """
        group = cls(config)
        used, learned, kept, days, maxima = saved
        if len(kept) != group._kept.nbytes or len(maxima) != group._maxima.nbytes or min(learned, days) < 0:
            raise StateError("saved shared state is damaged: a group has more or fewer windows than it must have")
        group.used, group.learned, group._days = used, learned, days
        group._kept[:] = np.frombuffer(kept, np.float32).reshape(group._kept.shape)
        group._maxima[:] = np.frombuffer(maxima, np.float32)
        group._remake(config)
        return group


def _relative(window: Floats, usual: Floats, spread: Floats) -> Floats:
    """Distances from the usual, in spreads; NaN where unknown."""
    distance = (window - usual) / np.maximum(spread, FLOOR)
    calls = math.exp(window[FEATURES.index("calls")])
    # Doing less is not odd, and what a handful of calls was like says little.
    weighed = np.where(AMOUNTS, np.maximum(distance, 0.0), distance * calls / (calls + FEW))
    return np.asarray(np.clip(weighed, -CLIP, CLIP), np.float32)


_TOLD: dict[str, Any] = {
    "tokens": lambda v: f"{math.exp(v):,.0f} effective tokens",
    "calls": lambda v: f"{math.exp(v):,.0f} calls",
    "size": lambda v: f"{math.exp(v):,.0f} tokens per call",
    "dollars": lambda v: f"${math.exp(v):.2f}",
    "errors": lambda v: f"{v:.0%} failed",
    "cached": lambda v: f"{v:.0%} of the input cached",
    "answer": lambda v: f"{math.exp(v):.2g} tokens written per token read",
    "tools": lambda v: f"{math.exp(v):.0f} tools",
    "novelty": lambda v: f"{v:.0%} new results",
}
"""How a feature is told to a person."""
