"""Why an event did not count: the reasons, in one list."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Reason(enum.StrEnum):
    """Reasons under which events are turned away; each is counted under its name."""

    MALFORMED = "malformed"
    """Not JSON."""
    TRUNCATED = "truncated"
    """The input ended in the middle."""
    EMPTY = "empty"
    """A record without a value."""
    BINARY = "binary"
    """Not text."""
    TOO_LARGE = "too_large"
    """Larger than `input.max_record_bytes`."""
    TOO_DEEP = "too_deep"
    """Nested too deeply."""
    INVALID = "invalid"
    """JSON, but not a usage event: a field is missing, of the wrong type or out of range."""
    BAD_TIME = "bad_time"
    """The event's time cannot be read or cannot be."""
    LATE = "late"
    """Older than its run's newest event by more than `engine.lateness_s`."""
    UNREADABLE = "unreadable"
    """A file that cannot be read."""

    DUPLICATE = "duplicate"
    """Seen before: changes nothing. Counted apart, for redelivery is normal."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An event (or a record, or a file) turned away.

    Carries no content: prompts, arguments and results may be in it. The source position finds it again.
    """

    reason: Reason
    detail: str
    """One clear sentence."""
    source: str
    """Where it stands: `file:line`, or `topic/partition/offset`."""
    size: int = 0
    """Bytes."""
    event_id: str = ""
