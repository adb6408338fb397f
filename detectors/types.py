"""What goes into a detector and what comes out: columns of events, and findings.

Everything here is plain data. A detector never sees a Kafka record, a clock or a file.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Hashes: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

UNKNOWN = np.uint64(0)
"""The hash of "not observed". Unknown never equals unknown: an absent result proves nothing."""


class Kind(enum.IntEnum):
    """What an event records; the wire names are the lower-case member names."""

    LLM = 0
    TOOL = 1
    MESSAGE = 2
    SPAWN = 3
    COMPACTION = 4
    OUTCOME = 5


class ToolKind(enum.IntEnum):
    """What calling a tool does, as far as its name tells."""

    UNKNOWN = 0
    READ = 1
    """Only looks; the same call again brings nothing new unless something else has changed."""
    MUTATE = 2
    """Changes something: "ok" after "ok" is a batch at work, and what is read afterwards may differ."""
    POLL = 3
    """Waits for something else: asking again is what it is for."""
    SHELL = 4
    """Runs commands: may read or change anything."""


class Finish(enum.IntEnum):
    """Why a model stopped writing."""

    UNKNOWN = 0
    STOP = 1
    TOOL_CALLS = 2
    TRUNCATED = 3
    """It ran into its limit of output tokens."""
    OTHER = 4


class Scope(enum.StrEnum):
    """The kind of entity a detector keeps state for."""

    RUN = "run"
    AGENT = "agent"
    ROOT = "root"


Severity = Literal["warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("warning", "critical")


@dataclass(frozen=True, slots=True)
class Entity:
    """One scope's view of a batch; every column has length n."""

    row: Ints
    """State row of the event's entity, >= 0. Rows are reused after their entity died."""
    new: Bools
    """True where the entity begins its life (again) with this event: its state must start blank."""
    tokens: Ints
    """Effective tokens of the entity's life up to and including this event, in thousandths."""
    cost: Ints
    """Known cost of the entity's life up to and including this event, in nano-dollars."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Read-only columns of n events of one partition, in processing order.

    Event times may go backwards within an entity by up to the engine's allowed lateness. Money and
    effective tokens are integers (nano-dollars, thousandths of a token), so that sums do not depend on
    how a stream was cut into batches.
    """

    event_id: Sequence[str]
    agent_id: Sequence[str]
    run_id: Sequence[str]
    root_run_id: Sequence[str]
    to_agent_id: Sequence[str]
    tool: Sequence[str]
    ts: Floats
    """Event time, seconds since 1970-01-01 UTC."""
    kind: NDArray[np.uint8]
    failed: Bools
    http_status: NDArray[np.int16]
    """HTTP status of the provider's answer; 0 is unknown."""
    error: Hashes
    """What kind of failure it was, with ids, numbers and paths left out; UNKNOWN if it did not fail."""
    finish: NDArray[np.uint8]
    """`Finish` of a model call."""
    signature: Hashes
    """(tool, canonical arguments) for tools, content for messages; UNKNOWN if not observed."""
    result: Hashes
    """What came back (tools) or was written (llm); UNKNOWN if not observed."""
    empty: Bools
    """The result was observed and holds nothing."""
    tool_id: Hashes
    """Hash of the tool's name; UNKNOWN if it has none."""
    tool_kind: NDArray[np.uint8]
    """`ToolKind` of the tool."""
    target: Hashes
    """What is acted upon (path, URL), without offsets and paging; UNKNOWN if not observed."""
    round: Hashes
    """The model response that asked for this call; parallel calls share it. UNKNOWN if not observed."""
    sender: Hashes
    receiver: Hashes
    model: Hashes
    """Hash of the model's name; UNKNOWN if not observed."""
    group: Hashes
    """Agents of one group share thresholds (`input.group_by`); UNKNOWN if none of the fields is observed."""
    input: Ints
    """Tokens read, cached ones included; -1 where unknown."""
    cached: Ints
    """Tokens read from the cache; -1 where unknown."""
    output: Ints
    """Tokens written; -1 where unknown."""
    tokens: Ints
    """Effective tokens of the event, in thousandths; 0 where unknown."""
    cost: Ints
    """Cost of the event in nano-dollars; 0 where unknown."""
    spawned: Bools
    """The event brings a run into its tree that was not there before (filled for Scope.ROOT)."""
    depth: Ints
    """Depth of the event's run (or of the run it spawns) below its root, 0 for the root run."""
    entities: Mapping[Scope, Entity]

    def __len__(self) -> int:
        return len(self.event_id)

    def cut(self, bounds: Sequence[int]) -> Iterator[EventBatch]:
        """The same events in consecutive pieces; `bounds` are the inner cut positions, ascending."""
        edges = [0, *bounds, len(self)]
        for low, high in itertools.pairwise(edges):
            part = {f.name: getattr(self, f.name)[low:high] for f in fields(self) if f.name != "entities"}
            entities = {
                scope: Entity(e.row[low:high], e.new[low:high], e.tokens[low:high], e.cost[low:high])
                for scope, e in self.entities.items()
            }
            yield EventBatch(**part, entities=entities)


@dataclass(frozen=True, slots=True)
class Finding:
    """One detector's verdict on one entity at one event."""

    id: str
    detector: str
    rule: str
    severity: Severity
    scope: Scope
    ts: float
    agent_id: str
    run_id: str
    root_run_id: str
    event_id: str
    score: float
    """How far beyond its threshold the observation is: 0 at the threshold, towards 1 far beyond."""
    observed: float
    expected: float
    unit: str
    reason: str
    """One sentence a person understands at 3 a.m."""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def at(
        cls,
        batch: EventBatch,
        index: int,
        *,
        detector: str,
        rule: str,
        severity: Severity,
        scope: Scope,
        score: float,
        observed: float,
        expected: float,
        unit: str,
        reason: str,
        evidence: Mapping[str, Any],
    ) -> Finding:
        """The finding that event `index` of `batch` triggered; its id is derived from what it says."""
        event_id = batch.event_id[index]
        return cls(
            id=finding_id(detector, rule, severity, event_id),
            detector=detector,
            rule=rule,
            severity=severity,
            scope=scope,
            ts=float(batch.ts[index]),
            agent_id=batch.agent_id[index],
            run_id=batch.run_id[index],
            root_run_id=batch.root_run_id[index],
            event_id=event_id,
            score=round(float(min(1.0, max(0.0, score))), 4),
            observed=float(observed),
            expected=float(expected),
            unit=unit,
            reason=reason,
            evidence=evidence,
        )


def finding_id(detector: str, rule: str, severity: str, event_id: str) -> str:
    """Deterministic id: a replay that reaches the same verdict at the same event names it the same."""
    text = "\x1f".join((detector, rule, severity, event_id))
    return "f-" + hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def spend(tokens: float, dollars: float) -> str:
    """What was used, in words: effective tokens, and dollars from half a cent on.

    >>> spend(1200, 0.25), spend(80, 0.0)
    ('1,200 effective tokens, $0.25', '80 effective tokens')
    """
    return f"{tokens:,.0f} effective tokens" + (f", ${dollars:.2f}" if dollars >= 0.005 else "")


def beyond(observed: float, threshold: float) -> float:
    """Score of an observation against the threshold it passed: 1 - threshold / observed, in [0, 1].

    >>> beyond(8, 4)
    0.5
    """
    return max(0.0, 1.0 - threshold / observed) if observed > 0 else 0.0
