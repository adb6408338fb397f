"""The broker that all Kafka tests stand on: it is real, it says what it lacks, it never stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka_broker import MISSING, RUN, BrokerMissingError, running


def test_records_come_back_in_order(broker: str, topic_prefix: str) -> None:
    topic = topic_prefix + "usage"
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.create_topics({topic: {"num_partitions": 2, "replication_factor": 1}})
    sent = {0: [b"a0", b"a1", b"a2"], 1: [b"b0", b"b1"]}
    with KafkaProducer(bootstrap_servers=broker, acks="all") as producer:
        for partition, values in sent.items():
            for value in values:
                producer.send(topic, value=value, key=b"k", partition=partition)
        producer.flush(timeout=30)

    seen: dict[int, list[bytes]] = {0: [], 1: []}
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", consumer_timeout_ms=30_000)
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in sent])
        for _, record in zip(range(5), consumer, strict=False):
            seen[record.partition].append(record.value)
    finally:
        consumer.close()
    assert seen == sent


def test_an_unknown_topic_is_not_created_on_the_way(broker: str, topic_prefix: str) -> None:
    topic = topic_prefix + "mistyped"
    producer = KafkaProducer(bootstrap_servers=broker, max_block_ms=500)
    try:
        with pytest.raises(Exception, match=r"(?i)topic|metadata"):
            producer.send(topic, b"x").get(timeout=10)
    finally:
        producer.close()
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        assert topic not in admin.list_topics()


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_missing_java_is_said_in_one_line() -> None:
    done = run(PATH="")
    assert done.returncode == MISSING
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "docker/kafka/run: no Java: install Java 17 or newer (Debian: apt install openjdk-17-jre-headless)"
    ]


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.23"])
def test_old_java_is_said_in_one_line(tmp_path: Path, version: str) -> None:
    program(tmp_path, "java", f"""echo 'openjdk version "{version}" 2020-01-01' >&2""")
    done = run(PATH=str(tmp_path))
    assert done.returncode == MISSING
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "is too old: install Java 17 or newer" in done.stderr


JAVA_17 = """echo 'openjdk version "17.0.11" 2024-04-16' >&2"""


def test_missing_maven_is_said_in_one_line(tmp_path: Path) -> None:
    program(tmp_path, "java", JAVA_17)
    done = run(PATH=str(tmp_path), BURNFUSE_KAFKA_CACHE=str(tmp_path / "cache"))
    assert done.returncode == MISSING
    assert done.stderr.splitlines() == [
        "docker/kafka/run: no Maven to fetch Kafka with: install it (Debian: apt install maven)"
    ]


def test_a_download_that_fails_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    program(tmp_path, "java", JAVA_17)
    program(tmp_path, "mvn", "echo '[ERROR] no route to the repository'; exit 1")
    cache = tmp_path / "cache"
    done = run(PATH=str(tmp_path), BURNFUSE_KAFKA_CACHE=str(cache))
    assert done.returncode == MISSING
    assert "no route to the repository" in done.stderr.splitlines()[-1]
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_two_first_starts_download_once(tmp_path: Path) -> None:
    calls, cache = tmp_path / "calls", tmp_path / "cache"
    program(tmp_path, "java", f'case "$*" in -version) {JAVA_17};; *) echo a.b.BoomException: no; exit 3;; esac')
    program(tmp_path, "mvn", f'echo call >> "{calls}"; sleep 1')
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "BURNFUSE_KAFKA_CACHE": str(cache)}
    starts = [
        subprocess.Popen([sys.executable, str(RUN)], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [start.communicate(timeout=60)[1].splitlines()[-1] for start in starts]
    assert calls.read_text() == "call\n"
    assert [start.returncode for start in starts] == [1, 1]
    assert errors == ["docker/kafka/run: the broker's storage could not be formatted: a.b.BoomException: no"] * 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "0"], "'0' is not a port number (1 to 65535)"),
        (["--listener", "HTTP:80"], "'HTTP:80' is not SSL:PORT, SASL_PLAINTEXT:PORT or SASL_SSL:PORT"),
        (["--set", "num.partitions"], "'num.partitions' is not of the form key=value"),
        (["--cluster-id", "mine"], "'mine' is not 22 letters, digits, - or _ (not - at the start)"),
        (["--heap", "64"], "'64' is not a size in MB (128 to 65535)"),
    ],
)
def test_wrong_usage(options: list[str], says: str) -> None:
    done = run(*options, PATH="")
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes_naming(text: str) -> list[int]:
    """Pids of live processes with this text in their command line (a dead one has an empty line)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")


@pytest.mark.kafka
@needs_proc
@pytest.mark.parametrize("victim", ["the test process", "the script"])
def test_kill_9_leaves_no_broker(broker: str, tmp_path: Path, victim: str) -> None:
    """`broker` is asked for only so that a machine without Java skips or fails as for any other test."""
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from kafka_broker import running
        with running("--set", "broker.rack={tmp_path.name}") as address:
            print(address, flush=True)
            time.sleep(600)
    """
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            host, _, port = parent.stdout.readline().strip().partition(":")
            with socket.create_connection((host, int(port)), timeout=5):
                pass
            (java,) = processes_naming(str(tmp_path / "burnfuse-kafka-"))
            (starter,) = set(processes_naming(f"broker.rack={tmp_path.name}")) - {parent.pid}
            os.kill(parent.pid if victim == "the test process" else starter, signal.SIGKILL)
            assert within(10, lambda: not Path(f"/proc/{java}/cmdline").exists()), "Java lives on"
            if victim == "the test process":
                assert within(10, lambda: not list(tmp_path.glob("burnfuse-kafka-*"))), "its data stays behind"
        finally:
            parent.kill()


@pytest.mark.kafka
def test_kept_data_survives_a_restart(broker: str, tmp_path: Path) -> None:
    topic = {"kept": {"num_partitions": 1, "replication_factor": 1}}
    with running("--dir", str(tmp_path)) as address, KafkaAdminClient(bootstrap_servers=address) as admin:
        admin.create_topics(topic)
        done = run("--dir", str(tmp_path), **os.environ)
        assert done.returncode == 1
        assert done.stderr == f"docker/kafka/run: a broker runs on {tmp_path}: stop it, or give another --dir\n"
    with running("--dir", str(tmp_path)) as address, KafkaAdminClient(bootstrap_servers=address) as admin:
        assert "kept" in admin.list_topics()


def test_the_fixture_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(BrokerMissingError, match="no Java: install Java 17 or newer"), running():
        pass
