"""What windows of an agent's work tell: do the online models earn their place?

Three kinds of labelled data. Production clients (`servegen/minutes.npz`, 14 days, the first 5 warm up) with bursts,
lasting shifts and creeps laid over them: rates alone. The same clients as levels per day, for the drift models and
for the rule without a model. And simulated agents whose cache, failures, answers or tools change for three hours:
what rates do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from detectors.base import Detector
from detectors.checks import Event, batch_of
from detectors.drift import Drift, DriftConfig
from detectors.moved import best_step, settled
from detectors.odd_window import OddWindow, OddWindowConfig
from detectors.types import EventBatch, Floats, Kind, Scope
from stream.evaluate.base import Contender, Plot, Progress, Row, register
from stream.ingest.decode import event_time
from stream.simulate import START, simulate

_FAMILY = "windows"
_MINUTE, _STEP, _DAY = 60.0, 600.0, 86400.0
_WARM_DAYS = 5
_SHIFT_DAY = 7
_BATCH = 5000
_FAULT_DAY = 12
_ROUNDS = 2
"""Streams with faults: all on one late day, for thresholds taken from past days would learn more of them."""
_SEED = 5
_LATE_S = 3600.0
"""A finding so long after a fault is still about it: its last window is closed by what comes after."""

ESTIMATORS: dict[str, dict[str, Any]] = {
    "largest distance, no model": {"estimator": "detectors.estimators.Farthest"},
    "StandardAbsoluteDeviation": {"estimator": "river.anomaly.StandardAbsoluteDeviation"},
    "HalfSpaceTrees": {
        "estimator": "river.anomaly.HalfSpaceTrees",
        "steps": ["river.preprocessing.MinMaxScaler"],
    },
    "OneClassSVM": {
        "estimator": "river.anomaly.OneClassSVM",
        "steps": ["river.preprocessing.StandardScaler"],
    },
    "LODA": {"estimator": "river.anomaly.LODA", "parameters": {"n_random_cuts": 20}},
}
"""Those of river.anomaly that can tell windows apart: GaussianScorer and PredictiveAnomalyDetection end at exactly
1.0, so no score is above the highest, and LocalOutlierFactor takes a millisecond per window."""


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: str
    agent: str
    start: float
    end: float


# ------------------------------------------------------------------------------- production clients

_BURSTS: dict[str, Floats] = {
    "10x for 30 min": np.full(30, 10.0),
    "30x for 10 min": np.full(10, 30.0),
    "doubling every 3 min": np.minimum(2.0 ** (np.arange(30) / 3), 200.0),
    "context growth": np.minimum(1.15 ** np.arange(45), 20.0),
    "4x for 3 h": np.full(180, 4.0),
    "usual rate in the idlest hour": np.ones(60),
}
"""Multiples of the client's median active minute, added minute by minute."""


def _lasting(kind: str, minutes: int) -> Floats:
    """What every minute is multiplied with."""
    since = np.maximum(0.0, np.arange(minutes) / 1440 - _SHIFT_DAY)
    if kind.startswith("x"):
        return np.where(np.arange(minutes) >= _SHIFT_DAY * 1440, float(kind[1:]), 1.0)
    if kind == "+10 % a day":
        return np.asarray(1.1**since)
    return np.asarray(1.05 ** (np.arange(minutes) / 1440))


_LASTING = ("x2", "x3", "+10 % a day", "+5 % a day from day 1")


def _with_bursts(tokens: Floats, round_: int) -> tuple[Floats, list[_Fault]]:
    """One burst per client on the day of faults; the kinds take turns."""
    random = np.random.default_rng(_SEED + round_)
    kinds = list(_BURSTS.items())
    laid, faults = tokens.copy(), []
    for client, own in enumerate(tokens):
        usual = float(np.median(own[: _WARM_DAYS * 1440][own[: _WARM_DAYS * 1440] > 0]))
        kind, added = kinds[(client + round_ * len(kinds) // _ROUNDS) % len(kinds)]
        idlest = int(own.reshape(-1, 24, 60).sum(axis=(0, 2)).argmin()) * 60
        begin = _FAULT_DAY * 1440 + (idlest if kind.startswith("usual") else int(random.integers(0, 1200)))
        laid[client, begin : begin + len(added)] += added * usual
        start = START + begin * _MINUTE
        faults.append(_Fault(kind, f"client {client}", start, start + len(added) * _MINUTE))
    return laid, faults


def _client_batch(tokens: Floats, models: Sequence[str]) -> EventBatch:
    """One event per client and active ten minutes."""
    steps = tokens.reshape(len(tokens), -1, 10).sum(axis=2)
    events = [
        Event(
            ts=START + step * _STEP + 1,
            kind=Kind.LLM,
            agent=f"client {client}",
            run=f"client {client}",
            group=models[client],
            tokens=round(float(steps[client, step]) * 1000),
        )
        for step, client in np.argwhere(steps.T > 0).tolist()
    ]
    return batch_of(events)


# --------------------------------------------------------------------------------- simulated agents


def _cache_lost(event: dict[str, Any], rng: Random) -> dict[str, Any]:
    return event | {"cached_input_tokens": 0} if "cached_input_tokens" in event else event


def _answers_doubled(event: dict[str, Any], rng: Random) -> dict[str, Any]:
    return event | {"output_tokens": 2 * event["output_tokens"]} if "output_tokens" in event else event


def _half_fails(event: dict[str, Any], rng: Random) -> dict[str, Any]:
    return event | {"status": "error"} if rng.random() < 0.5 else event


def _one_tool(event: dict[str, Any], rng: Random) -> dict[str, Any]:
    if event.get("kind") != "tool":
        return event
    same = {"tool": "search", "args_hash": "same", "result_hash": "same"}
    return {key: value for key, value in event.items() if key not in ("args", "result")} | same


_CHANGES: dict[str, Callable[[dict[str, Any], Random], dict[str, Any]]] = {
    "cache lost for 3 h": _cache_lost,
    "answers doubled for 3 h": _answers_doubled,
    "half of the calls fail for 3 h": _half_fails,
    "one tool, one result for 3 h": _one_tool,
}
_SIMULATED_DAYS = 6
_SIMULATED_WARM_DAYS = 3
_BUSY = 100
"""Events in the three hours: fewer are no fault worth a word."""


def _changed(events: Sequence[dict[str, Any]], round_: int) -> tuple[list[dict[str, Any]], list[_Fault]]:
    """One change per busy agent, between ten and one o'clock of the last day; the kinds take turns."""
    changes = list(_CHANGES.items())
    rng, changed = Random(_SEED), []  # noqa: S311 - made-up faults
    counts: dict[str, int] = {}
    agents = {agent: k for k, agent in enumerate(dict.fromkeys(event["agent_id"] for event in events))}
    start = START + (_SIMULATED_DAYS - 1) * _DAY + 10 * 3600
    end = start + 3 * 3600

    def kind_of(agent: str) -> int:
        return (agents[agent] + round_ * len(changes) // _ROUNDS) % len(changes)

    for event in events:
        agent = event["agent_id"]
        if start <= event_time(event["ts"]) < end:
            counts[agent] = counts.get(agent, 0) + 1
            changed.append(changes[kind_of(agent)][1](event, rng))
        else:
            changed.append(event)
    faults = [
        _Fault(changes[kind_of(agent)][0], agent, start, end) for agent, n in sorted(counts.items()) if n >= _BUSY
    ]
    return changed, faults


def _simulated_batch(events: Sequence[dict[str, Any]]) -> EventBatch:
    """The simulated events in columns; all agents are one group, for each model has but a few."""
    return batch_of(_event(event) for event in events)


def _event(event: Mapping[str, Any]) -> Event:
    given, cached = event.get("input_tokens", -1), event.get("cached_input_tokens", -1)
    written = event.get("output_tokens", -1)
    effective = max(given, 0) - 0.9 * max(cached, 0) + 4 * max(written, 0)
    tool = event.get("tool", "")
    args, result = event.get("args_hash", event.get("args")), event.get("result_hash", event.get("result"))
    return Event(
        ts=event_time(event["ts"]),
        kind=Kind[event.get("kind", "llm").upper()],
        agent=event["agent_id"],
        run=event.get("run_id", ""),
        root=event.get("root_run_id", ""),
        tool=tool,
        signature="" if args is None else f"{tool} {args}",
        result="" if result is None else str(result),
        failed=event.get("status") == "error",
        model=event.get("model", ""),
        group="all",
        input=given,
        cached=cached,
        output=written,
        tokens=round(effective * 1000),
        cost=round(effective * 3000),
    )


# ------------------------------------------------------------------------------------------ the rows


def _found(make: Callable[[], dict[str, Detector]], batch: EventBatch) -> list[tuple[str, float]]:
    """(agent, time) of what is found."""
    made = make()
    return [
        (finding.agent_id, finding.ts)
        for part in batch.cut(range(_BATCH, len(batch), _BATCH))
        for detector in made.values()
        for finding in detector.update(part)
    ]


def _alarms(found: Sequence[tuple[str, float]], since: float) -> int:
    """Alarms after a time: findings of an agent within an hour of each other are one."""
    last: dict[str, float] = {}
    count = 0
    for agent, ts in sorted(found, key=lambda one: one[1]):
        count += ts >= since and ts - last.get(agent, -np.inf) > _LATE_S
        last[agent] = ts
    return count


def _row(name: str, data: str, faults: Sequence[_Fault], found: Sequence[tuple[str, float]], **healthy: Any) -> Row:
    delays = []
    for fault in faults:
        hits = [ts for agent, ts in found if agent == fault.agent and fault.start <= ts <= fault.end + _LATE_S]
        if hits:
            delays.append(min(hits) - fault.start)
    return Row(_FAMILY, data, name, caught=len(delays), missed=len(faults) - len(delays), delay_s=delays, **healthy)


def _burst_rows(
    name: str, make: Callable[[], dict[str, Detector]], data: _Clients, kinds: Mapping[str, Any], prefix: str
) -> list[Row]:
    """Rows per kind of fault; false alarms are those of the stream without any."""
    alarms = _alarms(_found(make, data.healthy), data.since)
    rounds = [(faults, _found(make, faulty)) for faulty, faults in data.faulty]
    rows = []
    for kind in kinds:
        parts = [_row(name, "", [f for f in faults if f.kind == kind], found) for faults, found in rounds]
        rows.append(
            Row(
                _FAMILY,
                f"{prefix}: {kind}",
                name,
                caught=sum(part.caught for part in parts),
                missed=sum(part.missed for part in parts),
                delay_s=[delay for part in parts for delay in part.delay_s],
                false_alarms=alarms,
                agent_days=data.agent_days,
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class _Clients:
    """A stream without faults, and the same with them."""

    healthy: EventBatch
    faulty: Sequence[tuple[EventBatch, Sequence[_Fault]]]
    since: float
    """Where warming up ends."""

    @property
    def agent_days(self) -> float:
        late = self.healthy.ts >= self.since
        days = (self.healthy.ts[late] // _DAY).astype(int)
        rows = self.healthy.entities[Scope.AGENT].row[late]
        return float(len(np.unique(rows * 10**6 + days)))


def _lasting_rows(
    name: str, make: Callable[[], dict[str, Detector]], healthy: EventBatch, moved: Mapping[str, EventBatch]
) -> list[Row]:
    """Rows per lasting move of all clients; what is found without one is not the move's."""
    native = _found(make, healthy)
    agents = list(dict.fromkeys(healthy.agent_id))
    rows = []
    for kind, batch in moved.items():
        start = START + (0 if kind.endswith("1") else _SHIFT_DAY) * _DAY
        own = [one for one in _found(make, batch) if one not in native]
        faults = [_Fault(kind, agent, start, START + 14 * _DAY) for agent in agents]
        alarms = _alarms(native, -np.inf)
        rows.append(_row(name, f"lasting: {kind}", faults, own, false_alarms=alarms, agent_days=len(agents) * 14.0))
    return rows


def _levels(tokens: Floats, requests: Floats, kind: str) -> Floats:
    """(clients, days) ln tokens per active minute, or per request; NaN where half an hour was not active."""
    by_day = tokens.reshape(len(tokens), 14, -1)
    active = (by_day > 0).sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "rate":
            levels = np.log(np.maximum(by_day, 1e-9)).sum(axis=2, where=by_day > 0) / active
        else:
            levels = np.log(by_day.sum(axis=2) / requests.reshape(by_day.shape).sum(axis=2))
    levels[active < 30] = np.nan
    return np.asarray(levels)


def _level_rows(tokens: Floats, requests: Floats) -> Iterator[Row]:
    """The drift models, and the rule without a model, on the same daily levels."""
    config = DriftConfig()
    least = np.log(config.least_factor)
    deciders: dict[str, Callable[[Floats], int | None]] = {
        "Page-Hinkley": lambda levels: _index(Drift(config), levels),
        "ADWIN": lambda levels: _index(Drift(DriftConfig(model="adwin")), levels),
        "no model": lambda levels: _at(settled(levels, best_step(levels), least, config.settled_days)),
    }
    for name, decide in deciders.items():
        for level in ("rate", "size"):
            native = [_cuts(own, decide) for own in _levels(tokens, requests, level)]
            alarms = sum(map(len, native))
            for kind in _LASTING:
                laid = _levels(tokens * _lasting(kind, tokens.shape[1]), requests, level)
                first = 0 if kind.endswith("1") else _SHIFT_DAY
                delays = []
                for own, known in zip(laid, native, strict=True):
                    days = [day for day in _cuts(own, decide) if day >= first and day not in known]
                    delays += [(days[0] + 1 - first) * _DAY] if days else []
                yield Row(
                    _FAMILY,
                    f"{level} per day: {kind}",
                    name,
                    caught=len(delays),
                    missed=len(tokens) - len(delays),
                    false_alarms=alarms,
                    agent_days=len(tokens) * 14.0,
                    delay_s=delays,
                )


def _index(detector: Drift, levels: Floats) -> int | None:
    return _at(detector.move(levels))


def _at(move: Any) -> int | None:
    return None if move is None else int(move.at)


def _cuts(levels: Floats, decide: Callable[[Floats], int | None]) -> list[int]:
    """Days at whose end a move is told; what was before it is forgotten."""
    days: list[int] = []
    first = 0
    for day in range(len(levels)):
        known = first + np.flatnonzero(~np.isnan(levels[first : day + 1]))
        if len(known) < 2 * DriftConfig().settled_days or known[-1] != day:
            continue
        at = decide(levels[known])
        if at is not None:
            days.append(day)
            first = int(known[at])
    return days


@register
class Windows:
    """Windows of agents' work: bursts, lasting moves, and changes that leave the rate alone."""

    name = _FAMILY

    def found_in(self, folder: Path) -> bool:
        return _minutes(folder) is not None

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        path = _minutes(folder)
        if path is None:
            return []
        with np.load(path) as saved:
            tokens, requests = saved["tokens"].astype(np.float64), saved["requests"].astype(np.float64)
            models = [str(model) for model in saved["model"]]
        bursts = [_with_bursts(tokens, k) for k in range(_ROUNDS)]
        clients = _Clients(
            _client_batch(tokens, models),
            [(_client_batch(laid, models), faults) for laid, faults in bursts],
            START + _WARM_DAYS * _DAY,
        )
        events = simulate(days=_SIMULATED_DAYS)
        changes = [_changed(events, k) for k in range(_ROUNDS)]
        simulated = _Clients(
            _simulated_batch(events),
            [(_simulated_batch(changed), faults) for changed, faults in changes],
            START + _SIMULATED_WARM_DAYS * _DAY,
        )
        moved = {kind: _client_batch(tokens * _lasting(kind, tokens.shape[1]), models) for kind in _LASTING}
        rows = list(_level_rows(tokens, requests))
        judged = [contender for contender in contenders if _looks_at_agents(contender)]
        done, of = 1, 1 + len(judged) + len(ESTIMATORS)
        for contender in judged:
            progress(done / of)
            rows += _lasting_rows(contender.name, contender.make, clients.healthy, moved)
            rows += _burst_rows(contender.name, contender.make, simulated, _CHANGES, "change")
            done += 1
        for name, more in ESTIMATORS.items():
            progress(done / of)
            make = _odd(OddWindowConfig(**more))
            rows += _burst_rows(name, make, clients, _BURSTS, "burst")
            rows += _burst_rows(name, make, simulated, _CHANGES, "change")
            done += 1
        progress(1.0)
        return rows

    def plots(self, folder: Path) -> Iterator[Plot]:
        yield from ()


def _odd(config: OddWindowConfig) -> Callable[[], dict[str, Detector]]:
    return lambda: {OddWindow.spec.name: OddWindow(config)}


def _looks_at_agents(contender: Contender) -> bool:
    return contender.baseline or any(detector.spec.scope is Scope.AGENT for detector in contender.make().values())


def _minutes(folder: Path) -> Path | None:
    """Where the minutes of production clients are, if they are there."""
    places = (folder / "servegen" / "minutes.npz", folder / "minutes.npz")
    return next((path for path in places if path.is_file()), None)
