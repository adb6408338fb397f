"""Runs of contenders over recorded events: what is found where, and what it had cost by then."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Detector, DetectorConfig, Spec
from detectors.types import EventBatch, Finding, Scope
from stream.errors import BurnfuseError, InputError
from stream.evaluate import traces
from stream.evaluate.base import Contender
from stream.evaluate.baselines import ManyMessages, SameCall
from stream.evaluate.run import contenders
from stream.settings import default_settings, parse

Event = dict[str, Any]


def only(cls: type[Detector]) -> Contender:
    return Contender(cls.spec.name, lambda: {cls.spec.name: cls(cls.Config())})


def call(i: int, args: str = "x", root: str = "task", **more: Any) -> Event:
    shared = {"event_id": f"{root}{i}", "ts": 100.0 + i, "agent_id": "bot", "root_run_id": root, "run_id": root}
    return {**shared, "kind": "tool", "tool": "search", "args_hash": args, "cost_usd": 0.25, **more}


def message(i: int, root: str = "talk") -> Event:
    shared = {"event_id": f"{root}{i}", "ts": 100.0 + i, "agent_id": "bot", "root_run_id": root, "cost_usd": 0.5}
    return {**shared, "kind": "message", "to_agent_id": "b", "args_hash": f"{i}"}


def test_outcomes_are_of_root_runs_in_order_of_appearance() -> None:
    events = [call(0, root="b"), call(1, root="a"), call(2, root="b"), call(3, root="b"), call(4, root="b")]
    outcomes = traces.run(traces.encoded(events), only(SameCall))
    assert list(outcomes) == ["b", "a"]
    found = outcomes["b"]
    assert (found.start, found.cost_usd, found.cost_before) == (100.0, 1.0, 0.75)
    assert [finding.event_id for finding in found.findings] == ["b3"]
    quiet = outcomes["a"]
    assert (quiet.start, quiet.cost_usd, quiet.cost_before, quiet.findings) == (101.0, 0.25, None, [])


def test_detectors_of_trees_are_told_the_same_events() -> None:
    outcomes = traces.run(traces.encoded([message(i) for i in range(25)]), only(ManyMessages))
    assert [finding.event_id for finding in outcomes["talk"].findings] == ["talk20"]
    assert outcomes["talk"].cost_before == 10.5  # 21 messages


def test_what_is_rejected_is_left_out() -> None:
    records = [b"no JSON", b'{"ts": 1}', *traces.encoded([call(i) for i in range(3)])]
    ((root, outcome),) = traces.run(records, only(SameCall)).items()
    assert (root, outcome.findings[0].event_id, outcome.cost_usd) == ("task", "task2", 0.75)


@pytest.mark.parametrize("records", [[], [b"", b"{}"]])
def test_nothing_to_read_is_nothing_found(records: list[bytes]) -> None:
    assert traces.run(records, only(SameCall)) == {}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), max_size=60), st.integers(1, 20))
@settings(max_examples=50)
def test_batches_do_not_matter(calls: list[tuple[str, str]], size: int) -> None:
    events = [call(i, args, root) for i, (root, args) in enumerate(calls)]
    whole = traces.run(traces.encoded(events), only(SameCall))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "_BATCH", size)
        assert traces.run(traces.encoded(events), only(SameCall)) == whole


def test_a_recording_is_ingested_once_for_all_contenders_of_one_configuration() -> None:
    recording = traces.encoded([call(i) for i in range(3)])
    dear = parse("effective_tokens: {output: 9.0}")
    first = recording.ingested(dear)
    assert recording.ingested(parse("detectors: {spiral: {enabled: false}}\neffective_tokens: {output: 9.0}")) is first
    assert recording.ingested(parse("effective_tokens: {output: 8.0}")) is not first


def test_a_recording_is_a_sequence_of_records() -> None:
    recording = traces.encoded([call(0), call(1)])
    assert json.loads(recording[1])["event_id"] == "task1"
    assert len(recording) == len(recording[0:2]) == 2
    assert list(recording[1:]) == [recording[1]]


def test_together_contenders_find_what_each_finds_alone() -> None:
    made = contenders(default_settings())
    recording = traces.encoded([call(i) for i in range(9)] + [message(20 + i) for i in range(25)])
    together = traces.found_by_each(recording, made)
    alone = {contender.name: traces.found(recording, contender) for contender in made}
    assert together == alone
    assert sum(map(bool, alone.values())) >= 4


def test_the_contenders_settings_are_heeded() -> None:
    # The second and third call come 100 s late.
    recording = traces.encoded([call(100), call(0), call(1)])
    strict = Contender("strict", only(SameCall).make, settings=parse("engine: {lateness_s: 10.0}"))
    assert [finding.event_id for _, finding in traces.found(recording, only(SameCall))] == ["task1"]
    assert traces.found(recording, strict) == []
    assert traces.run(recording, strict, settings=parse("{}"))["task"].findings


class Broken(Detector):
    """Raises."""

    spec = Spec("broken", version=1, scope=Scope.RUN)

    def __init__(self, config: DetectorConfig) -> None:
        self.tables = {}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        raise ValueError("no")


def test_a_detector_that_fails_is_told_and_not_taken_for_a_quiet_one() -> None:
    with pytest.raises(BurnfuseError, match="detector broken failed: ValueError: no"):
        traces.run(traces.encoded([call(0)]), only(Broken))


# ------------------------------------------------------------------------------------------- files


def test_files_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text('{"a": 1}\n\n{"a": 2}\n')
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert traces.json_lines(plain) == traces.json_lines(packed) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\nno\n', "a.jsonl:2 is no JSON object"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1 is no JSON object"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], "it is damaged"),
        ("a.jsonl.gz", b"plain", "it is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        traces.json_lines(tmp_path / name)


# ------------------------------------------------------------------------------------------ alarms


def finding(ts: float, scope: Scope = Scope.RUN, **more: str) -> Finding:
    names = {"agent_id": "a", "run_id": "r", "root_run_id": "t"} | more
    return Finding(
        id=f"{ts}", detector="d", rule="r", severity="warning", scope=scope, ts=ts, event_id="e", score=0.0,
        observed=1.0, expected=1.0, unit="calls", reason="a", **names,
    )  # fmt: skip


def test_what_goes_on_is_one_alarm_until_it_was_quiet_for_an_hour() -> None:
    assert [f.ts for f in traces.alarms(map(finding, [0, 60, 3600, 7100, 10_700, 20_000]))] == [0, 10_700, 20_000]


def test_alarms_are_of_what_their_finding_is_about() -> None:
    findings = [
        finding(0),
        finding(1, run_id="other"),
        finding(2, scope=Scope.AGENT),
        finding(3, scope=Scope.AGENT, run_id="other"),
        finding(4, scope=Scope.ROOT),
        finding(5, scope=Scope.ROOT, agent_id="b"),
    ]
    assert [f.ts for f in traces.alarms(findings)] == [0, 1, 2, 4]
