"""Bad input: told with the right reason, counted, and it costs nothing else.

Whatever is wrong, the good events around it give exactly the findings and incidents they give without it.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import START, Done, command, encode, event, finished, good, process, text

from burnfuse.event import Amount, Count, Text, UsageEvent
from stream.clock import ManualClock
from stream.ingest.ingest import Record
from stream.ingest.reject import Reject
from stream.pipeline import make_ingest
from stream.settings import default_settings

SECRET = "hunter2-of-alice@example.com"
GOOD = encode(good())
EXPECTED = process(GOOD)
DEEP = b"[" * 10_000 + b"]" * 10_000


def bad(**fields: Any) -> bytes:
    """An event that would be fine, with private contents, and some fields that are not fine."""
    return json.dumps(event(40.0, event_id="bad", args={"password": SECRET}, result=SECRET) | fields).encode()


def raw(field: str, value: bytes) -> bytes:
    """The same with a value that is not JSON, or that Python would not write."""
    return bad()[:-1] + b', "%s": %s}' % (field.encode(), value)


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(bad()).items() if name != field}).encode()


TEXTS, COUNTS, AMOUNTS = (
    [field.name for field in msgspec.structs.fields(UsageEvent) if field.type == kind | None]
    for kind in (Text, Count, Amount)
)

# What is wrong, the record, the reason, what the sentence must say.
ROWS: list[tuple[str, bytes | None, str, str]] = [
    ("a comma too many", bad()[:-1] + b",,}", "malformed", r"not JSON: .* \(byte \d+\)"),
    ("no JSON at all", b"INFO " + SECRET.encode(), "malformed", "not JSON"),
    ("two events on one line", bad() + bad(), "malformed", "trailing characters"),
    ("single quotes", bad().replace(b'"', b"'"), "malformed", "not JSON"),
    ("a number", b"42", "invalid", "Expected `object`, got `int`"),
    ("a text", json.dumps(SECRET).encode(), "invalid", "Expected `object`, got `str`"),
    ("null", b"null", "invalid", "Expected `object`, got `null`"),
    ("an array in an array", b"[[]]", "invalid", "Expected `object`, got `array`"),
    ("cut off in a text", bad()[:-5], "truncated", "ends in the middle"),
    ("cut off before the last brace", bad()[:-1], "truncated", "ends in the middle"),
    ("nothing (a tombstone)", None, "empty", "empty"),
    ("white space", b" \r\t ", "empty", "empty"),
    ("not UTF-8, in an id", bad(agent_id="?").replace(b"?", b"\xff"), "binary", "not UTF-8"),
    ("UTF-16", bad().decode().encode("utf-16"), "binary", "not UTF-8"),
    ("ten megabytes", bad(result="x" * 10_000_000), "too_large", r"10000\d+ bytes.*max_record_bytes \(1048576\)"),
    ("arguments nested 10,000 deep", raw("args", DEEP), "too_deep", "nested too deeply"),
    ("an unknown field nested 10,000 deep", raw("surprise", DEEP), "too_deep", "nested too deeply"),
    ("objects nested 10,000 deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep", "nested too deeply"),
    ("10,000 braces never closed", b'{"a":' * 10_000, "too_deep", "nested too deeply"),
    ("arrays nested 10,000 deep", DEEP, "invalid", "Expected `object`, got `array`"),
    ("10,000 brackets never closed", b"[" * 10_000, "invalid", "Expected `object`, got `array`"),
    ("JSON in a text, nested 10,000 deep", bad(args=DEEP.decode()), "too_deep", "nested too deeply"),
    ("an unknown kind", bad(kind=SECRET), "invalid", "`kind` must be one of llm, tool, message, .*outcome"),
    ("a kind that is null", bad(kind=None), "invalid", "`kind` must be one of"),
    ("an unknown status", bad(status=SECRET), "invalid", "`status` must be one of ok, error"),
    ("no agent", without("agent_id"), "invalid", "missing required field `agent_id`"),
    ("an empty agent", bad(agent_id=""), "invalid", "`agent_id`: expected `str` of length >= 1"),
    ("an agent that is null", bad(agent_id=None), "invalid", "`agent_id`: expected `str`, got `null`"),
    ("an agent that is a number", bad(agent_id=7), "invalid", "`agent_id`: expected `str`, got `int`"),
    ("an agent of 513 characters", bad(agent_id="a" * 513), "invalid", "`agent_id`: expected `str` of length <= 512"),
    *((f"{f} of 513 characters", bad(**{f: "a" * 513}), "invalid", f"`{f}`: .*<= 512") for f in TEXTS),
    *((f"{f} that is a list", bad(**{f: [SECRET]}), "invalid", f"`{f}`: expected `str | null`") for f in TEXTS),
    *((f"{f} that is a text", bad(**{f: SECRET}), "invalid", f"`{f}`: expected `int") for f in COUNTS),
    *((f"{f} that is true", bad(**{f: True}), "invalid", f"`{f}`: expected `int") for f in COUNTS),
    *((f"{f} with a fraction", bad(**{f: 1.5}), "invalid", f"`{f}`: expected `int") for f in COUNTS),
    *((f"{f} that is a text", bad(**{f: SECRET}), "invalid", f"`{f}`: expected `float") for f in AMOUNTS),
    *((f"{f} that is true", bad(**{f: True}), "invalid", f"`{f}`: expected `float") for f in AMOUNTS),
    *((f"a negative {f}", bad(**{f: -1}), "invalid", f"`{f}`: expected `\\w+` >= 0") for f in COUNTS + AMOUNTS),
    *((f"{f} above 10^12", bad(**{f: 10**12 + 1}), "invalid", f"`{f}`: .*<= 1000000000000") for f in COUNTS + AMOUNTS),
    *((f"{f} of 400 digits", bad(**{f: 10**400}), "invalid", f"`{f}`") for f in COUNTS + AMOUNTS),
    *((f"{f} that is NaN", bad(**{f: float("nan")}), "malformed", "not JSON") for f in COUNTS + AMOUNTS),
    *((f"{f} that is Infinity", bad(**{f: float("inf")}), "malformed", "not JSON") for f in COUNTS + AMOUNTS),
    *((f"{f} of 1e999", raw(f, b"1e999"), "invalid", f"`{f}`: number out of range") for f in COUNTS + AMOUNTS),
    ("an HTTP status of 1000", bad(http_status=1000), "invalid", "`http_status`: expected `int` <= 999"),
    ("no time", without("ts"), "invalid", "missing required field `ts`"),
    ("a time that is null", bad(ts=None), "invalid", "`ts`: expected `int | float | str`, got `null`"),
    ("a time that is true", bad(ts=True), "invalid", "`ts`: expected `int | float | str`, got `bool`"),
    ("a time that is an object", bad(ts={"seconds": 1}), "invalid", "`ts`: expected"),
    ("a time that is NaN", bad(ts=float("nan")), "malformed", "not JSON"),
    ("a time of 1e999", raw("ts", b"1e999"), "invalid", "`ts`: number out of range"),
    ("a time of 400 digits", bad(ts=10**400), "bad_time", "not between 1970 and 9999"),
    ("a time before 1970", bad(ts=-1), "bad_time", "not between 1970 and 9999"),
    ("milliseconds", bad(ts=int(START) * 1000), "bad_time", "looks like milliseconds; send .* seconds"),
    ("words for a time", bad(ts="yesterday"), "bad_time", "`ts` is not a time: send RFC 3339"),
    ("a day for a time", bad(ts="2025-06-15"), "bad_time", "`ts` is not a time"),
    ("the 30th of February", bad(ts="2025-02-30T00:00:00Z"), "bad_time", "`ts` is not a time"),
    ("centuries ahead", bad(ts="2525-01-01T00:00:00Z"), "bad_time", r"more than input.future_s \(\d+ s\) in the"),
    ("an hour behind its run", bad(ts=START - 3600, agent_id="calm"), "late", r"engine.lateness_s \(900 s\) behind"),
]
TABLE = pytest.mark.parametrize(("record", "reason", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])


@TABLE
def test_bad_records_cost_nothing_else(record: bytes | None, reason: str, says: str) -> None:
    seen = process([*GOOD[:40], record, *GOOD[40:]])
    assert seen.reasons == [reason]
    detail = seen.rejects[0].detail
    assert re.search(says.replace("|", r"\|"), detail), detail
    assert SECRET not in repr(seen.rejects[0])
    assert len(detail) < 200
    assert "\n" not in detail
    assert seen.totals.rejected == {reason: 1}
    assert seen.happened == EXPECTED.happened
    assert seen.totals.events == len(GOOD)


def test_duplicates_change_nothing_and_are_counted_apart() -> None:
    seen = process([*GOOD[:40], GOOD[3], bad(event_id="e"), bad(event_id="e", input_tokens=10**9), *GOOD[40:]])
    assert seen.reasons == ["duplicate", "duplicate"]
    assert seen.totals.duplicates == 2
    assert not seen.totals.rejected
    assert seen.totals.effective_tokens == EXPECTED.totals.effective_tokens + 10
    assert seen.happened == EXPECTED.happened


# What looks bad and is an event all the same; two of each kind, so that a wrong hash would show.
ODD: dict[str, bytes] = {
    "half a surrogate pair in a result": rb'{"agent_id": "odd", "ts": 1750000040, "result": "\ud83d"}',
    "half a surrogate pair in an id": rb'{"agent_id": "odd\udc00", "ts": 1750000040}',
    "a result that is not UTF-8": b'{"agent_id": "odd", "ts": 1750000040, "result": "caf\xe9"}',
    "arguments of 1e999": b'{"agent_id": "odd", "ts": 1750000040, "args": {"n": 1e999}}',
    "a number of 5,000 digits in a result": b'{"agent_id": "odd", "ts": 1750000040, "result": 1%s}' % (b"0" * 5000),
    "an unknown field of any shape": b'{"agent_id": "odd", "ts": 1750000040, "x": [{"y": null}, "\xff"]}',
    "attributes that are no object": b'{"agent_id": "odd", "ts": 1750000040, "attributes": "none"}',
    "a field that comes twice": b'{"agent_id": "even", "agent_id": "odd", "ts": 1750000040}',
    "empty texts for what is not known": bad(agent_id="odd", **dict.fromkeys(TEXTS, "")),
    "null for what is not known": bad(agent_id="odd", **dict.fromkeys(TEXTS + COUNTS + AMOUNTS)),
    "the largest numbers": bad(agent_id="odd", **dict.fromkeys(COUNTS + AMOUNTS, 10**12)),
    "ids of 512 characters": bad(agent_id="odd", **dict.fromkeys(TEXTS, "é" * 512)),
    "white space around it": b"\t " + bad(agent_id="odd") + b" \r",
}


@pytest.mark.parametrize("record", ODD.values(), ids=ODD)
def test_odd_records_are_events(record: bytes) -> None:
    seen = process([*GOOD[:40], record, *GOOD[40:]])
    assert seen.reasons == []
    assert seen.totals.events == len(GOOD) + 1
    assert [item for item in seen.happened if "odd" not in repr(item)] == EXPECTED.happened


@pytest.mark.parametrize("damaged", [b"NaN", rb'"\ud800"', DEEP, b'{"agent_id": }', b"", b"1e999"])
def test_a_damaged_element_does_not_cost_the_rest_of_its_array(damaged: bytes) -> None:
    array = b"[" + b",\n".join([*GOOD[:40], damaged, *GOOD[40:]]) + b"]"
    seen = process([array])
    assert len(seen.rejects) == 1
    assert seen.rejects[0].source == "test:1[40]"
    assert seen.happened == EXPECTED.happened


def test_an_array_that_is_cut_off_costs_its_last_element() -> None:
    seen = process([b"[" + b",".join(GOOD)[:-5]])
    assert seen.reasons == ["truncated"]
    assert seen.totals.events == len(GOOD) - 1


# ------------------------------------------------------------------------------------------ properties

INGEST = make_ingest(default_settings(), lambda source, line: f"{source}:{line}", ManualClock(START + 86400), None)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = ["event_id", "agent_id", "ts", "kind", "run_id", "input_tokens", "cost_usd", "args", "result", "attributes"]
NEARLY = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4).map(lambda fields: bad(**fields))
CUT = st.tuples(st.sampled_from(GOOD), st.integers(0, 400), st.binary(max_size=3), st.integers(0, 2)).map(
    lambda how: how[0][: how[1]] + how[2] + how[0][how[1] + how[3] :]
)
ANYTHING = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()) | NEARLY | CUT | st.none()


def is_rejected(record: bytes | None) -> bool:
    """Whether a record holds no event; never raises, which is half of what is tested here."""
    return all(isinstance(taken, Reject) for taken in INGEST.events(Record(record, 0, 0)))


@given(st.lists(st.tuples(st.integers(0, len(GOOD)), ANYTHING), max_size=5))
@settings(max_examples=60)
def test_nothing_that_is_no_event_changes_what_is_found(junk: list[tuple[int, bytes | None]]) -> None:
    values: list[bytes | None] = list(GOOD)
    for at, record in sorted(junk, key=lambda pair: pair[0], reverse=True):
        if is_rejected(record):
            values.insert(at, record)
    seen = process(values)
    assert seen.happened == EXPECTED.happened
    assert seen.totals.events == len(GOOD)
    assert seen.totals.rejected.total() >= len(values) - len(GOOD) - values.count(b"[]")


@given(st.lists(ANYTHING, max_size=30))
@settings(max_examples=60)
def test_nothing_raises(records: list[bytes | None]) -> None:
    process(records, batch=7)


@given(st.binary(max_size=400) | st.lists(ANYTHING.map(lambda record: record or b""), max_size=8).map(b"\n".join))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_raises(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.jsonl"
    file.write_bytes(content)
    done = command("watch", "--json", file)
    assert done.code in (0, 3)
    assert "Traceback" not in done.err


# ----------------------------------------------------------------------------------------------- files

LINES = text(good())
ARRAY = b"[\n  " + b",\n  ".join(json.dumps(e, indent=2).encode() for e in good()) + b"\n]\n"
LONG = b"[" + b", ".join(encode(e | {"result": "x" * 30_000} for e in good() if "result" not in e) + GOOD[:0]) + b"]"
HALF = len(GOOD) // 2
SQUEEZED = gzip.compress(LINES)
NOISE = random.Random(7).randbytes(5000)

# What the file is, its bytes, exit code, reasons, events that must come out ("all" also: all findings).
FILES: list[tuple[str, bytes, int, dict[str, int], int | str]] = [
    ("empty", b"", 0, {}, 0),
    ("blank lines only", b"\n \n\r\n\n", 0, {}, 0),
    ("blank lines between", LINES.replace(b"\n", b"\n\n \r\n"), 0, {}, "all"),
    ("CRLF line ends", LINES.replace(b"\n", b"\r\n"), 0, {}, "all"),
    ("no line end at the end", LINES[:-1], 0, {}, "all"),
    ("a byte order mark", b"\xef\xbb\xbf" + LINES, 0, {}, "all"),
    ("a byte order mark and nothing else", b"\xef\xbb\xbf", 0, {}, 0),
    ("cut off in the middle of a line", LINES[:-9], 0, {"truncated": 1}, len(GOOD) - 1),
    ("a JSON array per line", b"[" + GOOD[0] + b"]\n[" + b",".join(GOOD[1:]) + b"]\n[]\n", 0, {}, "all"),
    ("one pretty-printed array", ARRAY, 0, {}, "all"),
    ("the same with a byte order mark", b"\xef\xbb\xbf" + ARRAY, 0, {}, "all"),
    ("the same with a bad element", ARRAY.replace(b"[", b"[\nNaN,", 1), 0, {"malformed": 1}, "all"),
    ("the same, cut off", ARRAY[: -len(ARRAY) // 3], 0, {"truncated": 1}, 48),
    ("one array in a single line of 2 MB", LONG, 0, {}, 70),
    ("lines, the first of which is a broken array", b"[{\n" + LINES, 0, {"truncated": 1}, "all"),
    ("a line of ten megabytes", bad(result="x" * 10_000_000) + b"\n" + LINES, 0, {"too_large": 1}, "all"),
    ("ten megabytes without a line", b"x" * 10_000_000, 0, {"too_large": 1}, 0),
    ("UTF-16", LINES.decode().encode("utf-16"), 0, {"binary": 1}, 0),
    ("a database", b"SQLite format 3\0" + NOISE, 0, {"binary": 1}, 0),
    ("gzip", SQUEEZED, 0, {}, "all"),
    ("gzip in two members", gzip.compress(LINES[:2000]) + gzip.compress(LINES[2000:]), 0, {}, "all"),
    ("gzip of nothing", gzip.compress(b""), 0, {}, 0),
    ("gzip, cut off", SQUEEZED[:-4], 0, {"truncated": 1}, "all"),
    ("gzip, damaged at its end", SQUEEZED[:-8] + b"\0\0\0\0" + SQUEEZED[-4:], 3, {"unreadable": 1}, "all"),
    ("gzip, damaged", b"\x1f\x8b" + NOISE, 3, {"unreadable": 1}, 0),
]


@pytest.mark.parametrize(
    ("content", "code", "reasons", "events"), [row[1:] for row in FILES], ids=[row[0] for row in FILES]
)
def test_bad_files(tmp_path: Path, content: bytes, code: int, reasons: dict[str, int], events: int | str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(text([event(200.0, agent_id="other")]))  # good, whatever the first one is
    done = command("watch", "--json", tmp_path)
    assert done.code == code
    assert done.summary["rejected_by_reason"] == reasons
    assert done.summary["rejected"] == sum(reasons.values())
    assert done.summary["events"] == 1 + (len(GOOD) if events == "all" else int(events))
    assert len(done.err.splitlines()) == len(reasons)
    if events == "all":
        assert told(done) == told_of_the_good_stream()


def told(done: Done) -> list[dict[str, Any]]:
    """All that was told of findings and incidents, but for which fleet figures were in force.

    These are learned from all agents, so the other file's event may change them, and move a resolution.
    """
    lines = [line for line in done.lines if line["type"] != "summary"]
    for line in lines:
        line.get("evidence", {}).pop("calibration", None)
    return sorted(lines, key=lambda line: (line["type"], line["id"], line.get("state", "")))


def told_of_the_good_stream() -> list[dict[str, Any]]:
    if not _told:
        _told.extend(told(command("watch", "--json", "-", stdin=LINES)))
        assert Counter(line["type"] for line in _told) == {"finding": 7, "incident": 8}
    return _told


_told: list[dict[str, Any]] = []


def test_a_missing_file_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(LINES)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    done = command("watch", "--json", tmp_path / "gone.jsonl", tmp_path / "good.jsonl", tmp_path / "good.jsonl" / "x")
    assert done.code == 3
    assert done.summary["rejected_by_reason"] == {"unreadable": 2}
    assert told(done) == told_of_the_good_stream()
    assert "gone.jsonl: unreadable: cannot read the file: No such file or directory" in done.err


def test_a_time_that_cannot_be_does_not_hold_up_the_rest_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*GOOD[0::2][:5], bad(ts="2999-01-01T00:00:00Z"), *GOOD[0::2][5:]]))
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(GOOD[1::2]))
    done = command("watch", "--json", tmp_path)
    assert done.summary["rejected_by_reason"] == {"bad_time": 1}
    assert told(done) == told_of_the_good_stream()


def test_all_at_once_through_the_command_line(tmp_path: Path) -> None:
    records = [(record, reason) for _, record, reason, _ in ROWS if record and record.strip() and b"\n" not in record]
    lines = [*GOOD[:40], *(record for record, _ in records), *GOOD[40:]]
    (tmp_path / "mixed.jsonl").write_bytes(b"\n".join(lines))
    done = finished("watch", "--json", tmp_path / "mixed.jsonl")
    assert done.code == 0
    assert told(done) == told_of_the_good_stream()
    assert done.summary["rejected_by_reason"] == Counter(reason for _, reason in records)
    assert SECRET not in done.out + done.err


def test_rejects_beyond_the_first_ten_of_a_kind_are_only_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"nonsense\n" * 500 + b"42\n" * 3)
    done = command("watch", "--json", tmp_path / "a.jsonl")
    assert len(done.err.splitlines()) == 10 + 3 + 1
    assert done.err.startswith(f"rejected {tmp_path}/a.jsonl:1: malformed: this is not JSON: invalid character")
    assert done.err.splitlines()[-1] == "and 490 more malformed"


# -------------------------------------------------------------------------------------------- terminals

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x00\x9b31m‮​"


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m.jsonl"
    fields = {"agent_id": HOSTILE, "tool": HOSTILE, "kind": "tool", "args": 1, "result": 2}
    events = [event(float(i), event_id=f"{HOSTILE}{i}", **fields) for i in range(8)]
    file.write_bytes(text(events) + text(events[:1]) + b"{\x1b}\n")
    for options in ([], ["--json"], ["--verbose"]):
        done = command("watch", *options, file)
        shown = done.err if "--json" in options else done.out + done.err
        assert not [c for c in shown if not c.isprintable() and c != "\n"]
        assert not [c for c in done.out if ord(c) < 32 and c != "\n"]
    assert "has made the same call" in command("watch", file).out
