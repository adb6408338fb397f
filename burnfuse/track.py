"""Sends usage events from an agent's own process to Kafka.

    from burnfuse.track import Tracker

    with Tracker("localhost:9092", agent_id="support-triage", team="support") as tracker:
        tracker.event(run_id="r-1", model="gpt-5-mini", input_tokens=1200, output_tokens=80)

An agent must neither fail nor wait because it is watched. So `event` only checks, hashes and puts into a
bounded buffer; a thread of its own talks to Kafka. What goes wrong is counted in `lost` and logged once.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePath
from types import TracebackType
from typing import Any

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from burnfuse.event import SEQUENCE_HEADER, UsageEvent
from burnfuse.security import Security

log = logging.getLogger(__name__)

_PRODUCER: dict[str, Any] = {
    "client_id": "burnfuse-tracker",
    "acks": "all",
    "linger_ms": 20,
    "compression_type": "gzip",
    "bootstrap_timeout_ms": 10_000,
    "max_block_ms": 10_000,
    "allow_auto_create_topics": False,  # `burnfuse topics` makes them, with their settings
}
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Waits between attempts to reach Kafka; the last one is repeated."""

_FIELDS = frozenset(UsageEvent.__struct_fields__)
_CONTENTS = ("args", "result")
_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode
_check = msgspec.json.Decoder(UsageEvent).decode

_sequence = itertools.count(1)


class TrackError(Exception):
    """An event that was not taken in; raised only by trackers made with `raise_errors=True`."""


def content_hash(value: Any, key: bytes = b"") -> str:
    """A hash of arguments or of a result: equal for equal contents, and nothing else can be read from it.

    The order of keys does not count, and JSON in a string counts like the JSON itself.

    >>> content_hash({"q": "x", "page": 1}) == content_hash('{"page": 1, "q": "x"}')
    True

    Args:
        key: A secret, at most 64 bytes; without one, short contents can be guessed from their hashes.

    Raises:
        TypeError: the value is no data.
    """
    if isinstance(value, str):
        value = value.strip()
        if value[:1] in ("{", "["):
            with suppress(msgspec.DecodeError):
                value = _decode(value)
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_plain)
    return hashlib.blake2b(_encode_sorted(plain), digest_size=16, key=key).hexdigest()


def _plain(value: Any) -> Any:
    """Data out of what msgspec does not know; an object's default text would hold its address."""
    if isinstance(value, PurePath | BaseException):
        return str(value)
    dump = getattr(value, "model_dump", None)  # pydantic, which many tool frameworks use
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no data")


class Tracker:
    """Sends usage events; give it the fields that all of them share.

    Thread-safe. After a fork the child starts with an empty buffer.

    Args:
        bootstrap_servers: Kafka brokers, host:port.
        topic: Topic of usage events.
        hash_contents: Send hashes of `args` and `result`, so that contents do not leave this process.
        hash_key: Secret key of these hashes, at most 64 bytes.
        raise_errors: `event` raises TrackError for what it cannot take in, instead of returning False.
        buffer: Most events that may wait for Kafka; further ones are lost.
        security: TLS, and who connects; plain and nobody if not given.
        kafka: Further settings of kafka-python's KafkaProducer.
        producer: Makes the producer; for tests.
        now: Wall clock, seconds since 1970.
        shared: Fields of every event, such as `agent_id` and `team`.

    Raises:
        SecurityError: a certificate or key cannot be used.
    """

    def __init__(
        self,
        bootstrap_servers: str | list[str],
        topic: str = "usage",
        *,
        hash_contents: bool = True,
        hash_key: bytes = b"",
        raise_errors: bool = False,
        buffer: int = 10_000,
        security: Security | None = None,
        kafka: Mapping[str, Any] | None = None,
        producer: Callable[..., Any] | None = None,
        now: Callable[[], float] = time.time,
        **shared: Any,
    ) -> None:
        _refuse_unknown(shared)
        content_hash("", hash_key)  # a key that is too long is told here
        self._topic, self._buffer, self._now = topic, buffer, now
        self._hash_contents, self._hash_key, self._raise_errors = hash_contents, hash_key, raise_errors
        own = security.kafka_python() if security is not None else {}
        self._options = _PRODUCER | own | dict(kafka or {}) | {"bootstrap_servers": bootstrap_servers}
        self._make_producer = producer
        self._shared = shared
        self._begin()
        atexit.register(self.close)

    def _begin(self) -> None:
        self.sent = 0
        """Events that Kafka has confirmed."""
        self.lost = 0
        """Events that were invalid, or did not fit into the buffer, or were refused by Kafka."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._filled, self._settled = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue: deque[tuple[bytes, bytes, int]] = deque()
        self._unsettled = 0  # in the queue, or with the producer
        self._closing = self._closed = False
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def event(self, **fields: Any) -> bool:
        """Takes in one usage event; see `UsageEvent` for the fields. None is the same as absent.

        `event_id` and `ts` (now) are filled in where they are missing.

        Returns:
            Whether the event was taken in. It is on Kafka once `flush` returns True.

        Raises:
            TrackError: it was not, and the tracker was made with `raise_errors=True`.
        """
        if self._pid != os.getpid():
            self._begin()  # a forked child has neither our thread nor, perhaps, a free lock
        try:
            key, value = self._record(fields)
        except Exception as error:
            return self._refuse("an event is invalid", str(error) or type(error).__name__)
        with self._lock:
            if self._closing:
                problem = ("an event came after the end", "the tracker is closed")
            elif self._unsettled >= self._buffer:
                problem = ("Kafka does not keep up", f"{self._buffer:,} events are waiting")
            else:
                # Numbered under the lock: the order in the queue is the order of the numbers.
                self._queue.append((key, value, next(_sequence)))
                self._unsettled += 1
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="burnfuse-tracker", daemon=True)
                    self._thread.start()
                self._filled.notify()
                return True
        return self._refuse(*problem)

    def flush(self, timeout: float | None = 10.0) -> bool:
        """Waits until nothing is on its way any more; False if that took longer than `timeout`, s."""
        with self._lock:
            return self._settled.wait_for(lambda: self._unsettled == 0, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Sends what is waiting, for at most `timeout` s; what is left then is lost."""
        if self._pid != os.getpid():
            return  # nothing was sent by this process
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._filled.notify_all()
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        with self._lock:
            self._closed = True
            left, producer = self._unsettled, self._producer
            self._filled.notify_all()
        if left:
            self._lose("the end came before Kafka had all events", f"{left} are lost", left)
        if producer is not None:
            with suppress(Exception):  # a producer that cannot flush says so; it was counted
                producer.close(timeout=max(0.0, deadline - time.monotonic()))
        atexit.unregister(self.close)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -------------------------------------------------------------------------------- one event

    def _record(self, fields: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """Key and value."""
        _refuse_unknown(fields)
        given = {name: value for name, value in {**self._shared, **fields}.items() if value is not None}
        if self._hash_contents:
            for name in _CONTENTS:
                if name in given:
                    digest = self._digest(given.pop(name))
                    if digest is not None:
                        given.setdefault(f"{name}_hash", digest)
        given.setdefault("event_id", uuid.uuid4().hex)
        given.setdefault("ts", self._now())
        value = _encode(given)
        # The wire's own rules, on what will be on the wire.
        return _check(value).agent_id.encode(), value

    def _digest(self, content: Any) -> str | None:
        try:
            return content_hash(content, self._hash_key)
        except Exception as error:
            # Unknown is honest; the tokens of the event count all the same.
            self._tell("arguments or results cannot be hashed and are left out", str(error))
            return None

    # --------------------------------------------------------------------------- what goes wrong

    def _refuse(self, what: str, why: str) -> bool:
        self._lose(what, why)
        if self._raise_errors:
            raise TrackError(f"{what}: {why}")
        return False

    def _lose(self, what: str, why: str, count: int = 1) -> None:
        with self._lock:
            self.lost += count
        self._tell(what, why)

    def _tell(self, what: str, why: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s: %s (said once; Tracker.lost counts)", what, why)

    # ---------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        producer = self._connect()
        while producer is not None:
            with self._lock:
                self._filled.wait_for(lambda: self._queue or self._closing)
                if self._closed or not self._queue:
                    return
                record = self._queue[0]
            self._hand_over(producer, *record)

    def _connect(self) -> Any:
        """A producer, however long it takes; None once nobody waits for it."""
        for attempt in itertools.count():
            with self._lock:
                if self._closed:
                    return None
            try:
                self._producer = (self._make_producer or KafkaProducer)(**self._options)
            except Exception as error:
                self._tell(
                    "Kafka cannot be reached or does not let us in, events are waiting",
                    f"{type(error).__name__}: {error}; the logger `kafka` may say more",
                )
                self._pause(attempt)
            else:
                # kafka-python closes its producers at exit; ours must be emptied before, so it is asked first.
                atexit.unregister(self.close)
                atexit.register(self.close)
                return self._producer
        return None

    def _pause(self, attempt: int) -> None:
        with self._lock:
            self._filled.wait_for(lambda: self._closed, _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])

    def _hand_over(self, producer: Any, key: bytes, value: bytes, number: int) -> None:
        headers = [(SEQUENCE_HEADER, number.to_bytes(8, "big"))]
        for attempt in itertools.count():
            with self._lock:
                if self._closed:
                    return
            try:
                future = producer.send(self._topic, value=value, key=key, headers=headers)
            except KafkaTimeoutError as error:
                # The topic is not known, perhaps not yet; nothing was sent.
                self._tell(f"topic {self._topic} cannot be reached, events are waiting", str(error))
                self._pause(attempt)
            except Exception as error:
                self._queue.popleft()
                self._settle(error)
                return
            else:
                self._queue.popleft()
                future.add_callback(lambda _: self._settle(None))
                future.add_errback(self._settle)
                return

    def _settle(self, error: Exception | None) -> None:
        """One event is on Kafka, or never will be."""
        with self._lock:
            if self._closed:
                return  # counted as lost
            self._unsettled -= 1
            self.sent += error is None
            self.lost += error is not None
            if not self._unsettled:
                self._settled.notify_all()
        if error is not None:
            self._tell("Kafka refuses events", f"{type(error).__name__}: {error}")


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    unknown = sorted(fields.keys() - _FIELDS)
    if unknown:
        raise TypeError(f"a usage event has no field {', '.join(map(repr, unknown))}")
