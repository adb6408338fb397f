"""64-bit hashes of what must be comparable but must not be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import msgspec
import numpy as np

from burnfuse.event import MAX_ID_CHARS
from detectors.types import Hashes
from stream.columns import Words, places
from stream.ingest.volatile import Fields

_WORDS = MAX_ID_CHARS * 4 // 8
"""Eight bytes each: an id has at most so many, for a character has at most four."""
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT, _HALF = np.uint64(33), np.uint64(32)
_ZERO, _ONE = bytes(8), (1).to_bytes(8)
_NOT_ASCII = np.uint64(0x8080808080808080)
_SMALLEST = np.uint64(2)
"""0 is "not observed", and 1 is left free for tables of hashes."""
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


class Hasher:
    """Keyed hashes; 0 is reserved for "not observed".

    Args:
        key: Secret of the deployment, at most 64 bytes. With it, hashes cannot be matched against
            guessed texts. All workers of a deployment need the same key.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._blank = hashlib.blake2b(digest_size=8, key=key)  # to be copied: that is cheaper than a new one
        seed = hashlib.blake2b(b"burnfuse text hash", digest_size=8, key=key).digest()
        odd = np.random.default_rng(int.from_bytes(seed, "little")).integers(0, 1 << 63, _WORDS, np.uint64)
        self._weights = 2 * odd + 1
        self._salt = lru_cache(lambda kind: np.uint64(int.from_bytes(self._digest(kind.encode()))))

    def _digest(self, data: bytes) -> bytes:
        """Eight bytes, big-endian."""
        state = self._blank.copy()
        state.update(data)
        return state.digest()[::-1].replace(_ZERO, _ONE)

    def texts(self, kind: str, texts: Sequence[str]) -> Hashes:
        """(n,) hashes of n texts, 0 for "".

        For ids, which travel beside their hashes: fast, and well spread, but no secret is kept by them.
        Every eight bytes are mixed and weighted by a keyed odd number of their place (multilinear hashing);
        the mixing is that of MurmurHash3's 64-bit finaliser.

        Args:
            kind: Of what the texts are names: the same text of another kind has another hash.
        """
        return self.columns([(kind, texts)])[1][0]

    def columns(self, columns: Sequence[tuple[str, Sequence[str]]]) -> tuple[Words, list[Hashes]]:
        """The same for several (kind, texts) in one go; with all the texts, one column after the other."""
        words = Words.of(list(chain.from_iterable(texts for _, texts in columns)))
        sizes = [len(texts) for _, texts in columns]
        salts = np.repeat(np.array([self._salt(kind) for kind, _ in columns], np.uint64), sizes)
        hashes = self._hashes(words, salts)
        return words, [hashes[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def _hashes(self, texts: Words, salts: Hashes) -> Hashes:
        counts = texts.counts
        if counts.max(initial=0) > _WORDS:  # an id made of a long file name
            short = [self.text(text) if n > _WORDS else text for text, n in zip(texts, counts.tolist(), strict=True)]
            return self._hashes(Words.of(short), salts)
        with np.errstate(over="ignore"):
            lanes = texts.words * _MIX_1
            lanes ^= lanes >> _HALF
            lanes *= self._weights[places(texts.first, counts)]
            # The size tells apart what ends in NUL characters.
            mixed = mix(_sums(lanes, texts) + _characters(texts) + salts)
        return np.where(texts.sizes == 0, np.uint64(0), np.maximum(mixed, _SMALLEST))

    def text(self, text: str) -> str:
        """The hash, as text, of a text."""
        return self._digest(text.encode(errors="surrogatepass")).hex()

    def content(self, raw: bytes | msgspec.Raw, ready_made: str | None, leave_out: Fields | None = None) -> str | None:
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
            return self._digest(data).hex()
        if leave_out is not None and leave_out.concern(data):
            value = leave_out.strip(value)
        return self._digest(_encode(value)).hex()


def _sums(words: Hashes, texts: Words) -> Hashes:
    """(n,) sum over the words of each text."""
    upto = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words, out=upto[1:])
    sums: Hashes = upto[texts.first + texts.counts]
    sums -= upto[texts.first]
    return sums


def _characters(texts: Words) -> Hashes:
    """(n,) characters of each text."""
    sizes = texts.sizes.astype(np.uint64)
    if not (texts.words & _NOT_ASCII).any():
        return sizes
    continued = (texts.words.view(np.uint8) & 0xC0) == 0x80
    return sizes - _sums(continued.reshape(-1, 8).sum(axis=1, dtype=np.uint64), texts)


def mix(values: Hashes) -> Hashes:
    """(n,) 64-bit values, every bit of which depends on every bit of what was given."""
    with np.errstate(over="ignore"):
        values = values ^ (values >> _SHIFT)
        values *= _MIX_1
        values ^= values >> _SHIFT
        values *= _MIX_2
        values ^= values >> _SHIFT
        return values


def join(first: Hashes, second: Hashes) -> Hashes:
    """(n,) hashes of pairs; 0 where the second is 0."""
    with np.errstate(over="ignore"):
        both = mix(first * _MIX_2 + second)
    return np.where(second == 0, np.uint64(0), np.maximum(both, _SMALLEST))


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
