"""`burnfuse replay`: sends a recorded stream to Kafka."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from burnfuse.event import SEQUENCE_HEADER
from stream.clock import Clock
from stream.connection import explained, for_kafka_python
from stream.errors import BrokerError
from stream.ingest.decode import Invalid, event_time
from stream.ingest.files import find, merged
from stream.ingest.ingest import Record
from stream.report import Rejections
from stream.settings import KafkaSettings

KEYS = ("agent_id", "root_run_id", "none")
_MAX_RECORD_BYTES = 1 << 24
_SLEEP_S = 0.05


class _Peek(msgspec.Struct):
    """What replay looks at; the record is sent as it is."""

    ts: str | int | float | None = None
    agent_id: str = ""
    run_id: str | None = None
    root_run_id: str | None = None


_peek = msgspec.json.Decoder(_Peek).decode


def run(
    paths: Sequence[str],
    kafka: KafkaSettings,
    topic: str,
    speed: float,
    key: str,
    clock: Clock,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Sends all records as they are, paced by their event times.

    Args:
        kafka: Where Kafka is, and who connects.
        speed: Times the recorded pace; 0: as fast as possible.
        key: One of KEYS.

    Returns:
        Whether all inputs could be read and all records were sent.

    Raises:
        BrokerError: Kafka cannot be reached.
        InputError: nothing to send.
    """
    sources = find(paths, _MAX_RECORD_BYTES)
    with explained(kafka):
        producer = KafkaProducer(
            **for_kafka_python(kafka),
            acks="all",
            linger_ms=20,
            batch_size=1 << 17,
            compression_type="gzip",
            max_request_size=_MAX_RECORD_BYTES,
        )
    rejections, failed = Rejections(), []
    total = sum(source.size() for source in sources)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    records = sources[0].records() if len(sources) == 1 else merged(sources, _time)
    with (
        closing(producer),
        Progress(
            *columns[:3], TextColumn("{task.fields[sent]:,} records"), columns[4], console=Console(stderr=True)
        ) as progress,
    ):
        task = progress.add_task(f"to {topic}", total=total or None, sent=0)
        started, first = clock.monotonic(), None
        sent = 0
        for number in itertools.count(1):
            record = next(records, None)
            if record is None:
                break
            if not isinstance(record, Record):
                rejections.add(record)
                failed.append(record.detail)
                continue
            seen = _look(record)
            if speed > 0 and (ts := _seconds(seen)) is not None:
                first = ts if first is None else first
                while (wait := (ts - first) / speed - (clock.monotonic() - started)) > 0:
                    sleep(min(wait, _SLEEP_S))
                    progress.refresh()
            future = producer.send(
                topic,
                value=record.value,
                key=_key(seen, key),
                headers=[(SEQUENCE_HEADER, number.to_bytes(8, "big"))],
            )
            future.add_errback(lambda error: failed.append(f"{type(error).__name__}: {error}"))
            sent += 1
            if sent % 500 == 0:
                progress.update(task, completed=sum(s.bytes_read for s in sources), sent=sent)
        try:
            producer.flush(timeout=60)
        except KafkaError as error:
            raise BrokerError(
                f"{', '.join(kafka.bootstrap_servers)} did not take all records within 60 s: {error}"
            ) from error
        progress.update(task, completed=total, sent=sent)
    rejections.finish()
    if failed:
        Console(stderr=True).print(f"{len(failed)} records were not sent, e.g.: {failed[0]}", markup=False)
    return not failed


def _look(record: Record) -> _Peek | None:
    try:
        return _peek(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _seconds(seen: _Peek | None) -> float | None:
    if seen is None or seen.ts is None:
        return None
    try:
        return event_time(seen.ts)
    except Invalid:
        return None


def _time(record: Record) -> float | None:
    return _seconds(_look(record))


def _key(seen: _Peek | None, key: str) -> bytes | None:
    if seen is None or key == "none" or not seen.agent_id:
        return None
    root = seen.root_run_id or seen.run_id or seen.agent_id
    return (seen.agent_id if key == "agent_id" else root).encode(errors="replace")
