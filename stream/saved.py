"""`burnfuse state`: shows what is saved on the state topics, and gives it up."""

from __future__ import annotations

import asyncio
import json as jsonlib
import time
from typing import Any

from aiokafka.errors import KafkaError
from kafka.errors import KafkaError as AdminError
from kafka.errors import UnknownTopicOrPartitionError
from rich.console import Console
from rich.table import Table

from stream.checkpoints import read
from stream.clock import Clock
from stream.errors import BrokerError, SavedStateError, UsageError
from stream.settings import Settings
from stream.state import MANIFEST, DetectManifest, IncidentManifest, Saved, decode
from stream.text import moment
from stream.topics import admin, create, partition_counts, plans, state_topics

_DELETE_S = 60.0


def show(settings: Settings, clock: Clock, *, json: bool) -> bool:
    """Tells what is saved of every partition; false if some of it cannot be used by this version.

    Raises:
        BrokerError: Kafka cannot be reached, or topics are missing.
    """
    homes = state_topics(settings)
    with admin(settings.kafka) as client:
        counts = partition_counts(client)
    if missing := [topic for topic in (*homes, *homes.values()) if topic not in counts]:
        raise BrokerError(f"topics are missing ({', '.join(missing)}): run `burnfuse topics` with this configuration")
    try:
        rows = asyncio.run(_rows(settings, clock, {home: counts[state] for home, state in homes.items()}))
    except KafkaError as error:
        raise BrokerError(f"the state cannot be read: {type(error).__name__}: {error}") from error
    if json:
        for row in rows:
            Console(soft_wrap=True, highlight=False).print(jsonlib.dumps(row), markup=False)
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("partition", "saved at", "checkpoint", "input up to", "pages", "MB", "state"):
            table.add_column(name)
        for row in rows:
            told = [row["partition"], moment(row["at"]) if row["at"] else "-", row["checkpoint"], row["end"]]
            told += [row["pages"], f"{row['bytes'] / 1e6:.1f}", row["state"]]
            table.add_row(*map(str, told), style=None if row["usable"] else "red")
        Console().print(table)
    return all(row["usable"] for row in rows)


async def _rows(settings: Settings, clock: Clock, counts: dict[str, int]) -> list[dict[str, Any]]:
    rows = []
    for home, state in state_topics(settings).items():
        for partition in range(counts[home]):
            saved, _ = await read(settings.kafka, state, (home, partition), clock)
            rows.append(_row(f"{home}/{partition}", saved))
    return rows


def _row(name: str, saved: Saved) -> dict[str, Any]:
    row = {"partition": name, "at": None, "checkpoint": 0, "end": 0, "pages": len(saved.pages), "bytes": saved.nbytes}
    value = saved.pages.get(MANIFEST)
    if value is None:
        return row | {"state": "none", "usable": True}
    try:
        manifest: DetectManifest | IncidentManifest
        try:
            manifest = decode(value, DetectManifest, name)
            end = manifest.position.end
        except SavedStateError:
            manifest = decode(value, IncidentManifest, name)
            end = manifest.end
    except SavedStateError as error:
        return row | {"state": str(error), "usable": False}
    return row | {"at": manifest.at, "checkpoint": manifest.number, "end": end, "state": "fine", "usable": True}


def reset(settings: Settings, clock: Clock, *, sure: bool) -> None:
    """Gives all saved state up: makes its topics anew.

    Raises:
        UsageError: nobody said that it is meant.
        BrokerError: workers are running, or Kafka cannot be reached.
    """
    names = list(state_topics(settings).values())
    if not sure:
        raise UsageError(
            f"this gives up baselines, streaks, trees and open incidents ({', '.join(names)}): say --yes if you mean it"
        )
    kafka = settings.kafka
    with admin(kafka) as client:
        try:
            group = client.describe_groups([kafka.app_id]).get(kafka.app_id, {})
        except AdminError:  # there has never been one
            group = {}
        if members := group.get("members"):
            raise BrokerError(f"{len(members)} workers of {kafka.app_id} are running: stop them first")
        there = [name for name in names if name in partition_counts(client)]
        if there:
            client.delete_topics(there)
        deadline = clock.monotonic() + _DELETE_S
        while True:
            counts = partition_counts(client)
            left = [name for name in names if name in counts]
            if not left:
                break
            if clock.monotonic() > deadline:
                raise BrokerError(f"{', '.join(left)} could not be deleted: allow it, or delete them by hand")
            time.sleep(0.2)
        keyed = settings.input.keyed_by == "agent_id"
        wanted = [plan for plan in plans(kafka, keyed=keyed, counts=counts) if plan.name in names]
        while True:
            try:
                create(client, kafka, wanted)
                break
            except AdminError as error:
                # A topic that was just deleted may be in the way for a moment.
                if clock.monotonic() > deadline or isinstance(error, UnknownTopicOrPartitionError):
                    raise
                time.sleep(0.5)
    Console(highlight=False).print(f"all saved state is gone: {', '.join(names)} were made anew", markup=False)
