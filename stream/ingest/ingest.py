"""The ingest stage: raw records in, columns and rejects out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from burnfuse.event import UsageEvent
from detectors.types import Kind
from stream.clock import Clock
from stream.columns import NUMBERS, TEXTS, Columns
from stream.ingest.decode import Invalid, event_time
from stream.ingest.formats import Format
from stream.ingest.hashing import Hasher, decoded
from stream.ingest.pricing import PriceBook, split
from stream.ingest.reject import Reason, Reject
from stream.ingest.semantics import action_of, error_class, finish_of, is_empty, target_of, tool_kind
from stream.ingest.volatile import Volatile
from stream.settings import EffectiveTokens, InputSettings

_MOST = 10**14
"""Cap of one event's nano-dollars ($100,000) and thousandths of tokens: absurd values that the contract
still allows must not overflow the sums."""

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
        where = self._name_of(record.source, record.position)
        size = record.size if record.size is not None else len(record.value or b"")
        limit = self._settings.max_record_bytes
        if size > limit:
            detail = f"the record has {size} bytes, more than input.max_record_bytes ({limit})"
            return [Reject(Reason.TOO_LARGE, detail, where, size)]
        if record.value is None or not record.value.strip():
            return [Reject(Reason.EMPTY, "the record is empty", where, size)]
        taken: list[UsageEvent | Reject] = []
        found = list(self._format.events(record.value))
        latest = (record.log_ms / 1000 or self._clock.now()) + self._settings.future_s
        for i, event in enumerate(found):
            place = where if len(found) == 1 else f"{where}[{i}]"
            if isinstance(event, Invalid):
                taken.append(Reject(event.reason, event.detail, place, size))
                continue
            event.event_id = event.event_id or place
            try:
                event.ts = ts = event_time(event.ts)
                if ts > latest:
                    far = f"more than input.future_s ({self._settings.future_s:.0f} s)"
                    raise Invalid(Reason.BAD_TIME, f"`ts` lies {far} in the future")
                self._hash(event)
            except Invalid as invalid:
                taken.append(Reject(invalid.reason, invalid.detail, place, size, event.event_id))
            except RecursionError:
                detail = "arguments or result are nested too deeply"
                taken.append(Reject(Reason.TOO_DEEP, detail, place, size, event.event_id))
            else:
                taken.append(event)
        return taken

    def _hash(self, event: UsageEvent) -> None:
        """Puts hashes in place of contents that were sent as they are."""
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
        texts: list[tuple[str, ...]] = []
        numbers: list[tuple[float, ...]] = []
        for record in records:
            for event in self.events(record):
                if isinstance(event, Reject):
                    rejects.append(event)
                    continue
                text, number = self._row(event)
                texts.append(text)
                numbers.append((*number, record.source, record.position, record.log_ms, record.sequence))
        if not texts:
            return Columns.empty(), rejects
        text_columns = dict(zip(TEXTS, map(list, zip(*texts, strict=True)), strict=True))
        number_columns = {
            name: np.array(values, dtype)
            for (name, dtype), values in zip(NUMBERS.items(), zip(*numbers, strict=True), strict=True)
        }
        return Columns(text_columns, number_columns), rejects

    def _row(self, e: UsageEvent) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """One event's values in the order of TEXTS, and of NUMBERS without the place it came from."""
        hash_id = self._hasher.id
        run_id = e.run_id or e.agent_id
        root_run_id = e.root_run_id or run_id
        texts = (
            e.event_id or "",
            e.agent_id,
            run_id,
            root_run_id,
            e.parent_run_id or (root_run_id if e.parent_agent_id else ""),
            e.to_agent_id or "",
            e.to_run_id or "",
            e.tool or "",
        )
        assert isinstance(e.ts, float)
        read, cached, written, output = split(e)
        w = self._weights
        tokens = read * w.input + cached * w.cached_input + written * w.cache_write + output * w.output
        cost = self._prices.cost(e, e.ts)
        # A signature needs observed arguments (or, for messages, words): a bare name proves nothing.
        signature = hash_id(e.tool if e.kind == "tool" else e.kind, e.args_hash) if e.args_hash else 0
        failed = e.status == "error"
        group = _SEPARATOR.join([getattr(e, name) or "" for name in self._settings.group_by])
        in_tree = bool(e.root_run_id or e.parent_run_id) or e.kind in ("message", "spawn")
        return texts, (
            e.ts,
            _KINDS[e.kind],
            failed,
            e.http_status or 0,
            hash_id("error", error_class(e)) if failed else 0,
            finish_of(e.finish_reason),
            signature,
            hash_id("result", e.result_hash),
            is_empty(e.result, e.result_hash),
            hash_id("tool", e.tool),
            tool_kind(e.tool, e.args, self._settings.tool_kinds),
            hash_id("target", e.target_hash),
            hash_id("round", e.round_id),
            hash_id("agent", e.agent_id),
            hash_id("agent", e.to_agent_id),
            hash_id("model", e.model),
            hash_id("group", group.strip(_SEPARATOR) and group),
            _known(e.input_tokens),
            _known(e.cached_input_tokens),
            _known(e.output_tokens),
            round(min(tokens * 1000, _MOST)),
            min(cost or 0, _MOST),
            in_tree,
        )


def _known(count: int | None) -> int:
    return -1 if count is None else count
