"""Reading recorded events: files, folders, standard input; plain or gzip."""

from __future__ import annotations

import contextlib
import gzip
import heapq
import io
import itertools
import select
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from stream.errors import InputError, UsageError
from stream.ingest.decode import Invalid, elements
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason, Reject

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_CHUNK = 1 << 20
PAUSE_S = 0.5
"""How long to wait for more of an input that is still being written, s."""
_WHOLE_LIMIT = 1 << 28
"""A file that is one JSON array is read whole, up to 256 MiB."""

_BOM = b"\xef\xbb\xbf"
"""Some editors and exports put this before UTF-8 text."""


class Source:
    """One input: a file, or standard input as `-`.

    Args:
        number: Which input it is.
        max_record_bytes: Lines beyond this are not held in memory; they become records without a value.
    """

    def __init__(self, number: int, path: str, max_record_bytes: int) -> None:
        self.number, self.path, self._limit = number, path, max_record_bytes
        self.bytes_read = 0
        """Of the file as it lies there, for progress."""
        self._file: BinaryIO | None = None

    def size(self) -> int:
        """Bytes of the file; 0 if unknown."""
        try:
            return 0 if self.path == "-" else Path(self.path).stat().st_size
        except OSError:
            return 0

    def records(self, follow: bool = False) -> Iterator[Record | Reject | None]:
        """The records in order; a Reject for what makes the rest of the file unreadable.

        Args:
            follow: Do not stop at the end of the file: give None whenever nothing was added.
        """
        try:
            with self._open() as file:
                yield from self._read(file, follow)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, EOFError):
                yield Reject(Reason.TRUNCATED, "the gzip file ends in the middle", self.path)
            else:
                why = getattr(error, "strerror", None) or "it is damaged"
                yield Reject(Reason.UNREADABLE, f"cannot read the file: {why}", self.path)

    def _open(self) -> BinaryIO:
        raw: BinaryIO = sys.stdin.buffer if self.path == "-" else Path(self.path).open("rb")  # noqa: SIM115 - closed by `records`
        self._file = raw
        buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            return gzip.GzipFile(fileobj=buffered)  # type: ignore[return-value]
        return buffered

    def _read(self, file: BinaryIO, follow: bool) -> Iterator[Record | Reject | None]:
        lines = self._lines(file, follow)
        first = next(lines, None)
        while first is None and follow:
            yield None
            first = next(lines, None)
        if first is None:
            return
        head = first.value or b""
        if b"\0" in head[:4096]:
            yield Reject(Reason.BINARY, "this is a binary file, not JSON lines", self.path, self.size())
            return
        alone = len(head) <= self._limit and head.rstrip()[-1:] == b"]"
        if head.lstrip()[:1] == b"[" and not follow and not alone:
            yield from self._whole(first, lines)
            return
        yield first
        yield from lines

    def _whole(self, first: Record, lines: Iterator[Record | None]) -> Iterator[Record | None]:
        """A file that is a single JSON array, long or spread over many lines; else line by line after all."""
        head = first.value or b""
        held, total = [first], len(head)
        for line in filter(None, lines):
            held.append(line)
            total += line.size or len(line.value or b"")
            if total > _WHOLE_LIMIT or line.value is None:
                break
        items = None
        if head.strip() == b"[" or (held[-1].value or b"").rstrip()[-1:] == b"]":
            with contextlib.suppress(Invalid):
                items = elements(b"\n".join(line.value or b"" for line in held))
        if items is None:
            yield from held
            yield from lines
            return
        for i, item in enumerate(items):
            yield Record(bytes(item), self.number, i + 1)

    def _lines(self, file: BinaryIO, follow: bool) -> Iterator[Record | None]:
        """Lines that are not blank, numbered from 1; None where a followed input has nothing more for now."""
        number, held, dropped = 0, b"", 0
        pipe = None if self._file is None or self._file.seekable() else self._file
        while True:
            if pipe and number and not select.select([pipe], [], [], PAUSE_S)[0]:
                yield None
                continue
            # read1 gives what is there; read would wait for a full chunk on a pipe.
            chunk = file.read1(_CHUNK) if hasattr(file, "read1") else file.read(_CHUNK)
            self._note_progress()
            if not chunk:
                if follow and not pipe:
                    yield None
                    continue
                break
            if not number and not held:
                chunk = chunk.removeprefix(_BOM)
            *complete, rest = chunk.split(b"\n")
            for line in complete:
                number += 1
                if dropped:
                    yield Record(None, self.number, number, size=dropped + len(line))
                elif (whole := held + line if held else line).strip():
                    yield Record(whole, self.number, number)
                held, dropped = b"", 0
            array = not number and not follow and (held or rest).lstrip()[:1] == b"["
            if dropped or len(held) + len(rest) > (_WHOLE_LIMIT if array else self._limit):
                dropped, held = dropped + len(held) + len(rest), b""
            else:
                held += rest
        if dropped:
            yield Record(None, self.number, number + 1, size=dropped)
        elif held.strip():
            yield Record(held, self.number, number + 1)

    def _note_progress(self) -> None:
        if self._file is not None and self._file.seekable():
            self.bytes_read = self._file.tell()


def find(paths: Sequence[str], max_record_bytes: int) -> list[Source]:
    """The inputs behind paths; folders stand for the event files in them, in order of their names.

    Raises:
        UsageError: standard input is named together with other paths.
        InputError: there is nothing to read at all.
    """
    if "-" in paths and len(paths) > 1:
        raise UsageError("standard input (-) cannot be combined with files")
    names: list[str] = []
    for path in paths:
        if path != "-" and Path(path).is_dir():
            found = sorted(p for p in Path(path).rglob("*") if p.is_file() and p.name.endswith(_SUFFIXES))
            names += map(str, found)
        else:
            names.append(path)
    if not names:
        raise InputError(f"no event files ({', '.join(_SUFFIXES[:3])}, also .gz) in {', '.join(paths)}")
    # One missing file among others is reported when its turn comes; the others are read all the same.
    if not any(name == "-" or Path(name).exists() for name in names):
        raise InputError(f"cannot read {', '.join(names)}: no such file")
    return [Source(i, name, max_record_bytes) for i, name in enumerate(names)]


def following(sources: Sequence[Source]) -> Iterator[Record | Reject | None]:
    """What the files hold and what is added to them; None whenever nothing was added to any for a while."""
    readers = {source.number: source.records(follow=True) for source in sources}
    while readers:
        idle = True
        for number, reader in list(readers.items()):
            for record in reader:
                if record is None:
                    break
                idle = False
                yield record
            else:
                del readers[number]
        if idle:
            yield None
            if any(source.path != "-" for source in sources):
                select.select([], [], [], PAUSE_S)


def merged(sources: Sequence[Source], time_of: Callable[[Record], float | None]) -> Iterator[Record | Reject | None]:
    """The records of all sources, interleaved by time; each source's own order is kept.

    A file is opened when its first event is due, so a folder of thousands of logs is no problem.

    Args:
        time_of: Event time of a record, s, or None if it has none; such a record stays with the one before.
    """
    waiting = []
    for source in sources:
        # A pipe can be read only once, so it is opened at the beginning.
        head = _head(source) if Path(source.path).is_file() else iter(())
        first = filter(lambda t: t is not None, (_time(record, time_of) for record in head))
        waiting.append((next(first, 0.0) or 0.0, source.number, source))
    waiting.sort(key=lambda entry: entry[:2], reverse=True)
    # (time, source, record, the rest of the source): sources differ, so records are never compared.
    front: list[tuple[float, int, Record | Reject | None, Iterator[Record | Reject | None]]] = []

    def push(last: float, number: int, rest: Iterator[Record | Reject | None]) -> None:
        record = next(rest, None)
        if record is not None:
            time = _time(record, time_of)
            heapq.heappush(front, (last if time is None else max(last, time), number, record, rest))

    while waiting or front:
        if waiting and (not front or waiting[-1][0] <= front[0][0]):
            time, number, source = waiting.pop()
            push(time, number, source.records())
        else:
            time, number, record, rest = heapq.heappop(front)
            yield record
            push(time, number, rest)


def _head(source: Source) -> Iterator[Record | Reject | None]:
    """The first records of a source, enough to see when it begins."""
    with contextlib.closing(source.records()) as records:  # type: ignore[type-var]
        yield from itertools.islice(records, 100)


def _time(record: Record | Reject | None, time_of: Callable[[Record], float | None]) -> float | None:
    return time_of(record) if isinstance(record, Record) else None
