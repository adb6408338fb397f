"""The ingest stage: raw records in, columns and rejects out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from burnfuse.event import NOTHING_SENT, UsageEvent
from detectors.types import Ints, Kind
from stream.clock import Clock
from stream.columns import TEXTS, Columns, Texts, Words, items
from stream.ingest.decode import Invalid, event_time, event_times
from stream.ingest.distinct import Distinct
from stream.ingest.formats import Format
from stream.ingest.hashing import Hasher, decoded, join
from stream.ingest.pricing import PriceBook, Used
from stream.ingest.reject import Reason, Reject
from stream.ingest.replayed import Replayed
from stream.ingest.semantics import SIZES_OF_NOTHING, action_of, error_class, finish_of, is_empty, target_of, tool_kind
from stream.ingest.volatile import Volatile
from stream.numeric import MOST_SPENT, NUMBERS, Numbers
from stream.settings import EffectiveTokens, InputSettings

_AT_ONCE = 1000
"""Records taken at once: these, with all that comes of them, stay in the processor's own memory."""

_SEPARATOR = "\x1f"
_KINDS = {kind.name.lower(): int(kind) for kind in Kind}


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as it was read."""

    value: bytes | None
    source: int
    """Partition of the input topic, or number of the input file."""
    position: int
    """Offset, or line number."""
    log_ms: int = 0
    """When it was logged, ms since 1970; 0 in files."""
    sequence: int = 0
    size: int | None = None
    """Size in bytes where the value was too large to be kept."""
    replayed: Replayed | None = None
    """Where the record stood first, if it was sent again."""


def last_of(records: Sequence[Record]) -> dict[int, tuple[int, int]]:
    """Source -> (position of its last record, when its newest was logged, ms since 1970; 0 where nobody says)."""
    last: dict[int, tuple[int, int]] = {}
    for source, some in groupby(records, attrgetter("source")):
        run = list(some)
        _, before = last.get(source, (0, 0))
        last[source] = run[-1].position, max(before, *map(attrgetter("log_ms"), run))
    return last


class Ingest:
    """Decodes, checks, prices and hashes.

    Args:
        name_of: (source, position) -> where a record stands, for people and for derived event ids.
    """

    def __init__(
        self,
        settings: InputSettings,
        weights: EffectiveTokens,
        format_: Format,
        hasher: Hasher,
        prices: PriceBook,
        name_of: Callable[[int, int], str],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._settings, self._weights, self._format = settings, weights, format_
        self._hasher, self._prices, self._name_of = hasher, prices, name_of
        self._volatile = Volatile({name: (left.args, left.result) for name, left in settings.volatile.items()})

    def events(self, record: Record) -> list[UsageEvent | Reject]:
        """Everything one record holds, in order; events that cannot be taken as rejects."""
        value = record.value
        size = record.size if record.size is not None else len(value or b"")
        limit = self._settings.max_record_bytes
        if size > limit:
            detail = f"the record has {size} bytes, more than input.max_record_bytes ({limit})"
            return [Reject(Reason.TOO_LARGE, detail, self._where(record), size)]
        if value is None or value.isspace() or not value:
            return [Reject(Reason.EMPTY, "the record is empty", self._where(record), size)]
        found = list(self._format.events(value))
        now = self._clock.now()
        taken: list[UsageEvent | Reject] = []
        for i, event in enumerate(found):
            place = "" if len(found) == 1 else f"[{i}]"
            if isinstance(event, Invalid):
                if record.replayed is None or record.replayed.wants(i):
                    taken.append(Reject(event.reason, event.detail, self._where(record) + place, size))
                continue
            event.event_id = event.event_id or self._where(record) + place
            if record.replayed is not None and not record.replayed.wants(i, event.event_id):
                continue
            try:
                self._settle(event, record, now)
            except Invalid as invalid:
                reason, detail = invalid.reason, invalid.detail
            except RecursionError:
                reason, detail = Reason.TOO_DEEP, "arguments or result are nested too deeply"
            else:
                taken.append(event)
                continue
            taken.append(Reject(reason, detail, self._where(record) + place, size, event.event_id))
        return taken

    def _settle(self, event: UsageEvent, record: Record, now: float) -> None:
        """Puts a number in place of the event's time, and hashes in place of its contents.

        Raises:
            Invalid: its time cannot be.
            RecursionError: its contents are nested too deeply.
        """
        event.ts = ts = event_time(event.ts)
        if ts > (record.log_ms / 1000 or now) + self._settings.future_s:
            far = f"more than input.future_s ({self._settings.future_s:.0f} s)"
            raise Invalid(Reason.BAD_TIME, f"`ts` lies {far} in the future")
        self._hash(event)

    def _where(self, record: Record) -> str:
        # One that was sent again keeps its name: ids made of it stay the same.
        return record.replayed.source if record.replayed is not None else self._name_of(record.source, record.position)

    def _hash(self, event: UsageEvent) -> None:
        """Puts hashes in place of contents that were sent as they are."""
        if event.args is NOTHING_SENT and event.result is NOTHING_SENT:
            return
        args, result = bytes(event.args), bytes(event.result)
        no_args = no_result = None
        if event.tool:
            no_args, no_result = self._volatile.of(event.tool, action_of(args))
        if event.tool and args and args != b"null":
            value = decoded(args)
            if not event.target_hash:
                target = target_of(value)
                event.target_hash = target and self._hasher.text(target)
            event.args_hash = self._hasher.value(value, args, no_args)
        else:
            event.args_hash = self._hasher.content(args, event.args_hash)
        event.result_hash = self._hasher.content(result, event.result_hash, no_result)

    def columns(self, records: Sequence[Record]) -> tuple[Columns, list[Reject]]:
        """Columns of all good events, in order, and what was turned away."""
        rejects: list[Reject] = []
        parts: list[tuple[Words, Numbers]] = []
        for low in range(0, len(records), _AT_ONCE):
            origins = records[low : low + _AT_ONCE]
            usual = self._usual(origins)
            events = [event for event in usual if event is not None]
            if len(events) < len(origins):
                events, origins = self._others(usual, origins, rejects)
            if events:
                parts.append(self._columns(events, origins))
        if not parts:
            return Columns.empty(), rejects
        texts = Texts.stored(Words.stack([words for words, _ in parts], len(TEXTS)))
        return Columns(texts, Numbers.join([numbers for _, numbers in parts])), rejects

    def _usual(self, records: Sequence[Record]) -> list[UsageEvent | None]:
        """The one good event of each record, as nearly all have; None: `events` will tell what is in it.

        The same as `events` does, for all records at once.
        """
        limit = self._settings.max_record_bytes
        events = self._format.singles(
            [
                value
                if (value := record.value) and len(value) <= limit and record.size is None and record.replayed is None
                else b""
                for record in records
            ]
        )
        times = event_times([math.nan if event is None else event.ts for event in events])
        logged = np.array([record.log_ms for record in records], np.int64)
        latest = np.where(logged != 0, logged / 1000, self._clock.now()) + self._settings.future_s
        for i in np.flatnonzero(~(times <= latest)).tolist():
            events[i] = None
        for i, (event, time) in enumerate(zip(events, times.tolist(), strict=True)):
            if event is None:
                continue
            event.ts = time
            if not event.event_id:
                event.event_id = self._where(records[i])
            if event.args is not NOTHING_SENT or event.result is not NOTHING_SENT:
                try:
                    self._hash(event)
                except RecursionError:
                    events[i] = None
        return events

    def _others(
        self, usual: Sequence[UsageEvent | None], records: Sequence[Record], rejects: list[Reject]
    ) -> tuple[list[UsageEvent], list[Record]]:
        """All good events and the records they come from, where `events` has to tell of some; adds its rejects."""
        events: list[UsageEvent] = []
        origins: list[Record] = []
        for record, known in zip(records, usual, strict=True):
            for event in (known,) if known is not None else self.events(record):
                if isinstance(event, Reject):
                    rejects.append(event)
                else:
                    events.append(event)
                    origins.append(record)
        return events, origins

    def _columns(self, events: Sequence[UsageEvent], origins: Sequence[Record]) -> tuple[Words, Numbers]:
        """Text columns, one after the other, and numbers. A column at a time costs a fraction of an event at a time."""
        n = len(events)
        agent_id = [e.agent_id for e in events]
        run_id = [e.run_id or e.agent_id for e in events]
        root_run_id = [e.root_run_id or run for e, run in zip(events, run_id, strict=True)]
        parent_run_id = [
            e.parent_run_id or (root if e.parent_agent_id else "") for e, root in zip(events, root_run_id, strict=True)
        ]
        tool = [e.tool or "" for e in events]
        args_hash = [e.args_hash or "" for e in events]
        result_hash = [e.result_hash or "" for e in events]
        failed = np.fromiter([e.status == "error" for e in events], bool, n)
        failures = np.flatnonzero(failed)
        tools, models, groups = Distinct.of(tool), Distinct.of([e.model for e in events]), self._groups(events)
        words, hashes = self._hasher.columns(
            [
                # The text columns, in their order; then what only a hash is kept of.
                ("event", [e.event_id or "" for e in events]),
                ("agent", agent_id),
                ("run", run_id),
                ("run", root_run_id),
                ("run", parent_run_id),
                ("agent", [e.to_agent_id or "" for e in events]),
                ("run", [e.to_run_id or "" for e in events]),
                ("tool", tool),
                ("content", args_hash),
                ("content", result_hash),
                ("target", [e.target_hash or "" for e in events]),
                ("round", [e.round_id or "" for e in events]),
                ("error", [error_class(events[i]) for i in failures.tolist()]),
                ("model", [model or "" for model in models.values]),
                ("group", groups.values),
            ]
        )
        event, agent, run, root, _, receiver, _, tool_id, args, result, target, round_, error, model, group = hashes
        errors = np.zeros(n, np.uint64)
        errors[failures] = error
        kind = np.fromiter([_KINDS[e.kind] for e in events], np.uint8, n)
        # A signature needs observed arguments (or, for messages, words): a bare name proves nothing.
        what = np.where(kind == _KINDS["tool"], tool_id, kind)
        ts = np.fromiter([e.ts for e in events], np.float64, n)
        used = Used.of(events)
        sent = [i for i, e in enumerate(events) if e.args is not NOTHING_SENT or e.result is not NOTHING_SENT]
        numbers: dict[str, NDArray[Any] | list[Any]] = {
            "event": event,
            "run": join(agent, run),
            "root": root,
            "ts": ts,
            "kind": kind,
            "failed": failed,
            "http_status": [e.http_status or 0 for e in events],
            "error": errors,
            "finish": Distinct.of([e.finish_reason for e in events]).each(finish_of, np.uint8),
            "signature": join(what, args),
            "result": result,
            "empty": self._empty(events, result_hash, sent),
            "tool_id": tool_id,
            "tool_kind": self._tool_kinds(events, tools, sent),
            "target": target,
            "round": round_,
            "sender": agent,
            "receiver": receiver,
            "model": models.all(model),
            "group": groups.all(group),
            "input": used.input,
            "cached": used.cached,
            "output": used.output,
            "tokens": self._tokens(used),
            "cost": np.minimum(self._prices.costs(events, ts, models, used), MOST_SPENT).astype(np.int64),
            "in_tree": [True if e.root_run_id or e.parent_run_id else e.kind in ("message", "spawn") for e in events],
            "source": [record.source for record in origins],
            "position": [record.position for record in origins],
            "item": items(np.fromiter(map(id, origins), np.int64, len(origins))),
            "log_ms": [record.log_ms for record in origins],
            "sequence": [record.sequence for record in origins],
        }
        columns = {
            name: column if isinstance(column, np.ndarray) else np.fromiter(column, NUMBERS[name], n)
            for name, column in numbers.items()
        }
        return words.head(len(TEXTS) * n), Numbers.of(columns)

    def _empty(self, events: Sequence[UsageEvent], result_hash: Sequence[str], sent: Sequence[int]) -> list[bool]:
        """Whether a result was sent and holds nothing.

        Args:
            sent: Which events came with contents.
        """
        empty = [len(known) in SIZES_OF_NOTHING and is_empty(NOTHING_SENT, known) for known in result_hash]
        for i in sent:
            empty[i] = bool(result_hash[i]) and is_empty(events[i].result, result_hash[i])
        return empty

    def _groups(self, events: Sequence[UsageEvent]) -> Distinct[str]:
        """What makes a group, "" where nothing of it is known."""
        columns = [[getattr(e, name) or "" for e in events] for name in self._settings.group_by]
        known = Distinct.of(list(zip(*columns, strict=True)) if columns else [()] * len(events))
        names = map(_SEPARATOR.join, known.values)
        return Distinct([name.strip(_SEPARATOR) and name for name in names], known.number)

    def _tool_kinds(self, events: Sequence[UsageEvent], tools: Distinct[str], sent: Sequence[int]) -> Ints:
        """(n,) kinds of tools; where there are arguments, these count, too."""
        named = self._settings.tool_kinds
        kinds = tools.each(lambda tool: tool_kind(tool, named=named), np.uint8)
        for i in sent:
            kinds[i] = tool_kind(events[i].tool, events[i].args, named)
        return kinds

    def _tokens(self, used: Used) -> Ints:
        """(n,) effective tokens, in thousandths."""
        w = self._weights
        read, cached, written, output = used.split
        # Term by term: a matrix product rounds differently from one batch size to the next.
        tokens = read * w.input + cached * w.cached_input + written * w.cache_write + output * w.output
        thousandths: Ints = np.rint(np.minimum(tokens * 1000, MOST_SPENT)).astype(np.int64)
        return thousandths
