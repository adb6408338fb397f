"""One event out of one JSON value, checked."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence
from typing import get_args

import msgspec
import numpy as np

from burnfuse.event import Kind, UsageEvent
from detectors.types import Floats
from stream.ingest.reject import Reason
from stream.text import LAST_SECOND

_NANOSECONDS_ABOVE = 10**17
_TIME_HELP = "send RFC 3339 text, seconds since 1970, or nanoseconds"

# The wrong value itself is never told: texts of people end up in the strangest fields.
_CHOICES = {"kind": get_args(Kind), "status": ("ok", "error")}
# Half a surrogate pair, which JavaScript and Python write where a text was cut or was no text.
_ESCAPE = re.compile(
    rb"\\(?:u(?i:d[89ab][0-9a-f]{2})\\u(?i:d[c-f][0-9a-f]{2})|(u(?i:d[89a-f][0-9a-f]{2}))|.)", re.DOTALL
)
# Text is taken as a whole, so that brackets in it do not count; possessive, so that time stays linear.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[][{},]', re.DOTALL)

_decoder = msgspec.json.Decoder(UsageEvent)
_array = msgspec.json.Decoder(list[msgspec.Raw])


class Invalid(Exception):  # noqa: N818 - a fate, not an error of ours
    """An event that cannot be taken; carries the reason and one sentence."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def decode_event(data: bytes | msgspec.Raw) -> UsageEvent:
    """A usage event from JSON.

    Raises:
        Invalid: the data is not a usage event.
    """
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Invalid(Reason.INVALID, _sentence(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raw = bytes(data)
        mended = _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], raw)
        if mended != raw:
            return decode_event(mended)
        raise Invalid(*_malformed(raw, error)) from error
    except RecursionError as error:
        raise Invalid(Reason.TOO_DEEP, "the JSON is nested too deeply") from error


def decode_singles(records: Sequence[bytes]) -> list[UsageEvent | None]:
    """The usage event of each record, None where `decode_event` raises or would mend it first."""
    events: list[UsageEvent | None] = []
    add, decode = events.append, _decoder.decode
    for record in records:
        try:
            add(decode(record))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            add(None)
    return events


def elements(data: bytes) -> Sequence[bytes | msgspec.Raw]:
    """The elements of a JSON array; one that is damaged or cut off does not cost the others.

    Raises:
        Invalid: more than an array is there.
    """
    try:
        return _array.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return _cut(data)


def _cut(data: bytes) -> list[bytes]:
    """The pieces between the commas of the outermost array, whatever they hold."""
    pieces: list[bytes] = []
    start = data.index(b"[") + 1
    low, depth = start, 1
    for token in _TOKEN.finditer(data, start):
        sign = token[0]
        depth += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
        if depth == 0 or (depth == 1 and sign == b","):
            pieces.append(data[low : token.start()])
            low = token.end()
        if depth == 0:
            break
    if depth:  # what is left of the last element is told when it is decoded
        return [*pieces, data[low:]]
    if data[low:].strip():
        raise Invalid(Reason.MALFORMED, "something follows the end of the JSON array")
    return pieces


def _sentence(error: msgspec.ValidationError) -> str:
    message, _, path = str(error).partition(" - at `$.")
    name = path.rstrip("`")
    if name in _CHOICES:
        return f"`{name}` must be one of {', '.join(_CHOICES[name])}"
    return f"`{name}`: {message[0].lower()}{message[1:]}" if name else message


def _malformed(data: bytes, error: Exception) -> tuple[Reason, str]:
    if b"\0" in data[:4096] or isinstance(error, UnicodeDecodeError):
        return Reason.BINARY, "this is not UTF-8 text"
    if "truncated" in str(error):
        return Reason.TRUNCATED, "the JSON ends in the middle"
    return Reason.MALFORMED, f"this is not JSON: {str(error).removeprefix('JSON is malformed: ')}"


def event_time(value: str | int | float) -> float:
    """Event time in seconds since 1970-01-01 UTC, to the microsecond.

    Raises:
        Invalid: the value is no time between 1970 and 9999.
    """
    if isinstance(value, str):
        # `fromisoformat` also takes bare dates and week dates, which are no instants.
        if len(value) < 19 or value[4] != "-" or value[7] != "-" or value[10] not in "Tt ":
            raise Invalid(Reason.BAD_TIME, f"`ts` is not a time: {_TIME_HELP}")
        try:
            moment = dt.datetime.fromisoformat(value.upper())
        except ValueError as error:
            raise Invalid(Reason.BAD_TIME, f"`ts` is not a time: {_TIME_HELP}") from error
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    else:
        try:
            seconds = value / 1e9 if isinstance(value, int) and value > _NANOSECONDS_ABOVE else float(value)
        except OverflowError:  # an integer of hundreds of digits
            seconds = math.inf
    if not math.isfinite(seconds) or not 0 <= seconds <= LAST_SECOND:
        milliseconds = not isinstance(value, str) and 10**11 < seconds < 10**14
        hint = "it looks like milliseconds; " if milliseconds else ""
        raise Invalid(Reason.BAD_TIME, f"`ts` is not between 1970 and 9999: {hint}{_TIME_HELP}")
    return round(seconds, 6)


def event_times(values: Sequence[str | int | float]) -> Floats:
    """(n,) `event_time` of each value, NaN where it raises `Invalid`."""
    try:
        seconds = np.array([math.nan if value.__class__ is str else value for value in values], np.float64)
    except OverflowError:  # an integer of hundreds of digits
        seconds = np.full(len(values), math.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = seconds * 1e6
        rounded = np.rint(scaled)
        # Up to here a product is off by at most a quarter: far from the middle between two microseconds,
        # `round`, which knows no such error, comes to the same.
        sure = (np.abs(scaled - rounded) < 0.25) & (seconds >= 0) & (seconds < 1 << 32)
    times: Floats = rounded / 1e6
    for i in np.flatnonzero(~sure).tolist():
        try:
            times[i] = event_time(values[i])
        except Invalid:
            times[i] = math.nan
    return times
