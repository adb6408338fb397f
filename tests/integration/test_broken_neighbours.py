"""Brokers that end, freeze, lose topics or are not there: the worker waits or says in a line why it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka_broker import free_port
from own_broker import DEADLINE_S, Broker, Worker

AGENTS = 16


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    if sys.platform != "linux":
        pytest.skip("looks for the broker's process in /proc")
    broker = Broker(tmp_path / "kafka")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def call(broker: str, n: int) -> None:
    """The n-th identical call of each agent; the third is a loop."""
    producer = KafkaProducer(bootstrap_servers=broker)
    for agent in range(AGENTS):
        event = {"event_id": f"{agent}-{n}", "agent_id": f"a{agent}", "ts": 1_790_000_000.0 + n, "kind": "tool",
                 "tool": "t", "args": {}, "result": "same"}  # fmt: skip
        producer.send("usage", key=event["agent_id"].encode(), value=json.dumps(event).encode())  # type: ignore[attr-defined]
    producer.flush()
    producer.close()


def findings(broker: str) -> list[str]:
    """Agents for which a loop was found."""
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False)
    partition = TopicPartition("bf.findings", 0)
    consumer.assign([partition])
    end = consumer.end_offsets([partition])[partition]
    values: list[dict[str, Any]] = []
    while consumer.position(partition) < end:
        values += [json.loads(r.value) for batch in consumer.poll(timeout_ms=500).values() for r in batch]
    consumer.close()
    return [value["agent_id"] for value in values if value["type"] == "finding"]


def everything_found(worker: Worker) -> None:
    worker.wait_for("all loops", lambda: len(set(findings(worker.broker))) == AGENTS)
    found = findings(worker.broker)
    assert sorted(found) == sorted(set(found)), "a finding came twice"
    assert worker.metric("events_taken_total") == 3 * AGENTS


@pytest.mark.kafka
@pytest.mark.parametrize("outage", ["killed and started again", "frozen for a while"])
def test_a_broker_that_is_away_costs_time_and_nothing_else(own_broker: Broker, tmp_path: Path, outage: str) -> None:
    worker = Worker(own_broker.address, tmp_path)
    assert worker.burnfuse("topics").returncode == 0
    with worker.running():
        call(own_broker.address, 0)
        worker.wait_for("the first calls", lambda: worker.metric("events_taken_total") == AGENTS)
        call(own_broker.address, 1)
        own_broker.kill() if outage.startswith("killed") else own_broker.freeze()
        worker.wait_for("an unready worker", lambda: worker.page("/readyz")[0] == 503)
        assert json.loads(worker.page("/readyz")[1])["problems"] == ["no Kafka broker has answered for 8 s"]
        assert worker.page("/healthz")[0] == 200, "starting it again would not help"
        worker.wait_for("a line about it", lambda: len(worker.log()) == 1)
        own_broker.start() if outage.startswith("killed") else own_broker.thaw()
        worker.wait_for("a ready worker", lambda: worker.page("/readyz")[0] == 200)
        call(own_broker.address, 2)
        everything_found(worker)
    told = [line["message"] for line in worker.log()]
    assert told[0].startswith("no Kafka broker has answered for ")
    assert told[1].startswith("Kafka answers again, after about ")
    # On a slow machine catching up may take long enough to be told as well.
    assert all("behind on" in line or "caught up" in line for line in told[2:])


@pytest.mark.kafka
def test_a_topic_that_is_deleted_ends_the_worker_with_a_line(own_broker: Broker, tmp_path: Path) -> None:
    worker = Worker(own_broker.address, tmp_path)
    assert worker.burnfuse("topics").returncode == 0
    with worker.running():
        admin = KafkaAdminClient(bootstrap_servers=own_broker.address)
        admin.delete_topics(["bf.graph"])
        admin.close()
        assert worker.process is not None
        assert worker.process.wait(timeout=DEADLINE_S) != 0
    *before, last = worker.text().splitlines()
    # It could not end by itself in time: then the log has the reason.
    assert "topics were deleted (bf.graph): run `burnfuse topics`" in last
    assert all("Kafka" in line for line in before)
    assert "Traceback" not in worker.text(), "nobody wants to see where in the code"
    # The next one says the same at once, until somebody does it.
    again = worker.burnfuse("worker")
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert "topics are missing (bf.graph)" in again.stderr


def test_brokers_that_are_not_there_at_the_start_are_named_in_one_line(tmp_path: Path) -> None:
    worker = Worker(f"127.0.0.1:{free_port()}", tmp_path)
    for command in ("worker", "topics"):
        done = worker.burnfuse(command)
        assert done.returncode == 1
        assert done.stderr == (f"burnfuse: no Kafka broker answers at {worker.broker}: check kafka.bootstrap_servers\n")
