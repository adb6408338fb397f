"""Where the time goes, stage by stage: the service's stages over generated events, without Kafka.

    python -m benchmarks.stages --events 200000

Prints microseconds of CPU time per input event; so it hardly matters what else the machine does. What a stage
calls and is listed itself is not counted twice. Reading from and writing to Kafka, and Faust's own work, come on
top: `benchmarks.throughput` measures them all together.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import results, screen
from benchmarks.load import Load, chunks
from burnfuse.event import UsageEvent
from detectors.base import registered
from stream.clock import SystemClock
from stream.engine import GRAPH, WATCH
from stream.ingest.decode import decode_event
from stream.ingest.distinct import Distinct
from stream.ingest.hashing import Hasher
from stream.ingest.ingest import Record
from stream.ingest.pricing import Used
from stream.pipeline import make_ingest
from stream.settings import Settings, default_settings
from stream.stages import DetectStage, IncidentStage, IngestStage, Message, Topics, position_name

BATCHES = {
    "records to columns": "stream.ingest.ingest:Ingest.columns",
    "pick events for a partition": "stream.columns:Columns.take",
    "pack": "stream.columns:Packed.encode",
    "unpack": "stream.columns:Packed.decode",
    "order of the log": "stream.sequencer:Sequencer.ready",
    "duplicates and late events": "stream.engine:Engine._accept",
    "entity rows": "stream.entities:Entities.assign",
    "entity lives and sums": "stream.entities:Entities.view",
    "trees": "stream.engine:_Trees.place",
    "marks of the clock": "stream.engine:Engine._tick",
    "findings to records": "stream.stages:encode_finding",
}
"""Stage -> the function that does it, called a batch at a time (or per finding)."""

_REST = {
    "ingest": "ingest: the rest (split, keys)",
    "detect": "engine: the rest",
    "incidents": "incidents",
}


@dataclass(slots=True)
class Profile:
    """CPU seconds per stage; of nested stages each has only its own."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    _inner: list[float] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of the block, without the stages inside it."""
        self._inner.append(0.0)
        start = time.thread_time()
        try:
            yield
        finally:
            took = time.thread_time() - start
            own = took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            self.calls[name] = self.calls.get(name, 0) + 1

    def wrap(self, stack: ExitStack, name: str, where: str) -> None:
        """Counts the calls of a function, named `module:Class.method`, until the stack unwinds."""
        module, _, path = where.partition(":")
        try:
            owner: Any = importlib.import_module(module)
            *outer, last = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            found = owner.__dict__[last]
        except (ImportError, AttributeError, KeyError):
            self.missing.append(f"{name}: there is no {where}")
            return
        call = found.__func__ if isinstance(found, classmethod | staticmethod) else found

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return call(*args, **kwargs)

        stack.enter_context(mock.patch.object(owner, last, type(found)(timed) if call is not found else timed))


def records(load: Load, partitions: int = 4) -> list[Record]:
    """The events as if read from an input topic with any key."""
    logged = int(load.start * 1000)
    values = [usage.value for chunk in chunks(load) for usage in chunk]
    return [
        Record(value, i % partitions, i // partitions, logged + int(i / load.rate * 1000))
        for i, value in enumerate(values)
    ]


def alone(load: Load, batch: Sequence[Record], settings: Settings) -> dict[str, float]:
    """CPU seconds of what happens per event inside "records to columns", each step alone over all events."""
    took: dict[str, float] = {}

    def run(name: str, work: Callable[[], Any]) -> Any:
        start = time.thread_time()
        result = work()
        took[name] = time.thread_time() - start
        return result

    events: list[UsageEvent] = run("decode and check", lambda: [decode_event(r.value or b"") for r in batch])
    contents = [(raw, ready) for e in events for raw, ready in ((e.args, e.args_hash), (e.result, e.result_hash))]
    content = Hasher(b"key").content
    run("hash arguments and results", lambda: [content(raw, ready) for raw, ready in contents])
    texts = Hasher(b"key").texts
    names = {"agent": [e.agent_id for e in events], "tool": [e.tool or "" for e in events]}
    names["model"] = [e.model or "" for e in events]
    run("hash agent, tool, model", lambda: [texts(kind, column) for kind, column in names.items()])
    prices = make_ingest(settings, position_name("usage"), SystemClock(), None)._prices
    ts = np.full(len(events), load.start)
    run("price", lambda: prices.costs(events, ts, Distinct.of([e.model for e in events]), Used.of(events)))
    return took


def measure(load: Load, batch: int = 2000, gather: int = 1, settings: Settings | None = None) -> dict[str, Any]:
    """The profile of a load, as data.

    Args:
        batch: Records ingest takes at once.
        gather: Batches of ingest that detectors take at once, per inner partition.
    """
    settings = settings or default_settings()
    given = records(load)
    profile, topics, clock = Profile(), Topics.of(settings.kafka), SystemClock()
    name_of = position_name(topics.usage)
    inner = settings.kafka.partitions
    inputs = 1 + max(record.source for record in given)
    steps = alone(load, given, settings)
    findings = 0
    with ExitStack() as stack:
        for name, where in BATCHES.items():
            profile.wrap(stack, name, where)
        for name, cls in registered().items():
            profile.wrap(stack, f"detector {name}", f"{cls.__module__}:{cls.__qualname__}.update")
        ingest = IngestStage(topics, make_ingest(settings, name_of, clock, "key"), inputs, inner)
        detect = {
            (topic, partition): DetectStage(settings, topics, scopes, f"{topic}/{partition}", clock)
            for topic, scopes in ((topics.events, WATCH), (topics.graph, GRAPH))
            for partition in range(inner)
        }
        incidents = IncidentStage(settings.incidents, topics, clock)
        start = time.thread_time()
        for low in range(0, len(given), batch * gather):
            waiting: dict[DetectStage, list[Message]] = defaultdict(list)
            for at in range(low, min(low + batch * gather, len(given)), batch):
                with profile.stage(_REST["ingest"]):
                    messages = ingest.process(given[at : at + batch])
                for message in messages:
                    if message.partition is not None:  # else a dead letter
                        waiting[detect[message.topic, message.partition]].append(message)
            for stage, messages in waiting.items():
                findings += _detect(profile, stage, messages, incidents)
        total = time.thread_time() - start
    per_event = 1e6 / len(given)
    return {
        "load": {"events": load.events, "agents": load.agents, "zipf": load.zipf, "batch": batch, "gather": gather},
        "total_us": total * per_event,
        "stages_us": {name: seconds * per_event for name, seconds in _sorted(profile.seconds)},
        "calls": profile.calls,
        "alone_us": {name: seconds * per_event for name, seconds in steps.items()},
        "findings": findings,
        "missing": profile.missing,
    }


def _detect(profile: Profile, stage: DetectStage, messages: Sequence[Message], incidents: IncidentStage) -> int:
    """Packed records of one partition through its detectors, and what they find through the incidents."""
    with profile.stage(_REST["detect"]):
        for message in messages:
            stage.add(message.value, message)
        found, _ = stage.step()
    for record in found:
        with profile.stage(_REST["incidents"]):
            incidents.process(record.value)
    return len(found)


def _sorted(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def table(result: dict[str, Any]) -> str:
    """The profile for people."""
    lines = [f"{result['load']}, {result['findings']} findings", ""]
    rate = 1e6 / result["total_us"]
    lines.append(f"{'µs/event':>9}  {'share':>6}  {'calls':>8}  stage")
    for name, took in result["stages_us"].items():
        lines.append(f"{took:9.3f}  {took / result['total_us']:6.1%}  {result['calls'][name]:8d}  {name}")
    lines.append(f"{result['total_us']:9.3f}  {1:6.1%}            all stages, {rate:,.0f} events per CPU second")
    lines += ["", 'inside "records to columns", each step alone:']
    lines += [f"{took:9.3f}  {name}" for name, took in result["alone_us"].items()]
    lines += [f"not measured: {line}" for line in result["missing"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = screen.parser("stages", __doc__.splitlines()[0], "--events 200000 --repeats 3 --core 0", events=200_000)
    parser.add_argument("--agents", type=int, default=Load().agents)
    parser.add_argument("--zipf", type=float, default=Load().zipf, help="0: every agent in turn")
    parser.add_argument("--batch", type=int, default=2000, help="records ingest takes at once")
    parser.add_argument("--gather", type=int, default=1, help="batches of ingest that detectors take at once")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest run is shown")
    parser.add_argument("--core", type=int, help="stay on this core")
    options = parser.parse_args(arguments)
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    load = Load(events=options.events, agents=options.agents, zipf=options.zipf)
    runs = [measure(load, options.batch, options.gather) for _ in range(options.repeats)]
    best = min(runs, key=lambda run: run["total_us"])
    sys.stdout.write(table(best) + "\n")
    results.save(options.json, "stages", best)


if __name__ == "__main__":
    screen.command_line(main)
