"""Brokers of a test's own, which it may freeze, kill, stop and start again on the same log; a worker and its pages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kafka_broker
import pytest
import yaml
from kafka_broker import free_port

DEADLINE_S = 240


class Broker:
    """One broker.

    Args:
        options: Further options of docker/kafka/run.
        before: What goes before the command, such as `nsenter`.
    """

    def __init__(
        self, folder: Path, options: Sequence[str] = (), before: Sequence[str] = (), port: int | None = None
    ) -> None:
        self.folder, self._options, self._before, self._port = folder, options, before, port or free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it, and waits until it takes requests."""
        self.begin()
        self.started()

    def begin(self) -> None:
        """Starts it: the first of several takes no requests until others are there."""
        command = [*self._before, sys.executable, str(kafka_broker.RUN), "--parent", str(os.getpid())]
        command += ["--port", str(self._port), "--dir", str(self.folder), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def started(self) -> None:
        """Waits until it takes requests; the test is skipped where this machine cannot run it."""
        assert self._process is not None
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready"):
            code, why = self._process.wait(), self._process.communicate()[1]
            if code == kafka_broker.MISSING and os.environ.get("REQUIRE_KAFKA") != "1":
                pytest.skip(why)
            pytest.fail(why)

    def java(self) -> int:
        """Process id of the broker itself."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(children.read_text().split()[0])

    def freeze(self) -> None:
        os.kill(self.java(), signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.java(), signal.SIGCONT)

    def kill(self) -> None:
        """As a machine that loses its power."""
        if self.running:
            os.kill(self.java(), signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """Cleanly: it hands over what it leads."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None

    def ended(self) -> str:
        """Waits until it has ended by itself; what was said about it."""
        assert self._process is not None
        why = self._process.communicate(timeout=DEADLINE_S)[1]
        self._process = None
        return why

    @property
    def running(self) -> bool:
        """Whether it has been started, and has not ended by itself."""
        return self._process is not None and self._process.poll() is None


def cluster(folder: Path, count: int = 3) -> list[Broker]:
    """Brokers of one cluster, not started yet; each is a controller as well."""
    identity = uuid.uuid4().hex[:22]
    ports = {node: (free_port(), free_port()) for node in range(1, count + 1)}
    shared = {
        "controller.quorum.voters": ",".join(f"{node}@127.0.0.1:{port}" for node, (_, port) in ports.items()),
        "controller.quorum.bootstrap.servers": "",
        "offsets.topic.replication.factor": str(count),
        "transaction.state.log.replication.factor": str(count),
        "transaction.state.log.min.isr": str(count - 1),
    }
    brokers = []
    for node, (port, controller) in ports.items():
        own = {"node.id": str(node), "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"}
        options = [option for key, value in (shared | own).items() for option in ("--set", f"{key}={value}")]
        options += ["--cluster-id", identity, "--heap", "256"]
        brokers.append(Broker(folder / f"kafka-{node}", options, port=port))
    return brokers


class Worker:
    """A worker as a process of its own, and its pages.

    Args:
        brokers: Addresses, separated by commas.
        settings: Its configuration, without where brokers and pages are.
    """

    def __init__(self, brokers: str, folder: Path, settings: dict[str, Any] | None = None) -> None:
        self.config, self._port, self._log = folder / "burnfuse.yaml", free_port(), folder / "worker.log"
        self.broker = brokers
        told = settings or {"kafka": {"partitions": 2, "input_partitions": 2}, "metrics": {"silence_s": 8.0}}
        told["kafka"] |= {"bootstrap_servers": brokers.split(",")}
        told["metrics"] |= {"listen": f"127.0.0.1:{self._port}"}
        self.config.write_text(yaml.safe_dump(told))
        self.process: subprocess.Popen[bytes] | None = None

    def burnfuse(self, *command: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "stream", *command, "--config", str(self.config))
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    @contextmanager
    def running(self, **environment: str) -> Iterator[None]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "stream", "worker", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        try:
            self.wait_for("a ready worker", lambda: self.page("/readyz")[0] == 200)
            yield
        finally:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            finally:
                self.process.kill()

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metric(self, name: str) -> float:
        for line in self.page("/metrics")[1].splitlines():
            if line.startswith(f"burnfuse_{name} "):
                return float(line.split()[1])
        return float("nan")

    def text(self) -> str:
        return self._log.read_text()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, f"the worker ended while waiting for {what}: {self.text()}"
            assert time.monotonic() < deadline, f"no {what}: {self.text()}"
            time.sleep(0.3)
