"""Sends a load at a steady rate, as a process of its own: `python -m benchmarks.pace ORDER`, with JSON.

The moment a record is handed to Kafka's client is its Kafka timestamp. Those of the planted loops' calls are
written down, because findings are measured from them.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from confluent_kafka import Producer

from benchmarks.load import Load, chunks, loops
from benchmarks.processes import settle

_STEP_S = 0.005
_FIRST_S = 1.0


class Order(msgspec.Struct, frozen=True):
    """What to send where.

    Attributes:
        start: When the first event is sent, s since 1970; all events are made before.
        out: File that takes the answer.
    """

    broker: str
    topic: str
    partitions: int
    load: Load
    core: int
    parent: int
    out: str


class Answer(msgspec.Struct, frozen=True):
    """What was sent.

    Attributes:
        sent_ms: Number of an event of a planted loop -> its Kafka timestamp.
        seconds: How long sending took.
    """

    sent_ms: dict[int, int]
    seconds: float


def run(order: Order) -> Answer:
    """Makes all events, waits for their start, and sends each when it is due."""
    load = order.load
    values = [usage.value for chunk in chunks(load) for usage in chunk]
    planted = set(np.flatnonzero(loops(load, np.arange(load.events)) >= 0).tolist())
    sent_ms: dict[int, int] = {}
    producer = Producer({"bootstrap.servers": order.broker, "linger.ms": 5, "log_level": 0})
    places = itertools.cycle(range(order.partitions))
    # Making the events may have taken longer than thought: nothing is sent in a burst for that.
    start = max(load.start, time.time() + _FIRST_S)
    sent = 0
    while sent < load.events:
        due = min(load.events, int((time.time() - start) * load.rate))
        for i in range(sent, due):
            now_ms = round(time.time() * 1000)
            producer.produce(order.topic, values[i], None, next(places), timestamp=now_ms)
            if i in planted:
                sent_ms[i] = now_ms
        sent = max(sent, due)
        producer.poll(_STEP_S)
    producer.flush()
    return Answer(sent_ms, time.time() - start)


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Order)
    settle(given.core, given.parent)
    Path(given.out).write_bytes(msgspec.json.encode(run(given)))
