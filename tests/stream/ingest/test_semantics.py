"""What names and texts of an event are taken to mean."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from burnfuse.event import UsageEvent
from detectors.types import Finish, ToolKind
from stream.ingest.decode import decode_event
from stream.ingest.semantics import error_class, finish_of, is_empty, target_of, tool_kind


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


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("set_status", "{}", ToolKind.MUTATE),
        ("search_code", "{}", ToolKind.READ),
        ("run_tests", "{}", ToolKind.SHELL),
        ("browser_click", "{}", ToolKind.MUTATE),
        ("think", "{}", ToolKind.POLL),
        ("process", '{"id": 3}', ToolKind.POLL),
        ("message", '{"action": "send"}', ToolKind.MUTATE),
        ("message", '{"action": "read"}', ToolKind.READ),
        ("issues", '{"method": "list"}', ToolKind.READ),
        ("bash", '{"command": "sleep 5"}', ToolKind.POLL),
        ("bash", '{"command": "ls"}', ToolKind.SHELL),
        ("queue", '"{\\"action\\": \\"poll\\"}"', ToolKind.POLL),
    ],
)
def test_an_action_tells_more_than_a_name(name: str, args: str, kind: ToolKind) -> None:
    assert tool_kind(name, msgspec.Raw(args.encode())) == kind


def test_the_configuration_says_what_a_tool_does() -> None:
    named = {"acme_*": "mutate", "acme": "poll"}
    assert tool_kind("acme_fetch", named=named) == ToolKind.MUTATE
    assert tool_kind("acme", named=named) == ToolKind.POLL
    assert tool_kind("fetch", named=named) == ToolKind.READ


@pytest.mark.parametrize(
    ("args", "target"),
    [
        ({"path": "a.py", "offset": 3, "limit": 9}, "a.py"),
        ({"url": " https://x/y ", "page": 2}, "https://x/y"),
        ({"file_path": "", "uri": "doc"}, "doc"),
        ({"command": "sed -n '100,150p' a.py"}, "sed -n '#,#p' a.py"),
        ({"command": "rm 1"}, None),
        ({"query": "x"}, None),
        ("a.py", None),
        (None, None),
    ],
)
def test_a_target_is_what_is_acted_upon(args: Any, target: str | None) -> None:
    assert target_of(args) == target


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no file /src/a.py:17", "no file /lib/b.py:3"),
        ("line 3: unexpected 'x'", "line 40: unexpected 'y'"),
        ("job 3f2a9c01d7 is gone", "job 99b0c1d2e3 is gone"),
        ("GET https://a/b failed", "GET https://c/d?e failed"),
        ("0x7ff01 crashed", "0x8aa02 crashed"),
        ("Too  many\nrequests", "too many requests"),
    ],
)
def test_failures_of_one_kind_have_one_class(one: str, other: str) -> None:
    classes = {error_class(event(f'"result": {json.dumps(text)}')) for text in (one, other)}
    assert len(classes) == 1
    wrapped = event(f'"result": {json.dumps({"error": {"message": one}})}')
    assert {error_class(wrapped)} == classes


def test_failures_of_other_kinds_have_other_classes() -> None:
    texts = ["no such file", "permission denied", "timed out"]
    assert len({error_class(event(f'"result": "{text}"')) for text in texts}) == 3


def test_of_a_failure_that_says_nothing_there_is_no_class() -> None:
    assert error_class(event('"status": "error"')) == ""
    assert error_class(event('"result_hash": "ab"')) == "ab"


@pytest.mark.parametrize("text", ["", '""', "[]", "{}"])
def test_a_hash_of_nothing_is_an_empty_result(text: str) -> None:
    for name in ("md5", "sha1", "sha256"):
        assert is_empty(msgspec.Raw(), hashlib.new(name, text.encode()).hexdigest())
    assert not is_empty(msgspec.Raw(), hashlib.sha256(b"something").hexdigest())
    assert not is_empty(msgspec.Raw(), None)
