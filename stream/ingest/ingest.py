"""The ingest stage: raw records in, columns and rejects out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from burnfuse.event import NOTHING_SENT, UsageEvent
from detectors.types import Hashes, Ints, Kind
from stream.clock import Clock
from stream.columns import MOST_SPENT, NUMBERS, Columns
from stream.ingest.decode import Invalid, event_time
from stream.ingest.formats import Format
from stream.ingest.hashing import Hasher, decoded, join
from stream.ingest.pricing import PriceBook, split
from stream.ingest.reject import Reason, Reject
from stream.ingest.semantics import action_of, error_class, finish_of, is_empty, target_of, tool_kind
from stream.ingest.volatile import Volatile
from stream.settings import EffectiveTokens, InputSettings

_SEPARATOR = "\x1f"
_KINDS = {kind.name.lower(): int(kind) for kind in Kind}


@dataclass(frozen=True, slots=True)
class Record:
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
                taken.append(Reject(event.reason, event.detail, self._where(record) + place, size))
                continue
            event.event_id = event.event_id or self._where(record) + place
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

    def _usual(self, record: Record, now: float) -> UsageEvent | None:
        """The one good event of a record, as nearly all are; None: `events` will tell what is in it."""
        value = record.value
        if not value or record.size is not None or len(value) > self._settings.max_record_bytes:
            return None
        event = self._format.single(value)
        if event is None:
            return None
        try:
            self._settle(event, record, now)
        except (Invalid, RecursionError):
            return None
        if not event.event_id:
            event.event_id = self._where(record)
        return event

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
        return self._name_of(record.source, record.position)

    def _hash(self, event: UsageEvent) -> None:
        """Puts hashes in place of contents that were sent as they are."""
        if event.args is NOTHING_SENT and event.result is NOTHING_SENT:
            return
        args = result = None
        if event.tool:
            args, result = self._volatile.of(event.tool, action_of(event.args))
        data = bytes(event.args)
        if event.tool and data and data != b"null":
            value = decoded(data)
            if not event.target_hash:
                target = target_of(value)
                event.target_hash = target and self._hasher.text(target)
            event.args_hash = self._hasher.value(value, data, args)
        else:
            event.args_hash = self._hasher.content(event.args, event.args_hash)
        event.result_hash = self._hasher.content(event.result, event.result_hash, result)

    def columns(self, records: Sequence[Record]) -> tuple[Columns, list[Reject]]:
        """Columns of all good events, in order, and what was turned away."""
        rejects: list[Reject] = []
        events: list[UsageEvent] = []
        origins: list[Record] = []
        now = self._clock.now()
        for record in records:
            usual = self._usual(record, now)
            for event in (usual,) if usual is not None else self.events(record):
                if isinstance(event, Reject):
                    rejects.append(event)
                else:
                    events.append(event)
                    origins.append(record)
        return (self._columns(events, origins) if events else Columns.empty()), rejects

    def _columns(self, events: Sequence[UsageEvent], origins: Sequence[Record]) -> Columns:
        """A column at a time: that costs a fraction of an event at a time."""
        agent_id = [e.agent_id for e in events]
        run_id = [e.run_id or e.agent_id for e in events]
        root_run_id = [e.root_run_id or run for e, run in zip(events, run_id, strict=True)]
        texts = {
            "event_id": [e.event_id or "" for e in events],
            "agent_id": agent_id,
            "run_id": run_id,
            "root_run_id": root_run_id,
            "parent_run_id": [
                e.parent_run_id or (root if e.parent_agent_id else "")
                for e, root in zip(events, root_run_id, strict=True)
            ],
            "to_agent_id": [e.to_agent_id or "" for e in events],
            "to_run_id": [e.to_run_id or "" for e in events],
            "tool": [e.tool or "" for e in events],
        }
        many, few = self._hasher.texts, self._few
        tool = few("tool", texts["tool"])
        agent = many("agent", agent_id)
        kind = np.array([_KINDS[e.kind] for e in events], np.uint8)
        failed = np.array([e.status == "error" for e in events], bool)
        # A signature needs observed arguments (or, for messages, words): a bare name proves nothing.
        what = np.where(kind == Kind.TOOL, tool, kind)
        group = [_SEPARATOR.join([getattr(e, name) or "" for name in self._settings.group_by]) for e in events]
        numbers = {
            "event": many("event", texts["event_id"]),
            "run": join(agent, many("run", run_id)),
            "root": many("run", root_run_id),
            "ts": [e.ts for e in events],
            "kind": kind,
            "failed": failed,
            "http_status": [e.http_status or 0 for e in events],
            "error": many("error", [error_class(e) if e.status == "error" else "" for e in events]),
            "finish": [finish_of(e.finish_reason) for e in events],
            "signature": join(what, many("content", [e.args_hash or "" for e in events])),
            "result": many("content", [e.result_hash or "" for e in events]),
            "empty": [e.result_hash is not None and is_empty(e.result, e.result_hash) for e in events],
            "tool_id": tool,
            "tool_kind": [tool_kind(e.tool, e.args, self._settings.tool_kinds) if e.tool else 0 for e in events],
            "target": many("target", [e.target_hash or "" for e in events]),
            "round": many("round", [e.round_id or "" for e in events]),
            "sender": agent,
            "receiver": many("agent", texts["to_agent_id"]),
            "model": few("model", [e.model or "" for e in events]),
            "group": few("group", [text.strip(_SEPARATOR) and text for text in group]),
            "input": [-1 if e.input_tokens is None else e.input_tokens for e in events],
            "cached": [-1 if e.cached_input_tokens is None else e.cached_input_tokens for e in events],
            "output": [-1 if e.output_tokens is None else e.output_tokens for e in events],
            "tokens": self._tokens(events),
            "cost": [min(self._prices.cost(e, float(e.ts)) or 0, MOST_SPENT) for e in events],
            "in_tree": [bool(e.root_run_id or e.parent_run_id) or e.kind in ("message", "spawn") for e in events],
            "source": [record.source for record in origins],
            "position": [record.position for record in origins],
            "log_ms": [record.log_ms for record in origins],
            "sequence": [record.sequence for record in origins],
        }
        return Columns(texts, {name: np.asarray(numbers[name], dtype) for name, dtype in NUMBERS.items()})

    def _few(self, kind: str, texts: Sequence[str]) -> Hashes:
        """(n,) hashes of n texts of which there are few different ones."""
        known = dict.fromkeys(texts, 0)
        known = dict(zip(known, self._hasher.texts(kind, list(known)).tolist(), strict=True))
        return np.array([known[text] for text in texts], np.uint64)

    def _tokens(self, events: Sequence[UsageEvent]) -> Ints:
        """(n,) effective tokens, in thousandths."""
        w = self._weights
        read, cached, written, output = np.array([split(e) for e in events], float).T
        # Term by term: a matrix product rounds differently from one batch size to the next.
        tokens = read * w.input + cached * w.cached_input + written * w.cache_write + output * w.output
        thousandths: Ints = np.rint(np.minimum(tokens * 1000, MOST_SPENT)).astype(np.int64)
        return thousandths
