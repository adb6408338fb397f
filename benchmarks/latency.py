"""How late a finding comes, and the call to Slack, while a worker has half of the load it could take.

Loops are planted into the load, two per second. Measured from the Kafka timestamp of the call that made a
finding to the moment a consumer has the finding, and to the moment the Slack call for a new incident arrives
at a local server. The first ten seconds do not count.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, TopicPartition

from benchmarks import broker as kafka_broker
from benchmarks import pace, results
from benchmarks.broker import Broker
from benchmarks.contenders import CONTENDERS, Job
from benchmarks.load import Load, event_index
from benchmarks.measure import command
from benchmarks.processes import CORES, Process, running
from benchmarks.screen import FOLDER, MissingError, add_seconds, command_line, parser, progress, say
from tests.slack_server import SlackServer, slack_server_in_a_thread

_LOOPS_PER_S = 2.0
_WARM_S = 10.0
_TOKEN = "xoxb-only-for-benchmarks"  # noqa: S105 - nothing is behind it
_SETTLE_S = 10.0
_CATCH_UP_S = 120.0
_HEARTBEATS = 100
"""Records that may always be on their way on inner topics: they come without events, too."""
_READY_S = 20.0
"""Until the worker is at work."""


class Arrivals:
    """Reads a topic in a thread, and notes when each record came."""

    def __init__(self, address: str, topic: str) -> None:
        self.records: list[tuple[float, dict[str, Any]]] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": "arrivals",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._ending.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                self.records.append((time.time(), msgspec.json.decode(message.value())))


@dataclass(frozen=True, slots=True)
class Moment:
    """How things stand while the load is sent.

    Attributes:
        seconds: Since the watching began.
        lag: Asks how many events were sent and are not done with.
    """

    seconds: float
    worker: Process
    lag: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker made of a load.

    Attributes:
        started: When the first event was sent, s since 1970.
        handled: Events of the input that the worker has committed.
        rejected: Events it turned away.
    """

    load: Load
    answer: pace.Answer
    started: float
    found: Arrivals
    incidents: Arrivals
    slack: SlackServer
    handled: int
    rejected: int


def under_load(
    rate: float,
    seconds: float,
    name: str,
    options: Mapping[str, Any],
    look: Callable[[Moment], None] = lambda _: None,
) -> Outcome:
    """Runs a worker under a steady load.

    Args:
        rate: Events per second.
        name: Of the contender; a burnfuse worker.
        options: Further settings of the worker.
        look: Called twice a second.
    """
    load = Load(
        events=round(rate * (_WARM_S + seconds)),
        start=time.time() + _READY_S,
        rate=rate,
        loop_every=max(1, round(rate / _LOOPS_PER_S)),
    )
    group = kafka_broker.new_group()
    topic = f"{group}.usage"
    with kafka_broker.running(FOLDER) as broker, slack_server_in_a_thread() as slack:
        # Without the pause that the real Slack asks for: the way to the call is measured, not Slack's rate.
        actions = {"slack": {"enabled": True, "channel": "#benchmarks", "base_url": slack.url, "pause_s": 0}}
        given = dict(CONTENDERS[name].options) | {"actions": actions} | dict(options)
        job = Job(broker.address, topic, group, CORES[0], os.getpid(), given)
        os.environ["BURNFUSE_SLACK_TOKEN"] = _TOKEN
        job.make_topics()  # the input topic, too

        read = {topic: kafka_broker.PARTITIONS} | {
            f"{group}.{part}": job.settings().kafka.partitions for part in CONTENDERS[name].inner
        }

        def behind(topics: Iterable[str]) -> int:
            done = broker.committed(group)
            return sum(sum(broker.ends(each, read[each]).values()) - done.get(each, 0) for each in topics)

        def lag() -> int:
            return behind([topic])

        with (
            running(command(name, job)) as worker,
            Arrivals(broker.address, f"{group}.findings") as found,
            Arrivals(broker.address, f"{group}.incidents") as incidents,
        ):
            began = time.monotonic()

            def look_now() -> None:
                look(Moment(time.monotonic() - began, worker, lag))

            answer = _send(broker, topic, load, CONTENDERS[name].keyed, worker, look_now, seconds)
            started = time.time() - answer.seconds
            deadline = time.monotonic() + _CATCH_UP_S
            while behind(read) > _HEARTBEATS and time.monotonic() < deadline:
                time.sleep(0.5)
            time.sleep(_SETTLE_S)
            handled = broker.committed(group).get(topic, 0)
            rejected = sum(broker.ends(f"{group}.dead", 1).values())
        broker.delete_prefix(group)
    return Outcome(load, answer, started, found, incidents, slack, handled, rejected)


def run(rate: float, seconds: float, name: str = "burnfuse") -> results.Figures:
    """Measures how late findings are under a steady load; see `under_load`."""
    done = under_load(rate, seconds, name, {})
    return _figures(done.load, done.answer, done.found, done.incidents, done.slack)


def _send(
    broker: Broker, topic: str, load: Load, keyed: bool, worker: Process, look: Callable[[], None], seconds: float
) -> pace.Answer:
    with (
        pace.order(broker.address, topic, load, keyed=keyed) as (sending, out),
        progress(f"{load.rate:,.0f} events/s, {seconds:.0f} s", load.events) as tell,
        running(sending) as sender,
    ):
        while not out.exists():
            worker.check()
            if not sender.alive():
                time.sleep(0.5)
                if not out.exists():
                    sender.check()
            tell(sum(broker.ends(topic, kafka_broker.PARTITIONS).values()))
            look()
            time.sleep(0.5)
        return msgspec.json.decode(out.read_bytes(), type=pace.Answer)


def _figures(
    load: Load, answer: pace.Answer, found: Arrivals, incidents: Arrivals, slack: SlackServer
) -> results.Figures:
    warm = int(_WARM_S * load.rate)
    events: dict[str, int] = {}  # finding -> number of the event that made it
    finding_ms = []
    for at, record in found.records:
        if record["type"] == "finding":
            index = events[record["id"]] = event_index(record["event_id"])
            if index >= warm and index in answer.sent_ms:
                finding_ms.append(at * 1000 - answer.sent_ms[index])
    opened = {r["id"]: events.get(r["findings"][0]) for _, r in incidents.records if r["change"] == "opened"}
    slack_ms = []
    for call in slack.calls:
        if call.method == "chat.postMessage":
            text = str(call.arguments)
            first = next((index for incident, index in opened.items() if incident in text), None)
            if first is not None and first >= warm and first in answer.sent_ms:
                slack_ms.append(call.at * 1000 - answer.sent_ms[first])
    planted = sum(index >= warm for index in answer.sent_ms) // 6
    return {
        "rate": load.rate,
        "rate_sent": load.events / answer.seconds,
        "seconds": answer.seconds - _WARM_S,
        "loops": planted,
        "finding": percentiles(finding_ms),
        "slack": percentiles(slack_ms),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the largest of latencies, ms, and how many there are."""
    if not values:
        return {"n": 0}
    p50, p99 = np.percentile(values, [50, 99])
    return {"n": len(values), "p50": float(p50), "p99": float(p99), "max": max(values)}


def measured_rate(path: Path, name: str) -> float:
    """Events per second that `benchmarks.throughput` measured.

    Raises:
        MissingError: it was not run yet.
    """
    try:
        return float(results.load(path)["throughput"]["contenders"][name]["rate"]["median"])
    except KeyError as error:
        missing = f"{path} holds no throughput of {name}: measure it first, or give --rate"
        raise MissingError(missing) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options_of = parser("latency", __doc__.splitlines()[0], "--seconds 30 --rate 5000", events=None)
    add_seconds(options_of, 60.0)
    options_of.add_argument("--rate", type=float, help="events/s (default: half of what throughput measured)")
    options_of.add_argument("--only", nargs="+", choices=results.LATENCIES, default=list(results.LATENCIES))
    options = options_of.parse_args(arguments)
    for name in options.only:
        rate = options.rate or measured_rate(options.json, name) / 2
        figures = run(rate, options.seconds, name)
        part, label = results.LATENCIES[name]
        results.save(options.json, part, figures)
        sys.stdout.write(results.text_table(results.LATENCY_HEAD, results.latency_rows(figures)) + "\n")
        say(f"{label}: {figures['rate_sent']:,.0f} events/s for {figures['seconds']:.0f} s; figures: {options.json}")


if __name__ == "__main__":
    command_line(main)
