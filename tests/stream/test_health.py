"""Health: what makes a worker ill or unready, and pages that answer whatever the event loop does."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from stream.clock import ManualClock
from stream.health import Health, Silence, pages, serving
from stream.metrics import Metrics

HANG_S, SILENCE_S = 30.0, 20.0


def working(clock: ManualClock) -> Health:
    """A worker that is all right."""
    health = Health(clock, HANG_S, SILENCE_S)
    health.answered()
    health.assigned(3)
    return health


def get(port: int | None, path: str, timeout: float = 10.0) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_worker_that_works_is_well_and_ready() -> None:
    health = working(ManualClock())
    assert (health.ill(), health.unready()) == ([], [])


def test_an_event_loop_that_hangs_makes_it_ill() -> None:
    clock = ManualClock()
    health = working(clock)
    clock.advance(HANG_S)
    assert health.ill() == []
    clock.advance(1)
    assert health.ill() == ["the event loop has not turned for 31 s"]
    assert health.ill()[0] in health.unready()
    health.beat()
    assert health.ill() == []


def test_it_is_ready_when_partitions_are_assigned_state_is_restored_and_kafka_answers() -> None:
    clock = ManualClock()
    health = Health(clock, HANG_S, SILENCE_S)
    assert health.unready() == ["no partitions are assigned yet", "no Kafka broker has answered for 20 s"]
    health.answered()
    health.restoring("bf.events/0")
    health.assigned(2)
    assert health.unready() == ["state is being restored: bf.events/0"]
    health.restored("bf.events/0")
    assert health.unready() == []
    health.assigned(None)
    assert health.unready() == ["no partitions are assigned yet"]


def test_a_worker_without_partitions_is_a_ready_spare() -> None:
    health = working(ManualClock())
    health.assigned(0)
    assert health.unready() == []


def test_a_silent_kafka_makes_it_unready_not_ill() -> None:
    clock = ManualClock()
    health = working(clock)
    clock.advance(SILENCE_S + 1)
    health.beat()
    assert health.ill() == []
    assert health.unready() == ["no Kafka broker has answered for 20 s"]


def test_a_wall_clock_that_jumps_changes_nothing() -> None:
    class Jumping(ManualClock):
        jump = 0.0

        def now(self) -> float:
            return super().now() + self.jump

    clock = Jumping(1000.0)
    health = working(clock)
    for jump in (7200.0, -7200.0):
        clock.jump = jump
        assert (health.ill(), health.unready()) == ([], [])


def test_a_silent_kafka_is_told_once_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    silence = Silence(5.0)
    with caplog.at_level(logging.WARNING):
        told = [silence.look(s) for s in (float("nan"), 0.5, 4.9, 5.0, 6.0, 600.0, 0.1, 0.2)]
    assert told == [False, False, False, True, True, True, False, False]
    assert [record.getMessage() for record in caplog.records] == [
        "no Kafka broker has answered for 5 s; the worker tries again and goes on where it stopped",
        "Kafka answers again, after about 600 s",
    ]


def test_pages_answer_with_a_status_a_machine_reads_and_a_reason_a_person_reads() -> None:
    clock = ManualClock()
    health, metrics = working(clock), Metrics(clock)
    with serving("127.0.0.1:0", pages(health, metrics)) as port:
        assert get(port, "/healthz") == (200, '{"ok": true, "problems": []}\n')
        assert get(port, "/readyz")[0] == 200
        assert "burnfuse_events_taken_total 0.0" in get(port, "/metrics")[1]
        assert get(port, "/")[0] == 404
        health.assigned(None)
        status, body = get(port, "/readyz")
        assert (status, json.loads(body)["problems"]) == (503, ["no partitions are assigned yet"])
        assert get(port, "/healthz")[0] == 200
        clock.advance(HANG_S + 1)
        assert get(port, "/healthz")[0] == 503


def test_pages_answer_while_the_event_loop_hangs() -> None:
    clock = ManualClock()
    health = working(clock)
    hanging, enough = threading.Event(), threading.Event()

    async def hang() -> None:
        health.beat()
        hanging.set()
        enough.wait()

    loop = threading.Thread(target=lambda: asyncio.run(hang()), daemon=True)
    with serving("127.0.0.1:0", pages(health, Metrics(clock))) as port:
        loop.start()
        assert hanging.wait(10)
        try:
            clock.advance(HANG_S + 1)
            assert get(port, "/healthz")[0] == 503
            assert get(port, "/metrics")[0] == 200
        finally:
            enough.set()
            loop.join()


def test_a_client_that_says_nothing_keeps_nobody_waiting() -> None:
    clock = ManualClock()
    with serving("127.0.0.1:0", pages(working(clock), Metrics(clock))) as port:
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)):
            assert get(port, "/healthz")[0] == 200


def test_an_address_that_is_taken_is_told_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    app = pages(working(clock), Metrics(clock))
    with serving("127.0.0.1:0", app) as port, serving(f"127.0.0.1:{port}", app) as second:
        assert second is None
        assert get(port, "/healthz")[0] == 200
    assert f"cannot listen on 127.0.0.1:{port}" in caplog.text
    assert "set metrics.listen" in caplog.text


def test_without_an_address_there_is_no_server() -> None:
    before = threading.active_count()
    with serving(None, pages(working(ManualClock()), Metrics())) as port:
        assert port is None
        assert threading.active_count() == before


def test_the_server_is_gone_when_the_worker_is() -> None:
    with serving("127.0.0.1:0", pages(working(ManualClock()), Metrics())) as port:
        pass
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port or 0), timeout=5)


def test_times_come_from_the_worker_at_each_look() -> None:
    clock = ManualClock(time.time())
    health, metrics = working(clock), Metrics(clock)
    metrics.worker(lambda: not health.unready(), health.loop_delay_s, health.silence_s)
    clock.advance(12)
    value = metrics.registry.get_sample_value
    assert value("burnfuse_event_loop_delay_seconds") == 12
    assert value("burnfuse_kafka_silence_seconds") == 12
    assert value("burnfuse_ready") == 1
    clock.advance(100)
    assert value("burnfuse_ready") == 0
