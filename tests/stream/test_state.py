"""Saved state: whoever goes on from it goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from random_streams import random_stream

from detectors.base import FleetFigures
from detectors.types import Finding, Scope
from stream import state
from stream.clock import ManualClock
from stream.engine import GRAPH, WATCH, RecentIds
from stream.errors import SavedStateError
from stream.incidents import Incidents
from stream.ingest.ingest import Record
from stream.pipeline import Pipeline, make_ingest
from stream.settings import default_settings
from stream.stages import DetectStage, IncidentStage, IngestStage, Message, Topics, position_name
from stream.state import MANIFEST, Page, RowPages, Saved, origin
from stream.wire import decode_finding, encode_finding, finding_json

NOW = 1_800_000_000.0
SETTINGS = default_settings()
# Small generations, so that they change within a stream.
SETTINGS = SETTINGS.model_copy(update={"engine": SETTINGS.engine.model_copy(update={"duplicate_ids": 300})})
TOPICS = Topics.of(SETTINGS.kafka)
ORIGIN = origin("bf.events", 2, None)
Place = tuple[str, int]


def restored(stage: Any, saved: Saved) -> Any:
    for _ in stage.restore(saved, ORIGIN):
        pass
    return stage


def reference(values: list[bytes], seed: int) -> dict[str, dict[str, Any]]:
    """What is found when nothing goes wrong."""
    world = World(values, random.Random(seed))
    world.finish()
    return world.found


def plain(finding: Finding) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(finding_json(finding)))
    return made


class World:
    """The stages over lists that stand for topics; each of them may be killed at any moment."""

    inputs, outputs = 3, 2

    def __init__(self, values: list[bytes], rng: random.Random) -> None:
        self.clock = ManualClock(NOW)
        self.usage: list[list[Record]] = [[] for _ in range(self.inputs)]
        log_ms = int(NOW * 1000)
        at = 0
        while at < len(values):
            size = rng.choice([1, 1, 1, 4])  # some records hold several events
            piece = values[at : at + size]
            log_ms += rng.random() < 0.1
            key = json.loads(piece[0])["agent_id"] if size == 1 else "several"
            source = zlib.crc32(key.encode()) % self.inputs
            value = piece[0] if size == 1 else b"[" + b",".join(piece) + b"]"
            self.usage[source].append(Record(value, source, len(self.usage[source]), log_ms, at + 1))
            at += size
        self.last_ms = log_ms
        self.logs: dict[Place, list[bytes]] = defaultdict(list)
        self.found: dict[str, dict[str, Any]] = {}
        self.heads = [0] * self.inputs
        self.committed_input = [0] * self.inputs
        self.places = [(topic, p) for topic in (TOPICS.events, TOPICS.graph) for p in range(self.outputs)]
        self.stages = {place: self.stage(place) for place in self.places}
        self.saved = {place: Saved() for place in self.places}
        self.next: dict[Place, int] = dict.fromkeys(self.places, 0)
        self.done: dict[Place, set[int]] = {place: set() for place in self.places}
        self.start_ingest()

    def start_ingest(self) -> None:
        ingest = make_ingest(SETTINGS, position_name(TOPICS.usage), self.clock, None)
        self.ingest = IngestStage(TOPICS, ingest, self.inputs, self.outputs)

    def stage(self, place: Place) -> DetectStage:
        scopes = WATCH if place[0] == TOPICS.events else GRAPH
        return DetectStage(SETTINGS, TOPICS, scopes, f"{place[0]}/{place[1]}", self.clock)

    def send(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic == TOPICS.findings:
                finding = plain(decode_finding(message.value)[0])
                assert self.found.setdefault(finding["id"], finding) == finding, "found again, but not the same"
            elif message.partition is not None:
                self.logs[message.topic, message.partition].append(message.value)

    def read(self, source: int, size: int) -> None:
        """Ingest takes some records of a partition."""
        head = self.heads[source]
        batch = self.usage[source][head : head + size]
        if batch:
            self.send(self.ingest.process(batch))
            self.heads[source] += len(batch)

    def heartbeat(self) -> None:
        ended = [p for p in range(self.inputs) if self.heads[p] >= len(self.usage[p])]
        if ended:
            progress = {p: self.last_ms + 1 for p in ended}
            self.send(self.ingest.heartbeat(progress, TOPICS.graph, TOPICS.events))

    def kill_ingest(self, back: int) -> None:
        """Another ingest begins some records before the latest that were passed on."""
        self.heads = [max(0, head - back) for head in self.heads]
        self.start_ingest()

    def detect(self, place: Place, size: int) -> None:
        stage, log = self.stages[place], self.logs[place]
        for offset in range(self.next[place], min(self.next[place] + size, len(log))):
            assert stage.add(log[offset], offset, offset) is None
            self.next[place] = offset + 1
        messages, done = stage.step()
        self.send(messages)
        self.done[place].update(done)

    def checkpoint(self, place: Place, *, everything: bool = False) -> None:
        pages = self.stages[place].checkpoint(ORIGIN, everything=everything)
        assert all(len(page.value or b"") < 1_000_000 for page in pages)
        self.saved[place].take(pages)

    def kill(self, place: Place, back: int) -> None:
        """Another process goes on from the latest checkpoint."""
        self.stages[place] = stage = restored(self.stage(place), self.saved[place])
        position = stage.position
        # All that lies below has been done with, so it may have been acknowledged; the commit may lag.
        self.next[place] = max(0, position.first - back)

    def rebalance(self, place: Place) -> None:
        """The partition is read again by the same process."""
        stage = self.stages[place]
        stage.read_again()
        self.next[place] = stage.position.first

    def finish(self) -> None:
        for source in range(self.inputs):
            while self.heads[source] < len(self.usage[source]):
                self.read(source, 100)
        self.heartbeat()
        for place in self.places:
            self.detect(place, len(self.logs[place]))
            assert not self.stages[place].waiting


def values_of(seed: int, n: int = 250) -> list[bytes]:
    return [json.dumps(event).encode() for event in random_stream(seed, n)]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_found_does_not_depend_on_crashes(seed: int) -> None:
    rng = random.Random(seed)
    values = values_of(seed)
    world = World(values, random.Random(seed))
    crashes = 0
    while any(world.heads[p] < len(world.usage[p]) for p in range(world.inputs)) or crashes < 10:
        place = rng.choice(world.places)
        what = rng.random()
        if what < 0.4:
            world.read(rng.randrange(world.inputs), rng.choice([1, 5, 30]))
        elif what < 0.5:
            world.heartbeat()
        elif what < 0.8:
            world.detect(place, rng.choice([0, 1, 3, 100]))
        elif what < 0.9:
            world.checkpoint(place, everything=rng.random() < 0.1)
        elif what < 0.96:
            world.kill(place, rng.choice([0, 0, 2, 1000]))
            crashes += 1
        elif what < 0.98:
            world.rebalance(place)
        else:
            world.kill_ingest(rng.choice([1, 10]))
            crashes += 1
    world.finish()
    assert world.found == reference(values, seed)


class Crashes(RuleBasedStateMachine):
    """The same, with what happens chosen by hypothesis."""

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.seed, self.values = seed, values_of(seed, 120)
        self.world = World(self.values, random.Random(seed))

    @rule(source=st.integers(0, 2), size=st.sampled_from([1, 7, 60]))
    def read(self, source: int, size: int) -> None:
        self.world.read(source, size)

    @rule()
    def heartbeat(self) -> None:
        self.world.heartbeat()

    @rule(place=st.integers(0, 3), size=st.sampled_from([0, 1, 5, 1000]))
    def detect(self, place: int, size: int) -> None:
        self.world.detect(self.world.places[place], size)

    @rule(place=st.integers(0, 3), everything=st.booleans())
    def checkpoint(self, place: int, everything: bool) -> None:
        self.world.checkpoint(self.world.places[place], everything=everything)

    @rule(place=st.integers(0, 3), back=st.sampled_from([0, 1, 1000]))
    def kill(self, place: int, back: int) -> None:
        self.world.kill(self.world.places[place], back)

    @rule(place=st.integers(0, 3))
    def rebalance(self, place: int) -> None:
        self.world.rebalance(self.world.places[place])

    @precondition(lambda self: any(self.world.heads))
    @rule(back=st.sampled_from([1, 20]))
    def kill_ingest(self, back: int) -> None:
        self.world.kill_ingest(back)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            assert self.world.found == reference(self.values, self.seed)


def test_whatever_happens_and_whenever() -> None:
    run_state_machine_as_test(
        Crashes,
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
