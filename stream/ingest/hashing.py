"""64-bit hashes of what must be comparable but must not be kept."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import msgspec

from stream.ingest.volatile import Fields

_SEPARATOR = b"\x1f"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


class Hasher:
    """Keyed hashes; 0 is reserved for "not observed".

    Args:
        key: Secret of the deployment, at most 64 bytes. With it, hashes cannot be matched against
            guessed texts. All workers of a deployment need the same key.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        # Ids come back again and again; content goes by `content`, which is not cached.
        self.id = lru_cache(maxsize=1 << 16)(self._id)

    def _digest(self, data: bytes) -> int:
        value = int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._key).digest(), "little")
        return value or 1

    def _id(self, *parts: str | None) -> int:
        if not parts[-1]:
            return 0
        return self._digest(_SEPARATOR.join((part or "").encode() for part in parts))

    def text(self, text: str) -> str:
        """The hash, as text, of a text."""
        return f"{self._digest(text.encode()):016x}"

    def content(self, raw: msgspec.Raw, ready_made: str | None, leave_out: Fields | None = None) -> str | None:
        """The hash, as text, of a JSON value that came as raw bytes, or the producer's own hash.

        The order of keys and white space do not count. JSON inside a string, as several providers send
        arguments, counts like the JSON itself. What has no value here (1e999, a number of 5,000 digits,
        text that is not UTF-8) is hashed as it stands.

        Args:
            leave_out: Fields that do not count.

        Raises:
            RecursionError: the value is nested too deeply.
        """
        data = bytes(raw)
        if not data or data == b"null":
            return ready_made or None
        return self.value(decoded(data), data, leave_out)

    def value(self, value: Any, data: bytes, leave_out: Fields | None = None) -> str:
        """The hash, as text, of a value that was decoded from these bytes; see `content`."""
        if value is UNREADABLE:
            return f"{self._digest(data):016x}"
        if leave_out is not None and leave_out.concern(data):
            value = leave_out.strip(value)
        return f"{self._digest(_encode(value)):016x}"


UNREADABLE = object()
"""Stands for bytes that hold no JSON value."""


def decoded(data: bytes) -> Any:
    """The JSON value, that of JSON inside a string, or UNREADABLE.

    Raises:
        RecursionError: the value is nested too deeply.
    """
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UNREADABLE
    if isinstance(value, str):
        value = value.strip()
        if value[:1] in ("{", "["):
            try:
                return _decode(value)
            except msgspec.DecodeError:
                pass
    return value
