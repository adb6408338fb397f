"""Usage events leave an agent's process in order, without their contents, and never at the agent's expense."""

from __future__ import annotations

import doctest
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, MessageSizeTooLargeError

import burnfuse.track
from burnfuse.event import SEQUENCE_HEADER, UsageEvent
from burnfuse.track import Tracker, TrackError, content_hash


class Future:
    """What `send` returns; settled by the test or at once."""

    def __init__(self, error: Exception | None = None, *, open_: bool = False) -> None:
        self.error, self.open = error, open_
        self.callbacks: list[Callable[[Any], Any]] = []
        self.errbacks: list[Callable[[Exception], Any]] = []

    def add_callback(self, call: Callable[[Any], Any]) -> None:
        self.callbacks.append(call)
        if not self.open and self.error is None:
            call(None)

    def add_errback(self, call: Callable[[Exception], Any]) -> None:
        self.errbacks.append(call)
        if not self.open and self.error is not None:
            call(self.error)

    def settle(self) -> None:
        for call in self.callbacks:
            call(None)


class Kafka:
    """A producer that remembers, and the script of what goes wrong first: one entry per call."""

    def __init__(self, *, connecting: list[Any] | None = None, sending: list[Any] | None = None) -> None:
        self.connecting, self.sending = list(connecting or []), list(sending or [])
        self.records: list[tuple[bytes, dict[str, Any], int]] = []
        self.values: list[bytes] = []
        self.options: dict[str, Any] = {}
        self.futures: list[Future] = []
        self.closed = False

    def __call__(self, **options: Any) -> Kafka:
        if self.connecting:
            problem = self.connecting.pop(0)
            if problem is not None:
                raise problem
        self.options = options
        return self

    def send(self, topic: str, *, value: bytes, key: bytes, headers: list[tuple[str, bytes]]) -> Future:
        what = self.sending.pop(0) if self.sending else None
        if isinstance(what, Exception):
            raise what
        ((name, number),) = headers
        assert (topic, name, len(number)) == ("usage", SEQUENCE_HEADER, 8)
        self.values.append(value)
        self.records.append((key, json.loads(value), int.from_bytes(number, "big")))
        future = what if isinstance(what, Future) else Future()
        self.futures.append(future)
        return future

    def close(self, timeout: float) -> None:
        self.closed = True

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for _, event, _ in self.records]


@contextmanager
def tracker(fake: Kafka, /, **options: Any) -> Iterator[Tracker]:
    made = Tracker("broker:9092", producer=fake, now=lambda: 1_772_700_000.0, **options)
    try:
        yield made
    finally:
        made.close(timeout=0.2)


def test_an_event_becomes_a_record_keyed_by_agent() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="triage", team="support") as track:
        assert track.event(run_id="r1", model="gpt-5", input_tokens=1200, output_tokens=80)
        assert track.flush()
        assert (track.sent, track.lost) == (1, 0)
    ((key, event, _),) = kafka.records
    assert key == b"triage"
    assert len(event.pop("event_id")) == 32
    assert event == {
        "agent_id": "triage",
        "team": "support",
        "run_id": "r1",
        "model": "gpt-5",
        "input_tokens": 1200,
        "output_tokens": 80,
        "ts": 1_772_700_000.0,
    }
    assert kafka.options["bootstrap_servers"] == "broker:9092"
    assert kafka.options["acks"] == "all"
    assert kafka.closed


def test_what_the_producer_says_is_kept_and_none_is_absent() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a", user="u") as track:
        track.event(event_id="mine", ts="2026-03-05T09:42:00Z", agent_id="b", user=None, cost_usd=None)
    assert kafka.events == [{"agent_id": "b", "event_id": "mine", "ts": "2026-03-05T09:42:00Z"}]


def test_kafka_settings_are_passed_on() -> None:
    kafka = Kafka()
    with tracker(kafka, kafka={"security_protocol": "SASL_SSL", "linger_ms": 0}, agent_id="a") as track:
        track.event()
    assert kafka.options["security_protocol"] == "SASL_SSL"
    assert kafka.options["linger_ms"] == 0


def test_numbers_rise_in_the_order_of_sending_from_all_threads() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a") as track:
        threads = [threading.Thread(target=lambda: [track.event(run_id=f"{i}") for i in range(200)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert track.flush()
        assert track.sent == 1600
    numbers = [number for *_, number in kafka.records]
    assert numbers == sorted(set(numbers))


# ------------------------------------------------------------------------------------------- contents


def test_contents_do_not_leave_the_process() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a") as track:
        track.event(kind="tool", tool="search", args={"q": "hush"}, result="hush hush")
    ((value, event),) = zip(kafka.values, kafka.events, strict=True)
    assert b"hush" not in value
    assert event["args_hash"] == content_hash({"q": "hush"})
    assert event["result_hash"] == content_hash("hush hush")


def test_contents_are_sent_where_hashing_is_switched_off() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a", hash_contents=False) as track:
        track.event(kind="tool", tool="search", args={"q": "x"}, result=["y"])
    assert kafka.events[0]["args"] == {"q": "x"}
    assert kafka.events[0]["result"] == ["y"]


def test_a_ready_made_hash_wins() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a") as track:
        track.event(kind="tool", args={"q": "x"}, args_hash="mine")
    assert kafka.events[0]["args_hash"] == "mine"


SAME = [
    ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
    ({"a": 1}, '{"a": 1}'),
    ({"a": 1}, ' {"a":1}\n'),
    ("done", " done "),
    ({1: "x"}, {"1": "x"}),
    (PurePosixPath("/tmp/x"), "/tmp/x"),
    (ValueError("no such page"), "no such page"),
    ((1, 2), [1, 2]),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_contents_have_equal_hashes(one: object, other: object) -> None:
    assert content_hash(one) == content_hash(other)


@pytest.mark.parametrize(("one", "other"), [({"a": 1}, {"a": 2}), ("{broken", "{broke"), ([1, 2], [2, 1]), ("", None)])
def test_other_contents_have_other_hashes(one: object, other: object) -> None:
    assert content_hash(one) != content_hash(other)


def test_a_key_changes_all_hashes() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a", hash_key=b"secret") as track:
        track.event(kind="tool", args={"a": 1})
    assert kafka.events[0]["args_hash"] == content_hash({"a": 1}, b"secret") != content_hash({"a": 1})
    with pytest.raises(ValueError, match="64"):
        Tracker("broker:9092", hash_key=b"x" * 65)


def test_what_cannot_be_hashed_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    kafka, deep = Kafka(), []  # type: ignore[var-annotated]
    for _ in range(100_000):
        deep = [deep]
    with tracker(kafka, agent_id="a") as track:
        for args in (object(), deep, {"x": {1, object()}}):
            assert track.event(kind="tool", args=args, input_tokens=1)
    assert [set(event) for event in kafka.events] == [{"agent_id", "kind", "input_tokens", "event_id", "ts"}] * 3
    assert len(caplog.records) == 1


# ------------------------------------------------------------------------------------- what goes wrong

INVALID: list[dict[str, Any]] = [
    {"agent_id": ""},
    {"input_tokens": -1},
    {"input_tokens": 1.5},
    {"input_tokens": "12"},
    {"cost_usd": 1e13},
    {"kind": "strange"},
    {"status": "failed"},
    {"input_token": 5},
    {"user": "\ud800"},
    {"attributes": {"x": object()}},
]


@pytest.mark.parametrize("fields", INVALID, ids=lambda fields: next(iter(fields)))
def test_an_invalid_event_does_not_hurt_the_agent(fields: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a") as track:
        assert track.event(**fields) is False
        assert track.event(**fields) is False
        assert track.event(run_id="good") is True
        assert track.flush()
        assert (track.sent, track.lost) == (1, 2)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "an event is invalid" in caplog.text


@pytest.mark.parametrize("fields", INVALID, ids=lambda fields: next(iter(fields)))
def test_errors_are_raised_where_that_was_asked_for(fields: dict[str, Any]) -> None:
    with tracker(Kafka(), raise_errors=True, agent_id="a") as track, pytest.raises(TrackError):
        track.event(**fields)


def test_without_an_agent_there_is_no_event() -> None:
    with tracker(Kafka(), raise_errors=True) as track, pytest.raises(TrackError, match="agent_id"):
        track.event(run_id="r")


def test_a_shared_field_that_does_not_exist_is_told_at_once() -> None:
    with pytest.raises(TypeError, match="no field 'teem'"):
        Tracker("broker:9092", teem="x")


def test_events_wait_for_kafka_in_order(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("burnfuse.track._PAUSES_S", (0.01,))
    kafka = Kafka(
        connecting=[KafkaConnectionError(), KafkaConnectionError()],
        sending=[KafkaTimeoutError("no metadata"), None, KafkaTimeoutError("again")],
    )
    with tracker(kafka, agent_id="a") as track:
        for number in range(5):
            assert track.event(run_id=f"{number}")
        assert track.flush()
        assert (track.sent, track.lost) == (5, 0)
    assert [event["run_id"] for event in kafka.events] == ["0", "1", "2", "3", "4"]
    assert len(caplog.records) == 2  # one for the broker, one for the topic


def test_the_buffer_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    futures = [Future(open_=True) for _ in range(3)]
    kafka = Kafka(sending=list(futures))
    with tracker(kafka, buffer=3, agent_id="a") as track:
        assert [track.event(run_id=f"{i}") for i in range(5)] == [True, True, True, False, False]
        assert not track.flush(timeout=0.05)
        while len(kafka.records) < 3:
            time.sleep(0.001)
        futures[0].settle()
        assert track.event(run_id="fits again")
        assert track.lost == 2
        for future in futures[1:]:
            future.settle()
        assert track.flush()
    assert "3 events are waiting" in caplog.text


def test_what_kafka_refuses_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka(sending=[MessageSizeTooLargeError("too large"), Future(KafkaTimeoutError("expired")), None])
    with tracker(kafka, agent_id="a") as track:
        for _ in range(3):
            track.event()
        assert track.flush()
        assert (track.sent, track.lost) == (1, 2)
    assert len(caplog.records) == 1


def test_a_dead_broker_holds_up_neither_the_work_nor_the_end(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka(connecting=[KafkaConnectionError()] * 1000)
    track = Tracker("broker:9092", agent_id="a", producer=kafka)
    started = time.monotonic()
    assert track.event()
    track.close(timeout=0.1)
    assert time.monotonic() - started < 2
    assert track.lost == 1
    assert "the end came" in caplog.text


def test_the_end_is_the_end() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a") as track:
        track.event()
    track.close()
    assert track.event() is False
    assert len(kafka.records) == 1


def test_an_error_in_the_agents_work_still_sends_what_was_tracked() -> None:
    kafka = Kafka()

    def work() -> None:
        with tracker(kafka, agent_id="a") as track:
            track.event()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert len(kafka.records) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_sends_its_own_events() -> None:
    kafka = Kafka()
    with tracker(kafka, agent_id="a") as track:
        track.event(run_id="parent")
        assert track.flush()
        child = os.fork()
        if not child:
            fine = track.event(run_id="child") and track.flush() and track.sent == 1
            fine = fine and [event["run_id"] for event in kafka.events] == ["parent", "child"]
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert track.sent == 1


AT_EXIT = """
from burnfuse.track import Tracker

class Producer:
    sent = 0

    def __init__(self, **options): ...

    def send(self, *args, **kwargs):
        self.sent += 1
        return self

    def add_callback(self, call):
        call(None)

    def add_errback(self, call): ...

    def close(self, timeout):
        print(self.sent)

Tracker("broker:9092", agent_id="a", producer=Producer).event()
"""


def test_what_waits_at_exit_is_sent() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(burnfuse.track).failed == 0


def test_it_is_light() -> None:
    script = "import sys, burnfuse.track; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert {"burnfuse", "kafka", "msgspec"} <= loaded
    assert not loaded & {"stream", "detectors", "faust", "numpy", "river", "pydantic", "slack_sdk", "typer"}


# ---------------------------------------------------------------------------------------- a real Kafka


def test_events_are_on_kafka_in_order_with_their_numbers(broker: str, topic_prefix: str) -> None:
    topic = topic_prefix + "usage"
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.create_topics({topic: {"num_partitions": 3, "replication_factor": 1}})
    with Tracker(broker, topic, raise_errors=True, agent_id="a") as track:
        for number in range(500):
            track.event(run_id=f"{number % 7}", kind="tool", tool="x", args={"n": number}, input_tokens=number)
        assert track.flush(timeout=30)
        assert (track.sent, track.lost) == (500, 0)

    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition(topic, partition) for partition in range(3)])
    records = [record for _, record in zip(range(500), consumer, strict=False)]
    consumer.close()
    assert {record.key for record in records} == {b"a"}
    assert len({record.partition for record in records}) == 1
    assert [json.loads(record.value)["input_tokens"] for record in records] == list(range(500))
    numbers = [int.from_bytes(dict(record.headers)[SEQUENCE_HEADER], "big") for record in records]
    assert numbers == sorted(set(numbers))
    assert set(json.loads(records[0].value)) <= set(UsageEvent.__struct_fields__)
