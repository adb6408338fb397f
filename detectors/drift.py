"""Agents whose usual has moved: a new model, a new prompt, or a little more every day."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from detectors.base import Detector, DetectorConfig, Sparse, Spec, Table, register, setting
from detectors.moved import Move, adwin, page_hinkley, settled
from detectors.rounds import bits, lives, segments, ticks
from detectors.types import EventBatch, Finding, Floats, Ints, Scope

WINDOW_S, DAY_S = 600.0, 86400.0

DAYS = 16
"""Days of activity remembered per agent: what doubles in two weeks is seen whole."""

LEVELS = {
    "tokens": "effective tokens per active 10 min",
    "size": "effective tokens per call",
    "answer": "tokens written per token read",
    "uncached": "uncached tokens per token read",
}
"""What a day was like, each as a natural logarithm; its unit."""

_CACHE_FLOOR = 0.05
"""Least uncached share told apart: below it the rest of the call costs more."""

_SUMS = ("tokens", "sized", "input", "output", "read", "uncached")
_DAY_WINDOWS = int(DAY_S / WINDOW_S)


class DriftConfig(DetectorConfig):
    """When a level has moved for good."""

    model: Literal["page_hinkley", "adwin"] = setting(
        "page_hinkley",
        unit="model of river",
        why="Drift model the daily levels go through.",
        source="on daily levels ADWIN found hardly any of the shifts Page-Hinkley finds (docs/detection.md)",
    )
    threshold: float = setting(
        8.0,
        unit="day-to-day deviations",
        why="Page-Hinkley: sum of distances from the running mean at which a level has moved.",
        source="fewest false alarms on 62 production clients (ServeGen) before recall falls; 4 made a third more",
        gt=0,
    )
    slack: float = setting(
        0.5,
        unit="day-to-day deviations",
        why="Page-Hinkley: distance from the running mean that counts for nothing.",
        source="half the smallest shift worth finding, as Page has it",
        ge=0,
    )
    delta: float = setting(
        0.3,
        unit="probability",
        why="ADWIN: chance of a cut where nothing moved.",
        source="the most sensitive tried: days are too few for smaller ones",
        gt=0,
        lt=1,
    )
    least_factor: float = setting(
        1.5,
        unit="times",
        why="Smaller moves are nobody's concern.",
        source="a bill half as high again; 1.75 halved what was found of creeps",
        gt=1,
    )
    settled_days: int = setting(
        3,
        unit="active days",
        why="Latest days that must all lie beyond the move, and fewest days before it.",
        source="longer than a weekend",
        ge=2,
        le=DAYS // 2,
    )
    day_windows: int = setting(
        3, unit="active 10 minutes", why="A day with fewer tells no level.", source="half an hour of activity", ge=1
    )
    noise: float = setting(
        0.1,
        unit="nats",
        why="Least day-to-day deviation assumed.",
        source="a tenth: below it a steady agent would be noticed for single percents",
        gt=0,
    )


@register
class Drift(Detector):
    """What an agent usually takes has moved for good, and is reported instead of silently learned.

    Levels are taken per day of activity, so the hours of a day cannot move them: effective tokens per active
    ten minutes, effective tokens per call, output per input token, uncached share of input. A drift model of
    river goes over the remembered days whenever one ends.

    Fires when: the model says that a level moved, and the latest 3 active days all lie at least a factor of
        1.5 from the median before, on one side (warning). The days before it are forgotten then, so a move is
        reported once, and a creep once per factor of 1.5.
    Quiet when: there are fewer than 6 active days; a level comes back within 3 days, as after a weekend; tokens
        are unknown.
    Units: those of the level; score 1 - 1 / factor.
    State: about 96 bytes per agent: the open day and its models; 288 more once it has closed a day: 4 levels of 16.
    Source: Page 1954 and Hinkley 1971, Bifet and Gavalda 2007, by river.drift; settings measured on 62
        production clients.
    """

    spec: ClassVar[Spec] = Spec("drift", version=3, scope=Scope.AGENT, second_stage=True)
    Config: ClassVar[type[DetectorConfig]] = DriftConfig

    def __init__(self, config: DriftConfig) -> None:
        self.config = config
        self._table = Table(
            {
                "window": (np.int32, -1),
                "window_tokens": (np.int64, 0),  # in thousandths
                # The open day: sums, and ln of the tokens of its windows that had any.
                "day": (np.int32, -1),
                "sums": (np.int64, 0, len(_SUMS)),
                "level": (np.float32, 0.0),
                "windows": (np.int32, 0),
                # A bit per model, by its hash: of the open day, of the days before, and when a new one came.
                "models": (np.uint64, 0),
                "known_models": (np.uint64, 0),
                "model_day": (np.int32, -1),
            }
        )
        # Of agents that have closed a day.
        self._days = Sparse(
            {"days": (np.uint16, 0, DAYS), **{f"{name}_levels": (np.float32, np.nan, DAYS) for name in LEVELS}}
        )
        self.tables = {"agents": self._table, "days": self._days}
        self._seen_from = -math.inf
        """Windows before this one were seen in part, if at all."""

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        entity = batch.entities[self.spec.scope]
        if not len(batch):
            return ()
        self.reserve(int(entity.row.max()) + 1)
        found = [pair for part in lives(batch, self.spec.scope) for pair in self._update(part)]
        return [finding for _, finding in found]

    def _update(self, batch: EventBatch) -> list[tuple[int, Finding]]:
        """What is found in events of which none follows on another life of its row; a window of all agents at once."""
        entity, table = batch.entities[self.spec.scope], self._table
        born = entity.row[entity.new]
        again = born[table["window"][born] >= 0]
        if len(again):
            self.forget(again)
        order = entity.row.argsort(kind="stable")
        at = order[(batch.tokens > 0).take(order)]
        if math.isfinite(self._seen_from):
            at = at[ticks(batch.ts[at], WINDOW_S) >= self._seen_from]
        if not len(at):
            return []
        parts = segments(entity.row[at], ticks(batch.ts[at], WINDOW_S), table["window"])
        sums, models = parts.sums(_amounts(batch, at)), np.bitwise_or.reduceat(bits(batch.model[at]), parts.starts)
        found: list[tuple[int, Finding]] = []
        for k in parts.rounds():
            row, window = parts.row[k], parts.tick[k]
            over = (window > table["window"][row]).nonzero()[0]
            if len(over):
                found += self._end_windows(batch, at[parts.starts[k[over]]], row[over], window[over])
            table["window_tokens"][row] += sums[k, 0]
            table["sums"][row] += sums[k]
            table["models"][row] |= models[k]
        found.sort(key=lambda pair: pair[0])
        return found

    def resume(self, clock: float) -> None:
        if math.isfinite(clock):
            self._seen_from = clock // WINDOW_S + 1
        self._table["window_tokens"][:] = 0

    def _end_windows(self, batch: EventBatch, at: Ints, row: Ints, window: Ints) -> list[tuple[int, Finding]]:
        """Closes the windows, and the days, that these events lie behind."""
        table = self._table
        table["window"][row] = window
        tokens = table["window_tokens"][row]
        had = tokens.nonzero()[0]
        if len(had):
            closing = row[had]
            table["level"][closing] += np.log(tokens[had] / 1e3).astype(np.float32)
            table["windows"][closing] += 1
            table["window_tokens"][closing] = 0

        day, was = np.minimum(window // _DAY_WINDOWS, 2**16 - 1), table["day"][row]
        later = (day > was).nonzero()[0]
        if not len(later):
            return []
        at, row, day, was = at[later], row[later], day[later], was[later]
        ended = (was >= 0).nonzero()[0]
        found: list[tuple[int, Finding]] = []
        if len(ended):
            self._remember(row[ended])
            for i, r in zip(at[ended].tolist(), row[ended].tolist(), strict=True):
                found += [(i, finding) for finding in self._moves(batch, i, r)]
        table["day"][row] = day
        return found

    def _remember(self, row: Ints) -> None:
        """Adds the open day's levels to those remembered, and opens the next."""
        table = self._table
        sums = dict(zip(_SUMS, table["sums"][row].T.astype(np.float64), strict=True))
        windows = table["windows"][row].astype(np.float64)
        table["model_day"][row] = np.where(
            (table["known_models"][row] != 0) & (table["models"][row] & ~table["known_models"][row] != 0),
            table["day"][row],
            table["model_day"][row],
        )
        table["known_models"][row] |= table["models"][row]
        enough = windows >= self.config.day_windows
        share = np.maximum(_ratio(sums["uncached"], sums["read"]), _CACHE_FLOOR)
        levels = {
            "tokens": _ratio(table["level"][row], windows),
            "size": _ln(_ratio(sums["tokens"] / 1e3, sums["sized"])),
            "answer": _ln(_ratio(sums["output"], sums["input"])),
            "uncached": _ln(share),
        }
        kept = row[enough]
        place = self._days.open(kept)
        for name, values in levels.items():
            column = self._days[f"{name}_levels"]
            column[place] = np.concatenate([column[place, 1:], values[enough, None]], axis=1)
        days = self._days["days"]
        days[place] = np.concatenate([days[place, 1:], table["day"][kept, None]], axis=1)
        for name in ("sums", "level", "windows", "models"):
            table[name][row] = 0

    def _moves(self, batch: EventBatch, i: int, row: int) -> list[Finding]:
        table, place = self._days, int(self._days.find(np.array([row]))[0])
        if place < 0:
            return []
        moves = []
        for name in LEVELS:
            column = table[f"{name}_levels"][place]
            known = np.flatnonzero(~np.isnan(column))
            move = self.move(column[known].astype(np.float64))
            if move is not None:
                moves.append((abs(move.after - move.before), name, move, int(known[move.at])))
        if not moves:
            return []
        # One cause, one finding: of levels that moved together, the one that moved most is told.
        _, name, move, start = max(moves, key=lambda found: found[0])
        finding = self._finding(batch, i, row, name, move, int(table["days"][place, start]))
        # The new level is learned on purpose: what was before it no longer counts.
        for name in LEVELS:
            table[f"{name}_levels"][place, :start] = np.nan
        return [finding]

    def move(self, levels: Floats) -> Move | None:
        """Where known daily levels, oldest first, have moved for good, if they have."""
        config = self.config
        if len(levels) < 2 * config.settled_days:
            return None
        scale = max(config.noise, 1.4826 / math.sqrt(2) * float(np.median(np.abs(np.diff(levels)))))
        if config.model == "adwin":
            at = adwin(levels / scale, config.delta)
        else:
            at = page_hinkley(levels / scale, config.threshold, config.slack)
        return settled(levels, at, math.log(config.least_factor), config.settled_days)

    def _finding(self, batch: EventBatch, i: int, row: int, name: str, move: Move, since: int) -> Finding:
        table = self._table
        before, after = math.exp(move.before), math.exp(move.after)
        by_model = abs(int(table["model_day"][row]) - since) <= 1
        days = int(table["day"][row]) - since + 1
        when = f"since its model changed {days} days ago" if by_model else f"for {days} days"
        factor = max(after / before, before / after)
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule=name,
            severity="warning",
            scope=self.spec.scope,
            score=1 - 1 / factor,
            observed=float(f"{after:.5g}"),
            expected=float(f"{before:.5g}"),
            unit=LEVELS[name],
            reason=f"agent {batch.agent_id[i]} takes {_number(after)} {LEVELS[name]} {when}, {_number(before)} before",
            evidence={
                "since": since * DAY_S,
                "factor": round(after / before, 3),
                "model_changed": by_model,
            },
        )


def _amounts(batch: EventBatch, at: Ints) -> Ints:
    """(n, len(_SUMS)) what events add to their day."""
    given, cached, written = batch.input.take(at), batch.cached.take(at), batch.output.take(at)
    answered = (given > 0) & (written >= 0)
    read = (given > 0) & (cached >= 0)
    amounts = np.empty((len(at), len(_SUMS)), np.int64)
    amounts[:, 0] = batch.tokens.take(at)
    amounts[:, 1] = 1
    amounts[:, 2] = given * answered
    amounts[:, 3] = written * answered
    amounts[:, 4] = given * read
    amounts[:, 5] = np.maximum(given - cached, 0) * read
    return amounts


def _ratio(part: Floats, whole: Floats) -> Floats:
    return part / np.where(whole > 0, whole, np.nan)


def _ln(values: Floats) -> Floats:
    return np.log(np.where(values > 0, values, np.nan))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
