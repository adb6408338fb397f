"""One event out of one JSON value: times, arrays, and what is said about what cannot be taken."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.ingest.decode import Invalid, decode_event, decode_singles, elements, event_time, event_times
from stream.ingest.reject import Reason

NOON = 1_750_000_000.0


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2025-06-15T15:06:40Z", NOON),
        ("2025-06-15T15:06:40z", NOON),
        ("2025-06-15t15:06:40z", NOON),
        ("2025-06-15 15:06:40Z", NOON),
        ("2025-06-15 15:06:40", NOON),
        ("2025-06-15T15:06:40+00:00", NOON),
        ("2025-06-15T15:06:40-00:00", NOON),
        ("2025-06-15T17:06:40+02:00", NOON),
        ("2025-06-15T09:36:40-0530", NOON),
        ("2025-06-15T15:06:40.5Z", NOON + 0.5),
        ("2025-06-15T15:06:40,5Z", NOON + 0.5),
        ("2025-06-15T15:06:40.123456789Z", NOON + 0.123456),
        ("1970-01-01T00:00:00Z", 0.0),
        ("9999-12-31T23:59:59Z", 253402300799.0),
        (0, 0.0),
        (1_750_000_000, NOON),
        (1_750_000_000.123456, NOON + 0.123456),
        (1_750_000_000_123_456_789, NOON + 0.123457),
    ],
)
def test_a_time_is_seconds_since_1970_to_the_microsecond(written: str | float, seconds: float) -> None:
    assert event_time(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        "",
        "now",
        "1750000000",
        "2025-06-15",
        "2025-06-15T15:06Z",
        "20250615T150640Z",
        "2025-W24-7T15:06:40Z",
        "2025-06-15T24:00:00Z",
        "2025-06-15T15:06:61Z",
        "2025-13-15T15:06:40Z",
        "2025-02-30T15:06:40Z",
        "2025-06-15T15:06:40+25:00",
        "2025-06-15T15:06:40Z and then some",
        " 2025-06-15T15:06:40Z",
        "２０２５-06-15T15:06:40Z",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-10:00",
        -1,
        -1e300,
        -(10**400),
        1e300,
        1.75e18,
        10**400,
        float("inf"),
        float("nan"),
    ],
)
def test_what_is_no_time_is_refused_with_what_to_send(written: str | float) -> None:
    with pytest.raises(Invalid, match="send RFC 3339 text, seconds since 1970, or nanoseconds") as refused:
        event_time(written)
    assert refused.value.reason is Reason.BAD_TIME
    assert "milliseconds" not in str(refused.value)


@pytest.mark.parametrize("written", [1_750_000_000_000, 1_750_000_000_000.5])
def test_milliseconds_are_recognised_but_not_guessed(written: float) -> None:
    with pytest.raises(Invalid, match="it looks like milliseconds"):
        event_time(written)


@given(st.floats() | st.integers() | st.text() | st.datetimes().map(str))
def test_a_time_is_a_time_or_refused(written: str | float) -> None:
    with contextlib.suppress(Invalid):
        assert 0 <= event_time(written) <= 253402300799


def alone(written: str | float) -> float:
    try:
        return event_time(written)
    except Invalid:
        return float("nan")


# Close to the middle between two microseconds is where a cheap way of rounding goes wrong.
CLOSE = st.builds(lambda us, off: (us + 0.5 + off) / 1e6, st.integers(0, 5 * 10**15), st.floats(-0.5, 0.5))
TIMES = CLOSE | st.floats() | st.floats(0, 5e9) | st.integers() | st.integers(0, 1 << 33) | st.datetimes().map(str)


@given(st.lists(TIMES | st.sampled_from([10**400, -0.0, 4294967296.0, 253402300799, "2025-06-15T15:06:40.5Z"])))
def test_times_all_at_once_are_what_each_is_alone(written: list[str | float]) -> None:
    assert repr(event_times(written).tolist()) == repr([alone(value) for value in written])


def test_records_of_one_event_are_decoded_and_others_left_alone() -> None:
    good = b'{"agent_id": "a", "ts": 1}'
    odd = [
        b"",
        b"{",
        b"[%s]" % good,
        b"%s,%s" % (good, good),
        b"\xff",
        b'{"agent_id": "\\ud83d", "ts": 1}',
        b"1",
        good + b"\0",
    ]
    odd += [b'{"agent_id": "a", "ts": 1, "x": [', b"]}", b'{"agent_id": "a", "ts": 1, "x": %s' % (b"[" * 10_000)]
    found = decode_singles([good, *odd, b" %s " % good])
    assert found == [decode_event(good), *[None] * len(odd), decode_event(good)]


@pytest.mark.parametrize(
    ("array", "pieces"),
    [
        (b"[]", []),
        (b" [ ] ", []),
        (b"[1]", [b"1"]),
        (b'[{"a": [1, 2]}, "x"]', [b'{"a": [1, 2]}', b'"x"']),
        (b'[1, NaN, {"a": "],[\\""}]', [b"1", b"NaN", b'{"a": "],[\\""}']),
        (b'[1, {"a": }, [2, 3]]', [b"1", b'{"a": }', b"[2, 3]"]),
        (b"[1, 2", [b"1", b"2"]),
        (b'[1, {"a": "never closed, 2]', [b"1", b'{"a": "never closed, 2]']),
        (b"[1, 2,", [b"1", b"2", b""]),
        (b"[", [b""]),
        (b"[,]", [b"", b""]),
        (b"[{]", [b"{]"]),
    ],
)
def test_an_array_falls_into_its_elements_whatever_they_hold(array: bytes, pieces: list[bytes]) -> None:
    assert [bytes(piece).strip() for piece in elements(array)] == pieces


def test_something_after_an_array_is_told() -> None:
    with pytest.raises(Invalid, match="something follows the end") as refused:
        elements(b"[1, 2] [3]")
    assert refused.value.reason is Reason.MALFORMED


def test_hostile_arrays_take_linear_time() -> None:
    # Each of them would take minutes if a text without an end were tried again at every quote.
    for array in (b'["' + b'\\"' * 500_000, b'["' * 300_000, b'[NaN, "' + b"\\" * 999_999, b"[" * 1_000_000):
        assert elements(array)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.lists(VALUES, max_size=5), st.integers(0, 5))
def test_cutting_an_array_apart_gives_what_decoding_it_gives(values: list[object], at: int) -> None:
    pieces = [json.dumps(value).encode() for value in values]
    pieces.insert(at, b"NaN")  # with it, nobody can decode the array as a whole
    assert [bytes(piece) for piece in elements(b"[" + b",".join(pieces) + b"]")] == pieces


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\uD83D\uDE00", "\U0001f600"),
        (rb"\ud83d", "�"),
        (rb"\ud83d!", "�!"),
        (rb"\ude00\ud83d", "��"),
        (rb"\ud83d\ud83d\ude00", "�\U0001f600"),
        (rb"\\ud83d\ud83d", "\\ud83d�"),
        (rb"\\\ud83d", "\\�"),
    ],
)
def test_half_a_surrogate_pair_is_replaced_and_nothing_else(written: bytes, read: str) -> None:
    assert decode_event(b'{"agent_id": "%s", "ts": 1}' % written).agent_id == read


@given(st.binary(max_size=60))
def test_what_is_told_of_a_record_that_is_no_event_shows_nothing_of_it(content: bytes) -> None:
    secret = b"sk-secret-" + content
    for record in (secret, b'"' + secret, b'{"kind": "%s"}' % secret.hex().encode(), b"{" + secret + b"}"):
        with pytest.raises(Invalid) as refused:
            decode_event(record)
        assert "sk-secret" not in refused.value.detail
        assert not re.search(secret[:12].hex(), refused.value.detail)
