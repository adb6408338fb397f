"""One event out of one JSON value, checked."""

from __future__ import annotations

import datetime as dt
import math

import msgspec

from burnfuse.event import UsageEvent
from stream.ingest.reject import Reason

_NANOSECONDS_ABOVE = 10**17
_LAST_SECOND = 253402300799  # 9999-12-31T23:59:59Z
_TIME_HELP = "send RFC 3339 text, seconds since 1970, or nanoseconds"

_decoder = msgspec.json.Decoder(UsageEvent)


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
        raise Invalid(Reason.INVALID, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(*_malformed(bytes(data), error)) from error
    except RecursionError as error:
        raise Invalid(Reason.TOO_DEEP, "the JSON is nested too deeply") from error


def _malformed(data: bytes, error: Exception) -> tuple[Reason, str]:
    if b"\0" in data[:4096] or isinstance(error, UnicodeDecodeError):
        return Reason.BINARY, "this is not UTF-8 text"
    if "truncated" in str(error):
        return Reason.TRUNCATED, "the JSON ends in the middle"
    return Reason.MALFORMED, f"this is not JSON: {error}"


def event_time(value: str | int | float) -> float:
    """Event time in seconds since 1970-01-01 UTC, to the microsecond.

    Raises:
        Invalid: the value is no time between 1970 and 9999.
    """
    if isinstance(value, str):
        # `fromisoformat` also takes bare dates and week dates, which are no instants.
        if len(value) < 19 or value[4] != "-" or value[10] not in "Tt ":
            raise Invalid(Reason.BAD_TIME, f"`ts` is not a time: {_TIME_HELP}")
        try:
            moment = dt.datetime.fromisoformat(value.upper())
        except ValueError as error:
            raise Invalid(Reason.BAD_TIME, f"`ts` is not a time: {_TIME_HELP}") from error
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    elif isinstance(value, int) and value > _NANOSECONDS_ABOVE:
        seconds = value / 1e9
    else:
        seconds = float(value)
    if not math.isfinite(seconds) or not 0 <= seconds <= _LAST_SECOND:
        hint = "it looks like milliseconds; " if 10**11 < seconds < 10**14 else ""
        raise Invalid(Reason.BAD_TIME, f"`ts` is not between 1970 and 9999: {hint}{_TIME_HELP}")
    return round(seconds, 6)
