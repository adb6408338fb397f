"""Runaways laid over minutes of real production clients, through the detectors as they are.

`servegen/minutes.npz` holds tokens per minute of real clients over 14 days. Days 1 to 5 warm up, days 6 to 14
are scored. Faults are multiples of the client's own median active minute, added on top of what it does. The
clients' own bursts count as false alarms, though some may be real incidents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from detectors.base import Detector, FleetFigures, LogGrid, ScoreGrid, group_figure
from detectors.checks import Event, batch_of
from detectors.expansion import FAST_S, TOKENS
from detectors.runaway import Runaway, RunawayConfig
from detectors.types import Entity, EventBatch, Floats, Hashes, Ints, Kind, Scope
from stream import calibration
from stream.evaluate.base import Contender, Plot, Progress, Row, register

DAY = 1440
WARM_UP = 5 * DAY
START = 1_750_032_000.0
"""Event time of the first minute, s; a midnight, UTC."""

_EACH = 2
"""Faults of each kind and client."""
_SEED = 20250616
_REFRACTORY_S = 3600.0
"""Findings of an agent with pauses below this are one alarm."""
_USD_PER_TOKEN = 3e-6
"""For what is burnt before an alarm: $3 per million tokens."""
_CHUNK = 240
"""Minutes of all clients in one batch."""
_ONE_PER_MONTH = 1 / 30
_BEFORE, _AFTER = 12 * 60, 120
"""Minutes that pictures show before and after a fault."""


# -------------------------------------------------------------------------------------- the faults

_KINDS: dict[str, Floats] = {
    "10x for 30 min": np.full(30, 10.0),
    "doubling every 3 min": np.minimum(2.0 ** (np.arange(1, 31) / 3), 200.0),
    "context growth": np.minimum(1.15 ** np.arange(1, 46), 20.0),
    "4x for 3 h": np.full(180, 4.0),
    "usual rate in the idlest hour": np.ones(60),
    "30x for 10 min": np.full(10, 30.0),
}
"""Multiples of the client's median active minute, minute by minute."""

_STEEP = ("10x for 30 min", "30x for 10 min", "doubling every 3 min")


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: str
    client: int
    start: int
    """Minute."""
    added: Floats
    """Tokens added, minute by minute."""

    def peak(self) -> float:
        """The largest 5-minute decayed sum of what is added."""
        most = value = 0.0
        for tokens in self.added.tolist():
            value = value * math.exp(-60 / 300) + tokens
            most = max(most, value)
        return most


def _faults(tokens: Floats) -> list[_Fault]:
    """The faults laid over the clients, in order of time; the same for the same clients."""
    random = np.random.default_rng(_SEED)
    found = []
    minutes = tokens.shape[1]
    for client, own in enumerate(tokens):
        usual = float(np.median(own[own > 0]))
        idlest = int(own.reshape(-1, 24, 60).sum((0, 2)).argmin()) * 60
        for kind, times in _KINDS.items():
            if kind == "usual rate in the idlest hour":
                days = random.choice(np.arange(WARM_UP // DAY, minutes // DAY), _EACH, replace=False)
                starts = days * DAY + idlest
            else:
                starts = random.integers(WARM_UP, minutes - len(times), _EACH)
            found += [_Fault(kind, client, int(start), times * usual) for start in np.sort(starts)]
    return sorted(found, key=lambda fault: fault.start)


# ------------------------------------------------------------------------------------- the batches

_BLANK = batch_of([Event(kind=Kind.LLM)])


def _batch(names: Sequence[str], row: Ints, minute: Ints, tokens: Floats, totals: Ints, group: Hashes) -> EventBatch:
    """One event per client and active minute, at the end of the minute.

    Args:
        names: Of the clients, by row.
        totals: (rows,) thousandths of a token that each row has used so far; brought up to date.
    """
    n = len(row)
    columns: dict[str, Any] = {}
    for name in (f.name for f in fields(EventBatch) if f.name != "entities"):
        blank = getattr(_BLANK, name)
        columns[name] = np.repeat(blank, n) if isinstance(blank, np.ndarray) else [""] * n
    columns["agent_id"] = columns["run_id"] = columns["root_run_id"] = [names[i] for i in row.tolist()]
    columns["event_id"] = [f"{i}-{at}" for i, at in zip(row.tolist(), minute.tolist(), strict=True)]
    columns["ts"] = START + 60.0 * minute + 59.0
    columns["tokens"] = used = np.round(tokens * 1000).astype(np.int64)
    columns["group"] = group[row]
    life = np.empty(n, np.int64)
    for own in np.split(order := np.argsort(row, kind="stable"), np.flatnonzero(np.diff(row[order])) + 1):
        life[own] = totals[row[own]] + np.cumsum(used[own])
        totals[row[own]] = life[own][-1:]
    # Rows are blank before their first event; nobody dies here.
    entity = Entity(row, np.zeros(n, np.bool_), life, np.zeros(n, np.int64))
    return EventBatch(**columns, entities=dict.fromkeys(Scope, entity))


@dataclass(slots=True)
class _Told:
    """What a contender said: of which row, when, and whether it was critical."""

    row: list[int]
    minute: list[int]
    critical: list[bool]

    def alarms(self) -> list[tuple[int, int]]:
        """(row, minute) of each alarm: findings with longer pauses between them than the refractory time."""
        last: dict[int, int] = {}
        found = []
        for row, minute in sorted(zip(self.row, self.minute, strict=True), key=lambda told: told[1]):
            if (minute - last.get(row, -(10**9))) * 60 >= _REFRACTORY_S:
                found.append((row, minute))
            last[row] = minute
        return found


class _Fleet:
    """Clients as rows of a contender's detectors, minute after minute.

    Args:
        tokens: (rows, minutes).
        daily: The fleet's figures are taken in at each midnight.
    """

    def __init__(
        self,
        made: Mapping[str, Detector],
        tokens: Floats,
        *,
        group: Hashes | None = None,
        daily: bool = True,
    ) -> None:
        self.detectors = {name: d for name, d in made.items() if d.spec.scope is Scope.AGENT}
        self._tokens = tokens
        self._daily = daily
        self._group = np.zeros(len(tokens), np.uint64) if group is None else group
        self._names = [f"client {i}" for i in range(len(tokens))]
        self._totals = np.zeros(len(tokens), np.int64)
        self.figures = FleetFigures()
        self.told = _Told([], [], [])

    def run(self, begin: int, end: int) -> None:
        """Minutes begin .. end - 1."""
        marks = sorted({*range(begin, end, _CHUNK), *range(-(-begin // DAY) * DAY, end, DAY), end})
        for low, high in itertools.pairwise(marks):
            if self._daily and low % DAY == 0:
                self.calibrate(calibration.merge([self.sketch()]))
            minute, row = np.nonzero(self._tokens[:, low:high].T)
            if len(row):
                self.feed(row, minute + low, self._tokens[row, minute + low])

    def feed(self, row: Ints, minute: Ints, tokens: Floats) -> None:
        """Events of these rows in these minutes."""
        batch = _batch(self._names, row, minute, tokens, self._totals, self._group)
        for detector in self.detectors.values():
            for finding in detector.update(batch):
                at = finding.event_id.split("-")
                self.told.row.append(int(at[0]))
                self.told.minute.append(int(at[1]))
                self.told.critical.append(finding.severity == "critical")

    def sketch(self) -> dict[str, list[int]]:
        """What the detectors contribute to the fleet's figures."""
        return {name: counts for d in self.detectors.values() for name, counts in d.sketch().items()}

    def calibrate(self, figures: FleetFigures) -> None:
        """Gives the detectors figures of the fleet."""
        self.figures = figures
        for detector in self.detectors.values():
            detector.calibrate(figures)


Make = Callable[[], Mapping[str, Detector]]


@dataclass(slots=True)
class _Caught:
    """What became of the faults: minutes to the first finding, tokens added until then; -1 where missed."""

    delay: Ints
    burnt: Floats


def _lay(
    make: Make, tokens: Floats, faults: Sequence[_Fault], *, daily: bool, told: Progress
) -> tuple[_Fleet, _Caught]:
    """Runs a contender over the clients as they are, and aside from that over every fault.

    At the start of a fault the client's state is copied into a row of a second instance, which sees the
    client's minutes with the fault on top: faults leave no trace in the clients' own state.
    """
    fleet = _Fleet(make(), tokens, daily=daily)
    delay, burnt = np.full(len(faults), -1), np.full(len(faults), -1.0)
    minutes = tokens.shape[1]
    fleet.run(0, WARM_UP)
    for begin in range(WARM_UP, minutes, DAY):
        today = [i for i, fault in enumerate(faults) if begin <= fault.start < begin + DAY]
        aside: dict[int, dict[str, bytes]] = {}
        at = begin
        for i in today:
            if faults[i].start > at or at == begin:
                fleet.run(at, max(at, faults[i].start))
                at = faults[i].start
            client = np.array([faults[i].client])
            aside[i] = {name: detector.dump(client) for name, detector in fleet.detectors.items()}
        fleet.run(at, begin + DAY)
        if today:
            _run_aside(make, tokens, faults, today, aside, fleet.figures, delay, burnt)
        told((begin + DAY - WARM_UP) / (minutes - WARM_UP))
    return fleet, _Caught(delay, burnt)


def _run_aside(
    make: Make,
    tokens: Floats,
    faults: Sequence[_Fault],
    which: Sequence[int],
    states: Mapping[int, Mapping[str, bytes]],
    figures: FleetFigures,
    delay: Ints,
    burnt: Floats,
) -> None:
    longest = max(len(faults[i].added) for i in which)
    laid = np.zeros((len(which), longest))
    for place, i in enumerate(which):
        fault = faults[i]
        length = len(fault.added)
        laid[place, :length] = tokens[fault.client, fault.start : fault.start + length] + fault.added
    second = _Fleet(make(), laid)
    for name, detector in second.detectors.items():
        for place, i in enumerate(which):
            detector.load(np.array([place]), states[i][name])
    second.calibrate(figures)
    starts = np.array([faults[i].start for i in which])
    step, row = np.nonzero(laid.T)
    second.feed(row, starts[row] + step, laid[row, step])
    for told_row, minute in zip(second.told.row, second.told.minute, strict=True):
        i = which[told_row]
        if delay[i] < 0:
            delay[i] = minute - faults[i].start
            burnt[i] = faults[i].added[: delay[i] + 1].sum()


# -------------------------------------------------------------------------------------- the family


@register
class RunawayFamily:
    """Six kinds of runaways on real clients: recall, false alarms per agent-day, delay, cost before the alarm."""

    name = "runaway"

    def found_in(self, folder: Path) -> bool:
        return (folder / "servegen" / "minutes.npz").is_file()

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        tokens = _read(folder)
        faults = _faults(tokens)
        # Clients are agents without runs or trees: other detectors of the product have nothing to look at.
        contenders = [
            c for c in contenders if c.baseline or any(d.spec.scope is Scope.AGENT for d in c.make().values())
        ]
        rows: list[Row] = []
        steps = len(contenders) + 10
        for i, contender in enumerate(contenders):
            rows += _rows(contender.name, contender.make, tokens, faults, _part(progress, i, steps))
        done = len(contenders)
        rows += _score_rows(tokens, faults, _part(progress, done, steps, 3))
        for i, quantile in enumerate((0.97, 0.99)):
            rows += _material_rows(tokens, faults, quantile, _part(progress, done + 3 * (i + 1), steps, 3))
        rows += _budget_rows(tokens, _part(progress, done + 9, steps))
        progress(1.0)
        return rows

    def plots(self, folder: Path) -> Iterator[Plot]:
        tokens = _read(folder)
        # The first fault of each kind, each on a client of its own where there are enough.
        chosen: list[_Fault] = []
        for kind in _KINDS:
            of_kind = [fault for fault in _faults(tokens) if fault.kind == kind]
            taken = {fault.client for fault in chosen}
            chosen.append(next((fault for fault in of_kind if fault.client not in taken), of_kind[0]))
        laid = tokens[[fault.client for fault in chosen]]
        for row, fault in enumerate(chosen):
            laid[row, fault.start : fault.start + len(fault.added)] += fault.added
        detector = Runaway(RunawayConfig())
        fleet = _Fleet({"runaway": detector}, laid, daily=False)
        table = detector.tables["agents"]
        rows = np.arange(len(chosen))
        detector.reserve(len(chosen))
        sums, highest = np.zeros(laid.shape), np.zeros(laid.shape)
        for minute in range(max(fault.start + len(fault.added) for fault in chosen) + _AFTER):
            fleet.run(minute, minute + 1)
            sums[:, minute] = detector.sums(rows, (minute + 1) * 60 + START)[:, TOKENS]
            highest[:, minute] = np.exp(table["high"][rows, TOKENS])
        told = fleet.told.alarms()
        for row, fault in enumerate(chosen):
            begin, end = max(0, fault.start - _BEFORE), min(laid.shape[1], fault.start + len(fault.added) + _AFTER)
            minutes = np.arange(begin, end)
            yield Plot(
                name=fault.kind,
                title=f"{fault.kind} on top of client {fault.client}",
                ts=(START + 60.0 * minutes).tolist(),
                value=sums[row, begin:end].tolist(),
                unit="effective tokens, decayed 5-minute sum",
                band=(np.zeros(len(minutes)).tolist(), highest[row, begin:end].tolist()),
                events=[(START + 60.0 * fault.start, START + 60.0 * (fault.start + len(fault.added)))],
                alarms=[START + 60.0 * minute for own, minute in told if own == row and begin <= minute < end],
            )


def _part(progress: Progress, at: int, steps: int, size: int = 1) -> Progress:
    return lambda share: progress((at + share * size) / steps)


def _read(folder: Path) -> Floats:
    with np.load(folder / "servegen" / "minutes.npz") as data:
        tokens: Floats = data["tokens"].astype(np.float64)
    return tokens


def _scored_days(tokens: Floats) -> float:
    return len(tokens) * float(tokens.shape[1] - WARM_UP) / DAY


def _rows(name: str, make: Make, tokens: Floats, faults: Sequence[_Fault], told: Progress) -> list[Row]:
    """A contender as it is configured."""
    fleet, caught = _lay(make, tokens, faults, daily=True, told=told)
    days = _scored_days(tokens)
    alarms = [alarm for alarm in fleet.told.alarms() if alarm[1] >= WARM_UP]
    kinds = np.array([fault.kind for fault in faults])
    hit = caught.delay >= 0
    rows = []
    for kind in _KINDS:
        own = kinds == kind
        found = own & hit
        rows.append(
            Row(
                "runaway",
                kind,
                name,
                caught=int(found.sum()),
                missed=int((own & ~hit).sum()),
                false_alarms=len(alarms),
                agent_days=days,
                delay_s=(60.0 * (caught.delay[found] + 1)).tolist(),
                cost_before_usd=(caught.burnt[found] * _USD_PER_TOKEN).tolist(),
            )
        )
    recall = [float((hit & (kinds == kind)).sum() / (kinds == kind).sum()) for kind in _KINDS]
    first = [minute for _, minute in fleet.told.alarms() if minute < DAY]
    figures = {
        "mean_recall": float(np.mean(recall)),
        "alarms_per_agent_day": len(alarms) / days,
        "alarms_per_agent_first_day": len(first) / len(tokens),
    }
    whole = Row(
        "runaway",
        "all kinds",
        name,
        caught=int(hit.sum()),
        missed=int((~hit).sum()),
        false_alarms=len(alarms),
        agent_days=days,
        delay_s=(60.0 * (caught.delay[hit] + 1)).tolist(),
        cost_before_usd=(caught.burnt[hit] * _USD_PER_TOKEN).tolist(),
        figures=figures,
        notes="as configured, with its floors and its live calibration",
    )
    return [*rows, whole]


# ------------------------------------------------------------------------------- figures of the score

_GRID = np.array(
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0]
)
"""Thresholds tried, nats."""
_SPLITS = 8
_BUDGETS = np.array([1 / 7, 1 / 30, 1 / 60])
"""Alarms per agent-day."""


def _configured(**settings: Any) -> Make:
    return lambda: {"runaway": Runaway(RunawayConfig(alarms_per_day=1e9, **settings))}


def _figures(thresholds: Mapping[int, float]) -> FleetFigures:
    """Figures that lead to these thresholds: group -> nats."""
    counts = {}
    for group, threshold in thresholds.items():
        histogram = np.zeros(ScoreGrid.BINS, np.int64)
        histogram[ScoreGrid.index(np.array([threshold]))] = 10**6
        counts[group_figure("day_scores", group)] = histogram.tolist()
    return FleetFigures("fixed", counts)


def _threshold_for(rate: float, tokens: Floats, told: Progress, **settings: Any) -> float:
    """The smallest threshold tried at which the clients' own bursts raise no more alarms per agent-day.

    All are tried at once: a group of rows for each.
    """
    n = len(tokens)
    group = np.repeat(np.arange(1, len(_GRID) + 1, dtype=np.uint64), n)
    fleet = _Fleet(_configured(**settings)(), np.tile(tokens, (len(_GRID), 1)), group=group, daily=False)
    fleet.calibrate(_figures(dict(enumerate(_GRID.tolist(), 1))))
    for day in range(0, tokens.shape[1], DAY):
        fleet.run(day, day + DAY)
        told((day + DAY) / tokens.shape[1])
    counts = np.zeros(len(_GRID))
    for row, minute in fleet.told.alarms():
        counts[row // n] += minute >= WARM_UP
    return float(_GRID[int(np.argmax(counts / _scored_days(tokens) <= rate))])


def _at_rate(
    tokens: Floats, faults: Sequence[_Fault], told: Progress, **settings: Any
) -> tuple[_Fleet, _Caught, float]:
    """The score alone, with the threshold at which it raises one false alarm per 30 agent-days."""
    threshold = _threshold_for(_ONE_PER_MONTH, tokens, lambda share: told(share / 2), **settings)
    make = _configured(warning=threshold, critical=max(threshold, 1.6), budget_days=10**9, **settings)
    fleet, caught = _lay(make, tokens, faults, daily=False, told=lambda share: told(0.5 + share / 2))
    return fleet, caught, threshold


def _score_rows(tokens: Floats, faults: Sequence[_Fault], told: Progress) -> list[Row]:
    """Without any floor: comparable with published figures of other scores."""
    fleet, caught, threshold = _at_rate(tokens, faults, told, floor_tokens=0.0, floor_usd=0.0)
    alarms = sum(minute >= WARM_UP for _, minute in fleet.told.alarms())
    kinds, hit = np.array([fault.kind for fault in faults]), caught.delay >= 0
    recall = {kind: float(hit[kinds == kind].mean()) for kind in _KINDS}
    delay = caught.delay[hit] + 1
    return [
        Row(
            "runaway",
            "score at 1 alarm per agent-month, no floor",
            "runaway",
            caught=int(hit.sum()),
            missed=int((~hit).sum()),
            false_alarms=alarms,
            agent_days=_scored_days(tokens),
            delay_s=(60.0 * delay).tolist(),
            cost_before_usd=(caught.burnt[hit] * _USD_PER_TOKEN).tolist(),
            figures={"mean_recall": float(np.mean(list(recall.values()))), "threshold": threshold} | recall,
            notes="the threshold is set in hindsight, as for published scores",
        )
    ]


def _material_rows(tokens: Floats, faults: Sequence[_Fault], quantile: float, told: Progress) -> list[Row]:
    """With a floor: recall of the steep faults whose own 5-minute sum is above it."""
    floor = _floor(tokens, quantile)
    fleet, caught, threshold = _at_rate(tokens, faults, told, floor_tokens=floor, floor_usd=0.0)
    alarms = sum(minute >= WARM_UP for _, minute in fleet.told.alarms())
    rows = []
    for kind in _STEEP:
        own = [i for i, fault in enumerate(faults) if fault.kind == kind and fault.peak() >= floor]
        hit = caught.delay[own] >= 0
        found = np.array(own, np.int64)[hit]
        rows.append(
            Row(
                "runaway",
                f"{kind}, above the floor (q{100 * quantile:.0f})",
                "runaway",
                caught=int(hit.sum()),
                missed=int((~hit).sum()),
                false_alarms=alarms,
                agent_days=_scored_days(tokens),
                delay_s=(60.0 * (caught.delay[found] + 1)).tolist(),
                cost_before_usd=(caught.burnt[found] * _USD_PER_TOKEN).tolist(),
                figures={"floor_tokens": floor, "threshold": threshold},
            )
        )
    return rows


def _floor(tokens: Floats, quantile: float) -> float:
    """A quantile of the clients' decayed 5-minute sums in active minutes."""
    sums = np.zeros(len(tokens))
    counts = np.zeros(LogGrid.BINS, np.int64)
    for own in tokens.T:
        sums = sums * math.exp(-60 / FAST_S) + own
        counts += np.bincount(LogGrid.index(sums[own > 0]), minlength=LogGrid.BINS)
    return FleetFigures("", {"sums": counts.tolist()}).quantile("sums", quantile) or 0.0


def _budget_rows(tokens: Floats, told: Progress) -> list[Row]:
    """What budgets come to: thresholds from a random half of the clients, for both halves' next day.

    All splits and budgets run at once: two groups of rows for each, the half that is learnt from and the rest.
    At each midnight both take the thresholds that the first group's trailing days leave by the budget.
    """
    n = len(tokens)
    random = np.random.default_rng(_SEED)
    budgets = np.repeat(_BUDGETS, _SPLITS)
    learns = np.zeros((len(budgets), n), np.bool_)
    for copy in range(len(budgets)):
        learns[copy, random.permutation(n)[: n // 2]] = True
    group = np.where(learns, 1, 2) + 2 * np.arange(len(budgets))[:, None]
    make = _configured(floor_tokens=0.0, floor_usd=0.0, floor_quantile=0.0)
    fleet = _Fleet(make(), np.tile(tokens, (len(budgets), 1)), group=group.ravel().astype(np.uint64), daily=False)
    for day in range(0, tokens.shape[1], DAY):
        seen = FleetFigures("", fleet.sketch())
        names = seen.groups("day_scores")
        thresholds = {}
        for copy, budget in enumerate(budgets.tolist()):
            threshold = seen.exceeded_by(names.get(2 * copy + 1, ""), budget)
            if threshold is not None:
                thresholds[2 * copy + 1] = thresholds[2 * copy + 2] = threshold
        fleet.calibrate(_figures(thresholds))
        fleet.run(day, day + DAY)
        told((day + DAY) / tokens.shape[1])
    alarms = np.array([row for row, minute in fleet.told.alarms() if minute >= WARM_UP], np.int64)
    known = learns.ravel()[alarms]
    days = (tokens.shape[1] - WARM_UP) / DAY
    return [
        Row(
            "runaway",
            f"budget of 1 alarm per {1 / budget:.0f} agent-days, {who}",
            "runaway",
            false_alarms=int(own.sum()),
            agent_days=float(clients.sum() * days),
            figures={"stated": float(budget), "realised": float(own.sum() / (clients.sum() * days))},
            notes=f"days 6 to 14 of {_SPLITS} random halves of {n} clients; each day's threshold is from days before",
        )
        for budget in _BUDGETS
        for who, inside in (("later days of agents learnt from", True), ("agents never seen", False))
        for own in [(budgets[alarms // n] == budget) & (known == inside)]
        for clients in [learns[budgets == budget] == inside]
    ]
