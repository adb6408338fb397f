"""`burnfuse state`: shows what is saved on the state topics, and gives it up."""

from __future__ import annotations

import asyncio
import json as jsonlib
from typing import Any

from kafka.errors import GroupIdNotFoundError
from rich.console import Console
from rich.table import Table

from stream.checkpoints import Writer, read
from stream.clock import Clock
from stream.connection import explained
from stream.errors import BrokerError, SavedStateError, UsageError
from stream.settings import Settings
from stream.state import MANIFEST, DetectManifest, IncidentManifest, Page, Saved, decode
from stream.text import moment
from stream.topics import admin, partition_counts, state_topics


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
    with explained(settings.kafka):
        rows = asyncio.run(_rows(settings, clock, {home: counts[state] for home, state in homes.items()}))
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
    """Gives all saved state up: takes every page back. Needs no more rights than a worker has.

    Raises:
        UsageError: nobody said that it is meant.
        BrokerError: workers are running, or Kafka cannot be reached, or topics are missing.
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
        except GroupIdNotFoundError:  # there has never been one
            group = {}
        if members := group.get("members"):
            raise BrokerError(f"{len(members)} workers of {kafka.app_id} are running: stop them first")
        counts = partition_counts(client)
    if missing := [name for name in names if name not in counts]:
        raise BrokerError(f"topics are missing ({', '.join(missing)}): run `burnfuse topics` with this configuration")
    with explained(kafka):
        pages = asyncio.run(_take_back(settings, clock, {name: counts[name] for name in names}))
    Console(highlight=False).print(f"all saved state is gone: {pages} pages of {', '.join(names)}", markup=False)


async def _take_back(settings: Settings, clock: Clock, counts: dict[str, int]) -> int:
    pages = 0
    for state, count in counts.items():
        for partition in range(count):
            writer = Writer(settings.kafka, state, partition)
            await writer.open()
            try:
                saved, _ = await read(settings.kafka, state, (state, partition), clock)
                if saved.pages:
                    await writer.write([Page(key, None) for key in saved.pages])
                pages += len(saved.pages)
            finally:
                await writer.close()
    return pages
