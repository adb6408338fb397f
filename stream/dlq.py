"""`burnfuse dlq`: the dead letters on Kafka, and sending their records again.

Letters hold no contents, so replay reads the original record where it stands on the input topic, for as long as
it is kept there. It is sent to the same partition, with a header that says where it stood and which of its events
are meant (`stream.ingest.replayed`), and a mark on the dead-letter topic says so: no letter is replayed twice
unless that is asked for.
"""

from __future__ import annotations

import datetime as dt
import json as jsonlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from rich.table import Table

from burnfuse.event import REPLAY_HEADER
from stream.clock import Clock
from stream.connection import explained, for_kafka_python
from stream.errors import BrokerError, UsageError
from stream.ingest.decode import Invalid, event_time
from stream.ingest.reject import Reason
from stream.ingest.replayed import Replayed
from stream.ingest.share import Stopped
from stream.settings import KafkaSettings, Settings
from stream.stages import Topics
from stream.text import clean

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_SOURCE = re.compile(r"(?P<topic>.+)/(?P<partition>\d{1,9})/(?P<offset>\d{1,18})(?:\[(?P<place>\d{1,9})\])?")
_MAX_RECORD_BYTES = 1 << 24
_AT_ONCE = 500
_SILENT_S = 30.0
_TAIL = 2000
"""Letters, from the last one back, among which a worker looks for why the one before it stopped."""


class _Line(msgspec.Struct):
    """A record of the dead-letter topic: a letter, or a mark."""

    type: str = "letter"
    reason: str = ""
    detail: str = ""
    source: str = ""
    bytes: int = 0
    event_id: str = ""
    stage: str = ""
    fate: str = ""


_decode = msgspec.json.Decoder(_Line).decode


@dataclass(slots=True)
class Letter:
    """An event that was turned away."""

    at: float
    """When, s since 1970."""
    line: _Line
    replayed: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Which event it is."""
        return self.line.source, self.line.event_id


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters are meant; all of these must hold."""

    reason: Reason | None = None
    since: float | None = None
    """s since 1970."""
    ids: frozenset[str] = frozenset()
    """Sources, as `list` shows them."""
    limit: int | None = None

    def fits(self, letter: Letter) -> bool:
        """Whether a letter is meant, the limit aside."""
        return (
            (self.reason is None or letter.line.reason == self.reason)
            and (self.since is None or letter.at >= self.since)
            and (not self.ids or letter.line.source in self.ids)
        )


def moment(text: str, clock: Clock) -> float:
    """A time, s since 1970: RFC 3339, or how long ago (30min, 2h, 7d).

    Raises:
        UsageError: it is neither.
    """
    ago = re.fullmatch(r"(\d{1,9})(s|min|h|d)", text)
    if ago:
        return clock.now() - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        return event_time(text)
    except Invalid as error:
        how = "give a time (2026-03-05T09:00:00Z) or how long ago (30min, 2h, 7d)"
        raise UsageError(f"--since {text} is no time: {how}") from error


# ----------------------------------------------------------------------------------------- reading


def letters(kafka: KafkaSettings, choice: Choice) -> list[Letter]:
    """The letters that are meant, oldest first; one per event.

    Raises:
        BrokerError: Kafka cannot be reached, or the topic is missing.
    """
    found: dict[tuple[str, str], Letter] = {}
    marks: set[tuple[str, str]] = set()
    with explained(kafka), closing(_consumer(kafka)) as consumer:
        for record in _records(consumer, kafka, Topics.of(kafka).dead, choice.since):
            line = _line(record.value)
            if line is None:
                continue
            if line.type == "replayed":
                marks.add((line.source, line.event_id))
            elif line.type == "letter":
                letter = Letter(record.timestamp / 1000, line)
                found[letter.key] = letter
    for key in marks & found.keys():
        found[key].replayed = True
    return sorted(filter(choice.fits, found.values()), key=lambda letter: letter.at)


def stopped(kafka: KafkaSettings) -> Stopped | None:
    """Why a worker stopped before a batch that is still to come; None if none did.

    Raises:
        BrokerError: Kafka cannot be reached.
    """
    topics, last = Topics.of(kafka), None
    with explained(kafka), closing(_consumer(kafka, group_id=kafka.app_id)) as consumer:
        for record in _records(consumer, kafka, topics.dead, None, tail=_TAIL):
            line = _line(record.value)
            if line is not None and line.type == "stopped":
                last = msgspec.json.decode(record.value, type=Stopped)
        if last is None:
            return None
        committed = {p: consumer.committed(TopicPartition(topics.usage, p)) or 0 for p in last.first}
    return last if last.holds(committed) else None


def _consumer(kafka: KafkaSettings, **more: Any) -> Any:
    return KafkaConsumer(**for_kafka_python(kafka), auto_offset_reset="earliest", enable_auto_commit=False, **more)


def _records(
    consumer: Any, kafka: KafkaSettings, topic: str, since: float | None, tail: int | None = None
) -> Iterator[Any]:
    """A topic's records as of now."""
    partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
    if not partitions:
        raise BrokerError(f"there is no topic {topic}: run `burnfuse topics` with this configuration")
    consumer.assign(partitions)
    ends, begins = consumer.end_offsets(partitions), consumer.beginning_offsets(partitions)
    times = consumer.offsets_for_times({tp: int(since * 1000) for tp in partitions}) if since is not None else {}
    for tp in partitions:
        begin = begins[tp] if tail is None else max(begins[tp], ends[tp] - tail)
        if since is not None:
            found = times.get(tp)
            begin = ends[tp] if found is None else found.offset
        consumer.seek(tp, begin)
    yield from _polled(consumer, kafka, ends)


def _polled(consumer: Any, kafka: KafkaSettings, ends: dict[Any, int]) -> Iterator[Any]:
    """Records from where a consumer stands up to these offsets."""
    silent = 0.0
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        batches = consumer.poll(timeout_ms=1000)
        silent = 0.0 if batches else silent + 1.0
        if silent >= _SILENT_S:
            raise BrokerError(f"Kafka at {', '.join(kafka.bootstrap_servers)} has stopped answering: try again")
        for tp, records in batches.items():
            yield from (record for record in records if record.offset < ends[tp])


def _line(value: bytes | None) -> _Line | None:
    try:
        return _decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# ----------------------------------------------------------------------------------------- telling


def show(settings: Settings, choice: Choice, *, json: bool) -> None:
    """Prints letters, the newest `choice.limit` of them, and how many there are of each reason.

    Duplicates are normal: they are counted, and listed only if they are asked for.
    """
    found = letters(settings.kafka, choice)
    counts = Counter(letter.line.reason for letter in found)
    listed = [letter for letter in found if choice.reason is not None or letter.line.fate != "ignored"]
    listed = listed[-choice.limit :] if choice.limit else listed
    console = Console(soft_wrap=True, highlight=False)
    if json:
        for letter in listed:
            told = {"type": "letter", "at": _time(letter.at), **_fields(letter.line), "replayed": letter.replayed}
            console.print(jsonlib.dumps(told), markup=False)
        console.print(jsonlib.dumps({"type": "summary", "listed": len(listed), "reasons": dict(counts)}), markup=False)
        return
    if listed:
        table = Table(box=None, pad_edge=False)
        for name in ("when", "reason", "source", "bytes", "", "detail"):
            # The source is there to be copied.
            table.add_column(name, no_wrap=name != "detail", justify="right" if name == "bytes" else "left")
        for letter in listed:
            line = letter.line
            cells = (_time(letter.at), line.reason, line.source, str(line.bytes), "replayed" if letter.replayed else "")
            table.add_row(*map(clean, cells), clean(line.detail))
        console.print(table)
    total = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "no dead letters"
    console.print(f"{len(listed):,} listed; in all: {total}", markup=False)


def _fields(line: _Line) -> dict[str, Any]:
    names = ("reason", "detail", "source", "bytes", "event_id", "stage", "fate")
    return {name: getattr(line, name) for name in names}


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------------------------------- replaying


@dataclass(slots=True)
class Outcome:
    """What became of the letters that were meant."""

    letters: int = 0
    records: int = 0
    """Sent again, or to be sent."""
    gone: int = 0
    """Letters whose record is no longer on the input topic."""
    already: int = 0
    """Letters that were replayed before."""
    elsewhere: int = 0
    """Letters about records of other topics, which are not sent again."""


def replay(settings: Settings, choice: Choice, *, dry_run: bool, again: bool) -> Outcome:
    """Sends the records of letters again.

    Args:
        dry_run: Only look which could be sent.
        again: Also letters that were replayed before.

    Raises:
        BrokerError: Kafka cannot be reached, or does not take a record.
    """
    kafka, topics, outcome = settings.kafka, Topics.of(settings.kafka), Outcome()
    chosen: list[Letter] = []
    for letter in letters(kafka, choice):
        place = _SOURCE.fullmatch(letter.line.source)
        if letter.line.fate == "ignored":  # a duplicate has counted
            continue
        if place is None or place["topic"] != topics.usage:
            outcome.elsewhere += 1
        elif letter.replayed and not again:
            outcome.already += 1
        else:
            chosen.append(letter)
    chosen = chosen[: choice.limit]
    outcome.letters = len(chosen)
    by_record: dict[tuple[int, int], list[Letter]] = defaultdict(list)
    for letter in chosen:
        by_record[_place(letter)].append(letter)
    with explained(kafka), closing(_consumer(kafka)) as consumer, closing(_Sender(kafka, topics, dry_run)) as sender:
        for at, record in _originals(consumer, kafka, topics.usage, by_record):
            mine = by_record[at]
            if record is None:
                outcome.gone += len(mine)
            else:
                sender.send(record, mine)
                outcome.records += 1
    return outcome


def _place(letter: Letter) -> tuple[int, int]:
    found = _SOURCE.fullmatch(letter.line.source)
    assert found is not None
    return int(found["partition"]), int(found["offset"])


def _meant(record: Any, about: Sequence[Letter]) -> Replayed:
    """Which events of a record the letters are about."""
    places, ids = list[int](), list[str]()
    for letter in about:
        found = _SOURCE.fullmatch(letter.line.source)
        if found is not None and found["place"] is not None:
            places.append(int(found["place"]))
        elif letter.line.event_id:
            ids.append(letter.line.event_id)
        else:
            places, ids = [], []
            break
    return Replayed(f"{record.topic}/{record.partition}/{record.offset}", tuple(places), tuple(ids))


def _originals(
    consumer: Any, kafka: KafkaSettings, topic: str, wanted: Iterable[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Any]]:
    """(partition, offset), and the record there; None where there is none any more."""
    offsets: dict[int, list[int]] = defaultdict(list)
    for partition, offset in sorted(wanted):
        offsets[partition].append(offset)
    known = consumer.partitions_for_topic(topic) or set()
    for partition, left in offsets.items():
        tp = TopicPartition(topic, partition)
        if partition not in known:
            yield from (((partition, offset), None) for offset in left)
            continue
        consumer.assign([tp])
        (begin,), (end,) = consumer.beginning_offsets([tp]).values(), consumer.end_offsets([tp]).values()
        yield from (((partition, offset), None) for offset in left if not begin <= offset < end)
        there = [offset for offset in left if begin <= offset < end]
        while there:
            consumer.seek(tp, there[0])
            for record in _polled(consumer, kafka, {tp: there[-1] + 1}):
                while there and there[0] < record.offset:  # compaction or retention has taken it
                    yield (partition, there.pop(0)), None
                if there and there[0] == record.offset:
                    yield (partition, there.pop(0)), record
                if there and there[0] > record.offset + _AT_ONCE:
                    break
            else:
                yield from (((partition, offset), None) for offset in there)
                there = []


class _Sender:
    """Sends records again, and marks their letters once Kafka has them."""

    def __init__(self, kafka: KafkaSettings, topics: Topics, dry_run: bool) -> None:
        self._dead, self._marks, self._sent = topics.dead, list[Letter](), list[Any]()
        self._producer = None
        if not dry_run:
            self._producer = KafkaProducer(
                **for_kafka_python(kafka),
                acks="all",
                linger_ms=20,
                compression_type="gzip",
                max_request_size=_MAX_RECORD_BYTES,
            )

    def send(self, record: Any, about: Sequence[Letter]) -> None:
        if self._producer is None:
            return
        headers = [(name, value) for name, value in record.headers or () if name != REPLAY_HEADER]
        self._sent.append(
            self._producer.send(
                record.topic,
                key=record.key,
                value=record.value,
                partition=record.partition,
                headers=[*headers, _meant(record, about).header()],
            )
        )
        self._marks += about
        if len(self._sent) >= _AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        if self._producer is None:
            return
        self._wait()
        for letter in self._marks:
            mark = {"type": "replayed", "source": letter.line.source, "event_id": letter.line.event_id}
            self._sent.append(self._producer.send(self._dead, value=msgspec.json.encode(mark)))
        self._marks = []
        self._wait()

    def _wait(self) -> None:
        assert self._producer is not None
        self._producer.flush(timeout=60)
        for future in self._sent:
            future.get(timeout=60)
        self._sent = []

    def close(self) -> None:
        if self._producer is not None:
            with closing(self._producer):
                self._settle()


def tell(outcome: Outcome, *, dry_run: bool, json: bool) -> None:
    """Prints what became of the letters."""
    console = Console(soft_wrap=True, highlight=False)
    if json:
        line = {"type": "replay", "dry_run": dry_run} | {
            name: getattr(outcome, name) for name in ("letters", "records", "gone", "already", "elsewhere")
        }
        console.print(jsonlib.dumps(line), markup=False)
        return
    verb = "would be sent" if dry_run else "sent"
    text = f"{outcome.records:,} records {verb} again, for {outcome.letters - outcome.gone:,} letters"
    more = [
        (outcome.gone, "letters whose record is no longer on the input topic"),
        (outcome.already, "letters replayed before (--again sends them once more)"),
        (outcome.elsewhere, "letters about other topics, which are not replayed"),
    ]
    console.print("; ".join([text, *(f"{count:,} {what}" for count, what in more if count)]), markup=False)
