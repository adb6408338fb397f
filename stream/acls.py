"""`burnfuse topics --acls`: who needs which rights on Kafka, and no more; a worker checks its own at the start."""

from __future__ import annotations

import json as jsonlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kafka.errors import CoordinatorNotAvailableError, GroupAuthorizationFailedError
from rich.console import Console
from rich.table import Table

from stream.errors import BrokerError
from stream.settings import Settings
from stream.stages import Topics

TOPIC, GROUP, TRANSACTION = "topic", "group", "transactional-id"
WORKER, PRODUCER, AGENT, OPERATOR = "worker", "producer", "agent", "operator"

_HELP = "grant what `burnfuse topics --acls` lists"


class Layout(StrEnum):
    """How rights are printed."""

    TABLE = "table"
    KAFKA_ACLS = "kafka-acls"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one role may do with one resource."""

    role: str
    resource: str
    name: str
    operations: tuple[str, ...]
    why: str
    prefixed: bool = False

    def principal(self, settings: Settings) -> str:
        """Whom the rule is for, as Kafka calls it; operators choose their own names."""
        return f"User:{settings.kafka.app_id}-{self.role}"


def rules(settings: Settings) -> list[Rule]:
    """The rights of every role. To read or to write includes to describe (Kafka's own rule)."""
    t, group = Topics.of(settings.kafka), settings.kafka.app_id
    proposals = settings.actions.kill.topic or t.proposals
    found = [
        Rule(WORKER, TOPIC, t.usage, ("Read",), "usage events"),
        Rule(WORKER, TOPIC, t.events, ("Read", "Write"), "events on their way between workers"),
        Rule(WORKER, TOPIC, t.graph, ("Read", "Write"), "events of trees on their way between workers"),
        Rule(WORKER, TOPIC, t.findings, ("Read", "Write"), "findings, to be folded into incidents"),
        Rule(WORKER, TOPIC, t.incidents, ("Write",), "changes of incidents"),
        Rule(WORKER, TOPIC, t.dead, ("Read", "Write"), "events turned away; how many they were, at a start"),
        Rule(WORKER, TOPIC, t.calibration, ("Read", "Write"), "the fleet's figures"),
        Rule(WORKER, TOPIC, proposals, ("Write",), "kill proposals"),
        Rule(WORKER, TOPIC, t.kill_state, ("Describe",), "whether it is there"),
        Rule(WORKER, TOPIC, f"{settings.kafka.prefix}.state.", ("Read", "Write"), "state that outlives a worker", True),
        Rule(WORKER, GROUP, group, ("Read",), "its consumer group"),
        Rule(WORKER, TRANSACTION, group, ("Describe", "Write"), "transactions, where state uses them", True),
        Rule(PRODUCER, TOPIC, t.usage, ("Write",), "usage events"),
        Rule(AGENT, TOPIC, t.kill_state, ("Read",), "what must stop"),
    ]
    found += [
        Rule(OPERATOR, TOPIC, name, _operator(name, t), "`topics`" + (", `dlq`" if name in (t.usage, t.dead) else ""))
        for name in (t.usage, t.events, t.graph, t.findings, t.incidents, t.dead, t.calibration, proposals,
                     t.kill_state, t.state_watch, t.state_graph, t.state_incidents)
    ]  # fmt: skip
    return found


def _operator(name: str, topics: Topics) -> tuple[str, ...]:
    more = ("Read", "Write") if name in (topics.usage, topics.dead) else ()
    return ("Create", "Describe", "DescribeConfigs", *more)


def show(settings: Settings, layout: Layout, *, json: bool) -> None:
    """Prints the rights: a table, one JSON object per line, or commands of Kafka's own tool."""
    console = Console(soft_wrap=True, highlight=False)
    if json:
        for rule in rules(settings):
            line = {
                "role": rule.role,
                "principal": rule.principal(settings),
                "resource": rule.resource,
                "name": rule.name,
                "pattern": _pattern(rule),
                "operations": list(rule.operations),
                "why": rule.why,
            }
            console.print(jsonlib.dumps(line), markup=False)
    elif layout is Layout.KAFKA_ACLS:
        for command in commands(settings):
            console.print(command, markup=False)
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("role", "resource", "name", "operations"):
            table.add_column(name, overflow="fold")
        for rule in rules(settings):
            name = f"{rule.name}*" if rule.prefixed else rule.name
            table.add_row(rule.role, rule.resource, name, ", ".join(rule.operations))
        console.print(table)


def commands(settings: Settings) -> Iterator[str]:
    """Commands for kafka-acls.sh, one per rule; `admin.properties` is how the administrator connects."""
    servers = ",".join(settings.kafka.bootstrap_servers)
    for rule in rules(settings):
        operations = [word for operation in rule.operations for word in ("--operation", operation)]
        words = ["kafka-acls.sh", "--bootstrap-server", servers, "--command-config", "admin.properties", "--add",
                 "--allow-principal", rule.principal(settings), *operations, f"--{rule.resource}", rule.name,
                 "--resource-pattern-type", _pattern(rule)]  # fmt: skip
        yield shlex.join(words)


def _pattern(rule: Rule) -> str:
    return "prefixed" if rule.prefixed else "literal"


# ------------------------------------------------------------------------------------ a worker's own


def check(client: Any, settings: Settings) -> None:
    """Holds a worker's rights against what it needs; brokers that do not tell are believed.

    Args:
        client: kafka-python's admin client, connected as the worker.

    Raises:
        BrokerError: rights are missing; all of them are named.
    """
    mine = [rule for rule in rules(settings) if rule.role == WORKER and not rule.prefixed]
    topics = {topic["name"]: topic for topic in client.describe_topics([r.name for r in mine if r.resource == TOPIC])}
    missing = []
    for rule in mine:
        if rule.resource == TOPIC:
            found = topics.get(rule.name, {})
            refused, allowed = found.get("error_code") == _TOPIC_REFUSED, found.get("authorized_operations")
        else:
            refused, allowed = _group(client, rule.name)
        lacks = [op for op in rule.operations if refused or (allowed and _name(op) not in allowed)]
        missing += [f"{operation} on {rule.resource} {rule.name}" for operation in lacks]
    if missing:
        raise BrokerError(f"Kafka does not allow this worker: {', '.join(missing)}; {_HELP}")


def _group(client: Any, name: str) -> tuple[bool, list[str] | None]:
    """Whether one may not even see a group, and what one may do with it; None: brokers do not tell."""
    try:
        found = client.describe_groups([name])[name]
    except GroupAuthorizationFailedError:
        return True, None
    except CoordinatorNotAvailableError:  # nobody has ever used a group here
        return False, None
    # Of a group that does not exist yet, brokers tell nothing.
    there = found.get("group_state") not in (None, "", "Dead")
    refused = "GroupAuthorizationFailed" in str(found.get("error") or "")
    return refused, found.get("authorized_operations") if there else None


_TOPIC_REFUSED = 29


def _name(operation: str) -> str:
    """An operation as kafka-python calls it: DescribeConfigs is DESCRIBE_CONFIGS."""
    return "".join(f"_{c}" if c.isupper() else c for c in operation).lstrip("_").upper()
