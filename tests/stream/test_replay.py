from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from burnfuse.event import SEQUENCE_HEADER
from stream.batches import sequence_of
from stream.clock import ManualClock
from stream.replay import run
from stream.settings import KafkaSettings


def replay(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stream", "replay", *args], capture_output=True, text=True, timeout=60)


@pytest.fixture
def topic(broker: str, topic_prefix: str) -> str:
    name = f"{topic_prefix}usage"
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics({name: {"num_partitions": 3}}, wait_for_metadata=True)
    admin.close()
    return name


def read(broker: str, topic: str) -> list:  # type: ignore[type-arg]
    consumer = KafkaConsumer(
        bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False, consumer_timeout_ms=3000
    )
    consumer.assign([TopicPartition(topic, p) for p in range(3)])
    records = list(consumer)
    consumer.close()
    return records


def test_records_arrive_as_they_are_keyed_by_agent_and_numbered(broker: str, topic: str, tmp_path: Path) -> None:
    lines = [json.dumps({"agent_id": f"a{n % 4}", "ts": 1.0 * n}) for n in range(40)] + ["{broken"]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines))
    done = replay(str(path), "--broker", broker, "--topic", topic)
    assert done.returncode == 0, done.stderr
    records = sorted(read(broker, topic), key=lambda r: sequence_of(r.headers))
    assert [r.value.decode() for r in records] == lines
    assert [sequence_of(r.headers) for r in records] == list(range(1, 42))
    assert [r.key for r in records[:4]] == [b"a0", b"a1", b"a2", b"a3"]
    assert records[-1].key is None
    assert len({r.partition for r in records if r.key == b"a0"}) == 1


def test_speed_paces_by_event_time(broker: str, topic: str, tmp_path: Path) -> None:
    path, clock, slept = tmp_path / "events.jsonl", ManualClock(), []
    path.write_text("".join(json.dumps({"agent_id": "a", "ts": ts}) + "\n" for ts in (100.0, 110.0, 130.0)))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    assert run([str(path)], KafkaSettings(bootstrap_servers=[broker]), topic, 20.0, "agent_id", clock, sleep)
    assert sum(slept) == pytest.approx(1.5)  # 30 s of events at 20 times the pace
    assert len(read(broker, topic)) == 3


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["nothing-there.jsonl", "--broker", "127.0.0.1:1"], 3, "cannot read nothing-there.jsonl: no such file"),
        (["-", "--broker", "127.0.0.1:1"], 1, "no Kafka broker answers at 127.0.0.1:1"),
        (["x.jsonl", "--broker", "127.0.0.1:1", "--key", "colour"], 2, "--key must be one of"),
        (["x.jsonl"], 2, "--broker"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args: list[str], code: int, word: str) -> None:
    done = replay(*args)
    assert done.returncode == code
    assert word in done.stderr


def test_other_headers_are_no_sequence_numbers() -> None:
    assert sequence_of(None) == 0
    assert sequence_of([("x", b"12345678"), (SEQUENCE_HEADER, b"short")]) == 0
    assert sequence_of([("x", None), (SEQUENCE_HEADER, (7).to_bytes(8, "big"))]) == 7
