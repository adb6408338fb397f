"""What an event's texts mean to detectors: kinds of tools, classes of failures, ends of answers, empty results.

Names are all that producers have in common, so names are what is looked at; every answer may be "unknown".
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from burnfuse.event import UsageEvent
from detectors.types import Finish, ToolKind

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# The first set that holds a word of the name decides; polls come first, for `get_status` is a poll.
_NAMES = {
    ToolKind.POLL: "poll wait sleep status progress heartbeat tail watch",
    ToolKind.SHELL: "bash shell terminal exec execute command cmd python ipython powershell sh",
    ToolKind.MUTATE: "write edit create delete remove update insert replace patch apply move rename send post put "
    "submit append set save commit push upload add book cancel pay refund transfer reply publish",
    ToolKind.READ: "read get list search find grep glob view open fetch look lookup query show cat ls browse scroll "
    "check describe count download",
}
_KINDS = [(int(kind), frozenset(words.split())) for kind, words in _NAMES.items()]


@lru_cache(maxsize=4096)
def tool_kind(name: str | None) -> int:
    """`ToolKind` of a tool, from the words of its name.

    >>> [ToolKind(tool_kind(name)).name for name in ("read_file", "writeFile", "job-status", "bash", "frobnicate")]
    ['READ', 'MUTATE', 'POLL', 'SHELL', 'UNKNOWN']
    """
    words = {word.lower() for word in _WORDS.findall(name or "")}
    return next((kind for kind, known in _KINDS if words & known), int(ToolKind.UNKNOWN))


_FINISH = {
    "stop": Finish.STOP,
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "completed": Finish.STOP,
    "tool_calls": Finish.TOOL_CALLS,
    "tool_use": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "length": Finish.TRUNCATED,
    "max_tokens": Finish.TRUNCATED,
    "max_output_tokens": Finish.TRUNCATED,
    "model_context_window_exceeded": Finish.TRUNCATED,
    "incomplete": Finish.TRUNCATED,
}


def finish_of(reason: str | None) -> int:
    """`Finish` by the names of the large providers, whatever their case.

    >>> finish_of("MAX_TOKENS") == Finish.TRUNCATED, finish_of(None) == Finish.UNKNOWN
    (True, True)
    """
    if not reason:
        return int(Finish.UNKNOWN)
    return int(_FINISH.get(reason.lower(), Finish.OTHER))


def error_class(event: UsageEvent) -> str:
    """The kind of a failure: its type and HTTP status, else its text without ids, numbers and paths."""
    if event.error_type or event.http_status:
        return f"{event.error_type or ''} {event.http_status or ''}"
    return event.result_hash or "?"


def is_empty(result: msgspec.Raw) -> bool:
    """Whether a result was sent and holds nothing."""
    return bytes(result).strip() in (b'""', b"[]", b"{}")
