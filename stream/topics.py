"""`burnfuse topics`: creates the topics with their settings, or checks them."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from rich.console import Console
from rich.table import Table

from stream import acls
from stream.connection import explained, for_kafka_python
from stream.errors import BrokerError
from stream.settings import KafkaSettings, Settings
from stream.stages import Topics

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """How a topic should be."""

    name: str
    partitions: int
    configs: Mapping[str, str]
    why: str


def plans(kafka: KafkaSettings, *, keyed: bool = False, counts: Mapping[str, int] | None = None) -> list[TopicPlan]:
    """All topics burnfuse needs.

    Args:
        keyed: The input topic is keyed by agent, so that its partitions have state.
        counts: Partitions of the topics there are: a state topic has as many as the topic that it belongs to.
    """

    insync = kafka.min_insync_replicas or (2 if kafka.replication >= 3 else None)
    safe = {"min.insync.replicas": str(insync)} if insync is not None else {}

    def kept(days: int) -> dict[str, str]:
        return safe | {"cleanup.policy": "delete", "retention.ms": str(days * _DAY_MS)}

    t = Topics.of(kafka)
    compacted = safe | {"cleanup.policy": "compact"}
    # Agents read this topic to its end before they start, so it must stay small and lose nothing.
    kill_state = compacted | {
        "segment.ms": "3600000",
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": str(7 * _DAY_MS),
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": "16384",
    }
    # Every worker that takes a partition over reads it from the start, so it must stay small. Workers come back
    # within a day, or read it anew.
    state = compacted | {
        "segment.bytes": str(64 << 20),
        "segment.ms": "600000",
        "min.cleanable.dirty.ratio": "0.2",
        "max.compaction.lag.ms": "1800000",
        "delete.retention.ms": str(_DAY_MS),
    }
    counts = counts or {}
    home, planned = (t.usage, kafka.input_partitions) if keyed else (t.events, kafka.partitions)
    watched, graphed = counts.get(home, planned), counts.get(t.graph, kafka.partitions)
    return [
        TopicPlan(t.usage, kafka.input_partitions, kept(7), "usage events, any format, any key"),
        TopicPlan(t.events, kafka.partitions, kept(1), "packed events by agent"),
        TopicPlan(t.graph, kafka.partitions, kept(1), "packed events by root run"),
        # One partition: an incident may hold findings of several agents and trees.
        TopicPlan(t.findings, 1, kept(30), "findings"),
        TopicPlan(t.incidents, 1, kept(30), "changes of incidents"),
        TopicPlan(t.dead, 1, kept(14), "events turned away, with the reason"),
        TopicPlan(t.calibration, 1, compacted, "each partition's share of the fleet's figures"),
        TopicPlan(t.proposals, 1, kept(7), "kill proposals"),
        TopicPlan(t.kill_state, 1, kill_state, "what must stop: read by agents"),
        TopicPlan(t.state_watch, watched, state, "state of agents and runs"),
        TopicPlan(t.state_graph, graphed, state, "state of trees"),
        TopicPlan(t.state_incidents, 1, state, "incidents, and what was done about them"),
    ]


@contextmanager
def admin(kafka: KafkaSettings) -> Iterator[Any]:
    """An admin client.

    Raises:
        BrokerError: Kafka cannot be reached, or refuses.
        ConfigError: a secret is missing, or a certificate cannot be used.
    """
    with explained(kafka), closing(KafkaAdminClient(**for_kafka_python(kafka))) as client:
        yield client


def partition_counts(client: Any) -> dict[str, int]:
    """Topic -> number of its partitions, for all topics there are."""
    return {t["name"]: len(t["partitions"]) for t in client.describe_topics() if not t.get("error_code")}


def layout(settings: Settings) -> dict[str, int]:
    """Partitions of burnfuse's topics as they are.

    Raises:
        BrokerError: topics are missing, or the inner topics do not match each other, or rights are missing.
        ConfigError: a secret is missing, or a certificate cannot be used.
    """
    kafka = settings.kafka
    with admin(kafka) as client:
        # Rights first: a topic that one may not see looks like one that is missing.
        acls.check(client, settings)
        counts = partition_counts(client)
    t = Topics.of(kafka)
    missing = [plan.name for plan in plans(kafka) if plan.name not in counts]
    if missing:
        raise BrokerError(f"topics are missing ({', '.join(missing)}): run `burnfuse topics` with this configuration")
    if counts[t.events] != counts[t.graph]:
        raise BrokerError(f"{t.events} and {t.graph} must have the same number of partitions")
    for home, state in state_topics(settings).items():
        if counts[state] != counts[home]:
            raise BrokerError(
                f"{state} has {counts[state]} partitions and {home} has {counts[home]}: "
                f"delete {state} and run `burnfuse topics`, what is saved is of no use"
            )
    return counts


def state_topics(settings: Settings) -> dict[str, str]:
    """Topic whose partitions have state -> the topic of that state."""
    t = Topics.of(settings.kafka)
    watched = t.usage if settings.input.keyed_by == "agent_id" else t.events
    return {watched: t.state_watch, t.graph: t.state_graph, t.findings: t.state_incidents}


def run(settings: Settings, *, check: bool, json: bool) -> bool:
    """Creates what is missing (or only checks), tells how the topics are; false if something is not as it should be."""
    keyed = settings.input.keyed_by == "agent_id"
    with admin(settings.kafka) as client:
        before = partition_counts(client)
        wanted = plans(settings.kafka, keyed=keyed, counts=before)
        missing = [plan for plan in wanted if plan.name not in before]
        if missing and not check:
            create(client, settings.kafka, missing)
        counts = partition_counts(client)
        existing = [plan.name for plan in wanted if plan.name in counts]
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in existing]
        found = client.describe_configs(resources, config_filter="all").get("topic", {}) if resources else {}
    rows = []
    for plan in wanted:
        actual = {key: str(entry.get("value")) for key, entry in found.get(plan.name, {}).items()}
        if plan.name not in counts:
            state, fine = "missing", False
        elif plan.name not in before:
            state, fine = "created", True
        else:
            # The operator may have chosen other retention times; what breaks burnfuse is told.
            wrong = [
                f"{key} is {actual.get(key)}, should be {value}"
                for key, value in plan.configs.items()
                if key == "cleanup.policy" and actual.get(key) != value
            ]
            if counts[plan.name] != plan.partitions and plan.name in _fixed(settings):
                wrong.append(f"has {counts[plan.name]} partitions, should have {plan.partitions}")
            state, fine = ("; ".join(wrong), False) if wrong else ("fine", True)
        rows.append((plan, counts.get(plan.name), state, fine))
    _show(rows, json)
    return all(fine for *_, fine in rows)


def create(client: Any, kafka: KafkaSettings, wanted: Iterable[TopicPlan]) -> None:
    """Creates topics that are not there."""
    client.create_topics(
        {
            plan.name: {
                "num_partitions": plan.partitions,
                "replication_factor": kafka.replication,
                "configs": dict(plan.configs),
            }
            for plan in wanted
        },
        wait_for_metadata=True,
    )


def _fixed(settings: Settings) -> set[str]:
    t = Topics.of(settings.kafka)
    return {t.findings, t.incidents, t.calibration, t.proposals, t.kill_state, *state_topics(settings).values()}


def _show(rows: list[tuple[TopicPlan, int | None, str, bool]], json: bool) -> None:
    if json:
        for plan, partitions, state, fine in rows:
            line = {"topic": plan.name, "partitions": partitions, "state": state, "fine": fine, "configs": plan.configs}
            Console(soft_wrap=True, highlight=False).print(jsonlib.dumps(line), markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("topic", "partitions", "state", "holds"):
        table.add_column(name)
    for plan, partitions, state, fine in rows:
        table.add_row(
            plan.name, "-" if partitions is None else str(partitions), state, plan.why, style=None if fine else "red"
        )
    Console().print(table)
