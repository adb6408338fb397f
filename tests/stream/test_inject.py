"""Injected faults: of the stated size, in the stated place, and nothing else changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnfuse.event import UsageEvent
from stream.ingest.decode import event_time
from stream.inject import CONTEXT_LIMIT, Fault, cycle, fan_out, ping_pong, retry_loop, runaway

Event = dict[str, Any]
Injected = tuple[list[Event], Fault]

AT = 40_000.0


def recording(ts: Callable[[float], str | int | float] = float) -> list[Event]:
    """20 hours of two agents, a request every 100 s each: bot's of 1,000 + 100 tokens, half of them cached."""
    events: list[Event] = []
    for step in range(720):
        at = 100.0 * step
        common = {"kind": "llm", "provider": "openai", "model": "gpt-5-mini", "team": "support"}
        used = {"input_tokens": 1000, "cached_input_tokens": 500, "output_tokens": 100}
        events += [
            {"event_id": f"b{step}", "ts": ts(at), "agent_id": "bot", "run_id": f"bot-{step // 9}", **common, **used},
            {
                "event_id": f"o{step}",
                "ts": ts(at + 50),
                "agent_id": "other",
                "run_id": "o",
                **common,
                "input_tokens": 9,
            },
        ]
    return events


ALL: dict[str, Callable[[list[Event]], Injected]] = {
    "retry-loop": lambda events: retry_loop(events, "bot", AT, n_calls=25, gap_s=4.0),
    "runaway": lambda events: runaway(events, "bot", AT, factor=40, minutes=10),
    "doubling": lambda events: runaway(events, "bot", AT, factor=60, minutes=20, doubling_min=3),
    "fan-out": lambda events: fan_out(events, "bot", AT, agents=50, seconds=30, worker_id="other"),
    "cycle": lambda events: cycle(events, "bot", AT, laps=7),
    "ping-pong": lambda events: ping_pong(events, "bot", "other", AT, messages=21),
}


@pytest.fixture(params=ALL, name="inject")
def _inject(request: pytest.FixtureRequest) -> Callable[[list[Event]], Injected]:
    return ALL[request.param]


def laid(injected: Injected) -> list[Event]:
    """The events of the fault."""
    events, fault = injected
    return [event for event in events if event.get("root_run_id") == fault.root_run_id]


def tools(events: list[Event]) -> list[Event]:
    return [event for event in events if event["kind"] == "tool"]


def tokens(events: list[Event]) -> int:
    return sum(event["input_tokens"] + event["output_tokens"] for event in events if event["kind"] == "llm")


# ------------------------------------------------------------------------------------ every injector


def test_the_recording_is_left_as_it_was(inject: Callable[[list[Event]], Injected]) -> None:
    events = recording()
    before = copy.deepcopy(events)
    merged, fault = inject(events)
    assert events == before
    assert [event for event in merged if event.get("root_run_id") != fault.root_run_id] == before


def test_same_arguments_give_the_same_events(inject: Callable[[list[Event]], Injected]) -> None:
    assert inject(recording()) == inject(recording())


def test_fault_says_what_was_laid_where(inject: Callable[[list[Event]], Injected]) -> None:
    injected = inject(recording())
    fault, own = injected[1], laid(injected)
    assert fault.name == fault.run_id == fault.root_run_id == f"fault-{fault.kind}-bot-40000"
    assert inject in (ALL[fault.kind], ALL["doubling"])
    assert (fault.agent_id, fault.events) == ("bot", len(own))
    assert (fault.start, fault.end) == (own[0]["ts"], own[-1]["ts"])
    assert AT <= fault.start < AT + 60


def test_merged_events_are_valid_in_order_and_unique(inject: Callable[[list[Event]], Injected]) -> None:
    merged, _ = inject(recording())
    times = [event_time(event["ts"]) for event in merged]
    assert times == sorted(times)
    assert len({event["event_id"] for event in merged}) == len(merged)
    for event in merged:
        msgspec.json.decode(json.dumps(event), type=UsageEvent)
        assert set(event) <= set(UsageEvent.__struct_fields__)


def test_the_fault_looks_like_the_agents_own_work(inject: Callable[[list[Event]], Injected]) -> None:
    for event in laid(inject(recording())):
        assert event["team"] == "support"
        if event["kind"] == "llm":
            assert (event["provider"], event["model"]) == ("openai", "gpt-5-mini")


def test_round_ids_of_tool_calls_are_those_of_model_calls(inject: Callable[[list[Event]], Injected]) -> None:
    own = laid(inject(recording()))
    rounds = {(event["run_id"], event["round_id"]) for event in own if event["kind"] == "llm"}
    assert {(event["run_id"], event["round_id"]) for event in tools(own)} <= rounds


def test_an_agent_unknown_before_the_time_is_refused(inject: Callable[[list[Event]], Injected]) -> None:
    late = [event for event in recording() if event["ts"] >= AT]
    with pytest.raises(ValueError, match="no event of agent"):
        inject(late)


def test_the_same_fault_twice_is_refused(inject: Callable[[list[Event]], Injected]) -> None:
    once, _ = inject(recording())
    with pytest.raises(ValueError, match="already holds"):
        inject(once)


@pytest.mark.parametrize(
    "ts",
    [
        lambda s: f"1970-01-{1 + int(s // 86400):02}T{int(s // 3600) % 24:02}:{int(s // 60) % 60:02}:{s % 60:06.3f}Z",
        int,
    ],
)
def test_times_may_be_text_or_whole_seconds(ts: Callable[[float], str | int]) -> None:
    plain, fault = retry_loop(recording(), "bot", AT)
    merged, same = retry_loop(recording(ts), "bot", AT)
    assert same == fault
    assert [event["event_id"] for event in merged] == [event["event_id"] for event in plain]


def test_nanoseconds_are_told_from_seconds() -> None:
    assert event_time(1_780_000_000_500_000_000) == 1_780_000_000.5
    assert event_time(1_780_000_000) == 1_780_000_000.0
    assert event_time("2026-03-02T01:00:00+01:00") == event_time("2026-03-02T00:00:00") == 1772409600.0


def bare(*kept: str) -> list[Event]:
    """The recording with nothing but these fields."""
    return [{key: event[key] for key in ("ts", "agent_id", *kept)} for event in recording()]


def test_a_recording_without_token_counts_takes_faults_without_token_counts(
    inject: Callable[[list[Event]], Injected],
) -> None:
    own = laid(inject(bare()))
    assert not any(name in event for event in own for name in ("input_tokens", "output_tokens", "model", "team"))


@pytest.mark.parametrize("used", [(10**12, 0), (0, 10**9), (10**9, 10**9)])
def test_a_runaway_of_absurd_size_makes_larger_calls_instead_of_millions(used: tuple[int, int]) -> None:
    events = [event | dict(zip(("input_tokens", "output_tokens"), used, strict=True)) for event in recording()]
    own = laid(runaway(events, "bot", AT, factor=40, minutes=1))
    assert len(own) < 3000  # at most 20 calls a second, each with a tool call
    assert tokens(own) == pytest.approx(40 * sum(used), rel=0.1)


def test_a_runaway_where_tokens_are_unknown_is_so_many_times_the_events() -> None:
    # Both agents write one event in each of their active minutes.
    own = laid(runaway(bare("event_id"), "bot", AT, factor=20, minutes=10))
    assert len(own) / 10 == pytest.approx(20, rel=0.1)


def test_what_would_be_rejected_stays_where_it_is(inject: Callable[[list[Event]], Injected]) -> None:
    bad: list[Event] = [{}, {"agent_id": "bot"}, {"ts": "soon", "agent_id": "bot"}, {"ts": 5.0}, {"ts": None}]
    events = recording()
    events[100:100] = bad
    merged, _ = inject(events)
    assert [event for event in merged if "fault" not in str(event.get("root_run_id"))] == events
    assert merged[100:105] == bad


def test_events_that_came_late_stay_where_they_came() -> None:
    events = recording()
    late = events.pop(300)
    events.insert(900, late)
    merged, fault = retry_loop(events, "bot", AT)
    assert [event for event in merged if event.get("root_run_id") != fault.root_run_id] == events


def test_the_size_is_told_in_words() -> None:
    sizes = {kind: inject(recording())[1].size for kind, inject in ALL.items()}
    assert sizes == {
        "retry-loop": "25 calls",
        "runaway": "40x for 10 min",
        "doubling": "doubling every 3 min to 60x for 20 min",
        "fan-out": "50 agents in 30 s",
        "cycle": "7 laps of 3",
        "ping-pong": "21 messages",
    }


FIELDS = {
    "event_id": st.text(max_size=8),
    "run_id": st.text(max_size=8),
    "root_run_id": st.text(max_size=8),
    "kind": st.sampled_from(["llm", "tool", "message", "spawn", "compaction", "outcome"]),
    "model": st.sampled_from(["gpt-5", "unheard of"]),
    "team": st.text(max_size=8),
    "input_tokens": st.integers(0, 10**4),
    "cached_input_tokens": st.integers(0, 10**4),
    "output_tokens": st.integers(0, 10**4),
}
SECONDS = st.floats(0, 1e6) | st.integers(0, 10**6)
TIMES = SECONDS | SECONDS.map(lambda s: int((s + 2e8) * 1e9)) | SECONDS.map(
    lambda s: datetime.fromtimestamp(s, UTC).isoformat()
)  # fmt: skip
STREAMS = st.lists(
    st.fixed_dictionaries({"ts": TIMES, "agent_id": st.sampled_from(["bot", "other"])}, optional=FIELDS), max_size=30
)


@given(STREAMS, st.sampled_from(sorted(ALL)))
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_any_stream_takes_any_fault_and_burnfuse_takes_all_of_it(events: list[Event], kind: str) -> None:
    known: list[Event] = [{"ts": 1.0, "agent_id": "bot"}, {"ts": 2.0, "agent_id": "other"}]
    stream = known + events
    merged, fault = ALL[kind](stream)
    own = [event for event in merged if event.get("root_run_id") == fault.root_run_id]
    assert len(own) == fault.events
    assert [event for event in merged if event.get("root_run_id") != fault.root_run_id] == stream
    times = [event_time(event["ts"]) for event in own]
    assert times == sorted(times)
    assert (times[0], times[-1]) == pytest.approx((fault.start, fault.end), abs=1e-3)
    for event in own:
        msgspec.json.decode(msgspec.json.encode(event), type=UsageEvent)


# ------------------------------------------------------------------------------------- each injector


def test_retry_loop_repeats_one_failing_call_with_a_model_round_before_each() -> None:
    own = laid(retry_loop(recording(), "bot", AT, n_calls=120, gap_s=5.0, tool="fetch", error_type="bad_cursor"))
    assert [event["kind"] for event in own] == ["llm", "tool"] * 120
    calls = tools(own)
    assert {(e["tool"], e["status"], e["error_type"]) for e in calls} == {("fetch", "error", "bad_cursor")}
    assert len({event["args_hash"] for event in calls}) == len({event["result_hash"] for event in calls}) == 1
    assert len({event["round_id"] for event in calls}) == 120
    assert calls[-1]["ts"] - calls[0]["ts"] == pytest.approx(119 * 5, abs=2)


def test_a_doubling_runaway_begins_as_usual_and_doubles_until_it_has_reached_the_factor() -> None:
    own = laid(runaway(recording(), "bot", AT, factor=32, minutes=24, doubling_min=3))
    # From 1,100 tokens a minute: 3 minutes at 2 ** (t / 3) are 4,761 tokens, and twice that every 3 minutes.
    burnt = [tokens([e for e in own if AT + 180 * i <= e["ts"] < AT + 180 * (i + 1)]) for i in range(8)]
    assert burnt[3:5] == pytest.approx([8 * 4761, 16 * 4761], rel=0.25)
    assert burnt[6:] == pytest.approx([3 * 32 * 1100] * 2, rel=0.15)


@pytest.mark.parametrize("factor", [4, 40, 400, 40_000])
def test_runaway_burns_the_stated_multiple_in_one_run(factor: float) -> None:
    own = laid(runaway(recording(), "bot", AT, factor=factor, minutes=10))
    # The recording has 1,100 tokens in each of its active minutes.
    assert tokens(own) / 10 == pytest.approx(factor * 1100, rel=0.05 if factor > 4 else 0.4)
    assert {event["run_id"] for event in own} == {f"fault-runaway-bot-{AT:.0f}"}
    assert max(event["input_tokens"] for event in own if event["kind"] == "llm") <= CONTEXT_LIMIT
    assert AT <= own[0]["ts"] <= own[-1]["ts"] <= AT + 600


def test_runaway_keeps_its_rate_while_the_context_grows() -> None:
    own = laid(runaway(recording(), "bot", AT, factor=100, minutes=30, growth=5))
    halves = [[e for e in own if (e["ts"] < AT + 900) == first] for first in (True, False)]
    assert tokens(halves[0]) == pytest.approx(tokens(halves[1]), rel=0.1)
    sizes = [event["input_tokens"] for event in own if event["kind"] == "llm"]
    assert sizes == sorted(sizes)
    assert sizes[-1] / sizes[0] == pytest.approx(5, rel=0.1)


def test_runaway_keeps_the_agents_mix_of_tokens() -> None:
    calls = [e for e in laid(runaway(recording(), "bot", AT)) if e["kind"] == "llm"]
    for call in calls:
        assert call["cached_input_tokens"] / call["input_tokens"] == pytest.approx(0.5, abs=0.01)
        assert call["output_tokens"] / call["input_tokens"] == pytest.approx(0.1, abs=0.01)


def test_runaway_never_repeats_a_call() -> None:
    calls = tools(laid(runaway(recording(), "bot", AT)))
    assert len({e["args_hash"] for e in calls}) == len({e["result_hash"] for e in calls}) == len(calls) > 50


def test_fan_out_starts_the_stated_agents_in_the_stated_time() -> None:
    own = laid(fan_out(recording(), "bot", AT, agents=188, seconds=60.0, children=4, worker_id="other"))
    spawns = [event for event in own if event["kind"] == "spawn"]
    assert len({event["to_run_id"] for event in spawns}) == len(spawns) == 188
    assert {event["to_agent_id"] for event in spawns} == {"other"}
    assert spawns[-1]["ts"] == pytest.approx(AT + 60)
    # Children start children, four levels down, each after it was started itself.
    born = {event["to_run_id"]: event for event in spawns}
    depth = {own[0]["run_id"]: 0}
    for spawn in spawns:
        depth[spawn["to_run_id"]] = depth[spawn["run_id"]] + 1
        assert spawn["run_id"] not in born or born[spawn["run_id"]]["ts"] < spawn["ts"]
    assert max(depth.values()) == 4
    # It grows: the second half comes in a small part of the time.
    assert spawns[94]["ts"] - spawns[0]["ts"] > 4 * (spawns[-1]["ts"] - spawns[94]["ts"])


def test_fan_out_events_of_a_run_follow_its_start() -> None:
    own = laid(fan_out(recording(), "bot", AT, agents=188, seconds=60.0, worker_id="other"))
    born = {event["to_run_id"]: event for event in own if event["kind"] == "spawn"}
    for event in own:
        if event["run_id"] in born:
            start = born[event["run_id"]]
            assert event["ts"] >= start["ts"]
            assert (event["parent_run_id"], event["parent_agent_id"]) == (start["run_id"], start["agent_id"])


def test_fan_out_within_a_depth_makes_the_tree_broader() -> None:
    spawns = [e for e in laid(fan_out(recording(), "bot", AT, agents=30, depth=1)) if e["kind"] == "spawn"]
    assert len(spawns) == 30
    assert {event["run_id"] for event in spawns} == {f"fault-fan-out-bot-{AT:.0f}"}
    with pytest.raises(ValueError, match="at least 1"):
        fan_out(recording(), "bot", AT, depth=0)


def test_cycle_goes_round_the_same_successful_calls() -> None:
    calls = tools(laid(cycle(recording(), "bot", AT, laps=9, tools=("a", "b", "c"))))
    assert [event["tool"] for event in calls] == ["a", "b", "c"] * 9
    assert len({(e["tool"], e["args_hash"], e["result_hash"]) for e in calls}) == 3
    assert not any(event.get("status") == "error" for event in calls)


def test_ping_pong_exchanges_the_same_two_messages_and_nothing_else() -> None:
    own = laid(ping_pong(recording(), "bot", "other", AT, messages=30, gap_s=8.0))
    said = [event for event in own if event["kind"] == "message"]
    assert [event["agent_id"] for event in said] == ["bot", "other"] * 15
    assert all(a["to_run_id"] == b["run_id"] for a, b in pairwise(said))
    assert len({event["args_hash"] for event in said}) == 2
    assert {event["kind"] for event in own} == {"llm", "message"}
    assert median(b["ts"] - a["ts"] for a, b in pairwise(said)) == pytest.approx(8, abs=2)
