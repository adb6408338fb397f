"""The native format: a JSON object per record, or a JSON array of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from burnfuse.event import UsageEvent
from stream.ingest.decode import Invalid, decode_event, decode_singles, elements
from stream.ingest.formats import register

_SPACE = b" \t\r\n"


@register
class Native:
    """Usage events as `docs/events.md` describes them."""

    name = "native"

    def recognizes(self, record: bytes) -> bool:
        return record.lstrip(_SPACE)[:1] in (b"{", b"[")

    def singles(self, records: Sequence[bytes]) -> list[UsageEvent | None]:
        return decode_singles(records)

    def events(self, record: bytes) -> Iterator[UsageEvent | Invalid]:
        if record.lstrip(_SPACE)[:1] != b"[":
            yield _event(record)
            return
        try:
            items = elements(record)
        except Invalid as invalid:
            yield invalid
        else:
            yield from map(_event, items)


def _event(data: bytes | msgspec.Raw) -> UsageEvent | Invalid:
    try:
        return decode_event(data)
    except Invalid as invalid:
        return invalid
