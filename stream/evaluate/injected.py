"""Faults of stated sizes, laid over recorded traffic with real times; over the simulation where there is none."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np

from detectors.types import Finding, Kind, Scope
from stream.engine import configured
from stream.evaluate import traces
from stream.evaluate.base import Contender, Plot, Progress, Row, register, sensible
from stream.ingest.decode import Invalid, event_time
from stream.inject import Event, Fault, cycle, fan_out, merged, ping_pong, retry_loop, runaway
from stream.settings import default_settings
from stream.simulate import simulate

_FILES = ("native.jsonl", "native.jsonl.gz", "*/native.jsonl", "*/native.jsonl.gz", "*.jsonl", "*.jsonl.gz")
_SAME_GAP = 0.5
"""A recording in which one gap between the events of a run makes up so large a share tells no times: somebody
spaced its steps evenly."""
_BEFORE = 50
"""Events an agent must have behind it: a fault is laid over its habits."""
_REPEATS = 3
_MOST_ROUNDS = 6
"""Times a recording is run with faults. In a round an agent has one at most and a third of the agents have one,
so that none hides another, and the figures of the fleet are those of its work."""
_AGENTS = 40
_LATEST_S = 300.0
"""A finding about an agent this long after the fault's last event is still about the fault."""
_SEED = 11


class _Lay(Protocol):
    def __call__(
        self, events: Sequence[Event], agent: str, other: str, at: float, *, seed: int
    ) -> tuple[list[Event], Fault]: ...


def _alone(function: Callable[..., tuple[list[Event], Fault]], **size: Any) -> _Lay:
    def lay(events: Sequence[Event], agent: str, other: str, at: float, *, seed: int) -> tuple[list[Event], Fault]:
        return function(events, agent, at, seed=seed, **size)

    return lay


def _together(function: Callable[..., tuple[list[Event], Fault]], **size: Any) -> _Lay:
    def lay(events: Sequence[Event], agent: str, other: str, at: float, *, seed: int) -> tuple[list[Event], Fault]:
        return function(events, agent, other, at, seed=seed, **size)

    return lay


@dataclass(frozen=True, slots=True)
class _View:
    """How a kind of fault is drawn: what is counted per step, and how much of the time around the fault."""

    unit: str
    counted: Kind | None
    """Events of this kind; None: effective tokens."""
    step_s: float
    before_s: float
    after_s: float


_CALLS = _View("tool calls per min", Kind.TOOL, 60, 3600, 1200)
_TOKENS = _View("effective tokens per 5 min", None, 300, 6 * 3600, 2 * 3600)
_STARTS = _View("agents started per 5 s", Kind.SPAWN, 5, 300, 120)


@dataclass(frozen=True, slots=True)
class _Fault:
    """A kind of fault of one size."""

    scope: Scope
    """What it is about: a run, an agent or a tree of runs."""
    lay: _Lay
    view: _View | None = None
    """How it is drawn, if it is."""


_KINDS = (
    _Fault(Scope.RUN, _alone(retry_loop, n_calls=12)),
    _Fault(Scope.RUN, _alone(retry_loop, n_calls=120), _CALLS),
    _Fault(Scope.RUN, _alone(cycle, laps=6)),
    _Fault(Scope.RUN, _alone(cycle, laps=20)),
    _Fault(Scope.AGENT, _alone(runaway, factor=10, minutes=30), _TOKENS),
    _Fault(Scope.AGENT, _alone(runaway, factor=30, minutes=10)),
    _Fault(Scope.AGENT, _alone(runaway, factor=4, minutes=180)),
    _Fault(Scope.AGENT, _alone(runaway, factor=200, minutes=30, doubling_min=3), _TOKENS),
    _Fault(Scope.ROOT, _alone(fan_out, agents=30, seconds=30)),
    _Fault(Scope.ROOT, _alone(fan_out, agents=188, seconds=60), _STARTS),
    _Fault(Scope.ROOT, _together(ping_pong, messages=20)),
    _Fault(Scope.ROOT, _together(ping_pong, messages=60)),
)
"""Runaways are as large as in the published measurements; loops and spirals just beyond what people call one, and
as large as incident reports tell."""


@dataclass(slots=True)
class _Tally:
    """What one contender made of one kind and size of fault, over all recordings."""

    missed: int = 0
    delays: list[float] = field(default_factory=list)
    dollars: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A recording with real times."""

    name: str
    events: list[Event]

    def agents(self) -> list[str]:
        """Agents with enough behind them, the busiest first."""
        counts = Counter(event["agent_id"] for event in self.events)
        busy = [agent for agent, count in counts.items() if count >= 2 * _BEFORE]
        return sorted(busy, key=lambda agent: (-counts[agent], agent))[:_AGENTS]

    def agent_days(self) -> float:
        """Hours in which an agent was active, in days."""
        return len({(event["agent_id"], event_time(event["ts"]) // 3600) for event in self.events}) / 24

    def rounds(self) -> Iterator[list[tuple[int, list[Event], Fault]]]:
        """Faults to be laid together: number in _KINDS, the fault's events, the fault."""
        agents = self.agents()
        todo = [kind for _ in range(_REPEATS) for kind in range(len(_KINDS))]
        rng = Random(f"{_SEED}/{self.name}")  # noqa: S311 - a simulation, no secrets
        own: defaultdict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            own[event["agent_id"]].append(event)
        size = max(2, math.ceil(len(agents) / 3))
        for number in range(_MOST_ROUNDS if len(agents) > 1 else 0):
            # Every round begins with another agent, or few agents would see the same few kinds.
            first = number * (size + 1) % len(agents)
            turned = agents[first:] + agents[:first]
            if part := todo[number * size : (number + 1) * size]:
                yield [self._laid(kind, i, turned, own, rng) for i, kind in enumerate(part)]

    def _laid(
        self, kind: int, i: int, agents: list[str], own: dict[str, list[Event]], rng: Random
    ) -> tuple[int, list[Event], Fault]:
        agent, other = agents[i], agents[(i + 1) % len(agents)]
        events = own[agent]
        at = event_time(events[max(_BEFORE, int(len(events) * rng.uniform(0.5, 0.9)))]["ts"]) + rng.uniform(0, 60)
        # The other agent takes part as itself, whenever it was seen: what matters is its kind of work.
        friends = [event | {"ts": event_time(event["ts"])} for event in own[other][:_BEFORE]]
        friends = [event | {"ts": min(event["ts"], at - 1)} for event in friends]
        all_events, fault = _KINDS[kind].lay(events + friends, agent, other, at, seed=_SEED)
        return kind, [event for event in all_events if event.get("root_run_id") == fault.root_run_id], fault


@register
class Injected:
    """What detectors make of loops, runaways and spirals of several sizes in the midst of other work.

    A row per kind and size of fault, over all recordings together; and one of the recordings as they are,
    in which every alarm counts as false, though some may be about real faults.
    """

    name = "injected"

    def found_in(self, folder: Path) -> bool:
        """There are always data: the simulation, if nothing else."""
        return True

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        streams = list(_streams(folder))
        runs = [(stream, faults) for stream in streams for faults in ([], *stream.rounds())]
        tallies: defaultdict[tuple[int, str], _Tally] = defaultdict(_Tally)
        labels: dict[int, str] = {}
        alarms: dict[str, dict[str, int]] = {contender.name: {} for contender in contenders}
        known: dict[str, set[str]] = {}
        for done, (stream, faults) in enumerate(runs):
            recording = _recording(stream, faults)
            labels |= {kind: f"{fault.kind}, {fault.size}" for kind, _, fault in faults}
            for contender, found in zip(contenders, traces.found_by_each(recording, contenders).values(), strict=True):
                if faults:
                    fresh = [(i, finding) for i, finding in found if finding.id not in known[contender.name]]
                    _judge(recording, contender, fresh, faults, tallies)
                else:
                    known[contender.name] = {finding.id for _, finding in found}
                    alarms[contender.name][stream.name] = len(traces.alarms(finding for _, finding in found))
            progress((done + 1) / len(runs))
        days = sum(stream.agent_days() for stream in streams)
        over = ", ".join(f"{stream.name} ({len(stream.events):,} events)" for stream in streams)
        told = [
            Row(
                family=self.name,
                data="no fault",
                contender=contender.name,
                false_alarms=sum(alarms[contender.name].values()),
                agent_days=days,
                figures=alarms[contender.name],
                notes=f"laid over {over}; agent-days are hours in which an agent was active, divided by 24.",
            )
            for contender in contenders
        ]
        for kind, label in sorted(labels.items()):
            against = sensible(contenders, {_KINDS[kind].scope})
            told += [_row(self.name, label, contender, tallies[kind, contender.name]) for contender in against]
        return told

    def plots(self, folder: Path) -> Iterator[Plot]:
        contender = Contender("all", partial(configured, default_settings()))
        wanted = {kind for kind, fault in enumerate(_KINDS) if fault.view is not None}
        for stream in _streams(folder):
            for faults in stream.rounds():
                now = [(kind, fault) for kind, _, fault in faults if kind in wanted]
                if now:
                    recording = _recording(stream, faults)
                    found = traces.found(recording, contender)
                    for kind, fault in now:
                        view = _KINDS[kind].view
                        if kind in wanted and view is not None:
                            wanted.discard(kind)
                            yield _picture(stream.name, recording, found, view, fault)


def _recording(stream: _Stream, faults: Sequence[tuple[int, list[Event], Fault]]) -> traces.Recording:
    return traces.encoded(merged(stream.events, (event for _, laid, _ in faults for event in laid)))


def _row(family: str, data: str, contender: Contender, tally: _Tally) -> Row:
    figures = {"tokens before": float(np.median(tally.tokens))} if tally.tokens else {}
    return Row(
        family=family,
        data=data,
        contender=contender.name,
        caught=len(tally.delays),
        missed=tally.missed,
        delay_s=tally.delays,
        cost_before_usd=tally.dollars,
        figures=figures,
    )


def _judge(
    recording: traces.Recording,
    contender: Contender,
    found: Sequence[tuple[int, Finding]],
    faults: Sequence[tuple[int, list[Event], Fault]],
    tallies: dict[tuple[int, str], _Tally],
) -> None:
    """Adds what a contender found of each fault; findings of the untouched recording are left out before."""
    ingested = recording.ingested(contender.settings or default_settings())
    numbers = ingested.columns.numbers
    for kind, _, fault in faults:
        tally = tallies[kind, contender.name]
        first = next(((i, finding) for i, finding in found if _is_about(finding, fault)), None)
        if first is None:
            tally.missed += 1
            continue
        own = np.flatnonzero(ingested.root[: first[0] + 1] == ingested.roots[fault.root_run_id])
        tally.delays.append(max(0.0, first[1].ts - fault.start))
        tally.tokens.append(float(numbers["tokens"][own].sum()) / 1e3)
        if cost := int(numbers["cost"][own].sum()):
            tally.dollars.append(cost / 1e9)


def _is_about(finding: Finding, fault: Fault) -> bool:
    if finding.root_run_id == fault.root_run_id:
        return True
    meant = finding.scope is Scope.AGENT and finding.agent_id == fault.agent_id
    return meant and fault.start <= finding.ts <= fault.end + _LATEST_S


# ------------------------------------------------------------------------------------- recordings


def _streams(folder: Path) -> Iterator[_Stream]:
    """The folder's recordings with real times, or the simulation."""
    some = False
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        events = [event for event in traces.json_lines(path) if _is_native(event)]
        if _has_times(events):
            some = True
            yield _Stream(path.parent.name if path.name.startswith("native.") else path.name, events)
    if not some:
        yield _Stream("simulation", simulate())


def _is_native(event: Event) -> bool:
    try:
        event_time(event["ts"])
    except (KeyError, TypeError, Invalid):
        return False
    return isinstance(event.get("agent_id"), str)


def _has_times(events: Sequence[Event]) -> bool:
    """Whether anybody looked at a clock: steps without times are spaced evenly."""
    runs: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        runs[event.get("root_run_id") or event.get("run_id") or event["agent_id"]].append(event_time(event["ts"]))
    gaps = Counter(round(b - a, 3) for times in runs.values() for a, b in pairwise(times) if b > a)
    return bool(gaps) and max(gaps.values()) <= _SAME_GAP * gaps.total()


# --------------------------------------------------------------------------------------- pictures


def _picture(
    stream: str, recording: traces.Recording, found: Sequence[tuple[int, Finding]], view: _View, fault: Fault
) -> Plot:
    """What the agent did around the fault; the band is what it did before, 1st to 99th percentile."""
    ingested = recording.ingested(default_settings())
    numbers, agents = ingested.columns.numbers, ingested.columns.texts["agent_id"]
    own = ingested.root == ingested.roots[fault.root_run_id]
    own |= np.fromiter((agent == fault.agent_id for agent in agents), bool, len(agents))
    weight = numbers["tokens"] / 1e3 if view.counted is None else (numbers["kind"] == view.counted).astype(np.float64)
    step = view.step_s
    edges = np.arange(fault.start - view.before_s, fault.end + view.after_s, step)
    value, _ = np.histogram(numbers["ts"][own], edges, weights=weight[own])
    low, high = np.quantile(value[edges[1:] <= fault.start], (0.01, 0.99))
    return Plot(
        name=f"{fault.kind}-{fault.size}-{stream}",
        title=f"{fault.agent_id} in {stream}: {fault.kind}, {fault.size}",
        ts=(edges[:-1] + step / 2).tolist(),
        value=value.tolist(),
        unit=view.unit,
        band=([float(low)] * len(value), [float(high)] * len(value)),
        events=[(fault.start, fault.end)],
        alarms=[finding.ts for _, finding in found if _is_about(finding, fault)][:1],
    )
