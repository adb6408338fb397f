"""Runs of records on a real Kafka: workers that die at every step, rebalances, pauses, seeks, shutdowns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from test_worker import consumed, read_all, sharing

SCRIPT = Path(__file__).with_name("transport_worker.py")
PARTITIONS, RECORDS = 2, 2000


class Copying:
    """A topic of records, and the workers that copy it."""

    def __init__(self, broker: str, prefix: str) -> None:
        self.broker, self.prefix = broker, prefix
        self.source, self.group = f"{prefix}-in", f"{prefix}-app"
        with KafkaAdminClient(bootstrap_servers=broker) as admin:
            admin.create_topics(
                {
                    self.source: {"num_partitions": PARTITIONS, "replication_factor": 1},
                    f"{prefix}-out": {"num_partitions": 1, "replication_factor": 1},
                }
            )
        self.wanted = {(p, o) for p in range(PARTITIONS) for o in range(RECORDS)}

    def produce(self, first: int = 0, last: int = RECORDS) -> None:
        with KafkaProducer(bootstrap_servers=self.broker) as producer:
            for _ in range(first, last):
                for partition in range(PARTITIONS):
                    producer.send(self.source, value=b"x", partition=partition)
            producer.flush(timeout=30)

    @contextmanager
    def worker(self, name: str = "a", step: str = "-") -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), self.broker, self.prefix, name, step],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def copied(self) -> list[tuple[int, int]]:
        values = [record.value.decode().split("/") for record in read_all(self.broker, f"{self.prefix}-out")]
        return [(int(partition), int(offset)) for partition, offset in values]

    def committed(self) -> set[tuple[int, int]]:
        """Records before the committed offsets."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker, group_id=self.group, enable_auto_commit=False)
        ends = {p: consumer.committed(TopicPartition(self.source, p)) or 0 for p in range(PARTITIONS)}
        consumer.close()
        return {(partition, offset) for partition, end in ends.items() for offset in range(end)}

    def all_committed(self) -> bool:
        return consumed(self.broker, self.group, [self.source])


@pytest.fixture
def copying(broker: str, topic_prefix: str) -> Copying:
    return Copying(broker, topic_prefix.rstrip("."))


def wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"the worker ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def first_commit(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "committed\n"


STEPS = (
    *("fetched", "processed", "produced", "acked"),
    *("before the commit", "during the commit", "committed", "revoking", "revoked"),
)


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_any_step_loses_nothing(copying: Copying, step: str) -> None:
    sent = RECORDS // 2
    copying.produce(0, sent)
    with copying.worker("a", step) as doomed, ExitStack() as others:
        first_commit(doomed)
        if step.startswith("revok"):
            others.enter_context(copying.worker("b"))
        while doomed.poll() is None and sent < RECORDS:
            copying.produce(sent, sent + 20)
            sent += 20
        assert doomed.wait(timeout=10) == -signal.SIGKILL
        others.close()
        # What counts as done is done.
        done = copying.committed()
        assert done
        assert done <= set(copying.copied())
    copying.produce(sent, RECORDS)
    with copying.worker("a") as heir:
        wait(heir, copying.all_committed)
    assert set(copying.copied()) == copying.wanted


def test_workers_that_come_and_go_under_load_lose_nothing(copying: Copying) -> None:
    copying.produce(last=500)
    with copying.worker("a") as first:
        first_commit(first)
        with copying.worker("b") as second:
            copying.produce(500, 1000)
            wait(second, lambda: sharing(copying.broker, copying.group) == 2)
            copying.produce(1000, 1500)
            second.send_signal(signal.SIGTERM)
            assert second.wait(timeout=30) == 0
        with copying.worker("c") as third:
            copying.produce(1500, RECORDS)
            first.send_signal(signal.SIGKILL)
            first.wait(timeout=30)
            assert copying.committed() <= set(copying.copied())
            wait(third, copying.all_committed)
    assert set(copying.copied()) == copying.wanted


def test_partitions_paused_in_the_middle_of_a_batch_go_on_where_they_stopped(copying: Copying) -> None:
    copying.produce()
    with copying.worker(step="pause") as process:
        wait(process, copying.all_committed)
    # Nothing is lost and nothing comes twice.
    assert Counter(copying.copied()) == Counter(copying.wanted)


def test_a_seek_back_reads_again_from_there(copying: Copying) -> None:
    copying.produce()
    with copying.worker(step="seek") as process:
        wait(process, copying.all_committed)
        wait(process, lambda: sum(Counter(copying.copied()).values()) >= len(copying.wanted) + 400)
    times = Counter(copying.copied())
    assert set(times) == copying.wanted
    (partition,) = {p for (p, _), n in times.items() if n > 1}
    again = sorted(offset for (p, offset), n in times.items() if n > 1)
    assert again[0] == 100
    assert again == list(range(100, again[-1] + 1))
    assert partition in range(PARTITIONS)


def test_a_shutdown_commits_what_was_done_and_nothing_else(copying: Copying) -> None:
    copying.produce()
    with copying.worker() as process:
        first_commit(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    committed, copied = copying.committed(), set(copying.copied())
    assert committed <= copied < copying.wanted
    for partition in range(PARTITIONS):
        in_order = next(offset for offset in range(RECORDS) if (partition, offset) not in copied)
        # The agent is stopped between producing and acknowledging a run, or not.
        assert in_order - sum(p == partition for p, _ in committed) <= 20
