"""Changes one value within a structured input and leaves the rest whole: bytes changed at random rarely decode."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

_ODD: list[Any] = [
    None, True, 0, -1, 1, 255, 256, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 0.5, -0.0,
    1e308, -1e308, "", "a", "\x00", "\U0001f600", "x" * 600, b"", b"\x00" * 8, b"\xff" * 8, [], {},
]  # fmt: skip

_NESTING = 12
_CONTAINER = 0x80
"""What msgpack's maps and arrays begin with, or more."""


def mutated(data: bytes, shape: str, rng: random.Random) -> bytes | None:
    """The input with one value changed, or None if it cannot be read as JSON or msgpack (`shape`)."""
    codec: Any = msgspec.json if shape == "json" else msgspec.msgpack
    try:
        value = codec.decode(data)
        return bytes(codec.encode(_changed(value, rng, _NESTING)))
    except (msgspec.DecodeError, msgspec.EncodeError, UnicodeError, RecursionError, OverflowError, TypeError):
        return None


def _changed(value: Any, rng: random.Random, depth: int) -> Any:
    if depth and isinstance(value, list | dict) and value and rng.random() < 0.9:
        value = value.copy()
        key = rng.randrange(len(value)) if isinstance(value, list) else rng.choice(list(value))
        act = rng.random()
        if act < 0.06:
            del value[key]
        elif act < 0.12 and isinstance(value, list):
            value.insert(key, value[key])
        elif act < 0.12:
            value[rng.choice(["", "a", "type", 0, 7, 1 << 40])] = value[key]
        else:
            value[key] = _changed(value[key], rng, depth - 1)
        return value
    return rng.choice(_ODD) if rng.random() < 0.3 else _leaf(value, rng)


def _leaf(value: Any, rng: random.Random) -> Any:
    kinds: dict[type, Callable[[], Any]] = {
        int: lambda: value + rng.choice([-1, 1, 1 << rng.randrange(63), -(1 << rng.randrange(63))]),
        float: lambda: value * rng.choice([-1.0, 1e3, 1e-3, 1e30, 1e300]),
        str: lambda: value[: rng.randrange(len(value) + 1)] + rng.choice(["", "é", "\x1f", value]),
        bytes: lambda: _bytes(value, rng),
    }
    return kinds.get(type(value), lambda: rng.choice(_ODD))()


def _bytes(value: bytes, rng: random.Random) -> bytes:
    """A page within the page, or a column of numbers, of which mostly one changes while the length stays."""
    if rng.random() < 0.7 and (page := mutated(value, "msgpack", rng)) is not None and value[0] >= _CONTAINER:
        return page
    if not value or rng.random() < 0.1:
        return value[: rng.randrange(len(value) + 1)]
    size = rng.choice([1, 2, 4, 8])
    at = rng.randrange(max(1, len(value) // size)) * size
    odd = rng.choice([b"\x00" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x00" * 6 + b"\xf0\x7f", rng.randbytes(8)])
    return (value[:at] + odd[-size:] + value[at + size :])[: len(value)]
