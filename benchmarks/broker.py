"""A real Kafka for benchmarks, with topics that were filled beforehand and stay for the next time."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from benchmarks import load as load_module
from benchmarks.load import Load, Usage, chunks
from benchmarks.processes import CORES, child_named, cpu_seconds
from tests import kafka_broker

PARTITIONS = 8
_WAIT_S = 30.0
T = TypeVar("T")
_KEPT, _PASSING = "usage-", "run-"
"""How names of topics begin: of those that are kept for the next time, and of those of one measurement."""


@dataclass(slots=True)
class Broker:
    """A running broker.

    Attributes:
        address: host:port.
        pid: Of the Java process.
    """

    address: str
    pid: int
    admin: Any

    def cpu_seconds(self) -> float:
        """CPU time the broker has used, s."""
        return cpu_seconds(self.pid)

    # ------------------------------------------------------------------------------ topics

    def partitions(self) -> dict[str, int]:
        """Topic -> number of its partitions."""
        found = self.admin.list_topics(timeout=_WAIT_S).topics
        return {name: len(topic.partitions) for name, topic in found.items()}

    def create(self, topic: str, partitions: int = PARTITIONS) -> None:
        """Makes a topic that keeps everything."""
        config = {"retention.ms": "-1", "segment.bytes": str(1 << 28)}
        wanted = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=config)
        for future in self.admin.create_topics([wanted]).values():
            future.result(_WAIT_S)

    def delete(self, topics: Iterable[str]) -> None:
        """Removes topics; what is gone already is fine."""
        names = list(topics)
        if names:
            for future in self.admin.delete_topics(names).values():
                with suppress(KafkaException):
                    future.result(_WAIT_S)

    def delete_prefix(self, prefix: str) -> None:
        """Removes all topics that begin so."""
        self.delete(name for name in self.partitions() if name.startswith(prefix))

    def ends(self, topic: str, partitions: int) -> dict[int, int]:
        """Partition -> offset of the next record."""
        wanted = {TopicPartition(topic, p): OffsetSpec.latest() for p in range(partitions)}

        def ask() -> dict[int, int]:
            found = self.admin.list_offsets(wanted, request_timeout=_WAIT_S)
            return {tp.partition: future.result(_WAIT_S).offset for tp, future in found.items()}

        return _answered(ask)

    def committed(self, group: str) -> dict[str, int]:
        """Topic -> sum of what a group has committed on its partitions."""

        def ask() -> dict[str, int]:
            total: dict[str, int] = {}
            future = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group]
            for tp in future.result(_WAIT_S).topic_partitions:
                total[tp.topic] = total.get(tp.topic, 0) + max(0, tp.offset)
            return total

        return _answered(ask)

    def members(self, group: str) -> int:
        """How many processes share a group's partitions; 0 while these are being shared out."""

        def ask() -> int:
            found = self.admin.describe_consumer_groups([group])[group].result(_WAIT_S)
            return len(found.members) if found.state is ConsumerGroupState.STABLE else 0

        return _answered(ask)

    # ------------------------------------------------------------------------------ load

    def preload(self, load: Load, keyed: bool, tell: Callable[[int], None]) -> str:
        """The topic with this load, filled unless it is there from an earlier time.

        Args:
            keyed: Records are keyed by agent, and placed by it; else they have no key and go round.
            tell: Hears how many events are on their way.
        """
        topic = topic_name(load, keyed)
        known = self.partitions()
        # What an older generator made is of no use any more.
        self.delete(name for name in known if name.startswith(_KEPT) and not name.endswith(_generator()))
        if topic in known:
            if sum(self.ends(topic, PARTITIONS).values()) == load.events:
                return topic
            self.delete([topic])  # somebody was interrupted
            while topic in self.partitions():
                time.sleep(0.1)
        self.create(topic)
        self.fill(topic, load, keyed, tell)
        return topic

    def fill(self, topic: str, load: Load, keyed: bool, tell: Callable[[int], None]) -> None:
        """Sends a load to a topic as fast as it goes; see `preload`.

        Raises:
            RuntimeError: the broker did not take all of it.
        """
        producer = Producer(
            {
                "bootstrap.servers": self.address,
                "linger.ms": 20,
                "batch.size": 1 << 17,
                "batch.num.messages": 1000,
                "queue.buffering.max.kbytes": 1 << 18,
                "log_level": 0,
            }
        )
        sent = 0
        for chunk in chunks(load):
            for i, usage in enumerate(chunk, sent):
                key, place = placed(usage, i, keyed)
                while True:
                    try:
                        producer.produce(topic, usage.value, key, place)
                        break
                    except BufferError:
                        producer.poll(0.1)
            sent += len(chunk)
            producer.poll(0)
            tell(sent)
        if producer.flush(_WAIT_S):
            raise RuntimeError(f"the broker did not take all events of {topic}")


def _answered(ask: Callable[[], T]) -> T:
    """The answer to a question; a broker that has just started may not know yet, and is asked again."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            return ask()
        except KafkaException:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def new_group() -> str:
    """A consumer group for one measurement; its topics begin with its name."""
    return f"{_PASSING}{uuid.uuid4().hex[:12]}"


def placed(usage: Usage, number: int, keyed: bool) -> tuple[str | None, int]:
    """Key and partition of an event of this number: by its agent, or none, and all partitions in turn."""
    if keyed:
        return usage.agent, zlib.crc32(usage.agent.encode()) % PARTITIONS
    return None, number % PARTITIONS


def topic_name(load: Load, keyed: bool) -> str:
    """Tells all that decides what is on the topic."""
    figures = hashlib.sha256(repr(astuple(load)).encode()).hexdigest()[:8]
    return f"{_KEPT}{'agent' if keyed else 'any'}-{load.events}-{figures}-{_generator()}"


def _generator() -> str:
    return hashlib.sha256(Path(load_module.__file__).read_bytes()).hexdigest()[:8]


@contextmanager
def on_all_cores(broker: Broker) -> Iterator[None]:
    """The broker, and whoever watches, are where there is room: for measurements that leave them no core."""
    _keep(broker.pid, CORES)
    try:
        yield
    finally:
        _keep(broker.pid, CORES[-1:])


def _keep(broker: int, cores: Sequence[int]) -> None:
    os.sched_setaffinity(0, cores)
    for thread in Path(f"/proc/{broker}/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def running(folder: Path) -> Iterator[Broker]:
    """Runs a broker on a core of its own for the length of the block; what is on its topics stays in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {CORES[-1]})  # the broker inherits it
    try:
        with kafka_broker.running("--dir", str(folder)) as address:
            pid = child_named("java", os.getpid())
            broker = Broker(address, pid, AdminClient({"bootstrap.servers": address, "log_level": 0}))
            broker.delete_prefix(_PASSING)  # of measurements that did not end well
            yield broker
    finally:
        os.sched_setaffinity(0, set(CORES))
