"""Records that were turned away and sent again: what their header says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from burnfuse.event import REPLAY_HEADER

_MOST_BYTES = 1 << 16


class Replayed(msgspec.Struct, frozen=True):
    """Which events of a record are meant; without any all of them are.

    The others have counted already: they must not count again.
    """

    source: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    """Where the record stood first: `topic/partition/offset`."""
    places: tuple[int, ...] = ()
    """Numbers of events within the record."""
    ids: tuple[str, ...] = ()
    """Event ids."""

    def wants(self, place: int, event_id: str = "") -> bool:
        """Whether an event is meant."""
        return not (self.places or self.ids) or place in self.places or event_id in self.ids

    def header(self) -> tuple[str, bytes]:
        """As a Kafka header."""
        return REPLAY_HEADER, msgspec.json.encode(self)


_decode = msgspec.json.Decoder(Replayed).decode


def replayed(headers: Sequence[tuple[str, bytes | None]]) -> Replayed | None:
    """What a record's headers say; None if it was not sent again, or if nobody can read it."""
    for name, value in headers:
        if name == REPLAY_HEADER and value is not None and len(value) <= _MOST_BYTES:
            try:
                return _decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
    return None
