"""Detectors over the events of one partition: order, duplicates, lifetimes, isolation of failures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

import detectors
from detectors.base import READINESS, Detector, FleetFigures, StateError, Table, TablePage
from detectors.types import Bools, Entity, EventBatch, Finding, Floats, Hashes, Ints, Kind, Scope
from stream.columns import Columns, TextColumn
from stream.entities import Entities
from stream.ingest.reject import Reason, Reject
from stream.settings import EngineSettings, Settings, detector_config
from stream.slots import SlotMap, first_of

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH = (Scope.RUN, Scope.AGENT)
"""Scopes whose entities lie within one agent."""
GRAPH = (Scope.ROOT,)
"""Scopes whose entities span agents."""

_STEADY = 5
"""The stream clock follows the median of so many event times: two wrong ones, ahead or behind, do not move it."""

_RUNS_KEPT = 1000
"""Runs remembered per tree; of larger trees the older half is forgotten."""

_NAME_CHARS = 64
"""Runs with longer ids are known in their tree by a hash."""

_REACHES = (int(Kind.SPAWN), int(Kind.MESSAGE))
"""Kinds of events that set the run in `to_run_id` going."""

_HANDED_ON = 3
"""Depth at which runs that messages set going stop counting as deeper: enough to tell children of children."""

_AHEAD_S = 60.0
"""How far ahead of the log an event's time may move the clock, s: no event happens after it was logged."""


@dataclass(slots=True)
class Result:
    """What a batch led to."""

    findings: list[Finding] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Of each finding's event among the events given."""
    rejects: list[Reject] = field(default_factory=list)
    """Late events, and duplicates."""
    accepted: list[int] = field(default_factory=list)
    """Positions of the events that were taken, among the events given."""
    shed: dict[str, int] = field(default_factory=dict)
    """Detector of the second stage -> events it was not shown because of overload."""
    clocks: Floats = field(default_factory=lambda: np.empty(0))
    """Stream clock at each of the events given, s: event time that never goes back."""


class Engine:
    """Runs the detectors of some scopes over one partition's events.

    The results do not depend on how the events are cut into batches: whatever acts across entities
    (sweeps, fleet figures) happens at fixed marks of the stream clock, and batches are cut there.

    Args:
        scopes: WATCH or GRAPH.
        name_of: (source, position) of an event -> where it stands, for rejects.
        on_tick: Called at each mark of the stream clock, e.g. to take in fleet figures.
        only: Name -> detector, to run these instead of those configured.
    """

    def __init__(
        self,
        settings: Settings,
        scopes: Sequence[Scope],
        name_of: Callable[[int, int], str],
        on_tick: Callable[[Engine], None] | None = None,
        only: Mapping[str, Detector] | None = None,
    ) -> None:
        self._settings: EngineSettings = settings.engine
        self._name_of, self._on_tick = name_of, on_tick
        ttl = {
            Scope.RUN: settings.engine.run_ttl_s,
            Scope.AGENT: settings.engine.agent_ttl_s,
            Scope.ROOT: settings.engine.root_ttl_s,
        }
        # Runs are always known: lateness is judged per run, and trees are made of runs.
        self._entities = {scope: Entities(ttl[scope]) for scope in dict.fromkeys((Scope.RUN, *scopes))}
        self._scopes = tuple(scopes)
        chosen = configured(settings) if only is None else only
        self._detectors = {name: detector for name, detector in chosen.items() if detector.spec.scope in scopes}
        self.quarantined: dict[str, str] = {}
        """Detectors that raised, with the error: they are left out until the process starts again."""
        self._shedding = False
        self._trees = _Trees() if Scope.ROOT in scopes else None
        self.seen = RecentIds(settings.engine.duplicate_ids)
        """Ids of the latest events."""
        self._tail = np.full(_STEADY - 1, -np.inf)
        self._latest = {scope: np.empty(0, np.int64) for scope in self._entities}
        self._clock = float("-inf")

    @property
    def clock(self) -> float:
        """Stream clock, s."""
        return self._clock

    def shed(self, on: bool) -> None:
        """Overload begins or ends: the second stage is left out, or runs again.

        What is found then depends on when the overload was, so only a worker calls this.
        """
        if on is self._shedding:
            return
        self._shedding = on
        if not on:
            for name, detector in list(self._detectors.items()):
                if detector.spec.second_stage:
                    self._guard(name, partial(detector.resume, self._clock))
                    self._entities[detector.spec.scope].all_changed()

    def sketch(self) -> dict[str, list[int]]:
        """This partition's part of the fleet's figures; see `stream.calibration`."""
        merged: dict[str, list[int]] = {}
        for name, detector in list(self._detectors.items()):
            merged |= self._guard(name, detector.sketch) or {}
        return merged

    def calibrate(self, figures: FleetFigures) -> None:
        """Gives the detectors new figures of the fleet."""
        for name, detector in list(self._detectors.items()):
            self._guard(name, partial(detector.calibrate, figures))

    def readiness(self, agents: Hashes) -> list[str]:
        """How far the baselines of agents (k,), by their hashes, have come; none if no detector keeps any.

        Of an agent's several baselines the one that is furthest behind counts.
        """
        rows = self._entities[Scope.AGENT].find(agents)
        known, furthest = np.flatnonzero(rows >= 0), len(READINESS) - 1
        told: list[Sequence[str]] = []
        for name, detector in list(self._detectors.items()):
            if detector.spec.scope is Scope.AGENT:
                states = self._guard(name, partial(detector.readiness, rows[known]))
                told += [states] if states is not None else []
        if not told:
            return []
        least = np.zeros(len(agents), np.int64)
        least[known] = np.min(
            [[READINESS.index(state) for state in states] for states in told], axis=0, initial=furthest
        )
        return [READINESS[state] for state in least.tolist()]

    def process(self, columns: Columns) -> Result:
        """Takes events in, in order."""
        clocks = self._advance(columns.numbers)
        result = Result(clocks=clocks)
        for low, high in self._between_ticks(clocks):
            part = columns if high - low == len(clocks) else columns.cut(low, high)
            self._process(part, low, clocks[low:high], result)
        return result

    # ------------------------------------------------------------------------------ the clock

    def _advance(self, numbers: Mapping[str, NDArray[Any]]) -> Floats:
        """(n,) the stream clock at each event: the highest median of five event times so far."""
        ts, logged = numbers["ts"], numbers["log_ms"] / 1e3
        if not len(ts):
            return ts
        ts = np.where(logged > 0, np.minimum(ts, logged + _AHEAD_S), ts)
        window = np.concatenate([self._tail, ts])
        median = _median_of_five(*(window[i : i + len(ts)] for i in range(_STEADY)))
        self._tail = window[len(ts) :]
        return np.maximum.accumulate(np.maximum(median, self._clock))

    def _between_ticks(self, clocks: Floats) -> Iterator[tuple[int, int]]:
        """Pieces low, high of events between marks of the stream clock; ticks at each mark passed."""
        if not len(clocks):
            return
        tick_s, low = self._settings.tick_s, 0
        # The clock never goes back: where it ends below the next mark, it has passed none.
        if np.floor(clocks[-1] / tick_s) > np.floor(self._clock / tick_s):
            mark = np.floor(clocks / tick_s)
            before = np.r_[np.floor(self._clock / tick_s), mark[:-1]]
            for edge in ((mark > before) & np.isfinite(before)).nonzero()[0].tolist():
                if edge > low:
                    yield low, edge
                self._clock = float(clocks[edge])
                self._tick()
                low = edge
        yield low, len(clocks)
        self._clock = float(clocks[-1])

    def _tick(self) -> None:
        for scope, entities in self._entities.items():
            # After a long silence the clock moves a few events late; they must not look as old as it was.
            entities.touch(self._latest[scope], self._clock)
            dead = entities.sweep(self._clock)
            for name, detector in list(self._detectors.items()):
                if detector.spec.scope is scope:
                    self._guard(name, partial(detector.forget, dead))
            if scope is Scope.ROOT and self._trees is not None:
                self._trees.forget(dead)
        if self._on_tick is not None:
            self._on_tick(self)

    def _guard(self, name: str, call: Callable[[], T]) -> T | None:
        """One broken detector must not blind the others: it is reported and left out."""
        try:
            return call()
        except Exception as error:
            log.exception("detector %s failed and is switched off until restart", name)
            self.quarantined[name] = f"{type(error).__name__}: {error}"
            del self._detectors[name]
            return None

    # ----------------------------------------------------------------------------- the events

    def _process(self, columns: Columns, offset: int, clocks: Floats, result: Result) -> None:
        columns, kept, runs, newest = self._accept(columns, result)
        n = len(columns)
        result.accepted += (offset + kept).tolist()
        if not n:
            return
        numbers = columns.numbers.fixed()  # no detector may change what the next one sees
        views: dict[Scope, Entity] = {}
        for scope, entities in self._entities.items():
            rows = runs if scope is Scope.RUN else entities.assign(numbers[_IDS[scope]])
            known = newest if scope is Scope.RUN else None
            views[scope] = entities.view(rows, numbers["ts"], numbers["tokens"], numbers["cost"], clocks[kept], known)
            self._latest[scope] = np.concatenate([self._latest[scope], rows])[-_STEADY:]
        if self._trees is not None:
            spawned, depth = self._trees.place(columns, views[Scope.ROOT], views[Scope.RUN])
        else:
            spawned, depth = np.zeros(n, bool), np.zeros(n, np.int64)
        batch = EventBatch(
            event_id=columns.text("event_id"),
            agent_id=columns.text("agent_id"),
            run_id=columns.text("run_id"),
            root_run_id=columns.text("root_run_id"),
            to_agent_id=columns.text("to_agent_id"),
            tool=columns.text("tool"),
            ts=numbers["ts"],
            kind=numbers["kind"],
            failed=numbers["failed"],
            http_status=numbers["http_status"],
            error=numbers["error"],
            finish=numbers["finish"],
            signature=numbers["signature"],
            result=numbers["result"],
            empty=numbers["empty"],
            tool_id=numbers["tool_id"],
            tool_kind=numbers["tool_kind"],
            target=numbers["target"],
            round=numbers["round"],
            sender=numbers["sender"],
            receiver=numbers["receiver"],
            model=numbers["model"],
            group=numbers["group"],
            input=numbers["input"],
            cached=numbers["cached"],
            output=numbers["output"],
            tokens=numbers["tokens"],
            cost=numbers["cost"],
            spawned=spawned,
            depth=depth,
            entities={scope: views[scope] for scope in self._scopes},
        )
        self._detect(batch, columns.text("event_id"), offset + kept, result)

    def _detect(self, batch: EventBatch, ids: TextColumn, positions: Ints, result: Result) -> None:
        found: list[Finding] = []
        for name, detector in list(self._detectors.items()):
            if self._shedding and detector.spec.second_stage:
                entity = batch.entities[detector.spec.scope]
                self._guard(name, partial(detector.forget, entity.row[entity.new]))
                result.shed[name] = result.shed.get(name, 0) + len(batch)
                continue
            found += self._guard(name, partial(detector.update, batch)) or ()
        if not found:
            return
        place = {event_id: int(positions[ids.place(event_id)]) for event_id in {f.event_id for f in found}}
        found.sort(key=lambda finding: place[finding.event_id])
        for name, detector in list(self._detectors.items()):
            if self._shedding and detector.spec.second_stage:
                continue
            found = list(self._guard(name, partial(detector.review, batch, found)) or found)
        result.findings += found
        result.positions += [place[finding.event_id] for finding in found]

    def _accept(self, columns: Columns, result: Result) -> tuple[Columns, Ints, Ints, Floats]:
        """Without duplicates and late events; where the others stood, the rows of their runs, and the newest event
        time of these before each."""
        whole, ids = columns, columns.numbers["event"]
        first = self.seen.add(ids)
        judged = np.ones(len(ids), bool) if first is None else first
        too_late = np.zeros(len(ids), bool)
        runs = self._entities[Scope.RUN]
        while True:
            kept = np.flatnonzero(judged)
            columns = whole if len(kept) == len(ids) else whole.take(kept)
            rows, ts = runs.assign(columns.numbers[_IDS[Scope.RUN]]), columns.numbers["ts"]
            newest = runs.newest(rows, ts)
            late = newest - ts > self._settings.lateness_s
            if not late.any():
                break
            too_late[kept[late]] = True
            judged[kept[late]] = False
            # The same id may come once more in this batch; it is judged as it would be in the next one.
            twins = np.flatnonzero(~judged & ~too_late & np.isin(ids, ids[kept[late]]))
            judged[twins[first_of(ids[twins])]] = True
        if too_late.any():
            # They may be sent again, to be judged otherwise; then they are no duplicates.
            self.seen.forgive(np.setdiff1d(ids[too_late], ids[judged]))
            limit = f"more than engine.lateness_s ({self._settings.lateness_s:.0f} s) behind its run's newest"
            self._turn_away(whole, too_late, Reason.LATE, f"the event is out of order, {limit}", result)
        again = ~judged & ~too_late
        self._turn_away(whole, again, Reason.DUPLICATE, "an event with this id was seen before", result)
        return columns, kept, rows, newest

    # ----------------------------------------------------------------------------- saved state

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Scopes whose entities have rows here."""
        return tuple(self._entities)

    @property
    def detectors(self) -> Mapping[str, Detector]:
        """The detectors at work, by name."""
        return self._detectors

    def changed(self, scope: Scope) -> Ints:
        """Rows whose state differs from what it was when this was asked before, ascending."""
        return self._entities[scope].changed()

    def all_changed(self) -> None:
        """All state is to be saved anew."""
        for entities in self._entities.values():
            entities.all_changed()
        self.seen.all_changed()

    def rows(self, scope: Scope) -> int:
        """Rows ever given out to entities of a scope."""
        return self._entities[scope].rows

    def dump(self, scope: Scope, rows: Ints) -> SavedRows:
        """The state of rows (k,)."""
        return SavedRows(
            rows.astype("<i4").tobytes(),
            self._entities[scope].dump(rows),
            {name: detector.dump(rows) for name, detector in self._of(scope).items()},
            self._trees.dump(rows) if scope is Scope.ROOT and self._trees is not None else [],
        )

    def load(self, scope: Scope, saved: SavedRows, most: int, anew: Collection[str] = ()) -> Ints:
        """Takes what `dump` gave into the same rows of an engine that has seen nothing yet; gives the rows.

        What was saved by detectors that are not at work is left out; a detector that saved nothing begins anew.

        Args:
            most: Rows there are in all.
            anew: Detectors whose saved state is not to be used.

        Raises:
            StateError: it is damaged, or of another version.
        """
        rows = np.frombuffer(saved.rows, "<i4").astype(np.int64)
        if not len(rows) or rows[0] < 0 or rows[-1] >= most or (np.diff(rows) <= 0).any():
            raise StateError("the numbers of saved rows are damaged")
        self._entities[scope].load(rows, saved.entities)
        for name, detector in self._of(scope).items():
            detector.reserve(int(rows.max(initial=-1)) + 1)
            page = None if name in anew else saved.detectors.get(name)
            if page is None:
                # Not `forget`: there a detector may learn from what ends.
                for table in detector.tables.values():
                    table.clear(rows)
            else:
                detector.load(rows, page)
        if self._trees is not None and saved.trees:
            self._trees.load(rows, saved.trees)
        return rows

    def _of(self, scope: Scope) -> dict[str, Detector]:
        return {name: detector for name, detector in self._detectors.items() if detector.spec.scope is scope}

    def time(self) -> SavedTime:
        """What is known of the stream's time."""
        latest = {scope.value: rows.tolist() for scope, rows in self._latest.items()}
        return SavedTime(self._clock, self._tail.tolist(), latest)

    def loaded(self, time: SavedTime) -> None:
        """All rows have been loaded.

        Raises:
            StateError: the time is damaged.
        """
        if len(time.tail) != len(self._tail) or set(time.latest) != {scope.value for scope in self._entities}:
            raise StateError("the saved time of the stream is damaged")
        for scope, entities in self._entities.items():
            entities.loaded()
            if not all(0 <= row < entities.rows for row in time.latest[scope.value]):
                raise StateError("the saved time of the stream is damaged")
        self._clock, self._tail = time.clock, np.array(time.tail)
        self._latest = {scope: np.array(time.latest[scope.value], np.int64) for scope in self._entities}

    def _turn_away(self, columns: Columns, which: Any, reason: Reason, detail: str, result: Result) -> None:
        for i in np.flatnonzero(which).tolist():
            where = self._name_of(int(columns.numbers["source"][i]), int(columns.numbers["position"][i]))
            result.rejects.append(Reject(reason, detail, where, event_id=columns.texts.at("event_id", i)))


def configured(settings: Settings) -> dict[str, Detector]:
    """A fresh detector of every kind that is switched on."""
    found = {name: (cls, detector_config(settings, name)) for name, cls in detectors.registered().items()}
    return {name: cls(config) for name, (cls, config) in found.items() if config.enabled}


_IDS = {Scope.RUN: "run", Scope.AGENT: "sender", Scope.ROOT: "root"}
"""Which column tells the entities of a scope apart."""


def _median_of_five(a: Floats, b: Floats, c: Floats, d: Floats, e: Floats) -> Floats:
    """(n,) medians of five values each, by a network of comparisons."""
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    median: Floats = np.maximum(np.minimum(e, low), np.minimum(np.maximum(e, low), high))
    return median


_SEEN, _FORGIVEN = 0, 1
_WORN = 10_000

Noted: TypeAlias = tuple[Hashes, NDArray[np.uint8]]
"""Ids (n,), and what is known of each (n,)."""


class SavedRows(msgspec.Struct, array_like=True):
    """State of rows of one scope.

    Attributes:
        rows: Their numbers, 32 bits each.
        entities: Of the engine's own table.
        detectors: Name -> page of `Detector.dump`.
        trees: Of each row, where the scope is that of trees.
    """

    rows: bytes
    entities: TablePage
    detectors: dict[str, bytes]
    trees: list[msgspec.Raw]


class SavedTime(msgspec.Struct, array_like=True):
    """The stream's clock, and what it is made of."""

    clock: float
    tail: list[float]
    latest: dict[str, list[int]]


class RecentIds:
    """The latest ids, by their hashes: at least `size` of them, at most twice as many, in two generations.

    Ids are only ever added to the young generation, so what is new since it was last saved is easily told.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._young, self._old = SlotMap(), SlotMap()
        self.generation = 0
        """Number of the young generation; the old one has the number before."""
        self._new: dict[int, list[Noted]] = {}
        self._noted: dict[int, int] = {}

    def changed(self) -> dict[int, Noted]:
        """Generation -> ids that it has gained, or knows otherwise, since this was asked before, in order."""
        new, self._new = self._new, {}
        return {
            generation: (np.concatenate([ids for ids, _ in parts]), np.concatenate([what for _, what in parts]))
            for generation, parts in new.items()
        }

    @property
    def worn(self) -> bool:
        """Whether what was told by `changed` is much more than what is known: ids were forgiven again and again."""
        return max(self._noted.values(), default=0) > 3 * self._size + _WORN

    def all_changed(self) -> None:
        """All ids are to be saved anew."""
        self._new, self._noted = {}, {}
        for generation, slots in ((self.generation - 1, self._old), (self.generation, self._young)):
            ids = slots.ids()
            for what in (_SEEN, _FORGIVEN):
                self._note(generation, ids[slots.find(ids) == what], what)

    def load(self, generation: int, young: Noted, old: Noted) -> None:
        """Takes in saved generations, before any id."""
        self.generation = generation
        self._young, self._old = SlotMap(), SlotMap()
        for number, slots, (ids, what) in ((generation, self._young, young), (generation - 1, self._old, old)):
            # Of an id that was noted several times the last one counts.
            last, at = np.unique(ids[::-1], return_index=True)
            slots.add(last, what[::-1][at].astype(np.int64))
            self._noted[number] = len(ids)

    def add(self, ids: Hashes) -> Bools | None:
        """Remembers ids; (n,) true where an id was not known, or None if none was known."""
        if not len(ids):
            return None
        parts: list[Bools] = []
        low = 0
        while low < len(ids):
            # A generation ends with the very id that fills it, wherever batches are cut.
            part = ids[low : low + self._size - len(self._young)]
            parts.append(self._add(part))
            low += len(part)
            if len(self._young) >= self._size:
                self._young, self._old = self._old, self._young
                self._young.clear()
                self.generation += 1
                self._new.pop(self.generation - 2, None)
                self._noted.pop(self.generation - 2, None)
        first = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return None if first.all() else first

    def _add(self, ids: Hashes) -> Bools:
        here = first_of(ids)
        young, old = self._young.find(ids), self._old.find(ids)
        fresh = here & (young < 0)
        if fresh.all():  # as nearly always
            self._remember(ids.copy())  # what is noted must not hold on to the batch
            unseen: Bools = old != _SEEN
            return unseen
        self._remember(ids[fresh])
        forgiven = ids[here & (young == _FORGIVEN)]
        self._young.put(forgiven, np.full(len(forgiven), _SEEN))
        self._note(self.generation, forgiven, _SEEN)
        known: Bools = (young == _SEEN) | ((young < 0) & (old == _SEEN))
        return here & ~known

    def _remember(self, ids: Hashes) -> None:
        # Of the old generation nothing is taken over: what is known twice would fill the new one.
        self._young.add(ids, np.full(len(ids), _SEEN))
        self._note(self.generation, ids, _SEEN)

    def forgive(self, ids: Hashes) -> None:
        """Known ids that may come once more. They still count: where batches are cut must not matter."""
        for generation, number in ((self._young, self.generation), (self._old, self.generation - 1)):
            there = ids[generation.find(ids) >= 0]
            generation.put(there, np.full(len(there), _FORGIVEN))
            self._note(number, there, _FORGIVEN)

    def _note(self, generation: int, ids: Hashes, what: int) -> None:
        if len(ids):
            self._new.setdefault(generation, []).append((ids, np.full(len(ids), what, np.uint8)))
            self._noted[generation] = self._noted.get(generation, 0) + len(ids)


class _Trees:
    """Which runs a tree has, and how deep they lie below its root; one tree per row of Scope.ROOT."""

    def __init__(self) -> None:
        self._depths: dict[int, dict[str, int]] = {}
        # Where runs lie, by their rows: no new knowledge, but what is asked most, without a look at texts.
        self._lies = Table({"root": (np.int64, -1), "age": (np.int64, 0), "depth": (np.int64, 0)})
        # By rows of trees: how often a tree began anew or forgot runs, and how many it has.
        self._of = Table({"age": (np.int64, 0), "runs": (np.int64, 0)})

    def place(self, columns: Columns, roots: Entity, runs: Entity) -> tuple[NDArray[np.bool_], Ints]:
        """(n,) whether each event brings a run into its tree, and (n,) the depth of that run, or of its own."""
        n = len(columns)
        spawned = np.zeros(n, bool)
        kind, row, lies, of = columns.numbers["kind"], roots.row, self._lies, self._of
        lies.reserve(int(runs.row.max()) + 1)
        of.reserve(int(row.max()) + 1)
        lies["root"][runs.row[runs.new]] = -1
        depth = lies["depth"][runs.row]
        # An event of a run that has its place changes nothing, unless it may set another one going.
        open_ = (lies["root"][runs.row] != row) | (lies["age"][runs.row] != of["age"][row])
        open_ |= (kind == _REACHES[0]) | (kind == _REACHES[1])
        # Of trees that begin, or may forget some of their runs now, all events are looked at.
        added = 2 * open_.sum()
        if (of["runs"][row] + added > _RUNS_KEPT).any():
            added = 2 * np.bincount(row[open_], minlength=of.rows)[row]
        unsteady = roots.new | (of["runs"][row] + added > _RUNS_KEPT)
        if unsteady.any():
            whole = np.zeros(of.rows, bool)
            whole[row[unsteady]] = True
            open_ |= whole[row]
        chosen = open_.nonzero()[0]
        if len(chosen):
            self._look(columns, chosen, roots, runs.row, spawned, depth)
        return spawned, depth

    def _look(
        self, columns: Columns, chosen: Ints, roots: Entity, runs: Ints, spawned: NDArray[np.bool_], depth: Ints
    ) -> None:
        text = columns.texts.at
        events = zip(
            chosen.tolist(),
            roots.row[chosen].tolist(),
            roots.new[chosen].tolist(),
            columns.texts.take(chosen)["run_id"],
            columns.numbers["kind"][chosen].tolist(),
            strict=True,
        )
        age_of = dict(zip(roots.row[chosen].tolist(), self._of["age"][roots.row[chosen]].tolist(), strict=True))
        ages, owns = [], []
        for i, row, new, name, what in events:
            run = _short(name)
            if new:
                self._depths[row] = {_short(text("root_run_id", i)): 0}
                age_of[row] += 1
            tree = self._depths[row]
            own = tree.get(run)
            if own is None:
                # A run of unknown origin is no evidence of spawning: services put all their sessions
                # under one root.
                parent = text("parent_run_id", i)
                own = tree[run] = tree.get(_short(parent), 0) + 1
                spawned[i] = bool(parent)
            depth[i] = own
            child = _short(text("to_run_id", i)) if what in _REACHES else ""
            if child and child not in tree:
                # Who is written to is set going, but handing on is no descent: it ends at the third level.
                tree[child] = depth[i] = own + 1 if what == Kind.SPAWN else max(own, min(own + 1, _HANDED_ON))
                spawned[i] = True
            ages.append(age_of[row])
            owns.append(own)
            if len(tree) > _RUNS_KEPT:
                root = next(iter(tree))
                self._depths[row] = {root: 0} | dict(islice(tree.items(), len(tree) // 2, None))
                age_of[row] += 1
        rows = runs[chosen]
        # Of several events of one run the last one stays.
        self._lies["root"][rows], self._lies["age"][rows], self._lies["depth"][rows] = roots.row[chosen], ages, owns
        trees = list(age_of)
        self._of["age"][trees] = list(age_of.values())
        self._of["runs"][trees] = [len(self._depths[row]) for row in trees]

    def forget(self, rows: Ints) -> None:
        """The trees of these rows are gone."""
        for row in rows.tolist():
            self._depths.pop(row, None)
        known = rows[rows < self._of.rows]
        self._of["age"][known] += 1
        self._of["runs"][known] = 0

    def dump(self, rows: Ints) -> list[msgspec.Raw]:
        """The trees of these rows."""
        return [msgspec.Raw(msgspec.msgpack.encode(self._depths.get(row))) for row in rows.tolist()]

    def load(self, rows: Ints, saved: Sequence[msgspec.Raw]) -> None:
        """Takes what `dump` gave.

        Raises:
            StateError: it is damaged.
        """
        try:
            trees = [_decode_tree(raw) for raw in saved]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("a saved tree is damaged") from error
        if len(trees) != len(rows):
            raise StateError("saved trees are damaged: there are more or fewer than rows")
        self._of.reserve(int(rows.max(initial=-1)) + 1)
        self._of["runs"][rows] = [len(tree or ()) for tree in trees]
        for row, tree in zip(rows.tolist(), trees, strict=True):
            if tree is None:
                self._depths.pop(row, None)
            else:
                self._depths[row] = tree


def _short(run: str) -> str:
    """The name of a run in its tree: with long ones the state of a tree would outgrow a record."""
    return run if len(run) <= _NAME_CHARS else hashlib.blake2b(run.encode(errors="replace"), digest_size=16).hexdigest()


_decode_tree = msgspec.msgpack.Decoder(dict[str, int] | None).decode
