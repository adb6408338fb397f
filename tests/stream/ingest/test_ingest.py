"""The ingest stage: what a record's events look like as columns."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import START

from burnfuse.event import UsageEvent
from detectors.types import Kind, ToolKind
from stream.clock import ManualClock
from stream.columns import TEXTS, Columns
from stream.ingest.ingest import Ingest, Record, last_of
from stream.ingest.reject import Reject
from stream.numeric import NUMBERS
from stream.pipeline import make_ingest
from stream.settings import parse

NOW = ManualClock(START)
LOGGED = int(START) * 1000 + 7


def ingest(config: str = "", key: str | None = None) -> Ingest:
    return make_ingest(parse(config), lambda source, position: f"place {source}/{position}", NOW, key)


PLAIN = ingest()


def row(config: str = "", key: str | None = None, **fields: Any) -> dict[str, Any]:
    """The columns of one event."""
    value = json.dumps({"agent_id": "a", "ts": START} | fields).encode()
    columns, rejects = ingest(config, key).columns([Record(value, 3, 5, log_ms=LOGGED, sequence=9)])
    assert not rejects
    assert len(columns) == 1
    assert {name: array.dtype for name, array in columns.numbers.items()} == NUMBERS
    return {n: c[0] for n, c in columns.texts.items()} | {n: c[0].item() for n, c in columns.numbers.items()}


def test_absent_is_unknown() -> None:
    assert row() == {
        **dict.fromkeys(TEXTS, ""),
        **dict.fromkeys(NUMBERS, 0),
        **dict.fromkeys(("input", "cached", "output"), -1),
        "event_id": "place 3/5",
        "agent_id": "a",
        "run_id": "a",
        "root_run_id": "a",
        "ts": START,
        **{name: row()[name] for name in ("event", "run", "root", "sender")},
        "source": 3,
        "position": 5,
        "log_ms": LOGGED,
        "sequence": 9,
    }


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"run_id": "r"}, {"run_id": "r", "root_run_id": "r", "in_tree": False}),
        ({"run_id": "r", "root_run_id": "t"}, {"run_id": "r", "root_run_id": "t", "in_tree": True}),
        ({"run_id": "r", "parent_run_id": "p"}, {"parent_run_id": "p", "root_run_id": "r", "in_tree": True}),
        ({"root_run_id": "t", "parent_agent_id": "b"}, {"parent_run_id": "t"}),
        ({"run_id": "", "root_run_id": "", "event_id": ""}, {"run_id": "a", "event_id": "place 3/5"}),
        ({"event_id": "e"}, {"event_id": "e"}),
        ({"kind": "message", "to_agent_id": "b"}, {"kind": int(Kind.MESSAGE), "to_agent_id": "b", "in_tree": True}),
        ({"kind": "spawn", "to_run_id": "c"}, {"kind": int(Kind.SPAWN), "to_run_id": "c", "in_tree": True}),
        ({"kind": "compaction"}, {"kind": int(Kind.COMPACTION), "in_tree": False}),
        ({"status": "error", "http_status": 429}, {"failed": True, "http_status": 429}),
        ({"kind": "tool", "tool": "t"}, {"tool": "t", "signature": 0, "result": 0}),
        ({"kind": "tool", "tool": "read_file"}, {"tool_kind": int(ToolKind.READ), "target": 0}),
        (
            {"kind": "tool", "tool": "message", "args": {"action": "send"}},
            {"tool_kind": int(ToolKind.MUTATE), "target": 0},
        ),
        ({"kind": "tool", "tool": "t", "status": "error"}, {"failed": True, "error": 0}),
        ({"kind": "tool", "tool": "t", "result": []}, {"empty": True}),
        ({"kind": "tool", "tool": "t", "result_hash": "d41d8cd98f00b204e9800998ecf8427e"}, {"empty": True}),
        ({"input_tokens": 10, "output_tokens": 2}, {"tokens": 18_000}),
        ({"input_tokens": 10, "cached_input_tokens": 10}, {"tokens": 1_000}),
        ({"input_tokens": 10, "cache_write_tokens": 4}, {"tokens": 10_000}),
        ({"output_tokens": 2, "reasoning_tokens": 2}, {"tokens": 8_000}),
        ({"cost_usd": 1.5}, {"cost": 1_500_000_000}),
        ({"cost_usd": 10**12, "input_tokens": 10**12}, {"cost": 10**14, "tokens": 10**14}),
    ],
)
def test_what_becomes_of_an_event(fields: dict[str, Any], columns: dict[str, Any]) -> None:
    found = row(**fields)
    assert {name: found[name] for name in columns} == columns


@pytest.mark.parametrize(
    ("one", "other", "column", "equal"),
    [
        ({"tool": "t", "args": {"a": 1, "b": 2}}, {"tool": "t", "args": '{"b":2,"a":1}'}, "signature", True),
        ({"tool": "t", "args": [1]}, {"tool": "u", "args": [1]}, "signature", False),
        ({"tool": "t", "args": [1]}, {"tool": "t", "args": [2]}, "signature", False),
        ({"tool": "t", "args_hash": "h"}, {"tool": "t", "args_hash": "h"}, "signature", True),
        ({"tool": "t", "args_hash": "h"}, {"tool": "t", "args_hash": "i"}, "signature", False),
        (
            {"tool": "t", "args": {"a": 1, "request_id": 1}},
            {"tool": "t", "args": {"a": 1, "requestId": 2}},
            "signature",
            True,
        ),
        ({"tool": "t", "args": {"path": "a", "page": 1}}, {"tool": "t", "args": {"path": "a"}}, "target", True),
        ({"tool": "t", "args": {"path": "a"}}, {"tool": "t", "args": {"path": "b"}}, "target", False),
        ({"target_hash": "a"}, {"tool": "t", "args": {"path": "a"}, "target_hash": "a"}, "target", True),
        ({"tool": "exec", "result": {"pid": 1}}, {"tool": "exec", "result": {"pid": 2}}, "result", True),
        ({"tool": "t", "result": {"pid": 1}}, {"tool": "t", "result": {"pid": 2}}, "result", False),
        ({"result": "x"}, {"result": " x\n"}, "result", True),
        ({"result": "x"}, {"result_hash": "x"}, "result", False),
        ({"round_id": "r"}, {"round_id": "r"}, "round", True),
        ({"round_id": "r"}, {"round_id": "s"}, "round", False),
    ],
)
def test_what_counts_as_the_same(one: dict[str, Any], other: dict[str, Any], column: str, equal: bool) -> None:
    first, second = row(kind="tool", **one)[column], row(kind="tool", **other)[column]
    assert first
    assert (first == second) is equal


def test_what_the_configuration_says_of_tools_goes_before_their_names() -> None:
    config = "input: {tool_kinds: {read_*: poll}, volatile: {read_*: {result: [seen]}}}"
    assert row(config, kind="tool", tool="read_log")["tool_kind"] == ToolKind.POLL
    one, other = (row(config, kind="tool", tool="read_log", result={"seen": n})["result"] for n in (1, 2))
    assert one == other


def test_a_deployments_key_changes_the_hashes_of_contents() -> None:
    call = {"kind": "tool", "tool": "t", "args": 1, "result": 2}
    with_key, without = row(key="secret", **call), row(**call)
    assert with_key["signature"] != without["signature"]
    assert with_key["result"] != without["result"]


@pytest.mark.parametrize("weight", [0, 1_000_000])
def test_extreme_weights_and_prices_do_not_overflow(weight: int) -> None:
    weights = ", ".join(f"{name}: {weight}" for name in ("input", "cached_input", "cache_write", "output"))
    config = f"effective_tokens: {{{weights}}}\nprices: {{m: {{input: {weight}, output: {weight}}}}}"
    found = row(config, model="m", input_tokens=10**12, output_tokens=10**12)
    assert found["tokens"] == found["cost"] == (10**14 if weight else 0)


def test_times_further_ahead_than_allowed_are_measured_from_when_the_record_was_logged() -> None:
    value = json.dumps({"agent_id": "a", "ts": START + 100}).encode()
    stage = ingest("input: {future_s: 60.0}")
    for log_ms, fate in ((0, Reject), (int(START + 50) * 1000, UsageEvent)):
        (found,) = stage.events(Record(value, 0, 0, log_ms))
        assert isinstance(found, fate)


def test_a_records_events_keep_their_order_and_get_ids_of_their_own() -> None:
    items = [{"agent_id": f"a{i}", "ts": START} for i in range(3)]
    columns, rejects = ingest().columns([Record(json.dumps([items[0], {}, *items[1:]]).encode(), 1, 2)])
    assert columns.texts["agent_id"] == ["a0", "a1", "a2"]
    assert columns.texts["event_id"] == ["place 1/2[0]", "place 1/2[2]", "place 1/2[3]"]
    assert [reject.source for reject in rejects] == ["place 1/2[1]"]


@given(st.lists(st.floats(0, 1e9), max_size=20))
def test_columns_are_as_long_as_there_are_good_events(times: list[float]) -> None:
    records = [Record(json.dumps({"agent_id": "a", "ts": ts}).encode(), 0, i) for i, ts in enumerate(times)]
    columns, rejects = PLAIN.columns([Record(b"junk", 0, 0), *records])
    assert len(rejects) == 1
    assert {len(column) for column in columns.texts.values()} == {len(times)}
    assert {len(column) for column in columns.numbers.values()} == {len(times)}
    assert columns.numbers["ts"].tolist() == [round(ts, 6) for ts in times]


# ------------------------------------------------------------------------------- all at once, and one by one

TEXT = (
    st.sampled_from(["", "a", "b\0", "é", "stop", "gpt-4o", "x" * 300, "d41d8cd98f00b204e9800998ecf8427e"]) | st.none()
)
CONTENT: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", [], {"path": "a", "request_id": 1}, {"action": "send"}, '{"pid": 3}', "pid 17", " text ", 0]
)
TIME = st.floats(START, START + 9) | st.sampled_from(
    [0, -1, int(START), "2025-06-15T15:06:40Z", "soon", START + 1e9, 10**18, 10**400]
)
FIELDS = st.fixed_dictionaries(
    {"agent_id": st.sampled_from(["a", "b", "é", ""]), "ts": TIME},
    optional={
        **dict.fromkeys(("event_id", "run_id", "root_run_id", "parent_run_id", "parent_agent_id"), TEXT),
        **dict.fromkeys(("to_agent_id", "to_run_id", "round_id", "tenant", "provider", "model"), TEXT),
        **dict.fromkeys(("args_hash", "result_hash", "target_hash", "error_type", "finish_reason"), TEXT),
        **dict.fromkeys(("input_tokens", "cached_input_tokens", "output_tokens", "http_status"), st.integers(-1, 600)),
        "kind": st.sampled_from(["llm", "tool", "message", "outcome", "else"]),
        "status": st.sampled_from(["ok", "error"]),
        "tool": st.sampled_from(["exec", "read_file", "message", "", None]),
        "args": CONTENT,
        "result": CONTENT,
        "cost_usd": st.floats(0, 10),
    },
)
GOOD = FIELDS.map(lambda fields: json.dumps(fields).encode())
DEEP = json.dumps({"agent_id": "a", "ts": START, "tool": "t", "args": "[" * 5000 + "]" * 5000}).encode()
VALUE = (
    GOOD
    | st.sampled_from([None, b"", b" ", b"{", b"[]", b"]", b"\xff", b"1,2", b'{"agent_id": "\\ud83d", "ts": 1}', DEEP])
    | st.lists(GOOD, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]")
    | st.lists(GOOD, min_size=2, max_size=2).map(b",".join)
    | st.builds(lambda value, at: value[:at], GOOD, st.integers(0, 200))
    | st.binary(max_size=9)
)
KEPT = st.builds(Record, VALUE, st.integers(0, 3), st.integers(0, 99), st.sampled_from([0, LOGGED]))
DROPPED = st.builds(Record, st.none(), st.just(1), st.just(2), size=st.sampled_from([3, 1 << 30]))
RECORDS = st.lists(KEPT | DROPPED, max_size=9)
CONFIG = "input: {group_by: [tenant, team, model], tool_kinds: {read*: poll}, volatile: {read*: {result: [path]}}}"


def rows(columns: Columns) -> list[tuple[Any, ...]]:
    return list(zip(*columns.texts.values(), *(column.tolist() for column in columns.numbers.values()), strict=True))


@given(RECORDS, st.sampled_from([PLAIN, ingest(CONFIG, "key")]), st.integers(1, 4))
@settings(deadline=None)  # the first price of a model and day takes its time
def test_records_taken_at_once_are_what_each_is_alone(records: list[Record], stage: Ingest, at_once: int) -> None:
    with mock.patch("stream.ingest.ingest._AT_ONCE", at_once):
        columns, rejects = stage.columns(records)
    alone = [stage.columns([record]) for record in records]
    assert rows(columns) == [row for one, _ in alone for row in rows(one)]
    assert rejects == [reject for _, some in alone for reject in some]


@given(RECORDS)
@settings(deadline=None)
def test_the_short_way_for_usual_records_tells_what_the_careful_way_tells(records: list[Record]) -> None:
    quick = PLAIN.columns(records)
    with mock.patch.object(Ingest, "_usual", lambda _, some: [None] * len(some)):
        careful = PLAIN.columns(records)
    assert rows(quick[0]) == rows(careful[0])
    assert quick[1] == careful[1]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 99))))
def test_of_each_source_the_last_position_and_the_newest_moment_are_known(said: list[tuple[int, int]]) -> None:
    records = [Record(b"", source, n, log_ms) for n, (source, log_ms) in enumerate(said)]
    last = last_of(records)
    assert last.keys() == {source for source, _ in said}
    for source, (position, newest) in last.items():
        mine = [record for record in records if record.source == source]
        assert position == mine[-1].position
        assert newest == max(0, *(record.log_ms for record in mine))
