"""Sends a load at a steady rate, as a process of its own: `python -m benchmarks.pace ORDER`, with JSON.

The moment a record is handed to Kafka's client is its Kafka timestamp. Those of the planted loops' calls are
written down, because findings are measured from them. Events are made by another process, some seconds ahead.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Producer

from benchmarks.broker import placed
from benchmarks.load import CHUNK, Load, chunks, loops
from benchmarks.processes import CORES, settle

_STEP_S = 0.005
_FIRST_S = 1.0
_AHEAD = 4
"""Chunks of events that are made before they are sent."""


class Order(msgspec.Struct, frozen=True):
    """What to send where.

    Attributes:
        load: Its start is when the first event is sent, s since 1970.
        keyed: Records are keyed by agent; see `benchmarks.broker.placed`.
        out: File that takes the answer.
    """

    broker: str
    topic: str
    load: Load
    core: int
    parent: int
    out: str
    keyed: bool


@contextmanager
def order(broker: str, topic: str, load: Load, *, keyed: bool = False) -> Iterator[tuple[list[str], Path]]:
    """The command that sends a load from the last core, and the file that will hold its answer."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "answer.json")
        given = Order(broker, topic, load, CORES[-1], os.getpid(), str(out), keyed)
        yield [sys.executable, "-m", "benchmarks.pace", msgspec.json.encode(given).decode()], out


class Answer(msgspec.Struct, frozen=True):
    """What was sent.

    Attributes:
        sent_ms: Number of an event of a planted loop -> its Kafka timestamp.
        seconds: How long sending took.
    """

    sent_ms: dict[int, int]
    seconds: float


def run(order: Order) -> Answer:
    """Sends each event when it is due."""
    load = order.load
    sent_ms: dict[int, int] = {}
    producer = Producer({"bootstrap.servers": order.broker, "linger.ms": 5, "enable.idempotence": True, "log_level": 0})
    records = _made(order)
    # Making the first events may have taken longer than thought: nothing is sent in a burst for that.
    start = max(load.start, time.time() + _FIRST_S)
    sent = 0
    for chunk in records:
        planted = set((sent + np.flatnonzero(loops(load, np.arange(sent, sent + len(chunk))) >= 0)).tolist())
        end, low = sent + len(chunk), sent
        while sent < end:
            due = min(end, int((time.time() - start) * load.rate))
            for i in range(sent, due):
                now_ms = round(time.time() * 1000)
                value, key, place = chunk[i - low]
                producer.produce(order.topic, value, key, place, timestamp=now_ms)
                if i in planted:
                    sent_ms[i] = now_ms
            sent = max(sent, due)
            producer.poll(_STEP_S)
    producer.flush()
    return Answer(sent_ms, time.time() - start)


def _made(order: Order) -> Iterator[list[tuple[bytes, str | None, int]]]:
    """All events in chunks, with their keys and partitions; several chunks are made ahead."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue(_AHEAD)
    maker = context.Process(target=_make, args=(order, queue, os.getpid(), min(os.sched_getaffinity(0))), daemon=True)
    maker.start()
    while queue.qsize() < min(_AHEAD, -(-order.load.events // CHUNK)):
        if not maker.is_alive():
            raise RuntimeError("the process that makes the events has ended")
        time.sleep(0.05)
    return iter(queue.get, None)


def _make(order: Order, queue: Any, parent: int, core: int) -> None:
    settle(core, parent)
    os.nice(5)  # sending goes first
    for number, chunk in enumerate(chunks(order.load)):
        first = number * CHUNK
        queue.put([(usage.value, *placed(usage, first + i, order.keyed)) for i, usage in enumerate(chunk)])
    queue.put(None)


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Order)
    settle(given.core, given.parent)
    Path(given.out).write_bytes(msgspec.json.encode(run(given)))
