"""What an event's texts mean to detectors: kinds of tools, targets, classes of failures, ends of answers.

Names are all that producers have in common, so names are what is looked at; every answer may be "unknown".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import msgspec

from burnfuse.event import UsageEvent
from detectors.types import Finish, ToolKind

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# Waiting, and thinking aloud: neither brings news nor changes anything.
_WAITING = frozenset(
    {"poll", "wait", "sleep", "status", "progress", "heartbeat", "tail", "watch", "await"}
    | {"think", "thinking", "thought", "reflect", "reason"}
)
# The first word of the name that is known decides.
_NAMES = {
    ToolKind.SHELL: "bash shell terminal exec execute command cmd python ipython powershell sh zsh console run test "
    "tests pytest build compile lint make",
    ToolKind.MUTATE: "write edit create delete remove update insert replace patch apply move rename send post put "
    "submit append set save commit push upload add book cancel pay refund transfer exchange return reply publish "
    "report broadcast click type press fill drag copy mkdir install deploy merge navigate goto spawn delegate handoff "
    "assign close modify",
    ToolKind.READ: "read reads reader get list ls search find grep glob view open fetch look lookup query show cat "
    "browse scroll check describe count download extract retrieve inspect scan stat diff calculate",
}
# Tools of public agents whose names mislead.
_KNOWN = {"process": ToolKind.POLL, "process_manage": ToolKind.POLL, "bash_output": ToolKind.POLL}
# As plain numbers, for members of an enumeration are slow to look up.
_UNKNOWN, _POLL, _SHELL = int(ToolKind.UNKNOWN), int(ToolKind.POLL), int(ToolKind.SHELL)
_KINDS = {word: int(kind) for kind, words in _NAMES.items() for word in words.split()}

# Tools with several uses say which in an argument.
_ACTION = re.compile(rb'"(?:action|operation|method|mode)\\?"\s*:\s*\\?"([A-Za-z_-]{1,40})\\?"')
_WAITS = re.compile(rb'"(?:command|cmd)\\?"\s*:\s*\\?"\s*(?:sleep|wait|watch|tail -f)\b')
_LOOKED_AT = 2000
"""Bytes of the arguments in which the action is looked for."""


def action_of(args: bytes | msgspec.Raw) -> str:
    """What a tool with several uses is asked to do, "" if it does not say.

    >>> action_of(msgspec.Raw(b'{"action": "send", "text": "hi"}'))
    'send'
    """
    data = bytes(args)[:_LOOKED_AT]
    text = data.decode("latin-1")
    # Most arguments hold none of these, and a loop over them takes twice as long.
    if '"action' in text or '"operation' in text or '"method' in text or '"mode' in text or '\\"' in text:
        found = _ACTION.search(data)
        return found[1].decode().lower() if found else ""
    return ""


@lru_cache(maxsize=4096)
def _kind_of_name(name: str) -> int:
    if name.lower() in _KNOWN:
        return int(_KNOWN[name.lower()])
    words = [word.lower() for word in _WORDS.findall(name)]
    kind = next((_KINDS[word] for word in words if word in _KINDS), int(ToolKind.UNKNOWN))
    # `get_status` waits, `set_status` does not.
    return kind if kind == ToolKind.MUTATE or _WAITING.isdisjoint(words) else int(ToolKind.POLL)


def tool_kind(name: str | None, args: bytes | msgspec.Raw = b"", named: Mapping[str, str] | None = None) -> int:
    """`ToolKind` of a call: as configured, else by the action it names, else by the words of the tool's name.

    Args:
        named: Pattern of names -> kind, from the configuration; the first that fits decides.

    >>> [ToolKind(tool_kind(name)).name for name in ("read_file", "writeFile", "job-status", "bash", "frobnicate")]
    ['READ', 'MUTATE', 'POLL', 'SHELL', 'UNKNOWN']
    """
    if not name:
        return _UNKNOWN
    for pattern, kind in (named or {}).items():
        if fnmatchcase(name, pattern):
            return int(ToolKind[kind.upper()])
    kind_of_name = _kind_of_name(name)
    data = bytes(args)[:_LOOKED_AT]
    if data:
        if kind_of_name == _SHELL and _WAITS.search(data):
            return _POLL
        by_action = _kind_of_name(action_of(data))
        if by_action != _UNKNOWN:
            return by_action
    return kind_of_name


# Fields of arguments that say what is acted upon; the first one there is the target.
_TARGETS = (
    *("path", "file_path", "filepath", "absolute_path", "relative_path", "file", "filename", "file_name"),
    *("notebook_path", "uri", "url", "href", "link", "document", "document_id", "page_id"),
)
# Parts of a file are read by commands, too; the numbers are the part, not the target.
_READS_A_PART = re.compile(r"\s*(?:sed -n|head|tail|awk|nl|cat)\b")
_NUMBER = re.compile(r"\d+")


def target_of(args: Any) -> str | None:
    """What a call acts upon, without offsets and paging; None if its arguments do not say.

    >>> target_of({"path": "a.py", "offset": 100}), target_of({"command": "sed -n '1,50p' a.py"})
    ('a.py', "sed -n '#,#p' a.py")
    """
    if not isinstance(args, dict):
        return None
    for name in _TARGETS:
        value = args.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    command = args.get("command", args.get("cmd"))
    if isinstance(command, str) and _READS_A_PART.match(command) and _NUMBER.search(command):
        return _NUMBER.sub("#", command.strip())
    return None


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


# What differs between two failures of one kind: addresses and paths, ids, what is quoted, numbers.
_PARTICULARS = re.compile(
    r"""
    \w+://[^\s'"]+ | (?<!\w)(?:[A-Za-z]:)?(?:[\\/][\w.@+-]+)+ | [\w.@+-]+(?:/[\w.@+-]+)+
    | "[^"\n]*" | (?<!\w)'[^'\n]*' | `[^`\n]*`
    | \b[0-9a-fA-F]{8}-[0-9a-fA-F-]{20,}\b | \b0x[0-9a-fA-F]+\b | \b(?=[a-fA-F]*\d)[0-9a-fA-F]{6,}\b
    | \d+
    """,
    re.VERBOSE,
)
_MOST_OF_A_MESSAGE = 300
_MESSAGES = ("error", "message", "detail", "stderr", "output")


def error_class(event: UsageEvent) -> str:
    """The kind of a failure: its type and HTTP status, else its text without ids, numbers and paths.

    "" if nothing is known of it. Who hashes results sends the hash of a text we cannot look into.
    """
    if event.error_type or event.http_status:
        return f"{event.error_type or ''} {event.http_status or ''}"
    text = _message(bytes(event.result))
    if text:
        return " ".join(_PARTICULARS.sub("#", text[:_MOST_OF_A_MESSAGE]).lower().split())
    return event.result_hash or ""


def _message(result: bytes) -> str:
    """The words of a failure."""
    try:
        value = msgspec.json.decode(result) if result else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    for _ in range(3):
        if not isinstance(value, dict):
            break
        value = next((value[name] for name in _MESSAGES if value.get(name)), None)
    return value if isinstance(value, str) else ""


_NOTHING = re.compile(rb'\s*(?:"(?:\s|\\[nrt])*"|\[\s*\]|\{\s*\})\s*')
_HASHES_OF_NOTHING = frozenset(
    hashlib.new(name, text, usedforsecurity=False).hexdigest()
    for name in ("md5", "sha1", "sha256")
    for text in (b"", b'""', b"[]", b"{}")
)
"""What producers that hash send for empty results."""
_PREFIX = "sha256:"
SIZES_OF_NOTHING = frozenset(len(text) + more for text in _HASHES_OF_NOTHING for more in (0, len(_PREFIX)))
"""Characters of hashes that may be those of empty results."""


def is_empty(result: msgspec.Raw, ready_made: str | None = None) -> bool:
    """Whether a result was sent and holds nothing.

    >>> is_empty(msgspec.Raw(b'""')), is_empty(msgspec.Raw(b"0")), is_empty(msgspec.Raw())
    (True, False, False)
    """
    data = bytes(result)
    if data:
        return _NOTHING.fullmatch(data) is not None
    return ready_made is not None and ready_made.lower().removeprefix(_PREFIX) in _HASHES_OF_NOTHING
