"""Incidents as timetables: when findings come in, what on-call sees."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import encode, good, process

from detectors.types import Finding, Scope
from stream.incidents import Change, Incidents
from stream.settings import IncidentSettings

QUIET_S = 100.0
SETTINGS = IncidentSettings(quiet_s=QUIET_S, max_findings=5)
SCOPES = {"loop": Scope.RUN, "runaway": Scope.AGENT, "spiral": Scope.ROOT}
DETECTORS = {"loop": "retry_loop", "runaway": "runaway", "spiral": "spiral"}


def found(ts: float, words: str, **fields: Any) -> Finding:
    """A finding from words such as "loop a/r1/task critical": kind, agent/run/root run, severity."""
    kind, who, severity = words.split()
    agent, run, root, *_ = [*who.split("/"), "", ""]
    return Finding(
        **{
            "id": f"{ts:g} {words}",
            "detector": DETECTORS[kind],
            "rule": kind,
            "severity": severity,
            "scope": SCOPES[kind],
            "ts": ts,
            "agent_id": agent,
            "run_id": run,
            "root_run_id": root or run,
            "event_id": f"e{ts:g}",
            "score": 0.5,
            "observed": 2.0,
            "expected": 1.0,
            "unit": "calls",
            "reason": f"{words} at {ts:g}",
        }
        | fields
    )


def tell(change: Change) -> str:
    """What on-call sees: "escalated loop a/r1 critical", "resolved ... at 170", "... into spiral"."""
    incident = change.incident
    kind = {Scope.RUN: "loop", Scope.AGENT: "runaway", Scope.ROOT: "spiral"}[incident.scope]
    told = f"{change.kind} {kind} {incident.agent_id}/{incident.run_id} {incident.severity}"
    if incident.merged_into:
        return f"{told} into a spiral"
    return f"{told} at {incident.ts:g}" if change.kind == "resolved" else told


# Stream clock, what is found then, and what is told.
TIMETABLES: dict[str, list[tuple[float, str, list[str]]]] = {
    "a loop opens, goes on, gets worse, ends": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (60, "loop a/r1 warning", ["updated loop a/r1 warning"]),
        (70, "loop a/r1 critical", ["escalated loop a/r1 critical"]),
        (80, "loop a/r1 warning", ["updated loop a/r1 critical"]),
        (179, "", []),
        (180, "", ["resolved loop a/r1 critical at 180"]),
        (500, "", []),
    ],
    "a loop that begins critical does not escalate": [
        (0, "loop a/r1 critical", ["opened loop a/r1 critical"]),
        (10, "loop a/r1 critical", ["updated loop a/r1 critical"]),
    ],
    "after an incident the next one is new": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (100, "", ["resolved loop a/r1 warning at 100"]),
        (150, "loop a/r1 warning", ["opened loop a/r1 warning"]),
    ],
    "each run and each agent has its own": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (1, "loop a/r2 warning", ["opened loop a/r2 warning"]),
        (2, "loop b/r1 warning", ["opened loop b/r1 warning"]),
        (3, "loop a/r1 critical", ["escalated loop a/r1 critical"]),
        (
            200,
            "",
            [
                "resolved loop a/r1 critical at 103",
                "resolved loop a/r2 warning at 101",
                "resolved loop b/r1 warning at 102",
            ],
        ),
    ],
    "the same finding twice changes nothing, not even how long it lasts": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (0, "loop a/r1 warning", []),
        (100, "", ["resolved loop a/r1 warning at 100"]),
        (0, "loop a/r1 warning", []),
    ],
    "a runaway of the looping run joins its incident": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (5, "runaway a/r1 critical", ["escalated loop a/r1 critical"]),
    ],
    "a runaway of the agent joins the incident of any of its runs": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (5, "runaway a/r9 warning", ["updated loop a/r1 warning"]),
        (6, "runaway b/r9 warning", ["opened runaway b/r9 warning"]),
        (7, "runaway b/r8 critical", ["escalated runaway b/r9 critical"]),
    ],
    "a loop of another run does not join a runaway": [
        (0, "runaway a/r1 warning", ["opened runaway a/r1 warning"]),
        (5, "loop a/r2 warning", ["opened loop a/r2 warning"]),
        (6, "loop a/r1 warning", ["updated runaway a/r1 warning"]),
    ],
    "a runaway joins the incident that is still open when the newer one has ended": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (10, "loop a/r2 warning", ["opened loop a/r2 warning"]),
        (90, "loop a/r1 warning", ["updated loop a/r1 warning"]),
        (111, "", ["resolved loop a/r2 warning at 110"]),
        (112, "runaway a/r3 warning", ["updated loop a/r1 warning"]),
    ],
    "a spiral takes its members in": [
        (0, "loop a/r1/task warning", ["opened loop a/r1 warning"]),
        (1, "runaway b/r2/task warning", ["opened runaway b/r2 warning"]),
        (2, "loop c/r3/other warning", ["opened loop c/r3 warning"]),
        (
            3,
            "spiral b/r2/task warning",
            [
                "opened spiral b/r2 warning",
                "resolved loop a/r1 warning into a spiral",
                "resolved runaway b/r2 warning into a spiral",
            ],
        ),
        (4, "loop a/r1/task warning", ["updated spiral b/r2 warning"]),
        (5, "loop d/r4/task critical", ["escalated spiral b/r2 critical"]),
        (6, "runaway e/r5/task critical", ["updated spiral b/r2 critical"]),
        (102, "", ["resolved loop c/r3 warning at 102"]),
        (106, "", ["resolved spiral b/r2 critical at 106"]),
    ],
    "a spiral is as grave as what it takes in": [
        (0, "loop a/r1/task critical", ["opened loop a/r1 critical"]),
        (
            1,
            "spiral b/r2/task warning",
            ["opened spiral b/r2 critical", "resolved loop a/r1 critical into a spiral"],
        ),
    ],
    "what a spiral took in does not swallow what its agent does elsewhere": [
        (0, "loop a/r1/task warning", ["opened loop a/r1 warning"]),
        (
            1,
            "spiral b/r2/task warning",
            ["opened spiral b/r2 warning", "resolved loop a/r1 warning into a spiral"],
        ),
        (2, "runaway a/r7/elsewhere warning", ["opened runaway a/r7 warning"]),
    ],
    "a finding from the time of a resolved incident joins it, unless it is graver": [
        (0, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (60, "loop a/r1 warning", ["updated loop a/r1 warning"]),
        (160, "", ["resolved loop a/r1 warning at 160"]),
        (61, "loop a/r1 warning", ["updated loop a/r1 warning"]),
        (62, "loop a/r1 critical", ["opened loop a/r1 critical"]),
    ],
    "before the clock stands, quiet is not measured": [
        (-math.inf, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (-math.inf, "", []),
        (1000, "", []),
        (1099, "", []),
        (1100, "", ["resolved loop a/r1 warning at 100"]),
    ],
    "a clock that goes back stands still": [
        (50, "loop a/r1 warning", ["opened loop a/r1 warning"]),
        (20, "", []),
        (149, "", []),
        (150, "", ["resolved loop a/r1 warning at 150"]),
    ],
}


@pytest.mark.parametrize("timetable", TIMETABLES.values(), ids=TIMETABLES)
def test_timetables(timetable: list[tuple[float, str, list[str]]]) -> None:
    incidents = Incidents(SETTINGS)
    for clock, words, expected in timetable:
        ts = clock if math.isfinite(clock) else 0.0
        changes = incidents.add(found(ts, words), clock) if words else incidents.advance(clock)
        assert [tell(change) for change in changes] == expected, (clock, words)


def test_time_goes_on_while_nothing_comes() -> None:
    incidents = Incidents(SETTINGS)
    incidents.add(found(0, "loop a/r1 warning"), 0)
    ended = [change for _ in range(250) for change in incidents.idle(0.5)]
    assert [tell(change) for change in ended] == ["resolved loop a/r1 warning at 100"]


def test_each_source_has_a_clock_of_its_own() -> None:
    incidents = Incidents(SETTINGS)
    incidents.add(found(0, "loop a/r1 warning"), 0, "partition 0")
    incidents.add(found(5000, "loop b/r2 warning"), 5000, "partition 1")
    assert incidents.sources == {"partition 0", "partition 1"}
    assert incidents.advance(5050, "partition 1") == []
    assert [tell(c) for c in incidents.advance(100, "partition 0")] == ["resolved loop a/r1 warning at 100"]
    assert incidents.sources == {"partition 1"}


def test_ids_are_those_of_the_first_finding_whatever_else_is_open() -> None:
    alone, among = Incidents(SETTINGS), Incidents(SETTINGS)
    among.add(found(0, "loop z/r9 warning"), 0)
    finding = found(1, "loop a/r1 warning")
    assert alone.add(finding, 1)[0].incident == among.add(finding, 1)[0].incident
    ids = {change.incident.id for ts in range(50) for change in alone.add(found(ts, f"loop a{ts}/r warning"), ts)}
    assert len(ids) == 50


def test_the_number_of_findings_is_bounded_and_the_newest_stay() -> None:
    incidents = Incidents(SETTINGS)
    for ts in range(20):
        incidents.add(found(ts, "loop a/r1 warning"), ts)
    (incident,) = incidents.open
    assert incident.findings == tuple(f"{ts} loop a/r1 warning" for ts in range(15, 20))
    incidents.add(found(30, "spiral b/r1 warning"), 30)
    assert len(incidents.open[0].findings) == 5


def test_what_a_spiral_took_in_is_told_at_once() -> None:
    incidents = Incidents(SETTINGS)
    loop = found(0, "loop a/r1/task warning")
    incidents.add(loop, 0)
    opened, merged = incidents.add(found(1, "spiral b/r2/task warning"), 1)
    assert opened.incident.rules == ("spiral.spiral", "retry_loop.loop")
    assert loop.id in opened.incident.findings
    assert merged.incident.merged_into == opened.incident.id
    assert merged.incident.ts == 1


def test_the_title_is_the_latest_sentence_of_the_gravest_kind() -> None:
    incidents = Incidents(SETTINGS)
    titles = [
        incidents.add(found(ts, f"loop a/r1 {severity}"), ts)[0].incident.title
        for ts, severity in enumerate(["warning", "warning", "critical", "warning", "critical"])
    ]
    assert [title.split(" at ")[1] for title in titles] == ["0", "1", "2", "2", "4"]


def test_spend_only_grows() -> None:
    incidents = Incidents(SETTINGS)
    told = [
        incidents.add(found(ts, "loop a/r1 warning", evidence={"cost_usd": cost, "effective_tokens": 10 * cost}), ts)
        for ts, cost in enumerate([1.0, 3.0, 2.0])
    ]
    assert [change.incident.cost_usd for (change,) in told] == [1.0, 3.0, 3.0]
    assert told[-1][0].incident.effective_tokens == 30.0
    assert told[-1][0].incident.evidence["cost_usd"] == 2.0
    assert incidents.add(found(9, "loop b/r1 warning"), 9)[0].incident.cost_usd == 0.0


STEPS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["", "loop", "runaway", "spiral"]),
        st.sampled_from(["a/r1/t", "a/r2/t", "b/r1/t", "a/r3/u", "c/r4/u"]),
        st.sampled_from(["warning", "critical"]),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_the_books_balance(steps: list[tuple[int, str, str, str]]) -> None:
    incidents, clock, told = Incidents(SETTINGS), 0.0, []
    for pause, kind, who, severity in steps:
        clock += pause
        told += incidents.advance(clock)
        if kind:
            told += incidents.add(found(clock, f"{kind} {who} {severity}"), clock)
    check_books(told, incidents)
    told += incidents.advance(clock + QUIET_S)
    check_books(told, incidents)
    assert not incidents.open


def test_the_books_of_a_real_stream_balance() -> None:
    changes = [item for item in process(encode(good())).happened if isinstance(item, Change)]
    check_books(changes, Incidents(SETTINGS))


def check_books(told: list[Change], incidents: Incidents) -> None:
    """Every incident opens once, first; ends at most once, last; and never gets less grave."""
    by_id: dict[str, list[Change]] = {}
    for change in told:
        by_id.setdefault(change.incident.id, []).append(change)
    for changes in by_id.values():
        kinds = [change.kind for change in changes]
        assert kinds[0] == "opened"
        assert kinds.count("opened") == 1
        assert kinds.count("escalated") <= 1
        assert kinds.count("resolved") <= 1
        severities = [change.incident.severity for change in changes]
        assert severities == sorted(severities, key=["warning", "critical"].index)
        for before, after in pairwise(changes):
            assert after.incident.last_ts >= before.incident.last_ts
            assert (after.incident.state == "resolved") >= (before.incident.state == "resolved")
            assert after.kind != "escalated" or before.incident.severity == "warning"
        for change in changes:
            assert 0 < len(change.incident.findings) <= SETTINGS.max_findings
    still = {i for i, changes in by_id.items() if changes[-1].incident.state != "resolved"}
    assert still == {incident.id for incident in incidents.open}
    roots = [incident.root_run_id for incident in incidents.open if incident.scope is Scope.ROOT]
    assert len(roots) == len(set(roots))
    assert not [i for i in incidents.open if i.scope is not Scope.ROOT and i.root_run_id in roots]
