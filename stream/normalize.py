"""What burnfuse understands of a file: `burnfuse normalize`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from burnfuse.event import UsageEvent
from stream.clock import Clock
from stream.ingest.files import find
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason, Reject
from stream.pipeline import make_ingest
from stream.report import Rejections
from stream.settings import Settings, secret

_encode = msgspec.json.Encoder().encode
_CONTENT = ("args", "result", "attributes")


def normalize(settings: Settings, paths: Sequence[str], clock: Clock) -> bool:
    """Prints the native events of all inputs, rejects on standard error; false if an input was unreadable."""
    sources = find(paths, settings.input.max_record_bytes)
    ingest = make_ingest(
        settings, lambda source, position: f"{sources[source].path}:{position}", clock, secret("hash_key")
    )
    rejections = Rejections()
    readable = True
    for record in itertools.chain.from_iterable(source.records() for source in sources):
        taken = ingest.events(record) if isinstance(record, Record) else [record] if record else []
        for event in taken:
            if isinstance(event, Reject):
                rejections.add(event)
                readable &= event.reason is not Reason.UNREADABLE
            else:
                sys.stdout.write(_encode(native(event)).decode() + "\n")
    rejections.finish()
    return readable


def native(event: UsageEvent) -> dict[str, Any]:
    """The event without what was hashed: arguments and results do not leave."""
    fields = msgspec.structs.asdict(event)
    return {name: value for name, value in fields.items() if value is not None and name not in _CONTENT}
