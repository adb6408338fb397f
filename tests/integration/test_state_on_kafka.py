"""Workers that are killed, replaced and joined by others find, tell and post what an undisturbed one does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import yaml
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from random_streams import random_stream
from slack_server import SlackServer, slack_server_in_a_thread
from test_worker import TOKEN, burnfuse, consumed, findings, read_all, sharing, wait_for, worker

from stream import state


def committed(broker: str, topic: str) -> list[Any]:
    """Everything that was committed on a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False,
        isolation_level="read_committed",
    )  # fmt: skip
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(partitions)
    records: list[Any] = []
    quiet = time.monotonic() + 3
    while time.monotonic() < quiet:
        for batch in consumer.poll(timeout_ms=300).values():
            records += batch
            quiet = time.monotonic() + 3
    consumer.close()
    return records


def configure(folder: Path, broker: str, name: str, slack: SlackServer | None = None, **settings: Any) -> Path:
    config = folder / f"{name}.yaml"
    kafka = {
        "bootstrap_servers": [broker], "prefix": name, "input_topic": f"{name}-usage", "app_id": f"{name}-app",
        "partitions": 2, "input_partitions": 2, "hold_s": 5.0,
    }  # fmt: skip
    actions = {"slack": {"enabled": True, "base_url": slack.url, "update_s": 0.0, "pause_s": 0.0}} if slack else {}
    config.write_text(yaml.safe_dump({"kafka": kafka, "actions": actions, **settings}))
    burnfuse("topics", "--config", str(config))
    return config


def found(broker: str, name: str) -> dict[str, dict[str, Any]]:
    """Findings by id; one that came twice must be the same both times."""
    by_id: dict[str, dict[str, Any]] = {}
    for record in read_all(broker, f"{name}.findings"):
        line = json.loads(record.value)
        if line["type"] == "finding":
            plain = {k: v for k, v in line.items() if k not in ("clock", "source")}
            assert by_id.setdefault(line["id"], plain) == plain
    return by_id


def told(broker: str, name: str) -> Counter[tuple[str, str]]:
    """Incident and finding -> how often it was told; resolutions by the wall clock are left out."""
    changes = [json.loads(record.value) for record in committed(broker, f"{name}.incidents")]
    return Counter((c["change"], c["findings"][-1]) for c in changes if c["change"] != "resolved")


def test_kill_9_at_any_moment_changes_nothing(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix.rstrip(".")
    # The same agent, in steps that take long enough for kills in between.
    streams = [random_stream(seed, 150) for seed in range(100, 106)]
    values = [json.dumps(event).encode() for stream in streams for event in stream]
    quiet = tmp_path / "stream.jsonl"
    quiet.write_bytes(b"\n".join(values) + b"\n")
    fleet = tmp_path / "fleet.json"
    burnfuse("watch", "--json", "--save-calibration", str(fleet), str(quiet))
    lines = burnfuse("watch", "--json", "--calibration", str(fleet), str(quiet)).stdout.splitlines()
    expected = findings(json.loads(line) for line in lines)

    with slack_server_in_a_thread() as slack:
        fixed = {"calibration": {"file": str(fleet)}, "overload": {"shed": False}}
        config = configure(tmp_path, broker, name, slack, state={"checkpoint_s": 1.0}, **fixed)
        usage, rng = f"{name}-usage", random.Random(1)
        producer = KafkaProducer(bootstrap_servers=broker)
        inner = [f"{name}.{topic}" for topic in ("events", "graph", "findings")]

        def send(some: list[bytes], begin: int) -> None:
            for n, value in enumerate(some):
                header = [("bf-seq", (begin + n).to_bytes(8, "big"))]
                producer.send(usage, key=json.loads(value)["agent_id"].encode(), value=value, headers=header)
            producer.flush()

        size = len(values) // 6
        kills = 0
        for begin in range(0, len(values), size):
            send(values[begin : begin + size], begin)
            with worker(config, TOKEN) as process:
                deadline = time.monotonic() + rng.uniform(6, 14)
                while time.monotonic() < deadline:
                    assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.1)
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        with worker(config, TOKEN) as process:
            wait_for("findings", lambda: len(found(broker, name)) >= len(expected), process)
            wait_for("commits", lambda: consumed(broker, f"{name}-app", [usage, *inner]), process)
            opened = {i for kind, i in told(broker, name) if kind == "opened"}
            wait_for("posts", lambda: len(slack.messages) >= len(opened), process)
        assert kills >= 6

    assert found(broker, name) == expected
    # Each finding was told of once.
    counts = told(broker, name)
    assert set(counts.values()) == {1}
    assert {finding for _, finding in counts} == set(expected)
    # No incident has two messages.
    incidents = [json.loads(record.value) for record in committed(broker, f"{name}.incidents")]
    ids = [message["metadata"]["event_payload"]["incident_id"] for message in slack.messages.values()]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {line["id"] for line in incidents if line["change"] == "opened"}


def calls(producer: KafkaProducer, usage: str, n: int, agents: int = 32) -> None:
    """The n-th identical call of each agent; the third is a loop."""
    for agent in range(agents):
        event = {
            "event_id": f"{agent}-{n}", "agent_id": f"a{agent}", "ts": 1_790_000_000.0 + n, "kind": "tool", "tool": "t",
            "args": {}, "result": "same", "root_run_id": f"task {agent}",
        }  # fmt: skip
        producer.send(usage, key=event["agent_id"].encode(), value=json.dumps(event).encode())  # type: ignore[attr-defined]
    producer.flush()


def restored(process: subprocess.Popen[str]) -> Counter[str]:
    """Partition -> how often a verbose worker, which has ended, has restored its state."""
    assert process.stdout is not None
    lines = [json.loads(line)["message"] for line in process.stdout]
    return Counter(line.partition(":")[0] for line in lines if ": restored " in line and line.endswith(" s"))


def test_state_moves_with_partitions_and_back(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix.rstrip(".")
    config = configure(tmp_path, broker, name, state={"standby": True})
    usage, group = f"{name}-usage", f"{name}-app"
    producer = KafkaProducer(bootstrap_servers=broker)
    inner = [usage, f"{name}.events", f"{name}.graph"]
    with worker(config, TOKEN, "--verbose") as first:
        calls(producer, usage, 0)
        wait_for("the first call", lambda: consumed(broker, group, inner), first)
        with worker(config, TOKEN, "--verbose") as second:
            wait_for("the rebalance", lambda: sharing(broker, group) == 2, second)
            calls(producer, usage, 1)
            wait_for("the second call", lambda: consumed(broker, group, inner), second)
            second.send_signal(signal.SIGKILL)
            second.wait()
        calls(producer, usage, 2)
        wait_for("findings", lambda: len(found(broker, name)) >= 32, first)
    assert len(found(broker, name)) == 32
    # What stayed where it was has not been restored again, though Kafka took it away for the moment.
    all_of_it = [*(f"{name}.{topic}/{p}" for topic in ("events", "graph") for p in range(2)), f"{name}.findings/0"]
    moved = restored(second)
    assert 0 < len(moved) < len(all_of_it)
    assert restored(first) == Counter(all_of_it) + moved


def test_a_worker_refuses_a_state_of_another_version_in_one_sentence(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix.rstrip(".")
    config = configure(tmp_path, broker, name)
    producer = KafkaProducer(bootstrap_servers=broker)
    newer = msgspec.msgpack.encode((state.FORMAT + 1, {}))
    producer.send(f"{name}.state.graph", key=state.MANIFEST, value=newer, partition=1)
    producer.close()

    def start() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stream", "worker", "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {}, check=False)

    done = start()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"burnfuse: the saved state of {name}.graph/1 has format {state.FORMAT + 1}, this version of burnfuse reads "
        f"up to {state.FORMAT}: run the version that wrote it, or give the state up with `burnfuse state reset`"
    )
    burnfuse("state", "reset", "--config", str(config), "--yes")
    with worker(config, TOKEN) as process:
        calls(KafkaProducer(bootstrap_servers=broker), f"{name}-usage", 0)
        wait_for("the call", lambda: consumed(broker, f"{name}-app", [f"{name}-usage", f"{name}.graph"]), process)
