"""The family of injected faults: where it lays them, what it counts, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

import stream.evaluate.injected as family
from detectors.types import Scope
from stream.evaluate import traces
from stream.evaluate.base import Contender, Row
from stream.evaluate.run import contenders
from stream.settings import default_settings

Event = dict[str, Any]
START = 1_780_000_000.0
AGENTS = 6


def recording(hours: float = 30, gap_s: float = 0.0) -> list[Event]:
    """Six agents at work; with a gap, in even steps."""
    rng = Random(3)
    events: list[Event] = []
    for agent in range(AGENTS):
        at, n = START + agent, 0
        while at < START + 3600 * hours:
            ids = {"event_id": f"{agent}-{n}", "agent_id": f"agent-{agent}", "run_id": f"run-{agent}-{n // 40}"}
            used = {"input_tokens": rng.randint(500, 5000), "output_tokens": rng.randint(50, 300)}
            events.append({**ids, "ts": round(at, 3), "kind": "llm", "model": "gpt-5-mini", **used})
            at += gap_s or rng.expovariate(1 / 200)
            n += 1
    return sorted(events, key=lambda event: float(event["ts"]))


def write(path: Path, events: Sequence[Event]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "service" / "native.jsonl", recording())
    return tmp_path


def chosen(*names: str) -> list[Contender]:
    return [contender for contender in contenders(default_settings()) if contender.name in names]


def rows(folder: Path, *names: str) -> dict[tuple[str, str], Row]:
    shares: list[float] = []
    told = family.Injected().rows(folder, chosen(*names), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return {(row.data, row.contender): row for row in told}


def test_each_kind_and_size_has_its_row_and_the_recording_as_it_is_has_one(folder: Path) -> None:
    told = rows(folder, "null", "retry_loop", "all")
    loops = [data for data, contender in told if contender == "retry_loop"]
    assert loops == ["no fault", "retry-loop, 12 calls", "retry-loop, 120 calls", *loops[3:]]
    assert [data for data in loops if not data.startswith(("retry-loop", "cycle"))] == ["no fault"]
    assert len({data for data, _ in told}) == len(family._KINDS) + 1
    for (data, contender), row in told.items():
        if data != "no fault":
            assert row.caught + row.missed == 1
            assert row.false_alarms == row.agent_days == 0
            assert contender != "null" or not row.caught


def test_delay_and_what_was_burnt_count_from_the_faults_first_event(folder: Path) -> None:
    told = rows(folder, "same_call_3", "retry_loop")
    row = told["retry-loop, 120 calls", "same_call_3"]
    # The third of the calls, 5 s apart, each 1.5 to 3.5 s after its model call.
    assert row.delay_s == [pytest.approx(12.5, abs=1.1)]
    # Three model calls of the agent's median size: about 2,750 tokens read and 175 written, which count fourfold.
    assert row.figures["tokens before"] == pytest.approx(3 * (2750 + 4 * 175), rel=0.2)
    assert row.cost_before_usd == [pytest.approx(3 * (2750 * 0.25e-6 + 175 * 2e-6), rel=0.2)]
    assert told["retry-loop, 120 calls", "retry_loop"].delay_s[0] >= row.delay_s[0]


def test_alarms_on_the_recording_as_it_is_are_false_and_counted_per_active_hour(folder: Path) -> None:
    loop = [
        {"event_id": f"l{i}", "ts": START + 50_000 + i, "agent_id": "agent-0", "run_id": "looping", "kind": "tool",
         "tool": "search", "args_hash": "x", "result_hash": "y"} for i in range(200)
    ]  # fmt: skip
    events = sorted(recording() + loop, key=lambda event: float(event["ts"]))
    write(folder / "service" / "native.jsonl", events)
    told = rows(folder, "null", "same_call_3")
    # The loop goes on for 200 s: that is one alarm.
    assert told["no fault", "same_call_3"].false_alarms == 1
    assert told["no fault", "null"].false_alarms == 0
    assert told["no fault", "null"].agent_days == pytest.approx(AGENTS * 30 / 24, rel=0.05)
    assert told["no fault", "same_call_3"].figures == {"service": 1}
    assert "service" in told["no fault", "null"].notes


def test_the_same_folder_gives_the_same_rows(folder: Path) -> None:
    assert rows(folder, "retry_loop", "runaway") == rows(folder, "retry_loop", "runaway")


def test_an_agent_has_one_fault_per_round_and_a_third_of_the_agents_have_one(folder: Path) -> None:
    (stream,) = family._streams(folder)
    rounds = list(stream.rounds())
    assert [len(faults) for faults in rounds] == [2] * 6
    for faults in rounds:
        assert len({fault.agent_id for _, _, fault in faults}) == 2
        for _, laid, fault in faults:
            assert {event["root_run_id"] for event in laid} == {fault.root_run_id}
            assert len(laid) == fault.events
    assert sorted(kind for faults in rounds for kind, _, _ in faults) == list(range(12))


def test_faults_come_after_the_agent_is_known(folder: Path) -> None:
    (stream,) = family._streams(folder)
    for faults in stream.rounds():
        for _, _, fault in faults:
            before = [e for e in stream.events if e["agent_id"] == fault.agent_id and e["ts"] < fault.start]
            assert len(before) >= 50


def test_recordings_without_times_of_their_own_are_left_out(folder: Path) -> None:
    write(folder / "spaced" / "native.jsonl", recording(gap_s=5.0, hours=1))
    (folder / "labels.jsonl").write_text('{"trace": "a", "labels": []}\n{"ts": "soon", "agent_id": "a"}\n')
    write(folder / "more.jsonl", recording(hours=2))
    assert [stream.name for stream in family._streams(folder)] == ["more.jsonl", "service"]


def test_without_recordings_it_is_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "simulate", lambda: recording(hours=1))
    assert family.Injected().found_in(tmp_path)
    assert [(s.name, len(s.events)) for s in family._streams(tmp_path)] == [("simulation", len(recording(hours=1)))]


def test_pictures_show_the_fault_and_the_alarm(folder: Path) -> None:
    drawn = {plot.title.partition(": ")[2]: plot for plot in family.Injected().plots(folder)}
    assert set(drawn) == {
        "retry-loop, 120 calls",
        "runaway, 10x for 30 min",
        "runaway, doubling every 3 min to 200x for 30 min",
        "fan-out, 188 agents in 60 s",
    }
    loop = drawn["retry-loop, 120 calls"]
    ((start, end),) = loop.events
    assert start < loop.alarms[0] < start + 60 < end
    inside = [value for ts, value in zip(loop.ts, loop.value, strict=True) if start + 60 < ts < end - 60]
    assert inside == [12] * len(inside)  # a call every 5 s
    assert loop.band is not None
    assert max(loop.band[1]) < 12


def test_findings_of_an_agent_are_about_its_fault_only_while_it_lasts(folder: Path) -> None:
    (stream,) = family._streams(folder)
    faults = next(iter(stream.rounds()))
    recording = family._recording(stream, faults)
    (contender,) = chosen("same_call_3")
    (finding, *_) = [f for _, f in traces.found(recording, contender) if f.run_id.startswith("fault-retry-loop")]
    fault = next(fault for _, _, fault in faults if fault.kind == "retry-loop")
    assert family._is_about(finding, fault)
    changed = {name: getattr(finding, name) for name in finding.__slots__} | {"root_run_id": "other"}
    assert not family._is_about(type(finding)(**changed), fault)
    of_agent = changed | {"scope": Scope.AGENT, "agent_id": fault.agent_id}
    assert family._is_about(type(finding)(**of_agent | {"ts": fault.end + 299}), fault)
    assert not family._is_about(type(finding)(**of_agent | {"ts": fault.end + 301}), fault)
    assert not family._is_about(type(finding)(**of_agent | {"ts": fault.start - 1}), fault)
