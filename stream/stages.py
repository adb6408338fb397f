"""The stages of the service, without Kafka: records in, messages out.

`stream.agents` connects them to topics; tests connect them to lists.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from detectors.base import FleetFigures
from detectors.types import Scope
from stream.clock import Clock
from stream.columns import Columns, Packed
from stream.engine import WATCH, Engine, RecentIds
from stream.errors import PackedRecordError
from stream.incidents import Change, Incidents
from stream.ingest.ingest import Ingest, Record, last_of
from stream.ingest.reject import Reason, Reject
from stream.ingest.share import RejectedShare
from stream.metrics import Metrics
from stream.sequencer import Position, Sequencer
from stream.settings import IncidentSettings, KafkaSettings, Settings
from stream.slots import SlotMap, first_of
from stream.state import (
    MANIFEST,
    DetectManifest,
    DetectState,
    IncidentManifest,
    IncidentState,
    Origin,
    Page,
    Saved,
    manifest_of,
    refuse_versions,
    shapes,
)
from stream.text import LAST_SECOND, clean
from stream.wire import decode_finding, encode_finding, incident_json

_MAX_PACKED_BYTES = 900_000
"""Packed records are split below this; brokers take 1 MiB unless told otherwise."""

_ENOUGH = 16_000
"""Events of a partition that are a large batch: twice as many cost hardly less per event (benchmarks.stages)."""
_ACROSS_AGENTS_S = 0.25
"""What spans agents unfolds over minutes: its events wait so long for others, s. Each step has its price, half of a
worker's partitions are of this kind, with few events each, and what lies within one agent need not wait for them."""
_TAKE_OVER_S = 20.0
"""Once a worker counts as gone, its partitions are read again within this time."""

_FINDINGS_KEPT = 1 << 16
"""Findings remembered, at least, to know those that are sent again: seconds of the worst storm."""

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the topics."""

    usage: str
    events: str
    graph: str
    findings: str
    incidents: str
    dead: str
    calibration: str
    proposals: str
    kill_state: str
    state_watch: str
    state_graph: str
    state_incidents: str

    @classmethod
    def of(cls, kafka: KafkaSettings) -> Topics:
        """The names as configured."""
        p = kafka.prefix
        return cls(
            usage=kafka.input_topic,
            events=f"{p}.events",
            graph=f"{p}.graph",
            findings=f"{p}.findings",
            incidents=f"{p}.incidents",
            dead=f"{p}.dead",
            calibration=f"{p}.calibration",
            proposals=f"{p}.kill.proposals",
            kill_state=f"{p}.kill.state",
            state_watch=f"{p}.state.watch",
            state_graph=f"{p}.state.graph",
            state_incidents=f"{p}.state.incidents",
        )


@dataclass(frozen=True, slots=True)
class Message:
    """A record to be sent."""

    topic: str
    key: bytes | None
    value: bytes
    partition: int | None = None


def position_name(topic: str) -> Callable[[int, int], str]:
    """How a position on the input topic is written: topic/partition/offset."""
    return lambda partition, offset: f"{topic}/{partition}/{offset}"


def dead_letter(topics: Topics, reject: Reject, where: str) -> Message:
    """The dead letter for an event turned away: the reason and where it stands, not its content.

    No copy is kept either: what cannot be understood may be contents all through. `stream.dlq` finds the record.
    """
    letter: dict[str, Any] = {
        "reason": reject.reason.value,
        "detail": reject.detail,
        "source": reject.source,
        "bytes": reject.size,
        "event_id": reject.event_id,
        "stage": where,
        "fate": "ignored" if reject.reason is Reason.DUPLICATE else "rejected",
    }
    return Message(topics.dead, reject.source.encode(), _encode(letter))


class IngestStage:
    """Input records to packed columns, keyed by agent and by root run.

    Args:
        inputs: Partitions of the input topic.
        outputs: Partitions of each inner topic.
        share: How much may be turned away; None: all.
    """

    def __init__(
        self,
        topics: Topics,
        ingest: Ingest,
        inputs: int,
        outputs: int,
        share: RejectedShare | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._topics, self._ingest, self._share = topics, ingest, share
        self._metrics = metrics or Metrics()
        self._inputs, self._outputs = inputs, outputs
        self._homes, self._told_homes = SlotMap(), False

    def process(self, records: Sequence[Record]) -> list[Message]:
        """Messages to send, in this order per partition, before the records count as done.

        Raises:
            RejectedShareError: too many of the latest events were turned away; nothing of this may be sent.
        """
        columns, progress, messages = self._taken(records)
        return messages + self._spread(self._topics.events, columns, "sender", progress)

    def hand_over(self, records: Sequence[Record]) -> tuple[list[Message], dict[int, Packed]]:
        """The same for an input keyed by agent: what `watch` needs goes to it as it is, by input partition."""
        columns, progress, messages = self._taken(records)
        self._check_homes(columns)
        if len(progress) == 1:
            return messages, {p: own(columns, ms) for p, ms in progress.items()}
        source = columns.numbers["source"]
        return messages, {p: own(columns.take(source == p), ms) for p, ms in progress.items()}

    def _check_homes(self, columns: Columns) -> None:
        """An agent on two partitions has half a baseline on each: somebody must be told, once."""
        if self._told_homes:
            return
        agents, source = columns.numbers["sender"], columns.numbers["source"].astype(np.int64)
        homes = self._homes.find(agents)
        new = (homes < 0) & first_of(agents)
        self._homes.add(agents[new], source[new])
        moved = np.flatnonzero(self._homes.find(agents) != source)
        if len(moved):
            self._told_homes = True
            log.warning(
                "agent %s comes on several partitions of %s: its records are not keyed by agent_id, so its baseline is "
                "split; set input.keyed_by to any",
                clean(columns.texts.at("agent_id", int(moved[0]))),
                self._topics.usage,
            )

    def _taken(self, records: Sequence[Record]) -> tuple[Columns, dict[int, int], list[Message]]:
        columns, rejects = self._ingest.columns(records)
        self._metrics.rejected(rejects)
        if self._share is not None:
            self._share.add(len(columns), rejects, records)
        messages = [dead_letter(self._topics, reject, "ingest") for reject in rejects]
        progress = {source: ms for source, (_, ms) in last_of(records).items()}
        tree = columns.take(columns.numbers["in_tree"])
        return columns, progress, messages + self._spread(self._topics.graph, tree, "root", progress)

    def heartbeat(self, progress: dict[int, int], *topics: str) -> list[Message]:
        """Tells all partitions of inner topics how far input partitions have been passed on."""
        value = Packed(Columns.empty(), progress, self._inputs).encode()
        return [Message(topic, None, value, partition) for topic in topics for partition in range(self._outputs)]

    def _spread(self, topic: str, columns: Columns, key: str, progress: dict[int, int]) -> list[Message]:
        # By the hashes at hand rather than Kafka's own partitioner: all events of a batch are placed at once.
        place = columns.numbers[key] % np.uint64(self._outputs)
        messages = []
        for partition in np.unique(place).tolist():
            part = columns.take(place == partition)
            messages += [Message(topic, None, value, partition) for value in _packed(part, progress, self._inputs)]
        return messages


def _packed(columns: Columns, progress: dict[int, int], inputs: int) -> Iterable[bytes]:
    """One packed record, or several if one would be too large; only the last tells the progress."""
    value = Packed(columns, progress, inputs).encode()
    if len(value) <= _MAX_PACKED_BYTES or len(columns) < 2:
        return [value]
    half = len(columns) // 2
    return [*_packed(columns.cut(0, half), {}, inputs), *_packed(columns.cut(half, len(columns)), progress, inputs)]


def own(columns: Columns, progress_ms: int) -> Packed:
    """Events of one input partition for detectors that see no other: its progress is all that counts."""
    return Packed(columns, {0: progress_ms}, partitions=1)


class DetectStage:
    """One partition: order, detectors, findings out.

    Args:
        name: Of the partition, e.g. `bf.events/3`: tells apart the stream clocks of partitions.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        scopes: Sequence[Scope],
        name: str,
        clock: Clock,
        metrics: Metrics | None = None,
    ) -> None:
        self._topics, self.name = topics, name
        self._metrics = metrics or Metrics()
        # The graph sees a part of what watch sees: only one of them tells of rejects.
        self._tells_rejects = tuple(scopes) == WATCH
        self._pause_s = _ACROSS_AGENTS_S if Scope.ROOT in scopes else 0.0
        self.engine = Engine(settings, scopes, position_name(topics.usage))
        self._clock = clock
        self._sequencer: Sequencer[Any] = Sequencer(clock, settings.kafka.session_timeout_s + _TAKE_OVER_S)
        self._fresh, self._since = 0, float("-inf")
        """Events taken in since the latest step, and when the first of them was."""
        self._told_clock = float("-inf")
        self._state = DetectState(self.engine, name)

    @property
    def waiting(self) -> int:
        """Events that wait for their turn."""
        return len(self._sequencer)

    @property
    def passed_ms(self) -> int:
        """Everything logged before this moment, ms since 1970, has come."""
        return self._sequencer.passed_ms

    @property
    def seen_before(self) -> int:
        """Events that ingest sent again, after a crash."""
        return self._sequencer.seen_before

    @property
    def position(self) -> Position:
        """Where the partition's reader stands, as of the latest step."""
        return self._sequencer.position

    @property
    def first(self) -> int:
        """Offset from which on records must be read again, to get where the stage is."""
        return self._sequencer.position.first

    @property
    def end(self) -> int:
        """Offset of the first record that has not been taken in."""
        return self._sequencer.position.end

    def outgoing(self) -> list[Message]:
        """Messages that go out with the next checkpoint: none, for findings cannot wait."""
        return []

    def read_again(self) -> None:
        """The partition's records come again, from somewhere below `position.first` on."""
        self._sequencer.resume(self._sequencer.position)

    def add(self, value: bytes, token: Any, offset: int | None = None) -> Message | None:
        """Takes a packed record in; a record nobody can read becomes a dead letter.

        Args:
            offset: The record's; one more than that of the record before if not given.
        """
        try:
            packed, letter = Packed.decode(value), None
        except PackedRecordError as error:
            reject = Reject(Reason.MALFORMED, str(error), self.name, len(value))
            self._metrics.rejected([reject])
            packed, letter = self._sequencer.nothing(), dead_letter(self._topics, reject, self.name)
        self._sequencer.add(packed, token, offset)
        self._taken(packed)
        return letter

    def take(self, packed: Packed, token: Any, offset: int | None = None) -> None:
        """Takes events of an input partition in.

        Args:
            offset: Of the latest record read there; None: there are no events, and only its progress is news.
        """
        if offset is None:
            self._sequencer.hear(packed)
        else:
            self._sequencer.add(packed, token, offset, packed.columns.numbers["position"])
        self._taken(packed)

    def _taken(self, packed: Packed) -> None:
        if not self._fresh:
            self._since = self._clock.monotonic()
        self._fresh += max(1, len(packed.columns))  # progress is news, too

    def due(self, patience_s: float) -> bool:
        """Whether it is time for a step: there is news, and enough of it, or it has waited for so long, s."""
        waits_s = max(patience_s, self._pause_s)
        return self._fresh >= _ENOUGH or (self._fresh > 0 and self._clock.monotonic() - self._since >= waits_s)

    def read_up_to(self, end: int, moment: float) -> None:
        """At this moment (of the monotonic clock, s) the partition ended at this offset."""
        self._sequencer.read_up_to(end, moment)

    def step(self) -> tuple[list[Message], list[Any]]:
        """Messages to send, and then the tokens of the records that are done."""
        self._fresh = 0
        columns, done = self._sequencer.ready()
        result = self.engine.process(columns)
        self._metrics.found(result.findings)
        self._metrics.shed(result.shed)
        if self._tells_rejects:
            self._metrics.taken(len(result.accepted))
            self._metrics.rejected(result.rejects)
        messages = [
            Message(
                self._topics.findings,
                finding.root_run_id.encode(errors="replace"),
                encode_finding(finding, float(result.clocks[at]), self.name),
            )
            for finding, at in zip(result.findings, result.positions, strict=True)
        ]
        if self._tells_rejects:
            messages += [dead_letter(self._topics, reject, "watch") for reject in result.rejects]
        return messages, done

    def clock_message(self) -> Message | None:
        """Tells the incidents how far this partition's clock is, if it has moved."""
        if not self.engine.clock > self._told_clock:
            return None
        self._told_clock = self.engine.clock
        value = _encode({"type": "clock", "source": self.name, "clock": self.engine.clock})
        return Message(self._topics.findings, None, value)

    def calibrate(self, figures: FleetFigures) -> None:
        """Gives the detectors new figures of the fleet."""
        self.engine.calibrate(figures)

    # ------------------------------------------------------------------------------ saved state

    def checkpoint(self, origin: Origin, *, everything: bool = False) -> Iterator[Page]:
        """What has changed in the stage since the checkpoint before, as of the latest step.

        All pages must be taken before the next step; who takes a part of them must ask for everything next.

        Args:
            everything: All of it, changed or not.
        """
        if everything:
            self._state.save_all()
        engine = self.engine

        def manifest(number: int, shared: dict[str, int]) -> DetectManifest:
            return DetectManifest(
                origin=origin,
                number=number,
                at=self._clock.now(),
                position=self._sequencer.position,
                time=engine.time(),
                detectors={name: detector.spec.version for name, detector in engine.detectors.items()},
                shapes=shapes(engine),
                rows={scope.value: engine.rows(scope) for scope in engine.scopes},
                shared=shared,
                generation=engine.seen.generation,
                told_clock=self._told_clock,
            )

        return self._state.changes(manifest)

    def restore(self, saved: Saved, origin: Origin) -> Iterator[int]:
        """Takes a saved state, before any record; gives the bytes taken after each page.

        Raises:
            SavedStateError: it cannot be used.
        """
        manifest = manifest_of(saved, DetectManifest, origin, self.name)
        if manifest is None:
            return
        refuse_versions(manifest.detectors, self.engine, self.name)
        anew = [name for name, shape in shapes(self.engine).items() if manifest.shapes.get(name, shape) != shape]
        for name in anew:
            log.warning("%s: detector %s begins anew, for its settings have changed", self.name, name)
        taken = 0
        for key, page in saved.pages.items():
            if key != MANIFEST:
                self._state.load(key, page, manifest, anew)
            taken += len(page)
            yield taken
        self._state.finish(manifest, anew)
        self._told_clock = manifest.told_clock
        self._sequencer.resume(manifest.position)


class _ClockRecord(msgspec.Struct, tag="clock"):
    source: str
    clock: Annotated[float, msgspec.Meta(ge=0, le=LAST_SECOND)]


class _FindingRecord(msgspec.Struct, tag="finding"):
    pass


_kind = msgspec.json.Decoder(_ClockRecord | _FindingRecord)


class IncidentStage:
    """The findings topic to incidents, and what is still to be done about them."""

    def __init__(
        self, settings: IncidentSettings, topics: Topics, clock: Clock, metrics: Metrics | None = None
    ) -> None:
        self._topics, self._clock, self._name = topics, clock, f"{topics.findings}/0"
        self._metrics = metrics or Metrics()
        self.incidents = Incidents(settings)
        self._seen = RecentIds(_FINDINGS_KEPT)
        self._state = IncidentState(self.incidents, self._seen, self._name)
        self._end = 0
        self._outgoing: list[Message] = []
        self.seen_before = 0
        """Findings that were sent again, after a crash."""

    @property
    def end(self) -> int:
        """Offset of the first record that has not been taken in."""
        return self._end

    @property
    def first(self) -> int:
        """Offset from which on records must be read again: nothing waits here."""
        return self._end

    def process(self, value: bytes, offset: int | None = None) -> tuple[list[Change], Message | None]:
        """What a record of the findings topic changes; a dead letter if nobody can read it.

        Args:
            offset: The record's; one more than that of the record before if not given.
        """
        offset = self._end if offset is None else offset
        if offset < self._end:
            return [], None
        self._end = offset + 1
        try:
            kind = _kind.decode(value)
            if isinstance(kind, _ClockRecord):
                return self.incidents.advance(kind.clock, kind.source), None
            finding, clock, source = decode_finding(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            detail = f"a record on the findings topic cannot be read: {error}"
            reject = Reject(Reason.MALFORMED, detail, self._topics.findings, len(value))
            self._metrics.rejected([reject])
            return [], dead_letter(self._topics, reject, "incidents")
        # What is found again after a crash has the same id.
        name = int.from_bytes(hashlib.blake2b(finding.id.encode(), digest_size=8).digest(), "little")
        if self._seen.add(np.array([max(name, 2)], np.uint64)) is not None:
            self.seen_before += 1
            return [], None
        return [*self.incidents.advance(clock, source), *self.incidents.add(finding, clock, source)], None

    # ------------------------------------------------------------------------- what is to be done

    def begin(self, change: Change, actions: Collection[str] = ()) -> int:
        """Notes a change: it is to be told, and actions are to be taken on it until `finish`; gives its number.

        Args:
            actions: Names of the actions; if there are none, the number says nothing.
        """
        value = _encode(incident_json(change.incident) | {"change": change.kind})
        self._outgoing.append(Message(self._topics.incidents, change.incident.id.encode(), value))
        return self._state.begin(change, actions) if actions else 0

    def outgoing(self) -> list[Message]:
        """Changes that go out with the next checkpoint: they are told together with being saved, or not at all."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def read_again(self) -> None:
        """The records come again; those that have been taken in are known."""

    def finish(self, action: str, incident_id: str, upto: int, remembered: bytes) -> None:
        """An action has told the changes of an incident up to this number.

        Args:
            remembered: What the action remembers of the incident from now on; nothing if empty.
        """
        self._state.finish(action, incident_id, upto, remembered)

    @property
    def pending(self) -> dict[int, Change]:
        """Changes that have not been told by all actions, by number."""
        return {number: Change(one.kind, one.incident) for number, one in self._state.pending.items()}

    def again(self, actions: Collection[str]) -> dict[int, Change]:
        """Changes that a process that is gone has left untold; these actions are to tell all of them."""
        for number in list(self._state.pending):
            self._state.left(number, actions)
        return self.pending

    @property
    def remembered(self) -> list[tuple[str, str, bytes]]:
        """What actions remember: name of the action, id of the incident, and what `finish` was told."""
        return [(action, incident, value) for (action, incident), value in self._state.remembered.items()]

    # ------------------------------------------------------------------------------ saved state

    def checkpoint(self, origin: Origin, *, everything: bool = False) -> list[Page]:
        """What has changed since the checkpoint before: at once, for actions may `finish` at any time."""
        if everything:
            self._state.save_all()
        return list(self._state.changes(origin, self._clock.now(), self._end))

    def restore(self, saved: Saved, origin: Origin) -> Iterator[int]:
        """Takes a saved state, before any record; gives the bytes taken after each page.

        Raises:
            SavedStateError: it cannot be used.
        """
        manifest = manifest_of(saved, IncidentManifest, origin, self._name)
        if manifest is None:
            return
        taken = 0
        for key, page in saved.pages.items():
            if key != MANIFEST:
                self._state.load(key, page)
            taken += len(page)
            yield taken
        self._state.finish_loading(manifest)
        self._end = manifest.end
