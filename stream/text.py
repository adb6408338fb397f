"""Text for people."""

from __future__ import annotations

import datetime as dt


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
