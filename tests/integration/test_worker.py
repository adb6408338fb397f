"""The whole way on a real Kafka: replay, worker as a separate process, Slack, kill proposals."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import read_all
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from random_streams import random_stream
from slack_server import slack_server_in_a_thread

DEADLINE_S = 240
TOKEN = "xoxb-only-for-tests"


def burnfuse(*args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "stream", *args], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@contextmanager
def worker(config: Path, token: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "stream", "worker", "--config", str(config), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"BURNFUSE_SLACK_TOKEN": token},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


def values(broker: str, topic: str) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in read_all(broker, topic)]


def wait_for(what: str, condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, f"the worker ended while waiting for {what}: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.5)


def consumed(broker: str, group: str, topics: list[str]) -> bool:
    """Whether the group has committed everything on the topics."""
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False)
    partitions = [TopicPartition(t, p) for t in topics for p in consumer.partitions_for_topic(t) or ()]
    ends = consumer.end_offsets(partitions)
    done = all((consumer.committed(tp) or 0) >= ends[tp] for tp in partitions if ends[tp])
    consumer.close()
    return done


def findings(lines: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for line in lines:
        if line["type"] == "finding":
            assert line["id"] not in found, f"{line['id']} was reported twice"
            found[line["id"]] = {k: v for k, v in line.items() if k not in ("clock", "source")}
    return found


BAD_RECORDS = [
    (b"{not json", "malformed"),
    (b'{"agent_id": "a", "ts": 1.0, "input_tokens": -1}', "invalid"),
    (b'{"agent_id": "a", "ts": 1.0, "kind": "strange"}', "invalid"),
    (b'{"agent_id": "a", "ts": "yesterday"}', "bad_time"),
    (b'{"agent_id": "a", "ts": 1', "truncated"),
    (b"\x00\x01\x02\xff", "binary"),
    (b'{"agent_id": "a", "ts": 1, "args": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep"),
    (b'{"agent_id": "a", "ts": 1, "tool": "' + b"x" * 900_000 + b'"}', "invalid"),
    (b"", "empty"),
    (None, "empty"),
]


def test_worker_finds_what_watch_finds_and_tells_slack(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    topic_prefix = topic_prefix.rstrip(".")
    demo, mixed, fleet = tmp_path / "demo.jsonl.gz", tmp_path / "random.jsonl", tmp_path / "fleet.json"
    burnfuse("demo", "--save", str(demo))
    burnfuse("watch", "--json", "--save-calibration", str(fleet), str(demo))
    mixed.write_text("".join(json.dumps(e) + "\n" for seed in range(10) for e in random_stream(seed)))

    with slack_server_in_a_thread() as slack:
        config = tmp_path / "burnfuse.yaml"
        settings = {
            "kafka": {
                "bootstrap_servers": [broker],
                "app_id": f"{topic_prefix}-app",
                "input_topic": f"{topic_prefix}-usage",
                "prefix": topic_prefix,
                "partitions": 3,
                "input_partitions": 4,
                # A busy machine may need seconds to append what replay has sent.
                "hold_s": 5.0,
            },
            "calibration": {"file": str(fleet)},
            # On a slow machine the worker falls behind, and must find the same all the same.
            "overload": {"shed": False},
            "actions": {
                "slack": {"enabled": True, "channel": "#agent-alerts", "base_url": slack.url, "pause_s": 0},
                "kill": {"enabled": True, "topic": f"{topic_prefix}.kill.proposals"},
            },
        }
        config.write_text(yaml.safe_dump(settings))
        quiet = tmp_path / "quiet.yaml"
        quiet.write_text(yaml.safe_dump({"calibration": {"file": str(fleet)}}))

        expected: dict[str, dict[str, Any]] = {}
        for path in (mixed, demo):
            lines = [
                json.loads(x)
                for x in burnfuse("watch", "--json", "--config", str(quiet), str(path)).stdout.splitlines()
            ]
            expected |= findings(lines)
        assert {f["detector"] for f in expected.values()} == {"retry_loop", "runaway", "spiral"}

        burnfuse("topics", "--config", str(config))
        usage = f"{topic_prefix}-usage"
        producer = KafkaProducer(bootstrap_servers=broker)
        for value, _ in BAD_RECORDS:
            producer.send(usage, key=b"bad", value=value)
        producer.flush()
        producer.close()
        burnfuse("replay", str(mixed), "--broker", broker, "--topic", usage)

        with worker(config, TOKEN) as process:
            # The demo comes while the worker is at work.
            burnfuse("replay", str(demo), "--broker", broker, "--topic", usage)
            inner = [f"{topic_prefix}.{name}" for name in ("events", "graph", "findings")]
            wait_for("findings", lambda: len(findings(values(broker, inner[2]))) >= len(expected), process)
            wait_for("commits", lambda: consumed(broker, f"{topic_prefix}-app", [usage, *inner]), process)
            opened = {line["id"] for line in values(broker, f"{topic_prefix}.incidents") if line["change"] == "opened"}
            wait_for("Slack posts", lambda: slack.methods.count("chat.postMessage") >= len(opened), process)

        found = findings(values(broker, inner[2]))
        differ = [
            (found.get(k), expected.get(k)) for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)
        ]
        assert not differ

        incidents = values(broker, f"{topic_prefix}.incidents")
        opened = [line["id"] for line in incidents if line["change"] == "opened"]
        assert len(set(opened)) == len(opened)
        posted = [call.incident for call in slack.calls if call.method == "chat.postMessage"]
        assert sorted(posted) == sorted(opened)
        assert {call.authorization for call in slack.calls} == {f"Bearer {TOKEN}"}

        proposals = values(broker, f"{topic_prefix}.kill.proposals")
        commands = [json.loads(base64.b64decode(p["payload"])) for p in proposals]
        runaway = [c for c in commands if c["target"]["id"].startswith("fault-runaway")]
        assert len(runaway) == 1
        assert runaway[0]["mode"] == "shadow"
        assert runaway[0]["state"] == "PROPOSED"
        assert all(not p["signatures"] for p in proposals)
        assert len({c["command_id"] for c in commands}) == len(commands)

        letters = Counter(letter["reason"] for letter in values(broker, f"{topic_prefix}.dead"))
        duplicates = letters.pop("duplicate")
        assert letters == Counter(reason for _, reason in BAD_RECORDS)
        summary = json.loads(burnfuse("watch", "--json", str(mixed)).stdout.splitlines()[-1])
        assert duplicates == summary["duplicates"]


@pytest.mark.kafka
def test_worker_says_in_one_line_what_is_wrong(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    config = tmp_path / "burnfuse.yaml"
    config.write_text(yaml.safe_dump({"kafka": {"bootstrap_servers": [broker], "prefix": topic_prefix,
                                                "input_topic": f"{topic_prefix}-usage"},
                                      "metrics": {"listen": None}}))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "stream", "worker", "--config", str(config)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("burnfuse: topics are missing (")
    assert "run `burnfuse topics`" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_failing_stage_stops_the_worker_and_loses_nothing(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    prefix = topic_prefix.rstrip(".")
    config = tmp_path / "burnfuse.yaml"
    usage, group = f"{prefix}-usage", f"{prefix}-app"
    kafka = {"bootstrap_servers": [broker], "prefix": prefix, "input_topic": usage, "app_id": group}
    config.write_text(yaml.safe_dump({"kafka": kafka}))
    burnfuse("topics", "--config", str(config))
    producer = KafkaProducer(bootstrap_servers=broker)
    producer.send(usage, value=b'{"agent_id": "a", "ts": 1.0}')
    producer.close()
    script = Path(__file__).with_name("crashing_worker.py")
    done = subprocess.run([sys.executable, str(script), str(config)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "ingest failed; the worker stops, nothing of this batch is lost" in done.stderr
    assert "planted failure" in done.stderr
    assert not consumed(broker, group, [usage])


def sharing(broker: str, group: str) -> int:
    """How many workers share a group's partitions; 0 while they are being shared out."""
    admin = KafkaAdminClient(bootstrap_servers=broker)
    described = admin.describe_groups([group])[group]
    admin.close()
    return len(described["members"]) if described["group_state"] == "Stable" else 0


def test_an_input_keyed_by_agent_is_judged_where_it_is_read(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    topic_prefix = topic_prefix.rstrip(".")
    mixed, fleet = tmp_path / "random.jsonl", tmp_path / "fleet.json"
    mixed.write_text("".join(json.dumps(e) + "\n" for seed in range(20, 28) for e in random_stream(seed)))
    burnfuse("watch", "--json", "--save-calibration", str(fleet), str(mixed))
    usage = f"{topic_prefix}-usage"
    settings = {
        "kafka": {
            "bootstrap_servers": [broker],
            "app_id": f"{topic_prefix}-app",
            "input_topic": usage,
            "prefix": topic_prefix,
            "partitions": 2,
            "input_partitions": 3,
            "hold_s": 5.0,
        },
        "calibration": {"file": str(fleet)},
        "overload": {"shed": False},
        "input": {"keyed_by": "agent_id"},
    }
    config = tmp_path / "burnfuse.yaml"
    config.write_text(yaml.safe_dump(settings))
    expected = findings(
        json.loads(x) for x in burnfuse("watch", "--json", "--config", str(config), str(mixed)).stdout.splitlines()
    )
    burnfuse("topics", "--config", str(config))
    burnfuse("replay", str(mixed), "--broker", broker, "--topic", usage, "--key", "agent_id")
    with worker(config, TOKEN) as process:
        topic = f"{topic_prefix}.findings"
        wait_for("findings", lambda: len(findings(values(broker, topic))) >= len(expected), process)
        read = [usage, f"{topic_prefix}.graph", topic]
        wait_for("commits", lambda: consumed(broker, f"{topic_prefix}-app", read), process)
    assert findings(values(broker, topic)) == expected
    # There was no shuffle.
    assert not read_all(broker, f"{topic_prefix}.events")
