"""`watch` and the worker find the same, however the stream is cut, spread and interleaved."""

from __future__ import annotations

import json
import random
import zlib
from collections import defaultdict
from typing import Any

import pytest
from random_streams import random_stream

from detectors.base import FleetFigures
from stream.clock import ManualClock
from stream.columns import Columns, Packed
from stream.engine import GRAPH, WATCH
from stream.ingest.ingest import Record
from stream.pipeline import Pipeline, make_ingest
from stream.settings import Settings, default_settings
from stream.stages import DetectStage, IngestStage, Topics, own, position_name
from stream.wire import decode_finding, finding_json

NOW = 1_800_000_000.0


def watch(settings: Settings, values: list[bytes], rng: random.Random) -> list[dict[str, Any]]:
    """Findings of the in-process pipeline, with random batch cuts and a fixed calibration."""
    pipeline = Pipeline(settings, clock=ManualClock(NOW), name_of=lambda _, n: str(n), figures=FleetFigures())
    records = [Record(value, 0, n) for n, value in enumerate(values)]
    found = []
    while records:
        size = rng.choice([1, 7, 50, 400])
        step = pipeline.process(records[:size])
        found += [finding_json(item) for item in step.happened if not hasattr(item, "incident")]
        records = records[size:]
    return found


class Cluster:
    """The worker's stages over lists that stand for partitions, read in random order and pieces."""

    def __init__(self, settings: Settings, inputs: int, outputs: int, rng: random.Random, keyed: bool = False) -> None:
        self.keyed = keyed
        self.topics, self.rng, self.inputs = Topics.of(settings.kafka), rng, inputs
        self.clock = ManualClock(NOW)
        ingest = make_ingest(settings, position_name(self.topics.usage), self.clock, None)
        self.ingest = IngestStage(self.topics, ingest, inputs, outputs)
        self.logs: dict[tuple[str, int], list[bytes]] = defaultdict(list)
        self.stages = {
            (topic, p): DetectStage(settings, self.topics, scopes, f"{topic}/{p}", self.clock)
            for topic, scopes, partitions in (
                (self.topics.usage if keyed else self.topics.events, WATCH, inputs if keyed else outputs),
                (self.topics.graph, GRAPH, outputs),
            )
            for p in range(partitions)
        }
        self.done: dict[tuple[str, int], int] = defaultdict(int)
        self.found: list[dict[str, Any]] = []
        self.acknowledged = 0

    def run(self, values: list[bytes], key: str) -> None:
        usage: list[list[Record]] = [[] for _ in range(self.inputs)]
        log_ms = int(NOW * 1000)
        for n, value in enumerate(values):
            log_ms += self.rng.random() < 0.02  # many records share a millisecond
            name = str(json.loads(value).get(key, n)) if key != "any" else str(self.rng.random())
            source = zlib.crc32(name.encode()) % self.inputs
            usage[source].append(Record(value, source, len(usage[source]), log_ms, n + 1))
        heads = [0] * self.inputs
        while any(heads[p] < len(usage[p]) for p in range(self.inputs)):
            batch: list[Record] = []
            for p in self.rng.sample(range(self.inputs), self.rng.randint(1, self.inputs)):
                size = self.rng.choice([1, 10, 100])
                batch += usage[p][heads[p] : heads[p] + size]
                heads[p] += size
            if self.keyed:
                messages, handed = self.ingest.hand_over(batch)
                self.send(messages)
                self.hand(handed)
            else:
                self.send(self.ingest.process(batch))
            if self.rng.random() < 0.3:
                self.heartbeat({p: log_ms + 1 for p in range(self.inputs) if heads[p] >= len(usage[p])})
            if self.rng.random() < 0.5:
                self.detect()
        self.heartbeat(dict.fromkeys(range(self.inputs), log_ms + 1))
        self.detect(everything=True)

    def heartbeat(self, progress: dict[int, int]) -> None:
        if self.keyed:
            self.hand({p: own(Columns.empty(), ms) for p, ms in progress.items()})
        topics = [self.topics.graph] if self.keyed else [self.topics.graph, self.topics.events]
        self.send(self.ingest.heartbeat(progress, *topics) if progress else [])

    def hand(self, handed: dict[int, Packed]) -> None:
        for p, packed in handed.items():
            self.logs[self.topics.usage, p].append(packed.encode())

    def send(self, messages: list[Any]) -> None:
        for message in messages:
            if message.topic == self.topics.findings:
                self.found.append(finding_json(decode_finding(message.value)[0]))
            elif message.partition is not None:
                self.logs[message.topic, message.partition].append(message.value)

    def detect(self, *, everything: bool = False) -> None:
        for place, stage in self.stages.items():
            log = self.logs[place]
            upto = len(log) if everything else self.rng.randint(self.done[place], len(log))
            for n in range(self.done[place], upto):
                assert stage.add(log[n], n) is None
            self.done[place] = upto
            messages, done = stage.step()
            self.acknowledged += len(done)
            self.send(messages)


def in_order(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(json.loads(json.dumps(findings)), key=lambda finding: finding["id"])


@pytest.mark.parametrize("seed", range(50))
def test_worker_and_watch_agree(seed: int) -> None:
    check([json.dumps(event).encode() for event in random_stream(seed)], random.Random(seed))


@pytest.mark.parametrize("seed", range(50, 70))
def test_an_input_keyed_by_agent_needs_no_shuffle(seed: int) -> None:
    check([json.dumps(event).encode() for event in random_stream(seed)], random.Random(seed), keyed=True)


def test_worker_and_watch_agree_on_streams_that_lie_days_apart_and_back_in_time() -> None:
    values = [json.dumps(event).encode() for seed in range(10) for event in random_stream(seed, 200)]
    check(values, random.Random(0))


def check(values: list[bytes], rng: random.Random, *, keyed: bool = False) -> None:
    settings = default_settings()
    cluster = Cluster(settings, inputs=rng.randint(1, 6), outputs=rng.randint(1, 6), rng=rng, keyed=keyed)
    cluster.run(values, key="agent_id" if keyed else rng.choice(["agent_id", "root_run_id", "any"]))
    expected = in_order(watch(settings, values, rng))
    assert in_order(cluster.found) == expected
    # Every packed record was done with, and nothing waits.
    assert cluster.acknowledged == sum(len(log) for log in cluster.logs.values())
    assert not any(stage.waiting for stage in cluster.stages.values())


def test_the_random_streams_give_every_detector_something_to_find() -> None:
    rules = {
        (finding["detector"], finding["rule"])
        for seed in range(50)
        for finding in watch(
            default_settings(), [json.dumps(e).encode() for e in random_stream(seed)], random.Random(0)
        )
    }
    assert {detector for detector, _ in rules} == {"retry_loop", "runaway", "spiral"}
    assert len(rules) >= 8
