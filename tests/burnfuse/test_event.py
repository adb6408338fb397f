"""The wire schema: what its fields are called, what they take, and that nothing else decides."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnfuse.event import MAX_ID_CHARS, MAX_NUMBER, UsageEvent

LEAST: dict[str, Any] = {"agent_id": "a", "ts": 1.0}

FIELDS = {
    "event_id",
    "ts",
    "kind",
    "tenant",
    "team",
    "user",
    "agent_id",
    "run_id",
    "root_run_id",
    "parent_run_id",
    "parent_agent_id",
    "to_agent_id",
    "to_run_id",
    "provider",
    "model",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "tool",
    "args",
    "result",
    "args_hash",
    "result_hash",
    "target_hash",
    "status",
    "error_type",
    "http_status",
    "latency_ms",
    "attempt",
    "round_id",
    "finish_reason",
    "outcome",
    "value",
    "attributes",
}


def decode(fields: dict[str, Any]) -> UsageEvent:
    return msgspec.json.decode(json.dumps(fields), type=UsageEvent)


def test_the_fields_are_those_of_the_contract() -> None:
    assert set(UsageEvent.__struct_fields__) == FIELDS


def test_only_the_agent_and_the_time_are_required() -> None:
    assert [field.name for field in msgspec.structs.fields(UsageEvent) if field.required] == ["agent_id", "ts"]


def test_what_is_not_known_is_not_sent() -> None:
    assert json.loads(msgspec.json.encode(UsageEvent(agent_id="a", ts=1.0))) == LEAST


def test_what_is_not_known_is_not_zero() -> None:
    event = decode(LEAST)
    assert event.input_tokens is None
    assert event.cost_usd is None
    assert decode(LEAST | {"input_tokens": 0}).input_tokens == 0


def test_unknown_fields_are_ignored() -> None:
    assert decode(LEAST | {"color": "red", "nested": [{}]}) == decode(LEAST)


def test_arguments_and_results_stay_as_they_came() -> None:
    event = msgspec.json.decode(b'{"agent_id":"a","ts":1,"args":{ "b":1e0 },"result":[ ]}', type=UsageEvent)
    assert (bytes(event.args), bytes(event.result)) == (b'{ "b":1e0 }', b"[ ]")


@pytest.mark.parametrize(
    ("field", "takes", "refuses"),
    [
        ("agent_id", ["a", "ü", "x" * MAX_ID_CHARS], ["", "x" * (MAX_ID_CHARS + 1), None, 1, ["a"]]),
        ("run_id", ["", "a", None, "x" * MAX_ID_CHARS], ["x" * (MAX_ID_CHARS + 1), 1, {}]),
        ("ts", [0, 1.5, 10**18, "2025-06-15T15:06:40Z", "any text"], [None, True, [], {}]),
        ("kind", ["llm", "tool", "message", "spawn", "compaction", "outcome"], ["LLM", "", "x", None, 0]),
        ("status", ["ok", "error"], ["OK", "failed", "", None, True]),
        ("input_tokens", [0, 1, MAX_NUMBER, None], [-1, MAX_NUMBER + 1, 1.5, "1", True]),
        ("cost_usd", [0, 0.1, float(MAX_NUMBER), None], [-0.001, MAX_NUMBER * 1.1, "1", True]),
        ("http_status", [0, 200, 999, None], [-1, 1000, 200.5, "200"]),
        ("attributes", [{"a": 1}, None, "text"], []),
    ],
)
def test_what_a_field_takes(field: str, takes: list[Any], refuses: list[Any]) -> None:
    for value in takes:
        decode(LEAST | {field: value})
    for value in refuses:
        with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
            decode(LEAST | {field: value})


IDS = st.text(min_size=1, max_size=20)


@given(
    st.fixed_dictionaries(
        {"agent_id": IDS, "ts": st.integers(0, 10**19) | st.floats(0, 1e10) | st.text(max_size=30)},
        optional={
            "run_id": IDS,
            "kind": st.sampled_from(["llm", "tool", "message", "spawn", "compaction", "outcome"]),
            "input_tokens": st.integers(0, MAX_NUMBER),
            "cost_usd": st.floats(0, MAX_NUMBER),
            "status": st.sampled_from(["ok", "error"]),
            "args": st.dictionaries(st.text(), st.integers() | st.text()),
        },
    )
)
def test_an_event_comes_back_as_it_was_sent(fields: dict[str, Any]) -> None:
    event = decode(fields)
    assert msgspec.json.decode(msgspec.json.encode(event), type=UsageEvent) == event
    assert json.loads(msgspec.json.encode(event)).items() <= fields.items()
