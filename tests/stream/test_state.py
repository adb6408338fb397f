"""Saved state: whoever goes on from it goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from collections import defaultdict
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from random_streams import random_stream

from detectors.types import Finding, Scope
from stream import state
from stream.clock import ManualClock
from stream.engine import GRAPH, WATCH, RecentIds
from stream.errors import SavedStateError
from stream.ingest.ingest import Record
from stream.pipeline import make_ingest
from stream.settings import default_settings
from stream.stages import DetectStage, IncidentStage, IngestStage, Message, Topics, position_name
from stream.state import MANIFEST, RowPages, Saved, origin
from stream.wire import decode_finding, encode_finding, finding_json

NOW = 1_800_000_000.0
SETTINGS = default_settings()
# Generations of ids change, and entities die, within a short stream.
_SHORT = {"duplicate_ids": 300, "run_ttl_s": 60.0, "root_ttl_s": 120.0, "agent_ttl_s": 200.0, "tick_s": 20.0}
SETTINGS = SETTINGS.model_copy(update={"engine": SETTINGS.engine.model_copy(update=_SHORT)})
TOPICS = Topics.of(SETTINGS.kafka)
ORIGIN = origin("bf.events", 2, None)
Place = tuple[str, int]


def restored(stage: Any, saved: Saved) -> Any:
    for _ in stage.restore(saved, ORIGIN):
        pass
    return stage


def reference(values: list[bytes], seed: int) -> tuple[dict[str, dict[str, Any]], set[bytes]]:
    """What is found, and turned away, when nothing goes wrong."""
    world = World(values, random.Random(seed))
    world.finish()
    return world.outcome


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
        self.letters: set[bytes] = set()
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
                found, clock, _ = decode_finding(message.value)
                finding = plain(found) | {"clock": clock}
                assert self.found.setdefault(finding["id"], finding) == finding, "found again, but not the same"
            elif message.partition is not None:
                self.logs[message.topic, message.partition].append(message.value)
            elif message.topic == TOPICS.dead:
                self.letters.add(message.value)

    @property
    def outcome(self) -> tuple[dict[str, dict[str, Any]], set[bytes]]:
        return self.found, self.letters

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
            progress = dict.fromkeys(ended, self.last_ms + 1)
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
        pages = list(self.stages[place].checkpoint(ORIGIN, everything=everything))
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


@pytest.mark.parametrize("seed", range(8))
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
    assert world.outcome == reference(values, seed)


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
            assert self.world.outcome == reference(self.values, self.seed)


def test_whatever_happens_and_whenever() -> None:
    run_state_machine_as_test(
        Crashes,
        settings=settings(
            max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


# -------------------------------------------------------------------------------------- incidents


def random_findings(rng: random.Random, n: int) -> list[bytes]:
    """Records of the findings topic: findings of three partitions, some of them twice, and clocks."""
    clocks = dict.fromkeys(("bf.events/0", "bf.events/1", "bf.graph/0"), 1000.0)
    records = []
    for i in range(n):
        source = rng.choice(list(clocks))
        clocks[source] += rng.choice([0.0, 5.0, 60.0, 400.0])
        scope = Scope.ROOT if source == "bf.graph/0" else rng.choice([Scope.RUN, Scope.AGENT])
        agent, task = f"a{rng.randrange(4)}", f"t{rng.randrange(3)}"
        finding = Finding(
            id=f"f-{i}", detector="spiral" if scope is Scope.ROOT else "retry_loop", rule=rng.choice(["x", "y"]),
            severity=rng.choice(["warning", "critical"]), scope=scope, ts=clocks[source], agent_id=agent,
            run_id=f"{task}/{agent}", root_run_id=task, event_id=f"e{i}", score=0.5, observed=4.0, expected=4.0,
            unit="calls", reason=f"agent {agent} repeats", evidence={"cost_usd": rng.random(), "deep": {"a": [1, 2.5]}},
        )  # fmt: skip
        record = encode_finding(finding, clocks[source], source)
        if rng.random() < 0.3:
            record = json.dumps({"type": "clock", "source": source, "clock": clocks[source]}).encode()
        records.append(record)
        if rng.random() < 0.2:
            records.append(rng.choice(records))
    return records


@pytest.mark.parametrize("seed", range(20))
def test_what_is_told_of_incidents_does_not_depend_on_crashes(seed: int) -> None:
    records = random_findings(random.Random(seed), 200)

    def fresh() -> IncidentStage:
        return IncidentStage(SETTINGS.incidents, TOPICS, ManualClock(NOW))

    undisturbed = fresh()
    expected = [change for record in records for change in undisturbed.process(record)[0]]
    assert {change.kind for change in expected} == {"opened", "updated", "escalated", "resolved"}
    assert undisturbed.seen_before > 0

    rng, stage, saved, told, acted, offset = random.Random(seed), fresh(), Saved(), [], [], 0
    while offset < len(records):
        changes, letter = stage.process(records[offset], offset)
        assert letter is None
        offset += 1
        numbers = [stage.begin(change, ["slack"]) for change in changes]
        if changes or rng.random() < 0.3:
            # What changes goes out with the checkpoint or not at all.
            saved.take(stage.checkpoint(ORIGIN, everything=rng.random() < 0.1))
            told += changes
        for number, change in zip(numbers, changes, strict=True):
            if rng.random() < 0.7:
                # What was left untold of the incident is told along.
                acted += [
                    c.incident for n, c in stage.pending.items() if n <= number and c.incident.id == change.incident.id
                ]
                stage.finish("slack", change.incident.id, number, change.incident.id.encode())
        if rng.random() < 0.15:
            stage = restored(fresh(), saved)
            offset = max(0, stage.end - rng.choice([0, 0, 5]))
            for number, change in stage.again(["slack"]).items():
                acted.append(change.incident)
                stage.finish("slack", change.incident.id, number, b"")
    assert told == expected
    assert stage.incidents.open == undisturbed.incidents.open
    assert stage.incidents.clocks == undisturbed.incidents.clocks
    # Every change was acted on; what had been when the crash came, perhaps twice.
    done = [json.dumps(msgspec.to_builtins(incident)) for incident in acted]
    waiting = [
        json.dumps(msgspec.to_builtins(incident)) for incident in (change.incident for change in stage.pending.values())
    ]
    assert {*done, *waiting} == {json.dumps(msgspec.to_builtins(change.incident)) for change in expected}


def test_what_actions_remember_is_saved_until_they_forget_it() -> None:
    stage = IncidentStage(SETTINGS.incidents, TOPICS, ManualClock(NOW))
    saved = Saved()
    told = [c for record in random_findings(random.Random(1), 20) for c in stage.process(record)[0]]
    changes = [told[0], next(change for change in told if change.incident.id != told[0].incident.id)]
    first, second = (stage.begin(change, ["slack", "kill"]) for change in changes)
    one, other = (change.incident.id for change in changes)
    stage.finish("slack", one, first, b"message")
    stage.finish("kill", one, first, b"")
    stage.finish("slack", other, second, b"")  # the other action has not told it
    saved.take(stage.checkpoint(ORIGIN))
    again = restored(IncidentStage(SETTINGS.incidents, TOPICS, ManualClock(NOW)), saved)
    assert again.remembered == [("slack", one, b"message")]
    assert again.pending == {second: changes[1]}
    third = again.begin(changes[0], ["slack"])
    again.finish("slack", one, third, b"")
    saved.take(again.checkpoint(ORIGIN))
    assert not restored(IncidentStage(SETTINGS.incidents, TOPICS, ManualClock(NOW)), saved).remembered


# ------------------------------------------------------------------------------------------ pages


@given(st.lists(st.sets(st.integers(0, 60), max_size=20), max_size=60), st.integers(1, 12))
def test_the_pages_hold_the_latest_of_every_row_and_little_else(checkpoints: list[set[int]], full: int) -> None:
    pages, topic, latest = RowPages(), {}, {}
    for now, changed in enumerate(checkpoints):
        latest |= dict.fromkeys(changed, now)
        rows, given_up = pages.renew(np.array(sorted(changed), np.int64), full)
        assert changed <= set(rows.tolist())
        for low in range(0, len(rows), full):
            piece = rows[low : low + full]
            topic[pages.put(piece)] = {row: latest[row] for row in piece.tolist()}
        for page in given_up:
            del topic[page]
        assert {row: at for page in topic.values() for row, at in page.items()} == latest
        assert sum(map(len, topic.values())) <= 2 * len(latest) + full
        # Whoever goes on from here counts the same.
        again = RowPages()
        for page, held in topic.items():
            again.load(page, np.array(sorted(held), np.int64))
        pages = again


def test_many_small_checkpoints_leave_few_pages() -> None:
    pages, topic = RowPages(), set()
    for row in range(2000):
        rows, given_up = pages.renew(np.array([row]), 100)
        for low in range(0, len(rows), 100):
            topic.add(pages.put(rows[low : low + 100]))
        topic -= set(given_up)
    assert len(topic) < 100


def test_pages_are_filled_from_the_first_checkpoint_on() -> None:
    clock, saved = ManualClock(NOW), Saved()
    ingest = IngestStage(TOPICS, make_ingest(SETTINGS, position_name(TOPICS.usage), clock, None), 1, 1)
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", clock)
    written: list[set[bytes]] = []
    for low in (0, 20_000):
        values = [
            b'{"agent_id": "a%d", "run_id": "r%d", "ts": 1}' % (agent, agent) for agent in range(low, low + 20_000)
        ]
        for message in ingest.process([Record(value, 0, low + n, 1 + n, n) for n, value in enumerate(values)]):
            if message.topic == TOPICS.events:
                stage.add(message.value, None)
        stage.step()
        pages = [page for page in stage.checkpoint(ORIGIN) if page.key.startswith(b"rows/")]
        assert not [page.key for page in pages if page.value is None], "nothing that was saved has changed"
        saved.take(pages)
        written.append({page.key for page in pages})
    for scope in (b"run", b"agent"):
        sizes = [len(saved.pages[key]) for key in sorted(written[0]) if scope in key]
        assert len(sizes) > 2
        assert all(0.7 * state.PAGE_BYTES < size < 1.3 * state.PAGE_BYTES for size in sizes[:-1])


@given(st.lists(st.lists(st.integers(2, 200), max_size=30), max_size=30), st.integers(1, 40), st.randoms())
def test_remembered_ids_survive(batches: list[list[int]], size: int, rng: random.Random) -> None:
    plain_ids, ids = RecentIds(size), RecentIds(size)
    pages, saved = state.IdPages(ids, "ids"), Saved()
    for batch in batches:
        given_ids = np.array(batch, np.uint64)
        if rng.random() < 0.3:
            for memory in (plain_ids, ids):
                memory.forgive(np.unique(given_ids[:3]))
        assert _listed(ids.add(given_ids), batch) == _listed(plain_ids.add(given_ids), batch)
        if rng.random() < 0.5:
            if rng.random() < 0.2:
                ids.all_changed()
                saved.take(pages.restart())
            saved.take(pages.changes())
            ids, before = RecentIds(size), ids
            pages = state.IdPages(ids, "ids")
            for key, value in saved.pages.items():
                _, generation, number = key.decode().split("/")
                pages.load(int(generation), int(number), value, "x")
            pages.loaded(before.generation, "x")


def _listed(first: Any, batch: list[int]) -> list[bool]:
    return [True] * len(batch) if first is None else first.tolist()


# ---------------------------------------------------------------------------------------- refusals


def a_state() -> tuple[Saved, DetectStage]:
    world = World(values_of(3), random.Random(3))
    world.finish()
    place = world.places[0]
    world.checkpoint(place)
    return world.saved[place], world.stage(place)


def refused(saved: Saved, stage: DetectStage, here: state.Origin = ORIGIN) -> str:
    with pytest.raises(SavedStateError) as caught:
        for _ in stage.restore(saved, here):
            pass
    message = str(caught.value)
    assert "`burnfuse state reset`" in message
    assert "\n" not in message
    return message


def test_a_state_of_another_format_is_refused() -> None:
    for key in (MANIFEST, b"rows/run/0", b"ids/0/0"):
        saved, stage = a_state()
        saved.pages[key] = msgspec.msgpack.encode((state.FORMAT + 1, {"anything": 1}))
        assert "has format 3, this version of burnfuse reads up to 2" in refused(saved, stage)


def test_a_state_of_another_version_of_a_detector_is_refused() -> None:
    saved, stage = a_state()
    manifest = state.decode(saved.pages[MANIFEST], state.DetectManifest, "x")
    manifest.detectors["retry_loop"] += 1
    saved.pages[MANIFEST] = state.encode(manifest)
    assert "retry_loop version" in refused(saved, stage)


@pytest.mark.parametrize(
    ("here", "what"),
    [
        (origin("usage", 2, None), "another topic (bf.events, now usage)"),
        (origin("bf.events", 3, None), "another number of partitions (2, now 3)"),
        (origin("bf.events", 2, "a key"), "another hash_key:"),
    ],
)
def test_a_state_made_with_other_settings_is_refused(here: state.Origin, what: str) -> None:
    saved, stage = a_state()
    message = refused(saved, stage, here)
    assert what in message
    assert "a key" not in message


@given(st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_damaged_state_is_refused_or_taken_but_leads_to_no_other_error(data: st.DataObject) -> None:
    saved, stage = _A_STATE()
    key = data.draw(st.sampled_from(sorted(saved.pages)))
    value = bytearray(saved.pages[key])
    if data.draw(st.booleans()):
        value = value[: data.draw(st.integers(0, len(value) - 1))]
        saved.pages[key] = bytes(value)
        refused(saved, stage)
        return
    at = data.draw(st.integers(0, min(len(value), 600) - 1))
    value[at] ^= 1 << data.draw(st.integers(0, 7))
    saved.pages[key] = bytes(value)
    with contextlib.suppress(SavedStateError):
        restored(stage, saved)


def test_an_unknown_page_or_a_missing_one_is_refused() -> None:
    saved, stage = a_state()
    saved.pages[b"else/0"] = state.encode(b"")
    assert "damaged" in refused(saved, stage)
    saved, stage = a_state()
    del saved.pages[next(key for key in saved.pages if key.startswith(b"shared/runaway"))]
    assert "damaged" in refused(saved, stage)


def test_pages_without_a_manifest_are_no_state() -> None:
    saved, stage = a_state()
    del saved.pages[MANIFEST]
    assert list(stage.restore(saved, ORIGIN)) == []
    assert stage.position.end == 0


def _a_state_maker() -> Any:
    made: list[Saved] = []

    def make() -> tuple[Saved, DetectStage]:
        if not made:
            made.append(a_state()[0])
        saved = Saved()
        saved.pages = dict(made[0].pages)
        return saved, DetectStage(SETTINGS, TOPICS, WATCH, f"{TOPICS.events}/0", ManualClock(NOW))

    return make


_A_STATE = _a_state_maker()


def test_a_detector_whose_settings_give_the_state_another_meaning_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = SETTINGS.detectors.odd_window.model_copy(update={"enabled": True})
    on = SETTINGS.model_copy(update={"detectors": SETTINGS.detectors.model_copy(update={"odd_window": odd})})
    other = odd.model_copy(update={"window_s": 2 * odd.window_s})
    changed = SETTINGS.model_copy(update={"detectors": SETTINGS.detectors.model_copy(update={"odd_window": other})})
    world = World(values_of(3), random.Random(3))
    place = world.places[0]
    world.stages[place] = DetectStage(on, TOPICS, WATCH, "bf.events/0", world.clock)
    world.finish()
    world.checkpoint(place)
    rows = np.arange(2)
    stage = restored(DetectStage(changed, TOPICS, WATCH, "bf.events/0", world.clock), world.saved[place])
    assert "detector odd_window begins anew" in caplog.text
    detectors, before = stage.engine.detectors, world.stages[place].engine.detectors
    assert detectors["odd_window"].dump(rows) == type(detectors["odd_window"])(other).dump(rows)
    assert detectors["runaway"].dump(rows) == before["runaway"].dump(rows)
    # All pages are written anew, so that none of another meaning is left.
    world.saved[place].take(stage.checkpoint(ORIGIN))
    again = restored(DetectStage(on, TOPICS, WATCH, "bf.events/0", world.clock), world.saved[place])
    assert again.engine.detectors["odd_window"].dump(rows) == type(detectors["odd_window"])(odd).dump(rows)


@pytest.mark.parametrize("row", [-1, 1 << 30])
def test_a_damaged_number_of_a_row_takes_no_memory(row: int) -> None:
    saved, stage = a_state()
    key = next(key for key in saved.pages if key.startswith(b"rows/run/"))
    held = state.decode(saved.pages[key], state.SavedRows, "x")
    held.rows = held.rows[:-4] + row.to_bytes(4, "little", signed=True)
    saved.pages[key] = state.encode(held)
    assert "numbers of saved rows are damaged" in refused(saved, stage)
