"""What faults happen to: a broker, two workers behind proxies, a local Slack, and a stream that flows."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from chaos_stream import ACTIONS, QUIET_S, Event, Outcome, outcome_of
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka_broker import MISSING, RUN, BrokerError, BrokerMissingError
from slack_server import SlackServer, slack_server_in_a_thread
from tcp_proxy import Proxy, proxied

from burnfuse.event import SEQUENCE_HEADER
from detectors.base import FleetFigures
from stream import calibration

WORKERS = 2
INPUTS, PARTITIONS = 4, 3
HOLD_S = 4.0
"""How long a record may be under way to the broker; a busy machine needs seconds."""
SESSION_S = 3.0
_TOKEN = "xoxb-only-for-tests"


class TooSlowError(Exception):
    """This machine took longer to append records than `kafka.hold_s` allows for: nothing can be said."""


class Broker:
    """A broker that can be killed and started again on the same data and ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._starting: threading.Thread | None = None
        self._failed: BrokerError | None = None
        self.port, self._controller, *inner = _free_ports(2 + WORKERS)
        self.address = f"127.0.0.1:{self.port}"
        # A listener per worker, so that each can be cut off alone: brokers tell clients where to go.
        self.proxies = [Proxy(("127.0.0.1", port)) for port in inner]
        self._inner = inner

    @property
    def running(self) -> bool:
        """Whether it takes requests."""
        if self._starting is not None and not self._starting.is_alive():
            self._starting = None
            if self._failed is not None:
                raise self._failed
        return self._process is not None and self._starting is None

    def start_soon(self) -> None:
        """Starts it, without waiting until it is up."""

        def start() -> None:
            try:
                self.start()
            except BrokerError as error:
                self._failed = error

        self._starting = threading.Thread(target=start)
        self._starting.start()

    def start(self) -> None:
        """Starts it, and waits until it takes requests."""
        listeners = {"PLAINTEXT": self.port} | {f"WORKER{i}": port for i, port in enumerate(self._inner)}
        told = {"PLAINTEXT": self.port} | {f"WORKER{i}": proxy.port for i, proxy in enumerate(self.proxies)}
        settings = {
            "listeners": _joined(listeners | {"CONTROLLER": self._controller}),
            "advertised.listeners": _joined(told),
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller}",
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in [*listeners, "CONTROLLER"]),
            # Producers that die with a transaction open must not hold up readers for a minute.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        }
        options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
        command = [sys.executable, str(RUN), "--parent", str(os.getpid()), "--port", str(self.port)]
        log = self._folder / "errors.log"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self._folder), *options], stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready"):
            code = self._process.wait()
            why = (log.read_text().splitlines() or [f"exit code {code}"])[-1]
            raise BrokerMissingError(why) if code == MISSING else BrokerError(why)

    def kill(self) -> None:
        """As if its machine lost power: nothing is flushed, nobody is told."""
        if self._starting is not None:
            self._starting.join()
        if self._process is not None:
            self._process.kill()  # the script's children die with it
            self._process.wait()
            deadline = time.monotonic() + 30
            while _in_use(self.port):
                assert time.monotonic() < deadline, "the broker outlives its script"
                time.sleep(0.05)
            self._process = None

    def close(self) -> None:
        self.kill()
        for proxy in self.proxies:
            proxy.close()


def _joined(listeners: dict[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.SystemRandom().sample(range(20_000, 32_000), 400):
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free ports")


def _in_use(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Worker:
    """A worker as a process: `burnfuse worker`, started again when it ends, as an orchestrator would."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config, self._log = config, log
        self._process: subprocess.Popen[bytes] | None = None
        self.ended: list[str] = []
        """How it ended when nobody asked it to."""

    def start(self) -> None:
        """Starts it, if it does not run."""
        if self._process is None:
            with self._log.open("ab") as log:
                command = [sys.executable, "-m", "stream", "worker", "--config", str(self._config)]
                # Its calls to Slack are known by its token.
                environment = os.environ | {"BURNFUSE_SLACK_TOKEN": f"{_TOKEN}-{self._config.stem}"}
                self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def look_after(self) -> None:
        """Starts it again if it has ended by itself."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self.ended.append(f"exit code {code}")
            self._process = None
            self.start()

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def tell_tasks(self) -> None:
        """Has it write what each of its tasks waits for to its log."""
        self.send(signal.SIGUSR1)
        time.sleep(1.0)

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Asks it to stop; `kill` what does not."""
        self.send(signal.SIGTERM)

    def stopped(self, patience_s: float) -> bool:
        """Whether it has stopped in time; it has ended either way."""
        if self._process is None:
            return True
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.ended.append(f"did not stop within {patience_s:g} s")
            return False
        finally:
            self.kill()
        return True


class Sender:
    """Sends a stream, paced, straight to the broker, and some of it in odd ways."""

    def __init__(self, broker: str, topic: str, events: Sequence[Event], seconds: float, rng: random.Random) -> None:
        self._topic, self._events, self._rng = topic, events, rng
        self._rate = len(events) / seconds
        self._broker = broker
        self.connect()
        self._sent, self._due, self._last_ms = 0, 0.0, 0
        self.again = 0
        """How many of the latest records are to be sent again."""
        self.apart = False
        """Whether partitions are written one after the other instead of together."""

    @property
    def done(self) -> bool:
        return self._sent >= len(self._events)

    def connect(self) -> None:
        """Anew after the broker was gone: a producer that waits before it tries again would make records late."""
        self._producer = KafkaProducer(bootstrap_servers=self._broker, acks="all", linger_ms=5, retries=100)

    def go_on(self, seconds: float) -> None:
        """Sends what is due after `seconds` more."""
        self._due = min(self._due + self._rate * seconds, len(self._events))
        numbers = range(self._sent, int(self._due))
        self._sent = int(self._due)
        if self.again:
            self._write(list(range(max(0, self._sent - self.again), self._sent - len(numbers))))
            self.again = 0
        self._write(list(numbers))

    def _write(self, numbers: list[int]) -> None:
        if not numbers:
            return
        begun = time.time()
        # The log's order is that of the stream: a record is never older than the one before.
        self._last_ms = max(self._last_ms, int(begun * 1000))
        by_partition: dict[int, list[int]] = {}
        for number in numbers:
            by_partition.setdefault(self._rng.randrange(INPUTS), []).append(number)
        for partition in self._rng.sample(sorted(by_partition), len(by_partition)):
            for number in by_partition[partition]:
                self._producer.send(
                    self._topic,
                    value=json.dumps(self._events[number]).encode(),
                    headers=[(SEQUENCE_HEADER, number.to_bytes(8, "big"))],
                    partition=partition,
                    timestamp_ms=self._last_ms,
                )
            if self.apart:
                self._producer.flush(timeout=HOLD_S)
                time.sleep(0.2)
        self._producer.flush(timeout=30)
        self.apart = False
        if time.time() - begun > HOLD_S - 0.5:
            raise TooSlowError(f"it took {time.time() - begun:.1f} s to append {len(numbers)} records")

    def close(self) -> None:
        self._producer.close(timeout=5)


class World:
    """Everything for one seed."""

    def __init__(self, broker: Broker, folder: Path, name: str, events: Sequence[Event], seconds: float, seed: int,
                 stack: ExitStack) -> None:  # fmt: skip
        self.broker, self.folder, self.name = broker, folder, name
        self.slack: SlackServer = stack.enter_context(slack_server_in_a_thread())
        host, port = re.match(r"http://(.*):(\d+)/", self.slack.url).groups()  # type: ignore[union-attr]
        self.slack_proxy: Proxy = stack.enter_context(proxied(host, int(port)))
        direct = self._config("direct", broker.address)
        done = subprocess.run(
            [sys.executable, "-m", "stream", "topics", "--config", str(direct)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        self.workers = [
            Worker(self._config(f"worker-{i}", broker.proxies[i].address), folder / f"worker-{i}.log")
            for i in range(WORKERS)
        ]
        self.sender = Sender(broker.address, f"{name}-usage", events, seconds, random.Random(seed))
        stack.callback(self._close)

    def _config(self, name: str, address: str) -> Path:
        path, fleet = self.folder / f"{name}.yaml", self.folder / "fleet.json"
        calibration.save(str(fleet), FleetFigures())
        told = settings(self.name, address, f"http://{self.slack_proxy.address}/api/", str(fleet))
        path.write_text(yaml.safe_dump(told))
        return path

    def _close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.sender.close()

    def sharing(self) -> bool:
        """Whether all workers are members of the group and know their partitions."""
        admin = KafkaAdminClient(bootstrap_servers=self.broker.address)
        try:
            described = admin.describe_groups([f"{self.name}-app"])[f"{self.name}-app"]
        except KafkaError:  # there is no group yet
            return False
        finally:
            admin.close()
        return described["group_state"] == "Stable" and len(described["members"]) == WORKERS

    def outcome(self) -> Outcome:
        """What has come of the stream so far."""
        return outcome_of(self.slack.calls, self.values)

    def traces(self, findings: Sequence[dict[str, Any]]) -> list[str]:
        """How far the events of lost findings got: where each is on the topics, and how far these were read."""
        lines = []
        for topic in (f"{self.name}-usage", f"{self.name}.events", f"{self.name}.graph"):
            records = read_records(self.broker.address, topic)
            for finding in findings:
                name = finding["event_id"].encode()
                at = [f"{r.partition}/{r.offset} at {r.timestamp}" for r in records if name in (r.value or b"")]
                lines.append(f"{finding['id']} {finding['event_id']}: {topic} {', '.join(at) or 'nowhere'}")
        consumer = KafkaConsumer(bootstrap_servers=self.broker.address, group_id=f"{self.name}-app")
        for topic in (f"{self.name}-usage", f"{self.name}.events", f"{self.name}.graph", f"{self.name}.findings"):
            partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            ends = consumer.end_offsets(partitions)
            lines += [f"{tp.topic}/{tp.partition}: done {consumer.committed(tp)} of {ends[tp]}" for tp in partitions]
        consumer.close()
        return lines

    def values(self, topic: str) -> list[bytes]:
        """Everything that is committed on one of our topics."""
        return read_all(self.broker.address, f"{self.name}.{topic}")


def settings(name: str, broker: str, slack: str, fleet: str | None = None) -> dict[str, Any]:
    """The configuration of a worker."""
    return {
        "kafka": {
            "bootstrap_servers": [broker],
            "app_id": f"{name}-app",
            "input_topic": f"{name}-usage",
            "prefix": name,
            "input_partitions": INPUTS,
            "partitions": PARTITIONS,
            "hold_s": HOLD_S,
            "session_timeout_s": SESSION_S,
            "heartbeat_s": SESSION_S / 3,
        },
        # Figures that do not depend on when they were published.
        "calibration": {"file": fleet},
        "incidents": {"quiet_s": QUIET_S},
        # Faults leave a worker behind; what it finds then must be the same, so nothing is left out.
        "overload": {"shed": False},
        "metrics": {"listen": None},
        "actions": ACTIONS
        | {"slack": {"enabled": True, "channel": "#agent-alerts", "base_url": slack, "pause_s": 0.0}},
    }


def read_all(broker: str, topic: str) -> list[bytes]:
    """Values of all records of a topic, in order per partition; none of transactions that are open or aborted."""
    return [record.value for record in read_records(broker, topic)]


def read_records(broker: str, topic: str) -> list[Any]:
    """The records themselves."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        values: list[Any] = []
        deadline = time.monotonic() + 20
        while any(consumer.position(tp) < ends[tp] for tp in partitions) and time.monotonic() < deadline:
            for batch in consumer.poll(timeout_ms=200).values():
                values += batch
        return values
    finally:
        consumer.close()


@contextmanager
def world(
    broker: Broker, folder: Path, name: str, events: Sequence[Event], seconds: float, seed: int
) -> Iterator[World]:
    """A world for the length of the block."""
    with ExitStack() as stack:
        yield World(broker, folder, name, events, seconds, seed, stack)


def until(condition: Callable[[], bool], seconds: float, every_s: float = 0.5) -> bool:
    """Waits for a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
