"""Tasks that start too many agents, too deep, or whose agents only talk: when it fires, when it is quiet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batches import START, Event, batch_of, call, every, find, message, said, spawn, used, verdicts
from hypothesis import example, given
from hypothesis import strategies as st

from detectors.base import FleetFigures, StateError
from detectors.spiral import RECENT, Spiral, SpiralConfig
from detectors.types import Kind


def conversation(n: int, words: int = 10**6, between: tuple[str, str] = ("ann", "bob")) -> list[Event]:
    """Two agents in turn; the words repeat after so many messages."""
    return [message(*between[:: 1 - 2 * (i % 2)], f"{between} {i % words}") for i in range(n)]


def descent(depth: int) -> list[Event]:
    return [spawn(level) for level in range(1, depth + 1)]


# --------------------------------------------------------------------------------------- it fires


@pytest.mark.parametrize(
    ("rule", "events", "warning", "critical"),
    [
        pytest.param("fan_out", [spawn()] * 100, 60, 100, id="runs started at once"),
        pytest.param("nested", [spawn(2)] * 13, 12, 13, id="runs started by started runs"),
        pytest.param("depth", [spawn(5), spawn(8)], 1, 2, id="levels"),
        pytest.param("ping_pong", conversation(40), 20, 40, id="messages to and fro"),
        pytest.param("ping_pong", conversation(14, words=2), 2 + 6, 2 + 12, id="messages that repeat what was said"),
        pytest.param("ping_pong", conversation(14 + 6, words=8), 8 + 6, 8 + 12, id="words that come back"),
    ],
)
def test_it_fires_at_the_threshold(rule: str, events: list[Event], warning: int, critical: int) -> None:
    # Talks of two agents that repeat themselves are told by the rule on words too.
    found = [finding for finding in find(Spiral, every(0, events)) if finding.rule != "verbatim"]
    assert verdicts(found) == [(rule, "warning", warning - 1), (rule, "critical", critical - 1)]
    assert found[0].score == 0


def test_thresholds_are_settings() -> None:
    found = find(Spiral, every(0, conversation(4)), hops_warning=2, hops_critical=3)
    assert verdicts(found) == [("ping_pong", "warning", 1), ("ping_pong", "critical", 2)]


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        ({"echo_critical": 1000}, ("ping_pong", "critical", 39)),
        ({"hops_critical": 1000}, ("ping_pong", "critical", 13)),
    ],
)
def test_the_graver_of_the_two_message_rules_counts(config: dict[str, int], verdict: tuple[str, str, int]) -> None:
    found = find(Spiral, every(0, conversation(40, words=2)), verbatim_turns=99, **config)
    assert verdicts(found) == [("ping_pong", "warning", 7), verdict]


def test_rules_have_alarms_of_their_own() -> None:
    events = [*descent(5), *[spawn()] * 60, *conversation(20)]
    assert {finding.rule for finding in find(Spiral, every(0, events))} == {"depth", "fan_out", "ping_pong"}


def test_several_rules_may_fire_at_one_event() -> None:
    limits = {"evidence_warning": 500.0, "evidence_critical": 500.0}
    found = find(Spiral, every(0, [spawn(5)] * 12), **limits)
    assert verdicts(found) == [("depth", "warning", 0), ("nested", "warning", 11)]
    found = find(Spiral, every(0, [spawn(2)] * 11 + [spawn(8)]), **limits)
    assert {f[0] for f in verdicts(found)} == {"nested", "depth"}
    assert {f[2] for f in verdicts(found)} == {11}


def test_messages_in_one_direction_count_once() -> None:
    pairs = [replace(event, signature=f"{event.signature} {i}") for event in conversation(20) for i in range(3)]
    assert verdicts(find(Spiral, every(1, pairs))) == [("ping_pong", "warning", 19 * 3)]


def test_an_old_result_is_no_progress() -> None:
    talk = conversation(20)
    events = [call("x", "known"), *talk[:10], call("x", "known"), *talk[10:]]
    assert verdicts(find(Spiral, every(1, events))) == [("ping_pong", "warning", 21)]


def test_a_result_nobody_has_seen_is_no_progress() -> None:
    talk = conversation(20)
    events = [*talk[:10], call("x", ""), *talk[10:]]
    assert verdicts(find(Spiral, every(1, events))) == [("ping_pong", "warning", 20)]


def test_messages_to_nobody_do_not_hide_a_conversation() -> None:
    events = [event for turn in conversation(20) for event in (turn, message("ann", "", "?"))]
    assert verdicts(find(Spiral, every(1, events))) == [("ping_pong", "warning", 38)]


def test_a_tree_is_watched_whatever_other_trees_do() -> None:
    events = [replace(event, root=f"task {i}") for event in descent(5) for i in range(4)]
    assert verdicts(find(Spiral, every(1, events))) == [("depth", "warning", 16 + i) for i in range(4)]


# ------------------------------------------------------------------------------------ it is quiet


def map_reduce(workers: int) -> Iterable[Event]:
    for i in range(workers):
        yield spawn(run=f"worker {i}", agent="worker")
        yield message("planner", "worker", f"part {i}")
    for i in range(workers):
        yield call(f"part {i}", f"found {i}", agent="worker", run=f"worker {i}")
        yield message("worker", "planner", f"result {i}")


def handoffs(n: int) -> Iterable[Event]:
    for i, event in enumerate(conversation(n)):
        yield event
        if i % 10 == 9:
            yield call("tests", f"{i} passed", agent="bob")


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(every(0, map_reduce(50)), id="a planner and 50 workers"),
        pytest.param(every(3, [spawn()] * 1000), id="a worker every 3 seconds"),
        pytest.param(every(15, [spawn(2)] * 200), id="a nested run now and then"),
        pytest.param(every(1, [spawn(level) for level in (1, 2, 3, 4)]), id="four levels"),
        pytest.param(every(1, conversation(19)), id="a conversation"),
        pytest.param(every(1, conversation(7, words=2)), id="a few acknowledgements"),
        pytest.param(every(1, handoffs(200)), id="handoffs with new results"),
        pytest.param(every(1, [message("ann", "bob", f"{i}") for i in range(100)]), id="one agent talks"),
        pytest.param(
            every(1, [message("abc"[i % 3], "bca"[i % 3], f"{i}") for i in range(19)]), id="three agents take turns"
        ),
        pytest.param(every(1, [message("ann", "", "?") for _ in range(100)]), id="nobody knows to whom"),
        pytest.param(
            every(1, [replace(event, root=f"task {i}") for i, event in enumerate(conversation(200))]), id="200 tasks"
        ),
        pytest.param(every(1, [used(1000, depth=9), said("x", depth=9)] * 50), id="runs of unknown origin"),
    ],
)
def test_it_is_quiet(events: list[Event]) -> None:
    assert find(Spiral, events) == []


def test_a_new_result_starts_the_count_afresh() -> None:
    for n in (19, 20):
        events = [*conversation(19), call("x", "new"), *conversation(n + 1)[1:]]
        assert bool(find(Spiral, every(1, events))) == (n == 20)


def test_another_pair_starts_the_count_afresh() -> None:
    events = [*conversation(19), *conversation(19, between=("ann", "eve")), *conversation(19)]
    assert {finding.rule for finding in find(Spiral, every(1, events))} == {"handoffs"}


def round_table(n: int) -> list[Event]:
    """Three agents in turn, with words of their own."""
    return [message("abc"[i % 3], "bca"[i % 3], f"words {i}") for i in range(n)]


def test_turns_among_many_agents_count_until_a_tool_brings_something_new() -> None:
    # Six agents call on each other: along a path that takes 22 messages to repeat itself.
    order = "abcdefacebdf" * 4
    among_six = [message(a, b, f"{i}") for i, (a, b) in enumerate(itertools.pairwise(order)) if a != b]
    found = find(Spiral, every(1, among_six[:40]))
    assert verdicts(found) == [("handoffs", "warning", 19), ("handoffs", "critical", 39)]
    assert found[0].reason == "task task has its agents take 20 turns without a new tool result"
    talk = round_table(45)
    events = [*talk[:15], call("a", "new"), *talk[15:30], call("b", "newer"), *talk[30:]]
    assert find(Spiral, every(1, events)) == []


@pytest.mark.parametrize("period", [3, 4, 5])
def test_agents_that_go_round_in_a_circle_are_told_with_its_length(period: int) -> None:
    names = "abcde"[:period]
    talk = [message(names[i % period], names[(i + 1) % period], f"words {i}") for i in range(40)]
    found = find(Spiral, every(1, talk))
    assert verdicts(found) == [("circle", "warning", 19), ("circle", "critical", 39)]
    assert found[0].reason == (
        f"task task goes round in a circle of {period} messages: 20 turns without a new tool result"
    )
    assert find(Spiral, every(1, [*talk[:19], call("x", "new"), *talk[19:38]])) == []


def test_handoffs_in_runs_of_their_own_are_no_descent_while_they_bring_new_results() -> None:
    hops = [said(f"{level}", spawned=True, depth=level) for level in range(1, 31)]
    work = [event for i, hop in enumerate(hops) for event in (hop, call(f"{i}", f"found {i}"))]
    assert find(Spiral, every(3, work)) == []
    assert {finding.rule for finding in find(Spiral, every(6, hops))} == {"depth"}
    # Agents that are said to be started are a descent whatever they bring.
    started = [replace(event, kind=Kind.SPAWN) if event.spawned else event for event in work]
    assert {finding.rule for finding in find(Spiral, every(3, started))} >= {"depth"}


def asked_again(turns: int) -> list[Event]:
    """A planner asks experts; its last instruction but one is word for word the first."""
    talk = [message("pq"[i % 2], "qp"[i % 2], f"words {i}") for i in range(turns)]
    talk[-2] = replace(talk[-2], signature="words 0")
    return talk


def test_an_instruction_given_again_word_for_word_in_a_long_talk_is_told() -> None:
    found = find(Spiral, every(1, asked_again(10)))
    assert verdicts(found) == [("verbatim", "warning", 9)]
    assert found[0].reason == (
        "task task has 1 message sent again word for word to the same agent, 10 turns without a new tool result"
    )


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(asked_again(8), id="a short talk"),
        pytest.param([*asked_again(12)[:5], call("x", "new"), *asked_again(12)[5:]], id="a new result in between"),
        pytest.param(
            [
                message("p", f"expert {i}", "go") if i % 2 else message(f"expert {i - 1}", "p", f"{i}")
                for i in range(16)
            ],
            id="the same words to different agents",
        ),
        pytest.param([replace(event, signature="") for event in asked_again(12)], id="unknown words"),
    ],
)
def test_a_repeat_is_quiet(events: list[Event]) -> None:
    assert find(Spiral, every(1, events)) == []


def shared(*tokens: int, agent: str = "agent") -> list[Event]:
    """A task that begins with a word to another agent."""
    return every(1, [message(agent, "mate", "hello"), *(used(n, agent=agent) for n in tokens)])


def end(detector: Spiral) -> None:
    """The tree has ended, and the fleet's figures tell of it."""
    detector.forget(np.array([0]))
    detector.calibrate(FleetFigures("fleet", detector.sketch()))


def test_many_times_what_tasks_of_the_kind_take_is_told() -> None:
    detector = Spiral(SpiralConfig())
    for _ in range(20):
        assert detector.update(batch_of(shared(50_000))) == []
        end(detector)
    restored = Spiral(SpiralConfig())
    restored.load_shared(detector.dump_shared())
    restored.calibrate(FleetFigures("fleet", restored.sketch()))
    # A task of this kind takes 0.05 million at most; below a million nothing is said.
    burns = batch_of(shared(*[500_000] * 9))
    found = restored.update(burns)
    assert verdicts(found) == [("amplification", "warning", 2)]
    assert found == detector.update(burns)
    assert found[0].reason == (
        "task task has taken 10 times the effective tokens that tasks of its kind take at most "
        "(1,000,000 effective tokens, $3.00 so far)"
    )


def test_messages_count_for_amplification_too() -> None:
    detector = Spiral(SpiralConfig())
    for _ in range(20):
        detector.update(batch_of([message("ann", "bob", "hello")]))
        end(detector)
    told = [message("ann", f"{i}", f"{i}") for i in range(500)]
    found = detector.update(batch_of(every(0, told)))
    assert verdicts(found) == [("amplification", "warning", 99), ("amplification", "critical", 499)]


@pytest.mark.parametrize(("tasks", "flagged"), [(19, False), (20, True)])
def test_amplification_waits_for_twenty_tasks_of_the_kind(tasks: int, flagged: bool) -> None:
    detector = Spiral(SpiralConfig())
    for _ in range(tasks):
        detector.update(batch_of(shared(1000)))
        end(detector)
    assert bool(detector.update(batch_of(shared(2_000_000)))) == flagged
    assert detector.update(batch_of(shared(2_000_000, agent="another"))) == []
    # What one agent burns by itself is no spiral.
    assert detector.update(batch_of([used(2_000_000)])) == []


def test_what_was_reported_is_not_learned_as_usual() -> None:
    detector = Spiral(SpiralConfig())
    for _ in range(20):
        detector.update(batch_of(shared(1000)))
        end(detector)
    for _ in range(30):
        assert detector.update(batch_of(shared(2_000_000)))
        end(detector)


def test_who_writes_to_several_at_once_takes_one_turn() -> None:
    events = [message("planner", f"worker {i}", f"part {i}") for i in range(50)]
    assert find(Spiral, every(1, events)) == []


def test_starts_that_go_on_after_a_plan_would_be_done_are_critical() -> None:
    # 188 runs in a minute: 3.13 a second, so the first one 10 s after the first start is the 33rd.
    found = find(Spiral, every(60 / 188, [spawn()] * 188))
    assert verdicts(found)[0] == ("burst", "critical", 32)
    assert found[0].reason == "task task keeps starting runs: 33 without a pause, for more than 10 s"
    assert found[0].ts - START < 10.5


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(every(0.19, [spawn()] * 50), id="50 workers within 10 s"),
        pytest.param(every(0.5, [spawn(round="plan")] * 50), id="50 workers that one model answer asked for"),
        pytest.param(every(2, [spawn()] * 200), id="a worker every two seconds"),
        pytest.param(every(0.1, [spawn()] * 19) + every(0.1, [spawn()] * 19, start=30), id="two waves with a pause"),
    ],
)
def test_a_planned_fan_out_is_quiet(events: list[Event]) -> None:
    assert [finding for finding in find(Spiral, events) if finding.rule == "burst"] == []


def night(runs: int, root: str) -> list[Event]:
    return every(0.2, [spawn(agent="batch", root=root)] * runs)


@pytest.mark.parametrize(("nights", "runs", "quiet"), [(1, 500, False), (2, 500, True), (2, 751, False)])
def test_a_batch_of_a_size_seen_twice_is_quiet(nights: int, runs: int, quiet: bool) -> None:
    detector = Spiral(SpiralConfig())
    for number in range(nights):
        assert detector.update(batch_of(night(500, f"night {number}")))
        end(detector)
    restored = Spiral(SpiralConfig())
    restored.load_shared(detector.dump_shared())
    restored.calibrate(FleetFigures("fleet", restored.sketch()))
    found = restored.update(batch_of(night(runs, "tonight")))
    assert (found == []) == quiet
    assert detector.update(batch_of(night(runs, "tonight"))) == found


def test_a_recursion_is_not_excused_by_having_been_seen() -> None:
    detector = Spiral(SpiralConfig())
    for _ in range(3):
        assert {finding.rule for finding in detector.update(batch_of(every(0, [spawn(2)] * 13)))} >= {"nested"}
        end(detector)


@pytest.mark.parametrize("page", [b"?", b"\x93\xa4null\x01\x90"])
def test_shared_state_of_another_kind_is_refused(page: bytes) -> None:
    with pytest.raises(StateError):
        Spiral(SpiralConfig()).load_shared(page)


def grown(children: int, generations: int) -> list[Event]:
    """Every 5 seconds each of the youngest runs starts so many."""
    return [
        spawn(depth, ts=START + 5 * depth + 4 * i / children**depth)
        for depth in range(1, generations + 1)
        for i in range(children**depth)
    ]


def test_runs_that_start_more_than_one_run_each_feed_themselves() -> None:
    quiet = {"depth_warning": 99, "depth_critical": 99, "nested_warning": 1e9, "nested_critical": 1e9}
    found = [f for f in find(Spiral, grown(2, 6), **quiet) if f.rule == "reproduction"]
    assert [finding.severity for finding in found] == ["warning", "critical"]
    assert found[0].evidence["reproduction"] > 1
    assert found[0].reason.startswith("task task feeds itself: each started run starts ")


def test_many_starts_of_the_roots_own_allow_more_depth_and_more_nested_runs() -> None:
    # Eight starts of its own: 3 doublings allow 12 levels more, and (8 / 4)^2 = 4 times the nested runs.
    planned = [spawn()] * 8
    quiet = {"evidence_warning": 500.0, "evidence_critical": 500.0}
    for depth in (16, 17):
        assert bool(find(Spiral, every(0, [*planned, spawn(depth)]), **quiet)) == (depth == 17)
    for nested in (47, 48):
        assert bool(find(Spiral, every(0, [*planned, *[spawn(2)] * nested]), **quiet)) == (nested == 48)


def test_messages_that_set_runs_going_count_for_reproduction_alone() -> None:
    told = [replace(event, kind=Kind.MESSAGE) for event in grown(2, 6)]
    found = find(Spiral, told)
    assert {finding.rule for finding in found} == {"reproduction"}
    assert found[0].reason.startswith("task task feeds itself: each message causes ")
    assert find(Spiral, every(1, [replace(event, kind=Kind.MESSAGE) for event in descent(30)])) == []


def test_a_planner_one_level_down_does_not_feed_itself() -> None:
    found = find(Spiral, every(15, [spawn(2)] * 200))
    assert found == []


# -------------------------------------------------------------------------------- how often it speaks


def test_a_lasting_spiral_is_reported_every_minute() -> None:
    found = find(Spiral, every(10, conversation(60)))
    assert [finding.ts - START for finding in found] == [190, 250, 310, 370, 390, 450, 510, 570]
    assert [finding.severity for finding in found] == ["warning"] * 4 + ["critical"] * 4


def test_a_deep_tree_is_not_reported_again_for_shallow_runs() -> None:
    events = every(1, descent(5)) + every(100, [spawn()] * 5, start=100)
    assert verdicts(find(Spiral, events)) == [("depth", "warning", 4)]


def test_a_spiral_after_a_long_pause_is_new() -> None:
    events = every(1, [spawn()] * 110) + every(0, [spawn()] * 60, start=1000)
    severities = [finding.severity for finding in find(Spiral, events) if finding.rule == "fan_out"]
    assert severities == ["warning"]
    events = every(0, [spawn()] * 100) + every(0, [spawn()] * 60, start=1000)
    assert [finding.severity for finding in find(Spiral, events)] == ["warning", "critical", "warning"]


# ----------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([spawn()] * 60, "task task has started about 60 runs within 60 s"),
        ([spawn(2)] * 12, "task task has runs that start runs: about 12 more within 60 s"),
        ([spawn(5)], "task task is 5 levels deep"),
        (conversation(20), "task task has bob and ann exchange 20 messages without a new tool result"),
        (
            conversation(8, words=2),
            "task task has bob and ann exchange 6 messages that repeat what was said without a new tool result",
        ),
    ],
)
def test_the_reason_says_what_the_task_does(events: list[Event], reason: str) -> None:
    (finding,) = find(Spiral, every(0, events))
    assert finding.reason == reason


def test_evidence_tells_the_size_of_the_tree_and_what_it_spent() -> None:
    events = [used(5_000_000), *descent(5)]
    (finding,) = find(Spiral, every(2, events))
    assert finding.evidence == {"since": START, "runs": 5, "depth": 5, "effective_tokens": 5e6, "cost_usd": 15.0}
    assert finding.reason == "task task is 5 levels deep (5,000,000 effective tokens, $15.00 so far)"


def test_evidence_names_the_two_agents() -> None:
    (finding,) = find(Spiral, every(1, conversation(20)))
    assert finding.evidence["agents"] == ["ann", "bob"]


# ------------------------------------------------------------------------- against a naive reference


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 900), st.integers(1, 3)), min_size=1, max_size=60))
def test_spawns_fade_as_the_definition_says(steps: list[tuple[float, float, int]]) -> None:
    at, events = START, []
    for gap, delay, depth in steps:
        at += gap
        events.append(spawn(depth, ts=at - delay))
    detector = Spiral(SpiralConfig())
    detector.update(batch_of(events))
    tree, now = detector.tables["trees"], max(event.ts for event in events)

    def faded(direct: bool, memory_s: float) -> float:
        chosen = [event.ts for event in events if (event.depth == 1) == direct]
        return math.fsum(math.exp(-(now - ts) / memory_s) for ts in chosen)

    held = [float(tree[name][0]) for name in ("spawns", "nested", "own")]
    assert held == pytest.approx([faded(True, 60), faded(False, 60), faded(True, 600)], rel=1e-9, abs=1e-12)
    assert tree["runs"][0] == len(events)
    assert tree["depth"][0] == max(event.depth for event in events)


Talk = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from(["", *"123456"])),
        st.sampled_from(["", *"789"]),
    ),
    max_size=80,
)


@given(Talk)
def test_messages_are_counted_as_by_looking_back(talk: list[tuple[str, str, str] | str]) -> None:
    events = [call("x", item) if isinstance(item, str) else message(*item) for item in talk]
    detector = Spiral(SpiralConfig())
    detector.update(batch_of(events))

    hops = echoes = 0
    pair: tuple[str, str] | None = None
    said: list[str] = []
    results: list[str] = []
    for item in talk:
        if isinstance(item, str):
            if item and item not in results:
                hops = echoes = 0
                results.append(item)
            continue
        sender, receiver, text = item
        known = text in said[-RECENT:]
        if pair is None or {*pair} != {sender, receiver}:
            hops, echoes = 1, 0
        elif pair == (receiver, sender):
            hops += 1
            echoes += known
        pair = (sender, receiver)
        if text:
            said = [other for other in said if other != text] + [text]
    tree = detector.tables["trees"]
    if events:
        assert (int(tree["hops"][0]), int(tree["echoes"][0])) == (hops, echoes)


@given(st.lists(st.integers(1, RECENT + 4), max_size=80))
@example([*range(1, RECENT + 1), *[RECENT] * 9, 1])
def test_the_latest_16_results_are_remembered(results: list[int]) -> None:
    # Each result is told by a message count of its own: it falls to zero where the result is new.
    turns = conversation(2)
    events = [*turns, *(event for result in results for event in (call("x", f"{result}"), *turns))]
    hops, known, expected = 2, [], []
    for result in results:
        hops = (hops if result in known else 0) + 2
        known = ([result] + [other for other in known if other != result])[:RECENT]
        expected.append(hops)
    detector = Spiral(SpiralConfig())
    seen = []
    for part in batch_of(events).cut(range(2, len(events), 3)):
        detector.update(part)
        seen.append(int(detector.tables["trees"]["hops"][0]))
    assert seen[1:] == expected


# ---------------------------------------------------------------------------------- closed groups


def aside(n: int, gap_s: float = 3.0, **more: Any) -> list[Event]:
    """Four agents whose talks go on side by side: nobody answers the last message."""
    pairs = [("ab", "cd", "bc", "da")[i % 4] for i in range(n)]
    return every(gap_s, [message(one, other, f"words {i}", **more) for i, (one, other) in enumerate(pairs)])


def test_agents_that_only_feed_each_other_are_told_however_their_talks_overlap() -> None:
    found = find(Spiral, aside(200))
    assert {finding.rule for finding in found} == {"closed_group"}
    # A message every 3 s, three or four to a tick of 10 s, fading by a sixtieth each: 40 after 2 min.
    assert [(f.severity, round(f.ts - START)) for f in found[:1]] == [("warning", 141)]
    assert any(f.severity == "critical" for f in found)
    assert found[0].evidence["members"] == 4
    assert found[0].reason.startswith("task task has a group of 4 agents that feed only each other: about 42 messages")


def test_a_group_that_is_given_work_from_outside_is_quiet() -> None:
    # As many orders from somebody who hears nothing back: half of what reaches the group is from inside.
    orders = every(3.0, [message("boss", "abcd"[i % 4], f"order {i}") for i in range(200)], start=1.5)
    events = sorted(aside(200) + orders, key=lambda event: event.ts)
    assert [finding for finding in find(Spiral, events) if finding.rule == "closed_group"] == []


def test_a_group_that_brings_new_results_is_quiet() -> None:
    results = every(30.0, [call("x", f"result {i}", agent="abcd"[i % 4]) for i in range(20)], start=1.0)
    events = sorted(aside(200) + results, key=lambda event: event.ts)
    assert [finding for finding in find(Spiral, events) if finding.rule == "closed_group"] == []


def test_where_messages_set_runs_going_their_reproduction_is_judged_instead() -> None:
    assert find(Spiral, aside(200, spawned=True, depth=1)) == []


def test_a_slow_group_is_quiet() -> None:
    assert find(Spiral, aside(200, gap_s=20.0)) == []


def test_runs_of_one_agent_that_write_to_each_other_are_called_so() -> None:
    found = find(Spiral, every(1, conversation(20, between=("worker", "worker"))))
    assert found[0].reason == "task task has runs of worker exchange 20 messages without a new tool result"
