"""What is measured against what: one file per contender, each run as a process of its own.

All read the same events, decode them with the same decoder into `UsageEvent`, and commit what they have
handled, by which they are measured from outside (`benchmarks.observe`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import msgspec

from stream import topics
from stream.errors import ConfigError
from stream.settings import Settings, parse

COMMIT_S = 0.5
"""How often the contenders of this folder commit, s."""


class Job(msgspec.Struct, frozen=True):
    """What a contender's process is told.

    Attributes:
        topic: The preloaded input.
        group: Consumer group, and prefix of whatever topics the contender makes.
        core: Where the process stays.
        parent: Process that started it; without it there is nothing to do.
        options: burnfuse's configuration besides `kafka`.
    """

    broker: str
    topic: str
    group: str
    core: int
    parent: int
    options: dict[str, Any] = {}

    def settings(self) -> Settings:
        """burnfuse's configuration for this job."""
        kafka = {
            "bootstrap_servers": [self.broker],
            "app_id": self.group,
            "prefix": self.group,
            "input_topic": self.topic,
        }
        # A worker under full load is behind by design: everything runs all the same, or it would be no fair figure.
        common = {"kafka": kafka, "overload": {"shed": False}}
        # JSON is YAML.
        return parse(msgspec.json.encode(self.options | common).decode())

    def make_topics(self) -> None:
        """Creates burnfuse's topics, once, before workers start together."""
        with redirect_stdout(io.StringIO()):  # it tells people what it made
            topics.run(self.settings(), check=False, json=True)


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table.

    Attributes:
        module: In this package; has `run(job)`, which goes on until the process is ended.
        keyed: It reads the input keyed by agent; else an input with any key.
        inner: Topics of its own that all events pass through; see `benchmarks.observe`.
        needs: Packages that must be there.
        options: burnfuse's configuration besides `kafka`.
    """

    label: str
    module: str
    keyed: bool = False
    inner: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> str:
        """Why it cannot run here; "" if it can."""
        absent = [name for name in self.needs if find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} is not installed (benchmarks/requirements.txt)"
        try:
            Job("", "", "", 0, 0, dict(self.options)).settings()
        except ConfigError as error:
            return f"this burnfuse cannot be configured so: {str(error).splitlines()[-1].strip()}"
        return ""


CONTENDERS: Mapping[str, Contender] = {
    "ceiling": Contender("ceiling: aiokafka getmany() and decoding, nothing else", "ceiling"),
    "burnfuse": Contender(
        "burnfuse worker, everything on, input with any key", "burnfuse_worker", inner=("events", "graph")
    ),
    "burnfuse-keyed": Contender(
        "burnfuse worker, everything on, input keyed by agent",
        "burnfuse_worker",
        keyed=True,
        inner=("graph",),
        options={"input": {"keyed_by": "agent_id"}},
    ),
    "faust": Contender("plain Faust agent, one river model per agent", "faust_events", keyed=True),
    "faust-take": Contender("plain Faust agent with take(), one river model per agent", "faust_take", keyed=True),
    "quix": Contender("Quix Streams, one moving average per agent", "quix", keyed=True, needs=("quixstreams",)),
    "bytewax": Contender("Bytewax, one moving average per agent", "bytewax_flow", needs=("bytewax", "confluent_kafka")),
}
