"""Spirals: labelled conversations, laid fan-outs and talks, simulated growth, and what looks like it but is healthy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from stream import inject
from stream.evaluate.base import Contender, Plot, Progress, Row, register
from stream.evaluate.traces import Outcome, Recording, encoded, json_lines, lines, run
from stream.ingest.decode import event_time

Event = dict[str, Any]

_START = 1_780_000_000.0
_OUTSIDE_PER_S = 0.2
"""Runs that a simulated root starts, per second."""
_KERNEL_S = 5.0
"""Mean time from a simulated run's start to those of the runs it starts, s."""
_HEALTHY = 0.6
"""Reproduction number before the change."""
_BEFORE_S, _AFTER_S = 600.0, 300.0
"""Simulated time before and after the change, s."""
_SYSTEMS = 60
"""Simulated systems per reproduction number."""
_MOST_STARTS = 800
"""A simulated system ends after so many starts after the change, so that growth ends."""
_QUIET_SYSTEMS, _QUIET_S = 2, 86400.0
"""Systems and seconds without a change."""
_AGENTS = ("planner", "searcher", "writer", "reviewer", "tester")
"""Who takes part in a simulated system; the first one's run is the root."""
_WAYS = ("spawn", "message")
"""How one run sets another going: it starts an agent, or it writes to one whose turn is a run of its own."""


@register
class Spiral:
    """Trees of agents that set each other off."""

    name = "spiral"

    def found_in(self, folder: Path) -> bool:
        """Whether there are conversations with the orchestrator's own opinion; the rest needs no files."""
        return (folder / "who-and-when" / "labels.jsonl").is_file()

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        """Every contender over every set."""
        sets: list[Callable[[Contender], Row]] = [partial(_conversations, folder / "who-and-when")]
        sets += [partial(_laid, name, laid) for name, laid in _FAULTS.items()]
        sets += [partial(_changed, way, number) for way in _WAYS for number in (0.9, 1.05, 1.2, 1.5)]
        sets += [*(partial(_unchanged, way) for way in _WAYS), _amplified, _healthy]
        rows = []
        for contender in contenders:
            for one in sets:
                rows.append(one(contender))
                progress(len(rows) / (len(sets) * len(contenders)))
        return rows

    def plots(self, folder: Path) -> Iterator[Plot]:
        """None: counts say it all."""
        return iter(())


def _conversations(folder: Path, contender: Contender) -> Row:
    """Traces whose orchestrator keeps a ledger; the others tell nothing about loops."""
    ledgers = {str(x["trace"]): x["labels"] for x in json_lines(folder / "labels.jsonl") if x.get("ledgers")}
    outcomes = run([*lines(folder / "native.jsonl.gz")], contender)
    looped = {trace for trace, labels in ledgers.items() if "ledger:in_loop" in labels}
    flagged = {trace for trace in ledgers if trace in outcomes and outcomes[trace].findings}
    return Row(
        "spiral",
        "who-and-when",
        contender.name,
        caught=len(flagged & looped),
        missed=len(looped - flagged),
        false_alarms=len(flagged - looped),
        healthy=len(ledgers) - len(looped),
        notes="in a loop is what the orchestrator wrote of itself; times are made up",
    )


# ------------------------------------------------------------------------------------------ laid faults

Laid = Callable[[Sequence[Event], int], tuple[list[Event], inject.Fault]]

_FAULTS: dict[str, Laid] = {
    "fan-out, each starts 4": lambda e, s: inject.fan_out(e, "planner", _START + 900, worker_id="worker", seed=s),
    "fan-out, each starts 2": lambda e, s: inject.fan_out(e, "planner", _START + 900, children=2, seed=s),
    "ping-pong": lambda e, s: inject.ping_pong(e, "planner", "worker", _START + 900, seed=s),
}


def _work() -> list[Event]:
    """A quarter of an hour of two agents at work, each call with a result of its own."""
    return [
        {
            "event_id": f"work-{agent}-{i}",
            "ts": _START + 30 * i,
            "agent_id": agent,
            "run_id": f"work-{agent}",
            "input_tokens": 2000,
            "output_tokens": 200,
            "result_hash": f"{agent} {i}",
        }
        for i in range(30)
        for agent in ("planner", "worker")
    ]


def _laid(name: str, laid: Laid, contender: Contender) -> Row:
    """Five faults of one kind; of fan-outs, at which start the first critical finding came."""
    delays, starts = [], []
    for seed in range(5):
        events, fault = laid(_work(), seed)
        outcome = run(encoded(events), contender).get(fault.root_run_id, Outcome(fault.start))
        critical = [finding.ts for finding in outcome.findings if finding.severity == "critical"]
        if critical:
            delays.append(min(critical) - fault.start)
            spawned = [e for e in events if e.get("kind") == "spawn" and e["root_run_id"] == fault.root_run_id]
            starts.append(sum(event_time(e["ts"]) <= min(critical) for e in spawned))
    figures = {"starts until critical, most": float(max(starts))} if any(starts) else {}
    return Row(
        "spiral",
        name,
        contender.name,
        caught=len(delays),
        missed=5 - len(delays),
        delay_s=delays,
        figures=figures,
        notes="only critical findings count",
    )


# --------------------------------------------------------------------------------- simulated growth


def _system(root: str, way: str, rng: Random, number: float, change_s: float, end_s: float) -> list[Event]:
    """Runs from outside at an even rate, and from each run `number` more (0.6 before the change).

    Args:
        way: Kind of the events: agents are started, or agents that are there write to each other.
    """
    starts: list[tuple[float, str, str]] = []
    ts = rng.expovariate(_OUTSIDE_PER_S)
    while ts < end_s:
        starts.append((ts, root, f"{root}/{len(starts)}"))
        ts += rng.expovariate(_OUTSIDE_PER_S)
    # Runs of the same generation one after the other: growth that nobody will see is cut off below.
    begun, known = deque(starts), len(starts)
    while begun and known < 20 * _MOST_STARTS + _OUTSIDE_PER_S * end_s / (1 - _HEALTHY):
        when, _, run_id = begun.popleft()
        # The number in force when a child starts counts: too many are drawn and thinned.
        most = max(number, _HEALTHY)
        mass = rng.expovariate(1.0) / most
        while mass < 1:
            delay = -_KERNEL_S * math.log1p(-mass)
            at = when + delay
            if at < end_s and rng.random() * most < (number if at >= change_s else _HEALTHY):
                start = (at, run_id, f"{root}/{known}")
                known += 1
                starts.append(start)
                begun.append(start)
            mass += rng.expovariate(1.0) / most
    starts.sort()
    before = sum(at < change_s for at, _, _ in starts)
    agent_of = {root: _AGENTS[0]}
    events: list[Event] = []
    for at, parent, child in starts[: before + _MOST_STARTS]:
        agent_of[child] = rng.choice([agent for agent in _AGENTS if agent != agent_of[parent]])
        events.append(
            {
                "event_id": f"{child}#start",
                "ts": round(_START + at, 3),
                "kind": way,
                "agent_id": agent_of[parent],
                "run_id": parent,
                "root_run_id": root,
                "to_run_id": child,
                "to_agent_id": agent_of[child],
                "args_hash": child,
            }
        )
    return events


@cache
def _systems(way: str, number: float, count: int, change_s: float, end_s: float) -> Recording:
    """Simulated systems, the same for every contender."""
    rng = Random(f"reproduction {number}")  # noqa: S311 - a simulation
    systems = [_system(f"system {i}", way, rng, number, change_s, end_s) for i in range(count)]
    return encoded(sorted((event for system in systems for event in system), key=lambda event: event["ts"]))


def _changed(way: str, number: float, contender: Contender) -> Row:
    """Growth that changes at a known time; findings before it are the other row's."""
    changed = _START + _BEFORE_S
    delays = []
    for outcome in run(_systems(way, number, _SYSTEMS, _BEFORE_S, _BEFORE_S + _AFTER_S), contender).values():
        after = [finding.ts for finding in outcome.findings if finding.ts >= changed]
        delays += [min(after) - changed] if after else []
    return Row(
        "spiral",
        f"{way}s, reproduction 0.6 to {number}",
        contender.name,
        caught=len(delays),
        missed=_SYSTEMS - len(delays),
        delay_s=delays,
    )


def _unchanged(way: str, contender: Contender) -> Row:
    """Days of the same simulation without a change."""
    outcomes = run(_systems(way, _HEALTHY, _QUIET_SYSTEMS, math.inf, _QUIET_S), contender)
    return Row(
        "spiral",
        f"{way}s, reproduction stays 0.6",
        contender.name,
        false_alarms=sum(len(outcome.findings) for outcome in outcomes.values()),
        agent_days=_QUIET_SYSTEMS * _QUIET_S / 86400,
        notes="days of systems; all findings count",
    )


def _amplified(contender: Contender) -> Row:
    """A task of sixty times the tokens that its kind takes; what comes before it must be quiet."""
    outcomes = run(encoded(_days(60)), contender)
    outcome = outcomes["large task"]
    told = [finding.ts for finding in outcome.findings]
    return Row(
        "spiral",
        "60 times the usual tokens",
        contender.name,
        caught=int(bool(told)),
        missed=int(not told),
        false_alarms=sum(bool(other.findings) for name, other in outcomes.items() if name != "large task"),
        healthy=len(outcomes) - 1,
        delay_s=[min(told) - outcome.start] if told else [],
        notes="the large task calls its model every 10 s",
    )


# -------------------------------------------------------------------------------- healthy look-alikes


def _healthy(contender: Contender) -> Row:
    """A map-reduce over 50 workers, a planner with 30 handoffs that make progress, a batch of 500 by night.

    And a task of five times the tokens that its kind takes, on the thirtieth day.
    """
    cases = {"map-reduce": _map_reduce(), "planner": _planner(), "batch": _batch(6), "large task": _days(5)}
    flagged = {name for name, events in cases.items() if run(encoded(events), contender).get(name, Outcome(0)).findings}
    return Row(
        "spiral",
        "healthy look-alikes",
        contender.name,
        false_alarms=len(flagged),
        healthy=len(cases),
        figures={name: float(name in flagged) for name in cases},
        notes="the batch counts on its seventh night",
    )


def _event(root: str, number: int, ts: float, **more: object) -> Event:
    return {"event_id": f"{root}#{number}", "ts": ts, "run_id": root, "root_run_id": root, **more}


def _starts(root: str, runs: int, seconds: float, start: float) -> Iterator[Event]:
    for i in range(runs):
        at = start + seconds * i / runs
        yield _event(
            root, i, at, agent_id="planner", kind="spawn", to_agent_id="worker", to_run_id=f"{root}/{i}", round_id=root
        )


def _map_reduce() -> list[Event]:
    root = "map-reduce"
    events = [*_starts(root, 50, 8.0, _START)]
    for i in range(50):
        own = {"agent_id": "worker", "run_id": f"{root}/{i}"}
        events.append(
            _event(root, 100 + i, _START + 10 + i / 5) | own | {"kind": "tool", "tool": "read", "result_hash": f"{i}"}
        )
        events.append(
            _event(root, 200 + i, _START + 20 + i / 5)
            | own
            | {"kind": "message", "to_agent_id": "planner", "to_run_id": root, "args_hash": f"report {i}"}
        )
    return events


def _days(times: int) -> list[Event]:
    """A task a day of about 150,000 tokens, and on the last day one of so many times that."""
    rng = Random("days")  # noqa: S311 - made-up data
    calls = [("large task", 29, 10 * times)] + [(f"day {day}", day, rng.randint(5, 10)) for day in range(29)]
    events = []
    for root, day, n in sorted(calls, key=lambda call: call[1]):
        at = _START + 86400 * day
        told = {"kind": "message", "to_agent_id": "helper", "args_hash": root}
        events.append(_event(root, n, at, agent_id="clerk") | told)
        for i in range(n):
            work = {"input_tokens": 15_000, "result_hash": f"{root} {i}"}
            events.append(_event(root, i, at + 10 * (i + 1), agent_id="clerk") | work)
    return events


def _planner() -> list[Event]:
    root, events = "planner", []
    for i in range(30):
        speaker, listener = ("planner", f"expert {i // 2 % 4}")[:: 1 if i % 2 == 0 else -1]
        at = _START + 10 * i
        events.append(
            _event(root, 2 * i, at, agent_id=speaker, kind="message", to_agent_id=listener, args_hash=f"step {i}")
        )
        events.append(
            _event(root, 2 * i + 1, at + 5, agent_id=listener, kind="tool", tool="read", result_hash=f"fact {i}")
        )
    return events


def _batch(nights: int) -> list[Event]:
    earlier = [e for n in range(nights) for e in _starts(f"night {n}", 500, 120.0, _START + 86400 * n)]
    return [*earlier, *_starts("batch", 500, 120.0, _START + 86400 * nights)]
