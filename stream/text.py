"""Text for people."""

from __future__ import annotations

import datetime as dt

LAST_SECOND = 253402300799
"""9999-12-31T23:59:59Z: no later time can be told."""


def moment(ts: float) -> str:
    """Event time for people, UTC.

    >>> moment(0.0)
    '1970-01-01 00:00:00Z'
    """
    if ts == float("-inf"):
        return "-" * 20
    return dt.datetime.fromtimestamp(ts, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def clean(text: str) -> str:
    """Text without control characters: names of agents and tools come from outside.

    >>> clean("a\\x1b[31mb")
    'a�[31mb'
    """
    return "".join(c if c.isprintable() else "�" for c in text)


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "finding"), plural(2, "finding")
    ('1 finding', '2 findings')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
