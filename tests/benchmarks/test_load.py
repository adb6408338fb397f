from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import msgspec
import numpy as np
import pytest

from benchmarks.load import CHUNK, LOOP_CALLS, RUN_EVENTS, Load, Usage, chunks, event_index
from burnfuse.event import UsageEvent
from stream.ingest.decode import decode_event

LOAD = Load(events=CHUNK + 10_000)


def made(load: Load) -> list[Usage]:
    return [usage for chunk in chunks(load) for usage in chunk]


@pytest.fixture(scope="module")
def usages() -> list[Usage]:
    return made(LOAD)


@pytest.fixture(scope="module")
def events(usages: list[Usage]) -> list[UsageEvent]:
    return [decode_event(usage.value) for usage in usages]  # raises where one is not valid


def test_there_are_as_many_events_as_asked_for(usages: list[Usage]) -> None:
    assert len(usages) == LOAD.events


def test_events_have_250_to_400_bytes(usages: list[Usage]) -> None:
    sizes = np.array([len(usage.value) for usage in usages])
    assert np.mean((sizes >= 250) & (sizes <= 400)) > 0.95
    assert 300 < sizes.mean() < 360


def test_the_same_figures_make_the_same_events(usages: list[Usage]) -> None:
    assert made(LOAD) == usages


def test_a_shorter_load_is_the_start_of_a_longer_one(usages: list[Usage]) -> None:
    assert made(replace(LOAD, events=1_234)) == usages[:1_234]


def test_another_seed_makes_other_events(usages: list[Usage]) -> None:
    assert made(replace(LOAD, events=10, seed=2)) != usages[:10]


def test_ids_are_unique_and_tell_the_event(events: list[UsageEvent]) -> None:
    assert [event_index(event.event_id or "") for event in events] == list(range(LOAD.events))


def test_records_are_named_after_the_events_agent(usages: list[Usage], events: list[UsageEvent]) -> None:
    assert all(usage.agent == event.agent_id for usage, event in zip(usages, events, strict=True))


def test_the_activity_of_agents_follows_zipfs_law(events: list[UsageEvent]) -> None:
    counts = Counter(event.agent_id for event in events)
    expected = LOAD.events / sum(1 / rank for rank in range(1, LOAD.agents + 1))
    for rank in (1, 2, 10, 50):
        # Within four standard deviations of the count of rank r, which is expected / r.
        assert abs(counts[f"agent-{rank - 1:06d}"] - expected / rank) < 4 * (expected / rank) ** 0.5 + 2


def test_without_zipf_every_agent_comes_in_turn() -> None:
    load = Load(events=200, agents=100, zipf=0.0, loop_every=0)
    assert [usage.agent for usage in made(load)] == [f"agent-{i % 100:06d}" for i in range(200)]


def test_model_calls_tool_calls_and_messages_come_in_their_shares(events: list[UsageEvent]) -> None:
    kinds = Counter(event.kind for event in events)
    assert 0.54 < kinds["llm"] / LOAD.events < 0.61  # 55 % and the messages of agents outside trees
    assert 0.40 < kinds["tool"] / LOAD.events < 0.42
    assert 0.001 < kinds["message"] / LOAD.events < 0.04


def test_contents_come_raw_hashed_or_not_at_all(events: list[UsageEvent]) -> None:
    tools = [event for event in events if event.kind == "tool"]
    raw = sum(bool(bytes(event.args)) for event in tools) / len(tools)
    hashed = sum(bool(event.args_hash) for event in tools) / len(tools)
    assert abs(raw - 0.35) < 0.02
    assert abs(hashed - 0.50) < 0.02


def test_a_fifth_of_the_agents_work_in_trees(events: list[UsageEvent]) -> None:
    agents = {event.agent_id for event in events}
    in_trees = {event.agent_id for event in events if event.root_run_id}
    assert abs(len(in_trees) / len(agents) - 0.2) < 0.02


def test_runs_end_and_a_busy_agent_has_several_at_once(events: list[UsageEvent]) -> None:
    usual = [event for event in events if event.run_id and event.run_id.startswith("run-")]
    assert max(Counter(event.run_id for event in usual).values()) <= RUN_EVENTS
    busiest = [event.run_id for event in usual if event.agent_id == "agent-000000"]
    # 8.8 % of 1,000 events/s, an event of a run every 5 s: about 440 runs at once.
    assert len(set(busiest[:400])) == 400


def test_planted_loops_repeat_one_call_six_times(events: list[UsageEvent]) -> None:
    loops = [event for event in events if event.run_id and event.run_id.startswith("loop-")]
    calls = Counter((event.run_id, event.tool, event.args_hash, event.result_hash) for event in loops)
    assert set(calls.values()) == {LOOP_CALLS}
    assert len(calls) == LOAD.events // LOAD.loop_every


def test_event_time_advances_at_the_rate_asked_for() -> None:
    events = [msgspec.json.decode(usage.value) for usage in islice(made(Load(events=100, start=1e9, rate=50.0)), 100)]
    assert events[0]["ts"] == 1e9
    assert all(round(b["ts"] - a["ts"], 3) == 0.02 for a, b in pairwise(events))
