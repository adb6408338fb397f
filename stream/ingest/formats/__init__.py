"""Formats of usage records: one file each, found by themselves.

A format is a class with a `name`, and `events(record)`, which yields a `UsageEvent` or an `Invalid` for
everything one record holds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from burnfuse.event import UsageEvent
from stream.ingest.decode import Invalid


class Format(Protocol):
    """How one producer writes its records."""

    name: str

    def recognizes(self, record: bytes) -> bool:
        """Whether the record has this format's shape."""

    def events(self, record: bytes) -> Iterator[UsageEvent | Invalid]:
        """What the record holds; never raises for what is in it."""

    def singles(self, records: Sequence[bytes]) -> list[UsageEvent | None]:
        """The event of each record that holds just one, at the least cost; None: `events` will tell."""


_formats: dict[str, Format] = {}
F = TypeVar("F", bound=Callable[[], Format])


def register(cls: F) -> F:
    """Class decorator: makes a format known."""
    instance = cls()
    _formats[instance.name] = instance
    return cls


def names() -> list[str]:
    """Names that `--format` takes."""
    return ["auto", *sorted(_formats)]


def named(name: str) -> Format:
    """The format of that name; `auto` looks at every record."""
    return _Auto() if name == "auto" else _formats[name]


class _Auto:
    name = "auto"

    def __init__(self) -> None:
        # Every JSON object could be a native event, so the others are asked first.
        self._others = [f for f in _formats.values() if f.name != "native"]
        self._native = _formats["native"]

    def recognizes(self, record: bytes) -> bool:
        return True

    def singles(self, records: Sequence[bytes]) -> list[UsageEvent | None]:
        if self._others:
            records = [b"" if any(other.recognizes(record) for other in self._others) else record for record in records]
        return self._native.singles(records)

    def events(self, record: bytes) -> Iterator[UsageEvent | Invalid]:
        for other in self._others:
            if other.recognizes(record):
                return other.events(record)
        return self._native.events(record)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
