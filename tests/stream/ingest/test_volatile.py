"""What is left out of arguments and results before they are hashed, and what is not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from stream.ingest.hashing import Hasher
from stream.ingest.volatile import Volatile

HASHER = Hasher()


def result_hash(
    tool: str, result: Any, action: str = "", own: dict[str, tuple[list[str], list[str]]] | None = None
) -> str:
    _, leave_out = Volatile(own or {}).of(tool, action)
    return HASHER.content(msgspec.Raw(json.dumps(result).encode()), None, leave_out) or ""


def args_hash(tool: str, args: Any) -> str:
    leave_out, _ = Volatile({}).of(tool, "")
    return HASHER.content(msgspec.Raw(json.dumps(args).encode()), None, leave_out) or ""


@pytest.mark.parametrize(
    ("tool", "action", "one", "other"),
    [
        ("exec", "", {"out": "x", "durationMs": 1, "pid": 7}, {"out": "x", "durationMs": 2, "pid": 8}),
        ("exec", "", {"out": "x", "duration_ms": 1}, {"out": "x", "duration_ms": 2}),
        ("exec", "", "running (session s-1, pid 7)", "running (session s-2, pid 8)"),
        ("execute_code", "", {"kernel": {"execution_count": 1}, "o": ""}, {"kernel": {"execution_count": 2}, "o": ""}),
        ("message", "send", {"ok": True, "messageId": "a"}, {"ok": True, "messageId": "b"}),
        ("message", "send", {"message": {"id": "a", "text": "hi"}}, {"message": {"id": "b", "text": "hi"}}),
        ("telegram", "", [{"text": '{"messageId": "a"}'}], [{"text": '{"messageId": "b"}'}]),
        ("read_file", "", "x = 1 [read 2x this session]", "x = 1 [read 3x this session]"),
        ("anything", "", {"v": 1, "request_id": "a"}, {"v": 1, "request_id": "b"}),
        ("anything", "", '{"v": 1, "traceId": "a"}', '{"v": 1, "traceId": "b"}'),
        ("poll", "", {"state": "pending", "timestamp": 1}, {"state": "pending", "timestamp": 2}),
    ],
)
def test_noise_does_not_make_a_result_new(tool: str, action: str, one: Any, other: Any) -> None:
    assert result_hash(tool, one, action) == result_hash(tool, other, action)


@pytest.mark.parametrize(
    ("tool", "action", "one", "other"),
    [
        ("exec", "", {"out": "x", "pid": 7}, {"out": "y", "pid": 7}),
        ("exec", "", "exit code 1", "exit code 2"),
        ("ci_job_status", "", {"state": "done", "duration_seconds": 1}, {"state": "done", "duration_seconds": 2}),
        ("message", "read", {"messageId": "a"}, {"messageId": "b"}),
        ("message", "channel-create", {"messageId": "a"}, {"messageId": "b"}),
        ("message", "send", {"route": {"id": "a"}}, {"route": {"id": "b"}}),
        ("lookup", "", {"id": 1, "timestamp": 1}, {"id": 1, "timestamp": 2}),
        ("read_file", "", "session 1", "session 2"),
    ],
)
def test_what_may_be_the_answer_stays(tool: str, action: str, one: Any, other: Any) -> None:
    assert result_hash(tool, one, action) != result_hash(tool, other, action)


def test_notes_on_progress_are_not_part_of_a_call() -> None:
    assert args_hash("list_files", {"path": ".", "task_progress": "1/9"}) == args_hash(
        "list_files", {"path": ".", "task_progress": "2/9"}
    )
    assert args_hash("list_files", {"path": "."}) != args_hash("list_files", {"path": "src"})


def test_the_configuration_has_the_last_word() -> None:
    keep = {"exec": ([], ["seq"])}
    assert result_hash("exec", {"pid": 1}, own=keep) != result_hash("exec", {"pid": 2}, own=keep)
    assert result_hash("exec", {"seq": 1}, own=keep) == result_hash("exec", {"seq": 2}, own=keep)
    assert result_hash("other", {"seq": 1}, own=keep) != result_hash("other", {"seq": 2}, own=keep)
    by_action = {"api:list": ([], ["page_token"])}
    one, other = {"page_token": "a"}, {"page_token": "b"}
    assert result_hash("api", one, "list", by_action) == result_hash("api", other, "list", by_action)
    assert result_hash("api", one, "get", by_action) != result_hash("api", other, "get", by_action)


def test_a_value_nested_too_deeply_stays_as_it_is() -> None:
    deep: Any = {"pid": 1}
    for _ in range(30):
        deep = [deep]
    assert result_hash("exec", deep) == result_hash("exec", json.loads(json.dumps(deep)))
