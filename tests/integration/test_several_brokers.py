"""Three brokers of which leaders move, one is killed and one stopped: results are those of an undisturbed run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from disturbed_stream import Disturbed, disturbed_stream
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from own_broker import Broker, cluster

NOBODY = -1
"""Leads a partition that has no leader."""


class Cluster:
    """The brokers, and who leads what."""

    def __init__(self, brokers: Sequence[Broker]) -> None:
        self.brokers = brokers
        self.addresses = ",".join(broker.address for broker in brokers)

    def admin(self) -> Any:
        return KafkaAdminClient(bootstrap_servers=[b.address for b in self.brokers if b.running])

    def partitions(self) -> dict[TopicPartition, dict[str, Any]]:
        """Of all topics, with `leader_id`, `replica_nodes`, `isr_nodes`."""
        with self.admin() as admin:
            return {
                TopicPartition(topic["name"], partition["partition_index"]): partition
                for topic in admin.describe_topics()
                for partition in topic["partitions"]
            }

    def leaders(self) -> dict[TopicPartition, int]:
        return {tp: partition["leader_id"] for tp, partition in self.partitions().items()}

    def whole(self) -> bool:
        """Whether every partition has all its replicas."""
        return all(len(p["isr_nodes"]) == len(p["replica_nodes"]) == 3 for p in self.partitions().values())

    def move_leaders(self) -> None:
        """Each partition's second replica becomes the one that should lead, and leads."""
        orders = {tp: [*p["replica_nodes"][1:], p["replica_nodes"][0]] for tp, p in self.partitions().items()}
        with self.admin() as admin:
            refused = {tp: error for tp, error in admin.alter_partition_reassignments(orders).items() if error}
            assert not refused, refused
            admin.elect_leaders(0)

    def needed_for_a_record(self, topic: str) -> int:
        """Replicas that must have a record before it counts as taken."""
        with self.admin() as admin:
            found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
        return int(found["topic"][topic]["min.insync.replicas"]["value"])

    def coordinator(self, group: str) -> int:
        """The broker that coordinates a consumer group: who leads its partition of Kafka's inner topic."""
        leaders = {tp.partition: node for tp, node in self.leaders().items() if tp.topic == "__consumer_offsets"}
        java_hash = 0
        for letter in group:
            java_hash = (31 * java_hash + ord(letter)) & 0xFFFFFFFF
        return leaders[(java_hash & 0x7FFFFFFF) % len(leaders)]


@pytest.fixture
def three_brokers(tmp_path: Path) -> Iterator[Cluster]:
    if sys.platform != "linux":
        pytest.skip("looks for the brokers' processes in /proc")
    brokers = cluster(tmp_path)
    try:
        for broker in brokers:
            broker.begin()
        for broker in brokers:
            broker.started()
        yield Cluster(brokers)
    finally:
        # Cleanly, the last ones would wait for half a minute: two make no decisions for three.
        for broker in brokers:
            broker.kill()


@pytest.mark.kafka
def test_brokers_that_come_and_go_change_no_result(three_brokers: Cluster, tmp_path: Path) -> None:
    kafka = three_brokers
    told = {"kafka": {"replication": 3, "partitions": 3, "input_partitions": 3}, "metrics": {}}
    with ExitStack() as stack:
        flow = Disturbed(kafka.addresses, tmp_path, told, disturbed_stream([1, 2]), stack)
        assert kafka.whole()
        assert kafka.needed_for_a_record("bf.findings") == 2
        with flow.running():
            flow.sender.go_on(0.25)
            before = kafka.leaders()
            kafka.move_leaders()
            flow.wait_for("other leaders", lambda: all(kafka.leaders()[tp] != before[tp] for tp in before))
            flow.wait_until_taken()

            # Killed: its partitions have no leader, and the group no coordinator, until others notice.
            victim = kafka.coordinator("burnfuse")
            assert victim in {node for tp, node in kafka.leaders().items() if tp.topic == "usage"}
            flow.sender.go_on(0.5)
            flow.wait_until_it_flows(0.3)
            kafka.brokers[victim - 1].kill()
            flow.wait_for("another coordinator", lambda: kafka.coordinator("burnfuse") not in (victim, NOBODY))
            flow.wait_until_taken()
            kafka.brokers[victim - 1].start()
            flow.wait_for("all replicas", kafka.whole)

            # Stopped: it hands over what it leads.
            flow.sender.go_on(0.75)
            flow.wait_until_it_flows(0.6)
            kafka.brokers[victim % 3].stop()
            flow.wait_until_taken()
        # One of those that it asks first is not there.
        with flow.running():
            flow.wait_for_the_end()
        assert flow.as_undisturbed(), flow.differences  # what comes twice may come late
    assert flow.ill == set(), "starting it again would not help"
    assert not any("no Kafka broker" in problem for problem in flow.unready), "two of three answer"
    flow.log()
