"""What names and texts of an event are taken to mean."""

from __future__ import annotations

from typing import Any

import pytest

from burnfuse.event import UsageEvent
from detectors.types import Finish, ToolKind
from stream.ingest.decode import decode_event
from stream.ingest.semantics import error_class, finish_of, is_empty, tool_kind


def event(json: str) -> UsageEvent:
    return decode_event(b'{"agent_id": "a", "ts": 1, ' + json.encode() + b"}")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("read_file", ToolKind.READ),
        ("get_status", ToolKind.POLL),
        ("jobStatus", ToolKind.POLL),
        ("create_ticket", ToolKind.MUTATE),
        ("str_replace_editor", ToolKind.MUTATE),
        ("execute_bash", ToolKind.SHELL),
        ("thread", ToolKind.UNKNOWN),
        ("", ToolKind.UNKNOWN),
        (None, ToolKind.UNKNOWN),
    ],
)
def test_a_tools_name_tells_its_kind(name: str | None, kind: ToolKind) -> None:
    assert tool_kind(name) == kind


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("length", Finish.TRUNCATED),
        ("MAX_TOKENS", Finish.TRUNCATED),
        ("end_turn", Finish.STOP),
        ("tool_calls", Finish.TOOL_CALLS),
        ("content_filter", Finish.OTHER),
        ("", Finish.UNKNOWN),
        (None, Finish.UNKNOWN),
    ],
)
def test_ends_of_answers_have_one_name(reason: str | None, finish: Finish) -> None:
    assert finish_of(reason) == finish


@pytest.mark.parametrize(
    ("json", "empty"), [('""', True), ("[]", True), (" { } ", True), ('"\\n "', True), ("null", False), ("0", False)]
)
def test_an_empty_result_was_observed_and_holds_nothing(json: str, empty: bool) -> None:
    assert is_empty(event(f'"result": {json}').result) is empty


def test_a_failures_type_and_status_are_its_class() -> None:
    one: Any = event('"error_type": "rate_limit", "http_status": 429, "result": "a"')
    other: Any = event('"error_type": "rate_limit", "http_status": 429, "result": "b"')
    assert error_class(one) == error_class(other) != error_class(event('"error_type": "timeout"'))
