"""What changes from call to call without meaning anything: left out before contents are hashed.

What is noise for one tool is the answer of another: the duration of a shell command against that of a job
whose status is asked. So fields are left out per tool, the defaults are few, and the configuration
(`input.volatile`) has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import msgspec

_decode = msgspec.json.Decoder().decode

_DEEPEST: Final = 20
"""Levels of a value that are searched; what lies deeper stays as it is."""

_EVERYWHERE = "request_id trace_id span_id idempotency_key"
_SENT = "message_id run_id request_id receipt file_id poll_id ts timestamp sent_at message.id platform_message_id"
_RAN = (
    "duration duration_ms duration_seconds elapsed elapsed_ms pid session_id started_at finished_at cwd execution_count"
)

# Patterns in texts, by a word that must be there: "still running (session s-17, pid 4711)"; "read 3x this session".
_SESSION = "pid session"
_TALLY = "this"
_TEXTS: Final = {
    "pid": r"\bpid[ :=#]+\d+",
    "session": r"\bsession[ :=#]+[\w-]*\d[\w-]*",
    "this": r"\bread \d+ ?(?:x|×|times) this session",
}

_BUILT_IN: Final[dict[str, tuple[str, str, str]]] = {
    # tool, or tool:action -> (fields of arguments, fields of results, patterns in texts of results)
    "*": (f"{_EVERYWHERE} request_ts task_progress tool_call_id", _EVERYWHERE, ""),
    "*read*": ("", "", _TALLY),
    "*exec*": ("", _RAN, _SESSION),
    "*shell*": ("", _RAN, _SESSION),
    "*bash*": ("", _RAN, _SESSION),
    "*terminal*": ("", _RAN, _SESSION),
    "*command*": ("", _RAN, _SESSION),
    "*python*": ("", _RAN, _SESSION),
    "*run_code*": ("", _RAN, _SESSION),
    "*send*": ("", _SENT, ""),
    "*reply*": ("", _SENT, ""),
    "*post_message*": ("", _SENT, ""),
    "telegram": ("", _SENT, ""),
    "slack": ("", _SENT, ""),
    "*:send": ("", _SENT, ""),
    "*:reply": ("", _SENT, ""),
    "*:broadcast": ("", _SENT, ""),
    "*:upload-file": ("", _SENT, ""),
    "message:poll": ("", _SENT, ""),
    "poll": ("", "timestamp checked_at", ""),
    "*:poll": ("", "timestamp checked_at", ""),
}


@dataclass(frozen=True, slots=True)
class Fields:
    """What to leave out of one value."""

    names: frozenset[str]
    """Names of fields, or `parent.name`; lower case, without separators."""
    stems: tuple[str, ...]
    """UTF-8 read as Latin-1. Where none of these is found, there is nothing to leave out: that is cheap to see."""
    text: re.Pattern[str] | None

    def concern(self, data: bytes) -> bool:
        """Whether this JSON text may hold such a field."""
        lower = data.lower().decode("latin-1")  # texts are looked through several times faster than bytes
        for stem in self.stems:  # noqa: SIM110 - run for every event, where a generator costs as much as the search
            if stem in lower:
                return True
        return False

    def strip(self, value: Any, depth: int = 0, parent: str = "") -> Any:
        """The value without these fields; JSON inside texts is looked into."""
        if depth > _DEEPEST:
            return value
        if isinstance(value, dict):
            left = {}
            for name, inner in value.items():
                plain = _plain(name)
                if plain not in self.names and f"{parent}.{plain}" not in self.names:
                    left[name] = self.strip(inner, depth + 1, plain)
            return left
        if isinstance(value, list):
            return [self.strip(item, depth + 1, parent) for item in value]
        if isinstance(value, str):
            if value[:1] in ("{", "["):
                try:
                    return self.strip(_decode(value), depth + 1, parent)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    pass
            if self.text is not None:
                return self.text.sub("#", value)
        return value


class Volatile:
    """Fields to leave out, by tool.

    Args:
        own: Pattern -> (fields of arguments, fields of results), from the configuration. A tool that fits
            one of these follows them alone.
    """

    def __init__(self, own: Mapping[str, tuple[list[str], list[str]]]) -> None:
        self._own = dict(own)
        self.of: Callable[[str, str], tuple[Fields | None, Fields | None]] = lru_cache(maxsize=4096)(self._of)

    def _of(self, tool: str, action: str) -> tuple[Fields | None, Fields | None]:
        """What to leave out of the arguments and of the result of a call."""
        names = (tool.lower(), f"{tool}:{action}".lower())

        def fits(pattern: str) -> bool:
            return any(fnmatchcase(name, pattern.lower()) for name in names)

        own = [fields for pattern, fields in self._own.items() if fits(pattern)]
        if own:
            return _fields([n for args, _ in own for n in args]), _fields([n for _, result in own for n in result])
        known = [fields for pattern, fields in _BUILT_IN.items() if fits(pattern)]
        texts = {word: _TEXTS[word] for _, _, words in known for word in words.split()}
        return (
            _fields([n for args, _, _ in known for n in args.split()]),
            _fields([n for _, result, _ in known for n in result.split()], texts),
        )


_WORD = re.compile(r"[A-Z]?[a-z\d]+|[A-Z]+(?![a-z])")


def _fields(names: list[str], texts: Mapping[str, str] = MappingProxyType({})) -> Fields | None:
    if not names and not texts:
        return None
    plain = frozenset(".".join(_plain(part) for part in name.split(".")) for name in names)
    # The first word of a name stands in it however it is written.
    words = {(_WORD.findall(name.rpartition(".")[2]) or [name])[0].lower() for name in names}
    text = "|".join(texts.values())
    stems = tuple(sorted(word.encode().decode("latin-1") for word in words | set(texts)))
    return Fields(plain, stems, re.compile(text, re.IGNORECASE) if text else None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
