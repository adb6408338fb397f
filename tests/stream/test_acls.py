"""The rights each role needs, in each of the forms they are printed in."""

from __future__ import annotations

import json
import shlex

from streams import command

from stream.acls import AGENT, OPERATOR, PRODUCER, TOPIC, WORKER, _name, commands, rules
from stream.settings import default_settings, parse
from stream.stages import Topics
from stream.topics import plans


def test_names_follow_the_configuration() -> None:
    settings = parse("kafka: {prefix: x, input_topic: in, app_id: app}\nactions: {kill: {topic: proposals}}")
    names = {rule.name for rule in rules(settings)}
    assert {"in", "x.events", "proposals", "app", "x.state."} <= names
    assert "x.kill.proposals" not in names


def test_no_role_has_more_than_its_work_needs() -> None:
    settings = default_settings()
    t, found = Topics.of(settings.kafka), rules(settings)
    may = {(rule.role, rule.name, operation) for rule in found for operation in rule.operations}
    assert {(name, op) for role, name, op in may if role == PRODUCER} == {(t.usage, "Write")}
    assert {(name, op) for role, name, op in may if role == AGENT} == {(t.kill_state, "Read")}
    # What stops agents is no worker's to write, and no worker makes up events.
    assert not {(WORKER, t.kill_state, "Write"), (WORKER, t.usage, "Write")} & may
    assert not {op for _, _, op in may} & {"All", "Alter", "Delete", "ClusterAction", "AlterConfigs"}
    topics = {rule.name for rule in found if rule.role == OPERATOR}
    assert topics == {plan.name for plan in plans(settings.kafka)}


def test_the_table_names_everything() -> None:
    out = command("topics", "--acls").out
    for rule in rules(default_settings()):
        assert rule.name in out


def test_machines_get_one_object_per_right() -> None:
    lines = [json.loads(line) for line in command("topics", "--acls", "--json").out.splitlines()]
    assert len(lines) == len(rules(default_settings()))
    assert lines[0] == {
        "role": "worker", "principal": "User:burnfuse-worker", "resource": "topic", "name": "usage",
        "pattern": "literal", "operations": ["Read"], "why": "usage events",
    }  # fmt: skip


def test_commands_are_those_of_kafkas_own_tool() -> None:
    printed = command("topics", "--acls", "--format", "kafka-acls").out.splitlines()
    assert printed == list(commands(default_settings()))
    words = shlex.split(next(line for line in printed if "bf.state." in line))
    assert words[:2] == ["kafka-acls.sh", "--bootstrap-server"]
    assert words[-4:] == [f"--{TOPIC}", "bf.state.", "--resource-pattern-type", "prefixed"]


def test_operations_have_kafka_pythons_names() -> None:
    assert [_name(op) for op in ("Read", "DescribeConfigs")] == ["READ", "DESCRIBE_CONFIGS"]
