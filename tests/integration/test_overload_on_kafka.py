"""More than a worker can take, brokers that write slowly, a slow Slack: it is told, and nothing is lost for it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deployment import Deployment
from kafka import KafkaConsumer, TopicPartition
from kafka_broker import enter_or_skip, free_port, running
from prometheus_client.parser import text_string_to_metric_families
from slack_server import SlackServer, slack_server_in_a_thread
from tcp_proxy import Proxy, proxied

from benchmarks.load import Load, chunks
from detectors.base import registered

EVENTS, LOOPS = 60_000, 24
BATCH = 500
"""Records of one run. Of each partition one run may be in an agent's hands, and one or two wait; and what one fetch
brought (1 MiB) waits behind them."""
FETCHED = (1 << 20) // 250
"""Most records of one fetch: they have 250 bytes at least."""
SECOND = {name for name, detector in registered().items() if detector.spec.second_stage}


@contextmanager
def broker_behind_a_proxy() -> Iterator[tuple[str, Proxy]]:
    """A broker's address, and the proxy through which whoever connects there reaches it."""
    plain, far, controller = free_port(), free_port(), free_port()
    with proxied("127.0.0.1", far) as proxy:
        settings = {
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},FAR://127.0.0.1:{far},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},FAR://{proxy.address}",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT",
        }
        options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
        with running("--port", str(plain), *options) as address:
            yield address, proxy


@dataclass
class Watch:
    """The most that a worker's metrics have shown, all partitions together."""

    port: int
    most: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    last: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        except (urllib.error.URLError, ConnectionError):
            return
        sums: dict[str, float] = defaultdict(float)
        for sample in (sample for family in text_string_to_metric_families(page) for sample in family.samples):
            name = sample.name.removeprefix("burnfuse_")
            sums[name] = max(sums[name], sample.value) if name == "lag_seconds" else sums[name] + sample.value
        self.last = dict(sums)
        for name, value in sums.items():
            self.most[name] = max(self.most[name], value)


def done(broker: str, house: Deployment) -> bool:
    """Whether all of the input, and all that came of it, has been committed."""
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=f"{house.name}-app", enable_auto_commit=False)
    topics = (f"{house.name}-usage", *(f"{house.name}.{part}" for part in ("events", "graph", "findings")))
    partitions = [TopicPartition(topic, p) for topic in topics for p in consumer.partitions_for_topic(topic) or ()]
    ends = consumer.end_offsets(partitions)
    # Heartbeats and clocks are always on their way.
    behind = sum(max(0, ends[tp] - (consumer.committed(tp) or 0)) for tp in partitions)
    read = all((consumer.committed(tp) or 0) >= ends[tp] for tp in partitions if tp.topic == topics[0])
    consumer.close()
    return read and behind < 100


def posted(slack: SlackServer) -> list[str]:
    return sorted(call.incident for call in slack.calls if call.method == "chat.postMessage")


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_under_overload_lag_is_told_waiting_is_bounded_and_nothing_is_lost(topic_prefix: str, tmp_path: Path) -> None:
    stream, port = tmp_path / "stream.jsonl", free_port()
    load = Load(events=EVENTS, agents=2_000, loop_every=EVENTS // LOOPS)
    stream.write_bytes(b"".join(event.value + b"\n" for chunk in chunks(load) for event in chunk))
    with ExitStack() as stack:
        broker, proxy = enter_or_skip(stack, broker_behind_a_proxy())
        slack = stack.enter_context(slack_server_in_a_thread())
        house = Deployment(broker, topic_prefix.rstrip("."), tmp_path)
        plain = house.write("plain")
        house.topics(plain)
        assert house.run("replay", stream, "--broker", broker, "--topic", f"{house.name}-usage").returncode == 0
        reference = [json.loads(line) for line in house.run("watch", "--json", stream).stdout.splitlines()]
        expected = {r["id"] for r in reference if r["type"] == "finding" and r["detector"] not in SECOND}
        assert len(expected) >= LOOPS
        config = house.write(
            kafka={"bootstrap_servers": [proxy.address], "batch_records": BATCH, "hold_s": 5.0},
            metrics={"listen": f"127.0.0.1:{port}"},
            overload={"begin_lag_s": 3, "end_lag_s": 2},
            actions={"slack": {"enabled": True, "channel": "#agent-alerts", "base_url": slack.url, "pause_s": 0.0}},
        )
        watch = Watch(port)
        slack.takes_s = 0.5
        proxy.bytes_per_s = 1e6

        def overloaded() -> bool:
            watch.look()
            return watch.most["overloaded"] == 1

        def caught_up() -> bool:
            watch.look()
            return done(broker, house) and watch.last["overloaded"] == 0 and watch.last["actions_waiting"] == 0

        with house.worker(config, BURNFUSE_SLACK_TOKEN="xoxb-only-for-tests") as process:
            house.wait_for("overload", overloaded, process)
            begun = time.monotonic()
            house.wait_for("ten slow seconds", lambda: overloaded() and time.monotonic() - begun > 10, process)
            proxy.bytes_per_s = float("inf")
            house.wait_for("the end", caught_up, process)

        assert watch.most["lag_seconds"] >= 3
        assert watch.last["lag_seconds"] < watch.most["lag_seconds"]
        partitions = 2 * 3 + 1  # of the input, of both inner topics, of the findings
        assert watch.most["records_waiting"] <= partitions * (FETCHED + 3 * BATCH) < EVENTS
        assert watch.last["events_taken_total"] == EVENTS
        assert watch.last.get("events_rejected_total", 0) == 0
        log = (tmp_path / "worker.log").read_text()
        assert "overloaded; the second stage is left out until it has caught up" in log
        assert "caught up after" in log
        records = [json.loads(record.value) for record in house.read(f"{house.name}.findings")]
        found = [record for record in records if record["type"] == "finding"]
        assert {f["id"] for f in found if f["detector"] not in SECOND} == expected
        changes = [json.loads(record.value) for record in house.read(f"{house.name}.incidents")]
        assert posted(slack) == sorted({c["id"] for c in changes if c["change"] == "opened"})
