from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from detectors.types import Finding, Scope
from stream.clock import ManualClock
from stream.columns import Packed
from stream.engine import GRAPH, WATCH
from stream.ingest.ingest import Record
from stream.pipeline import make_ingest
from stream.settings import default_settings
from stream.stages import _MAX_PACKED_BYTES, DetectStage, IncidentStage, IngestStage, Topics, position_name
from stream.wire import decode_finding, encode_finding, finding_json

SETTINGS = default_settings()
TOPICS = Topics.of(SETTINGS.kafka)
CLOCK = ManualClock(1_800_000_000.0)


def ingest_stage(inputs: int = 2, outputs: int = 3) -> IngestStage:
    return IngestStage(TOPICS, make_ingest(SETTINGS, position_name(TOPICS.usage), CLOCK, None), inputs, outputs)


def record(position: int, **fields: object) -> Record:
    event = {"agent_id": "a", "ts": 1_700_000_000.0 + position, "event_id": f"e{position}"} | fields
    return Record(json.dumps(event).encode(), 0, position, log_ms=1_800_000_000_000 + position, sequence=position)


def test_events_of_an_agent_go_to_one_partition_and_trees_also_to_the_graph() -> None:
    records = [record(n, agent_id=f"a{n % 5}", root_run_id="task" if n % 2 else None) for n in range(100)]
    messages = ingest_stage().process(records)
    places: dict[str, set[tuple[str, int | None]]] = {}
    for message in messages:
        for agent in Packed.decode(message.value).columns.texts["agent_id"]:
            places.setdefault(agent, set()).add((message.topic, message.partition))
    for found in places.values():
        assert len({partition for topic, partition in found if topic == TOPICS.events}) == 1
        assert {topic for topic, _ in found} == {TOPICS.events, TOPICS.graph}
    graph = [Packed.decode(m.value) for m in messages if m.topic == TOPICS.graph]
    assert sum(len(p.columns) for p in graph) == 50
    assert len({m.partition for m in messages if m.topic == TOPICS.graph}) == 1  # one root run


def test_a_large_batch_of_one_agent_is_split_below_what_a_broker_takes() -> None:
    wide = "x" * 400
    records = [record(n, run_id=f"{wide}{n}", root_run_id=wide) for n in range(2000)]
    messages = [m for m in ingest_stage().process(records) if m.topic == TOPICS.events]
    assert len(messages) > 1
    assert all(len(m.value) <= _MAX_PACKED_BYTES for m in messages)
    packed = [Packed.decode(m.value) for m in messages]
    assert [e for p in packed for e in p.columns.texts["event_id"]] == [f"e{n}" for n in range(2000)]
    # Progress may only be told with the last part: the others' events have come by then.
    assert [bool(p.progress) for p in packed] == [False] * (len(packed) - 1) + [True]


def test_a_bad_record_becomes_a_dead_letter_with_reason_and_place_and_no_content() -> None:
    messages = ingest_stage().process(
        [record(1), Record(b'{"agent_id": "planted-secret"', 1, 7, 1_800_000_000_000), record(2)]
    )
    letters = [json.loads(m.value) for m in messages if m.topic == TOPICS.dead]
    assert [(x["reason"], x["source"], x["bytes"], x["fate"]) for x in letters] == [
        ("truncated", "usage/1/7", 29, "rejected")
    ]
    assert "planted-secret" not in json.dumps(letters)


def test_a_heartbeat_reaches_every_inner_partition() -> None:
    messages = ingest_stage(outputs=3).heartbeat({0: 5}, TOPICS.events, TOPICS.graph)
    assert {(m.topic, m.partition) for m in messages} == {
        (topic, p) for topic in (TOPICS.events, TOPICS.graph) for p in range(3)
    }
    assert Packed.decode(messages[0].value).progress == {0: 5}


def test_a_damaged_inner_record_becomes_a_dead_letter() -> None:
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", CLOCK)
    letter = stage.add(b"\xc1 garbage", "token")
    assert letter is not None
    assert letter.topic == TOPICS.dead
    assert json.loads(letter.value)["reason"] == "malformed"
    assert stage.step() == ([], ["token"])


def test_late_events_and_duplicates_become_dead_letters_once() -> None:
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", CLOCK)
    logged = 1_800_000_000_000
    records = [replace(record(n), log_ms=logged + i) for i, n in enumerate((5000, 5000, 1))]
    for message in ingest_stage(inputs=1, outputs=1).process(records):
        if message.topic == TOPICS.events:
            stage.add(message.value, "t")
    for message in ingest_stage(inputs=1, outputs=1).heartbeat({0: 1 << 60}, TOPICS.events, TOPICS.graph):
        if message.topic == TOPICS.events:
            stage.add(message.value, "h")
    messages, done = stage.step()
    letters = [json.loads(m.value) for m in messages]
    assert sorted((x["reason"], x["fate"]) for x in letters) == [("duplicate", "ignored"), ("late", "rejected")]
    assert done == ["t", "h"]


def test_a_step_is_due_at_once_or_when_enough_waits_or_has_waited_long_enough() -> None:
    clock = ManualClock(1_800_000_000.0)
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", clock)
    assert not stage.due(0.0), "there is no news"
    (message,) = [m for m in ingest_stage(1, 1).process([record(n) for n in range(2000)]) if m.topic == TOPICS.events]
    stage.add(message.value, "first")
    assert stage.due(0.0)
    assert not stage.due(2.0)
    clock.advance(2.0)
    assert stage.due(2.0), "it has waited long enough"
    stage.step()
    assert not stage.due(0.0)
    for n in range(8):
        assert not stage.due(2.0)
        stage.add(message.value, n)
    assert stage.due(2.0), "enough waits"


def test_what_spans_agents_waits_for_others_a_moment() -> None:
    clock = ManualClock(1_800_000_000.0)
    stage = DetectStage(SETTINGS, TOPICS, GRAPH, "bf.graph/0", clock)
    (message,) = ingest_stage(1, 1).heartbeat({0: 1}, TOPICS.graph)
    stage.add(message.value, "first")
    assert not stage.due(0.0)
    clock.advance(0.25)
    assert stage.due(0.0)
    assert not stage.due(2.0)


def finding(n: int = 1, ts: float = 100.0) -> Finding:
    return Finding(
        id=f"f-{n}", detector="retry_loop", rule="same_call", severity="warning", scope=Scope.RUN, ts=ts, agent_id="a",
        run_id="r", root_run_id="t", event_id=f"e{n}", score=0.5, observed=4.0, expected=4.0, unit="calls",
        reason="agent a repeats", evidence={"cost_usd": 1.5},
    )  # fmt: skip


def test_a_finding_survives_its_topic() -> None:
    for clock in (12.5, float("-inf")):
        assert decode_finding(encode_finding(finding(), clock, "bf.events/3")) == (finding(), clock, "bf.events/3")
    assert finding_json(finding())["type"] == "finding"


def test_incidents_come_from_findings_and_end_with_their_partitions_clock() -> None:
    stage = IncidentStage(SETTINGS.incidents, TOPICS, CLOCK)
    changes, letter = stage.process(encode_finding(finding(), 100.0, "bf.events/0"))
    assert ([c.kind for c in changes], letter) == (["opened"], None)
    # The clock of another partition says nothing about this one.
    other = json.dumps({"type": "clock", "source": "bf.events/1", "clock": 1e9}).encode()
    assert stage.process(other) == ([], None)
    own = json.dumps({"type": "clock", "source": "bf.events/0", "clock": 100.0 + SETTINGS.incidents.quiet_s}).encode()
    changes, _ = stage.process(own)
    assert [c.kind for c in changes] == ["resolved"]


def test_a_damaged_finding_becomes_a_dead_letter() -> None:
    stage = IncidentStage(SETTINGS.incidents, TOPICS, CLOCK)
    for value in (b"", b"{", b"[]", b'{"type": "finding"}', b'{"type": "else"}', b"[" * 5000):
        changes, letter = stage.process(value)
        assert changes == []
        assert letter is not None
        assert json.loads(letter.value)["reason"] == "malformed"


def on(partition: int, position: int, agent: str) -> Record:
    return replace(record(position, agent_id=agent), source=partition)


def test_an_agent_on_two_partitions_of_a_keyed_input_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stage = ingest_stage(inputs=2)
    stage.hand_over([on(0, 0, "a"), on(1, 1, "b"), on(0, 2, "a"), on(0, 3, "c")])
    assert not caplog.messages
    for n in (4, 6):
        stage.hand_over([on(1, n, "a"), on(0, n + 1, "b")])
    assert len(caplog.messages) == 1
    assert "agent a comes on several partitions" in caplog.messages[0]


def test_events_of_a_keyed_input_are_handed_over_by_partition() -> None:
    records = [on(n % 2, n, f"a{n % 2}") for n in range(6)]
    messages, handed = ingest_stage(inputs=2).hand_over([*records, Record(b"{", 1, 9, log_ms=50)])
    assert {p: packed.columns.texts["event_id"] for p, packed in handed.items()} == {
        0: ["e0", "e2", "e4"],
        1: ["e1", "e3", "e5"],
    }
    assert [message.topic for message in messages] == [TOPICS.dead]
