"""burnfuse on a real Kafka, under names of its own: its commands and its worker as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kafka import KafkaConsumer, TopicPartition

DEADLINE_S = 120


class Deployment:
    """One deployment.

    Args:
        broker: Where whoever connects may do everything.
        name: Start of the names of its topics.
        folder: For its configuration.
    """

    def __init__(self, broker: str, name: str, folder: Path) -> None:
        self.broker, self.name, self.folder = broker, name, folder

    def names(self) -> dict[str, Any]:
        """The part of `kafka:` that tells it from other deployments."""
        return {"app_id": f"{self.name}-app", "input_topic": f"{self.name}-usage", "prefix": self.name,
                "partitions": 2, "input_partitions": 2}  # fmt: skip

    def write(self, file: str = "burnfuse", *, kafka: dict[str, Any] | None = None, **sections: Any) -> Path:
        """A configuration file; without pages of health unless asked for, since other workers have the usual port."""
        path = self.folder / f"{file}.yaml"
        where = kafka if kafka is not None else {"bootstrap_servers": [self.broker]}
        path.write_text(yaml.safe_dump({"kafka": self.names() | where, "metrics": {"listen": None}} | sections))
        return path

    def run(self, *args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, whatever that is."""
        return subprocess.run(
            [sys.executable, "-m", "stream", *map(str, args)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def topics(self, config: Path, **environment: str) -> None:
        """Creates the topics."""
        done = self.run("topics", "--config", config, **environment)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def worker(self, config: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A worker for the length of the block; what it wrote is in `worker.log` afterwards."""
        with (self.folder / "worker.log").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream", "worker", "--config", str(config), "--verbose"],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | environment,
            )
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=30)
                finally:
                    process.kill()

    def read(self, topic: str) -> list[Any]:
        """All records of a topic as of now."""
        return read_all(self.broker, topic)

    def wait_for(self, what: str, condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Waits for what a worker does."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            log = (self.folder / "worker.log").read_text()
            assert process.poll() is None, f"the worker ended while waiting for {what}: {log}"
            assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s: {log}"
            time.sleep(0.5)


def read_all(broker: str, topic: str, **options: Any) -> list[Any]:
    """All records of a topic as of now; with options of the consumer, such as `isolation_level`."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False, **options
    )
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    records: list[Any] = []
    while any(consumer.position(tp) < ends[tp] for tp in partitions):
        for batch in consumer.poll(timeout_ms=500).values():
            records += batch
    consumer.close()
    return records
