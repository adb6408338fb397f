"""Saved states as files, one for every set of versions there was: python tests/stream/saved_states.py writes today's.

Each holds the state of a watch, a graph and an incident stage after half of a stream.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).with_name("states")


def versions() -> dict[str, int]:
    """The format, and the state version of every detector."""
    from detectors import registered
    from stream.state import FORMAT

    return {"format": FORMAT} | {name: cls.spec.version for name, cls in registered().items()}


def path_of(of: dict[str, int]) -> Path:
    """Where the states of these versions are."""
    name = hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=4).hexdigest()
    return FOLDER / f"format-{of['format']}-{name}.msgpack.gz"


def stages() -> dict[str, Any]:
    """Blank stages of every kind, by name."""
    from stream.clock import ManualClock
    from stream.engine import GRAPH, WATCH
    from stream.settings import default_settings
    from stream.stages import DetectStage, IncidentStage, Topics

    settings, clock = default_settings(), ManualClock(1_800_000_000.0)
    topics = Topics.of(settings.kafka)
    return {
        "watch": DetectStage(settings, topics, WATCH, "bf.events/0", clock),
        "graph": DetectStage(settings, topics, GRAPH, "bf.graph/0", clock),
        "incidents": IncidentStage(settings.incidents, topics, clock),
    }


def stream() -> Iterator[list[Any]]:
    """Messages of ingest for two halves of a stream."""
    from random_streams import random_stream

    from stream.clock import ManualClock
    from stream.ingest.ingest import Record
    from stream.pipeline import make_ingest
    from stream.settings import default_settings
    from stream.stages import IngestStage, Topics, position_name

    settings = default_settings()
    topics = Topics.of(settings.kafka)
    ingest = make_ingest(settings, position_name("usage"), ManualClock(1_800_000_000.0), None)
    stage = IngestStage(topics, ingest, 1, 1)
    values = [json.dumps(event).encode() for event in random_stream(7, 160)]
    records = [Record(value, 0, n, 1_800_000_000_000 + n, n) for n, value in enumerate(values)]
    yield stage.process(records[:80])
    yield [*stage.process(records[80:]), *stage.heartbeat({0: 1_900_000_000_000}, topics.events, topics.graph)]


def go_on(at_work: dict[str, Any], messages: list[Any]) -> list[str]:
    """Ids of what is found."""
    found = []
    for message in messages:
        for name in ("watch", "graph"):
            if message.topic == {"watch": "bf.events", "graph": "bf.graph"}[name]:
                at_work[name].add(message.value, None)
    for name in ("watch", "graph"):
        for message in at_work[name].step()[0]:
            if message.topic == "bf.findings":
                found.append(json.loads(message.value)["id"])
                for change in at_work["incidents"].process(message.value)[0]:
                    at_work["incidents"].begin(change)
    return found


def write() -> Path:
    """Writes the states of today's versions."""
    from stream.state import Saved, origin

    at_work, (first, second) = stages(), stream()
    go_on(at_work, first)
    states = {}
    for name, stage in at_work.items():
        saved = Saved()
        saved.take(stage.checkpoint(origin(name, 1, None)))
        states[name] = list(saved.pages.items())
    found = go_on(at_work, second)
    path = path_of(versions())
    path.parent.mkdir(exist_ok=True)
    content = msgspec.msgpack.encode({"versions": versions(), "states": states, "found": found})
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote."""
    held: dict[str, Any] = msgspec.msgpack.decode(gzip.decompress(path.read_bytes()))
    return held


if __name__ == "__main__":
    import sys

    sys.path[:0] = [str(FOLDER.parents[2]), str(FOLDER.parents[1])]
    print(write())
