"""A stream by a seed, and what an undisturbed burnfuse makes of it: what every disturbed one must come to."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from random_streams import random_stream
from slack_server import Call

from detectors.base import FleetFigures
from detectors.types import Finding
from stream.actions.base import Tools
from stream.actions.kill import Kill
from stream.clock import ManualClock
from stream.incidents import Change
from stream.ingest.ingest import Record
from stream.pipeline import Pipeline
from stream.settings import Settings, parse
from stream.wire import finding_json, incident_json

Event = dict[str, Any]

START = 1_750_000_000.0
NOW = START + 40 * 86400.0
QUIET_S = 7200.0
"""Far more event time than passes on any wall clock here: what is open or resolved then depends on the stream alone."""
VARIES = ("clock", "source")
"""Of a finding: the stream clock of its partition, and which that is."""


ACTIONS = {"kill": {"enabled": True, "detectors": ["runaway", "retry_loop"]}}


def configured() -> Settings:
    """What decides about results: of the reference and of the workers."""
    return parse(yaml.safe_dump({"incidents": {"quiet_s": QUIET_S}, "actions": ACTIONS}))


def chaos_stream(seed: int, rounds: int = 2) -> list[Event]:
    """Native events: in each round of an hour loops, storms of failures, talks, spirals and runaways, each of agents of
    its own, among calm agents. The last round ends within the hour; after the others comes half a day of calm, so that
    all of it is resolved.

    Over all of it lie agents of `random_stream`, of which only the findings are compared.
    """
    rng = random.Random(seed)
    events: list[Event] = []
    for number in range(rounds):
        begin = START + number * 43_200.0
        events += _round(rng, f"s{seed}r{number}", begin)
        mixed = random_stream(1000 * seed + number, events=150)
        shift = begin - float(mixed[0]["ts"])
        events += [event | {"ts": round(event["ts"] + shift, 3)} for event in mixed]
        for i in range(120 if number < rounds - 1 else 12):
            events.append(_calm(rng, f"s{seed}", begin + 300.0 * i))
    # A little out of order, as producers are.
    order = sorted(range(len(events)), key=lambda i: float(events[i]["ts"]) + rng.uniform(0, 5))
    for i, at in enumerate(order):
        events[at].setdefault("event_id", f"s{seed}-{i}")
    return [events[at] for at in order]


def _calm(rng: random.Random, name: str, ts: float) -> Event:
    # Part of a tree, so that the clocks of both inner topics go on.
    who = rng.randrange(24)
    ids = {"agent_id": f"{name}-calm-{who}", "root_run_id": f"{name}-job-{who}"}
    return ids | {"ts": ts, "input_tokens": rng.randint(10, 900)}


def _round(rng: random.Random, name: str, begin: float) -> list[Event]:
    events: list[Event] = []
    for i in range(6):
        agent, at = f"{name}-loop-{i}", begin + rng.uniform(0, 2400)
        call = {"agent_id": agent, "run_id": f"{agent}/1", "kind": "tool", "tool": "read", "args": {"path": i}}
        for n in range(rng.randint(4, 14)):
            failed = {"status": "error", "result": f"error {n}"} if i % 2 else {"result": "same"}
            events.append(call | failed | {"ts": at + 4.0 * n})
    for i in range(2):
        run, at = f"{name}-burn-{i}", begin + rng.uniform(0, 1800)
        call = {"agent_id": run, "run_id": f"{run}/1", "input_tokens": 2_000_000}
        events += [call | {"ts": at + 5.0 * n} for n in range(25)]
    for i in range(2):
        root, at = f"{name}-tree-{i}", begin + rng.uniform(0, 2400)
        spawn = {"kind": "spawn", "root_run_id": root}
        for level in range(rng.randint(9, 12)):
            ids = {"agent_id": f"{root}-{level}", "run_id": f"{root}/{level}", "to_run_id": f"{root}/{level + 1}"}
            events.append(spawn | ids | {"ts": at + level})
    return events


@dataclass(slots=True)
class Outcome:
    """What came of a stream."""

    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Id -> what it says, without VARIES."""
    incidents: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Id -> severity and state in the end; of incidents that `is_own` knows."""
    others: set[str] = field(default_factory=set)
    """Incidents of the others."""
    posts: Counter[str] = field(default_factory=Counter)
    """Incident -> how many messages people saw begin."""
    proposals: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Kill command -> its incident, and what it stops."""
    twice: list[str] = field(default_factory=list)
    """Records that were there more than once."""

    def take_finding(self, told: dict[str, Any]) -> None:
        """A record of the findings topic: after a crash it may be there again, and must say the same."""
        says = {name: value for name, value in told.items() if name not in VARIES}
        if self.findings.setdefault(told["id"], says) != says:
            self.twice.append(f"finding {told['id']}, with {_fields(says, self.findings[told['id']])}")

    def take_change(self, told: dict[str, Any]) -> None:
        """A change of an incident, as `incident_json` tells it, with its kind."""
        if not is_own(told["root_run_id"]):
            self.others.add(told["id"])
            return
        if told["change"] == "opened" and told["id"] in self.incidents:
            self.twice.append(f"opening of {told['id']}")
        self.incidents[told["id"]] = (told["severity"], told["state"])

    def take_proposal(self, envelope: bytes) -> None:
        """A kill proposal: after a crash it may be there again, and must be the same command for the same run."""
        command = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        says = (command["reason"]["incident_id"], command["target"])
        if self.proposals.setdefault(command["command_id"], says) != says:
            self.twice.append(f"kill command {command['command_id']}, with {says}")

    def differences(self, reference: Outcome) -> list[str]:
        """What is not as in the reference, a line each; none: nothing was lost, nothing came twice."""
        lines = [f"twice: {what}" for what in self.twice]
        lines += _differ("finding", self.findings, reference.findings)
        lines += _differ("incident", self.incidents, reference.incidents)
        posts = {incident: n for incident, n in self.posts.items() if incident in self.incidents}
        lines += _differ("Slack messages of incident", posts, dict.fromkeys(reference.incidents, 1))
        # What becomes of the others is not known; but whatever opens is told, and told once.
        lines += _differ("Slack messages of other incident",
                         {i: self.posts[i] for i in self.others | self.posts.keys() - self.incidents.keys()},
                         dict.fromkeys(self.others, 1))  # fmt: skip
        proposals = {name: says for name, says in self.proposals.items() if says[0] not in self.others}
        expected = {name: says for name, says in reference.proposals.items() if says[0] not in reference.others}
        return lines + _differ("kill command", proposals, expected)


def outcome_of(calls: Iterable[Call], values: Callable[[str], Iterable[bytes]]) -> Outcome:
    """What has come of a stream so far.

    Args:
        calls: What Slack was asked.
        values: Everything that is committed on one of our topics, by its name without the prefix.
    """
    found = Outcome()
    # Backwards: what led to a message that is there is there as well.
    for call in list(calls):
        if call.method == "chat.postMessage":
            found.posts[call.incident] += 1
    for value in values("kill.proposals"):
        found.take_proposal(value)
    for value in values("incidents"):
        found.take_change(json.loads(value))
    for value in values("findings"):
        record = json.loads(value)
        if record["type"] == "finding":
            found.take_finding(record)
    return found


def is_own(root_run_id: str) -> bool:
    """Whether agents of this module made it, and not `random_stream`.

    Its agents loop within spirals, and the spiral and the loop are found on different partitions: which of
    them speaks first decides whether the loop is an incident of its own.
    """
    return "-task-" not in root_run_id


def _differ(what: str, found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    lines = [f"lost: {what} {key}: {expected[key]}" for key in sorted(expected.keys() - found.keys())]
    lines += [f"made up: {what} {key}: {found[key]}" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(found.keys() & expected.keys()):
        if found[key] != expected[key]:
            lines.append(f"changed: {what} {key}: {_fields(found[key], expected[key])}")
    return lines


def _fields(found: Any, expected: Any) -> str:
    if not isinstance(found, dict):
        return f"{found} instead of {expected}"
    names = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    return ", ".join(f"{name} is {found.get(name)!r} instead of {expected.get(name)!r}" for name in sorted(names))


def reference(settings: Settings, events: Iterable[Event]) -> Outcome:
    """The same in one process, without Kafka and without faults."""
    pipeline = Pipeline(settings, clock=ManualClock(NOW), name_of=lambda _, n: str(n), figures=FleetFigures())
    outcome = Outcome()
    records = [Record(json.dumps(event).encode(), 0, n) for n, event in enumerate(events)]
    happened = [
        item for low in range(0, len(records), 50) for item in pipeline.process(records[low : low + 50]).happened
    ]
    changes = [item for item in happened if isinstance(item, Change)]
    for item in happened:
        if isinstance(item, Finding):
            outcome.take_finding(finding_json(item))
        else:
            outcome.take_change(incident_json(item.incident) | {"change": item.kind})
            outcome.posts[item.incident.id] += item.kind == "opened"
    asyncio.run(_propose(settings, changes, outcome))
    return outcome


async def _propose(settings: Settings, changes: Sequence[Change], outcome: Outcome) -> None:
    """What the kill action makes of the changes."""

    async def publish(topic: str, key: bytes, value: bytes) -> None:
        outcome.take_proposal(value)

    tools = Tools(publish=publish, clock=ManualClock(NOW), secret=lambda _: None, proposals_topic="")
    kill = Kill(settings.actions.kill, tools)
    for change in changes:
        await kill.execute(change.incident)


def trees_of_both(findings: Iterable[dict[str, Any]]) -> set[str]:
    """Root runs with findings of the scope root, and of others."""
    findings = list(findings)
    roots = {finding["root_run_id"] for finding in findings if finding["scope"] == "root"}
    return roots & {finding["root_run_id"] for finding in findings if finding["scope"] != "root"}
