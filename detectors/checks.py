"""What must hold for every detector: one function per check, on made-up streams.

The contract tests run all checks on all registered detectors. A detector that cannot pass one names it in
`Spec.waived`, with the reason.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import math
import random
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Detector, StateError
from detectors.types import SEVERITIES, Entity, EventBatch, Finding, Finish, Ints, Kind, Scope, ToolKind, finding_id

Check: TypeAlias = Callable[[type[Detector]], None]

START = 1_750_000_000.0
"""Event time at which made-up streams begin, s."""

LATE_S = 900.0
"""How far an event may lie behind its entity's newest: the engine's default lateness."""

_SEEDS = (1, 2, 3)
_HUGE = 10**14
"""The most tokens (thousandths) and cost (nano-dollars) that ingest lets through in one event."""
_EVIDENCE_BYTES = 2048


def all_checks() -> tuple[Check, ...]:
    """Every check of this module, in the order in which they are written."""
    return tuple(value for name, value in globals().items() if name.startswith("check_"))


# --------------------------------------------------------------------------------- made-up batches


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a made-up stream. Texts stand for what gets hashed; "" was not observed."""

    ts: float = START
    kind: Kind = Kind.TOOL
    agent: str = "agent"
    run: str = "run"
    root: str = "task"
    to: str = ""
    tool: str = ""
    signature: str = ""
    result: str = ""
    empty: bool = False
    tool_kind: ToolKind = ToolKind.UNKNOWN
    target: str = ""
    error: str = ""
    round: str = ""
    failed: bool = False
    http_status: int = 0
    finish: Finish = Finish.UNKNOWN
    model: str = ""
    group: str = ""
    input: int = -1
    cached: int = -1
    output: int = -1
    tokens: int = 0
    """Effective tokens, in thousandths."""
    cost: int = 0
    """Nano-dollars."""
    spawned: bool = False
    depth: int = 0


def batch_of(events: Iterable[Event]) -> EventBatch:
    """The events as a batch with read-only columns and an entity per run, agent and root run.

    Rows are given out in order of appearance, `new` is set where an entity appears, totals are its sums.
    """
    rows = list(events)

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return _frozen([getattr(event, name) for event in rows], dtype)

    def hashes(name: str) -> NDArray[Any]:
        return _frozen([_hash(getattr(event, name)) for event in rows], np.uint64)

    return EventBatch(
        event_id=tuple(f"e{i}" for i in range(len(rows))),
        agent_id=tuple(event.agent for event in rows),
        run_id=tuple(event.run for event in rows),
        root_run_id=tuple(event.root for event in rows),
        to_agent_id=tuple(event.to for event in rows),
        tool=tuple(event.tool for event in rows),
        ts=column("ts", np.float64),
        kind=column("kind", np.uint8),
        failed=column("failed", np.bool_),
        http_status=column("http_status", np.int16),
        error=hashes("error"),
        finish=column("finish", np.uint8),
        signature=hashes("signature"),
        result=hashes("result"),
        empty=column("empty", np.bool_),
        tool_id=hashes("tool"),
        tool_kind=column("tool_kind", np.uint8),
        target=hashes("target"),
        round=hashes("round"),
        sender=hashes("agent"),
        receiver=hashes("to"),
        model=hashes("model"),
        group=hashes("group"),
        input=column("input", np.int64),
        cached=column("cached", np.int64),
        output=column("output", np.int64),
        tokens=column("tokens", np.int64),
        cost=column("cost", np.int64),
        spawned=column("spawned", np.bool_),
        depth=column("depth", np.int64),
        entities={
            Scope.RUN: _entity([(event.agent, event.run) for event in rows], rows),
            Scope.AGENT: _entity([event.agent for event in rows], rows),
            Scope.ROOT: _entity([event.root for event in rows], rows),
        },
    )


def _entity(keys: Sequence[Any], events: Sequence[Event]) -> Entity:
    row_of: dict[Any, int] = {}
    spent: dict[Any, tuple[int, int]] = {}
    new, tokens, cost = [], [], []
    for key, event in zip(keys, events, strict=True):
        new.append(key not in row_of)
        row_of.setdefault(key, len(row_of))
        before = spent.get(key, (0, 0))
        spent[key] = (before[0] + event.tokens, before[1] + event.cost)
        tokens.append(spent[key][0])
        cost.append(spent[key][1])
    row = [row_of[key] for key in keys]
    return Entity(_frozen(row, np.int64), _frozen(new, np.bool_), _frozen(tokens, np.int64), _frozen(cost, np.int64))


def _frozen(values: Sequence[Any], dtype: Any) -> NDArray[Any]:
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") if text else 0


def _take(batch: EventBatch, chosen: Ints) -> EventBatch:
    """Copies of the events at these positions."""
    columns: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "entities"}
    for name, column in columns.items():
        columns[name] = column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen.tolist()]
    entities = {
        scope: Entity(e.row[chosen], e.new[chosen], e.tokens[chosen], e.cost[chosen])
        for scope, e in batch.entities.items()
    }
    return EventBatch(**columns, entities=entities)


def _with_entity(batch: EventBatch, scope: Scope, **columns: Any) -> EventBatch:
    """The batch with other columns in one entity view; whatever else a detector reads is left out."""
    return replace(batch, entities={scope: replace(batch.entities[scope], **columns)})


# --------------------------------------------------------------------------------- made-up streams
#
# A run is a sequence of phases; a phase yields (seconds since the event before, event).

Phase: TypeAlias = Iterator[tuple[float, Event]]


def _work(rng: random.Random, like: Event) -> Phase:
    for _ in range(rng.randint(3, 12)):
        kind = rng.choice((Kind.LLM, Kind.LLM, Kind.TOOL, Kind.TOOL, Kind.COMPACTION, Kind.OUTCOME))
        event = replace(like, kind=kind, tokens=rng.randint(0, 3_000_000), cost=rng.randint(0, 20_000_000))
        if kind is Kind.TOOL:
            event = replace(event, tool="read", signature=f"read {rng.random()}", failed=rng.random() < 0.1)
        yield rng.expovariate(1 / 10), replace(event, result=f"result {rng.random()}")


def _same_call(rng: random.Random, like: Event) -> Phase:
    call = replace(like, tool="search", signature="search x", result=rng.choice(("nothing", "")), tokens=40_000)
    gap = rng.choice((0.0, 2.0, 45.0, 90.0))
    for _ in range(rng.randint(3, 9)):
        yield gap, call


def _same_failure(rng: random.Random, like: Event) -> Phase:
    call = replace(like, tool="write", signature="write y", failed=True, cost=3_000_000)
    for _ in range(rng.randint(3, 14)):
        yield rng.choice((1.0, 70.0)), replace(call, result=f"error {rng.random()}")


def _cycle(rng: random.Random, like: Event) -> Phase:
    calls = [replace(like, tool="edit", signature=f"edit {i}", result="same") for i in range(rng.randint(2, 5))]
    for _ in range(rng.randint(2, 7)):
        for call in calls:
            yield rng.uniform(0, 5), call


def _one_round(rng: random.Random, like: Event) -> Phase:
    call = replace(like, tool="search", signature="search x", result="nothing", round=f"round {rng.random()}")
    for _ in range(rng.randint(2, 8)):
        yield 0.0, call


def _same_words(rng: random.Random, like: Event) -> Phase:
    said = rng.choice((replace(like, kind=Kind.LLM, result="ok"), replace(like, kind=Kind.MESSAGE, signature="ok")))
    for _ in range(rng.randint(3, 10)):
        yield rng.uniform(0, 20), replace(said, tokens=500_000, cost=1_000_000)


def _refused(rng: random.Random, like: Event) -> Phase:
    for _ in range(rng.randint(5, 40)):
        yield rng.uniform(0, 5), replace(like, kind=Kind.LLM, failed=True, http_status=rng.choice((0, 429, 500)))


def _burst(rng: random.Random, like: Event) -> Phase:
    for _ in range(rng.randint(5, 15)):
        tokens = rng.randint(1, 9) * 10**9
        yield rng.uniform(0, 60), replace(like, kind=Kind.LLM, tokens=tokens, cost=tokens, result=f"{rng.random()}")


def _fan_out(rng: random.Random, like: Event) -> Phase:
    gap, depth = rng.choice((0.01, 0.5, 5.0)), rng.choice((1, 1, 2))
    for _ in range(rng.randint(10, 200)):
        yield gap, replace(like, kind=Kind.SPAWN, spawned=True, depth=depth)


def _descent(rng: random.Random, like: Event) -> Phase:
    for depth in range(1, rng.randint(4, 11)):
        yield rng.uniform(0, 5), replace(like, kind=Kind.SPAWN, spawned=True, depth=depth)


def _growth(rng: random.Random, like: Event) -> Phase:
    for depth in range(1, rng.randint(4, 6)):
        for _ in range(3**depth):
            yield 5.0 / 3**depth, replace(like, kind=Kind.SPAWN, spawned=True, depth=depth)


def _talk(rng: random.Random, like: Event) -> Phase:
    other = replace(like, agent=f"{like.agent}'s friend", to=like.agent)
    words = rng.choice((2, 5, 10_000))
    for i in range(rng.randint(8, 45)):
        speaker = other if i % 2 else replace(like, to=other.agent)
        yield rng.uniform(0, 10), replace(speaker, kind=Kind.MESSAGE, signature=f"words {rng.randrange(words)}")


def _unobserved(rng: random.Random, like: Event) -> Phase:
    for _ in range(rng.randint(3, 12)):
        yield 1.0, replace(like, kind=rng.choice(list(Kind)))


# What a stuck run does, one run each; texts are numbered by how far it has come.


def _again(i: int) -> Event:
    return Event(tool="read", signature="read log", result="empty log") if i % 2 else _new(i)


def _new(i: int) -> Event:
    return Event(tool="read", tool_kind=ToolKind.READ, signature=f"read {i}", result=f"result {i}")


def _same_error(i: int) -> Event:
    return Event(tool="send", signature=f"send {i}", result=f"no route {i}", failed=True, error="no route")


def _all_fails(i: int) -> Event:
    return Event(tool=f"tool {i % 3}", signature=f"call {i}", result=f"error {i}", failed=True, error=f"error {i}")


def _stagnant(i: int) -> Event:
    return Event(tool="search", tool_kind=ToolKind.READ, signature=f"search {i}", result="nothing")


def _nothing_new(i: int) -> Event:
    page = i if i < 45 else 7 * i % 45
    return Event(tool="read", tool_kind=ToolKind.READ, signature=f"page {page}", result=f"text {page}")


def _sweep(i: int) -> Event:
    return replace(_new(i % 30), target="book")


def _cut_off(i: int) -> Event:
    return Event(kind=Kind.LLM, result=f"part {i}", finish=Finish.TRUNCATED)


def _compacted(i: int) -> Event:
    return Event(kind=Kind.COMPACTION)


def _equal_steps(i: int) -> Event:
    return Event(kind=Kind.LLM, input=5000 + 700 * i, output=90)


_STUCK = (
    (_again, 25),
    (_same_error, 14),
    (_all_fails, 14),
    (_stagnant, 14),
    (_nothing_new, 150),
    (_sweep, 80),
    (_cut_off, 7),
    (_compacted, 7),
    (_equal_steps, 24),
)


def _stuck(rng: random.Random) -> Iterator[Event]:
    for n, (what, times) in enumerate(_STUCK):
        at = START + rng.uniform(0, 3000)
        for i in range(times):
            at += rng.uniform(0, 6)
            event = replace(what(i), ts=at, agent=f"stuck {n}", run=f"stuck {n}", root=f"stuck task {n}")
            yield replace(event, tokens=rng.randint(0, 9000) * 1000, cost=rng.randint(0, 10**7))


def _meetings() -> Iterator[Event]:
    """Agents that only talk: three in a circle, six along a path that is long in coming round, four side by side."""
    for names in ("abc", "abcdefacebdf"):
        for i in range(150):
            speaker, listener = (f"member {names[k % len(names)]}" for k in (i, i + 1))
            like = Event(kind=Kind.MESSAGE, agent=speaker, run=speaker, root=f"meeting of {names}", to=listener)
            if speaker != listener:
                yield replace(like, ts=START + 20 * i, signature=f"{names} {i}", tokens=300_000, cost=10**6)
    for i in range(200):
        speaker, listener = (f"member {name}" for name in ("ab", "cd", "bc", "da")[i % 4])
        like = Event(kind=Kind.MESSAGE, agent=speaker, run=speaker, root="talks side by side", to=listener)
        yield replace(like, ts=START + 3 * i, signature=f"aside {i}", tokens=300_000, cost=10**6)


_PHASES = (
    _work,
    _same_call,
    _same_failure,
    _cycle,
    _one_round,
    _same_words,
    _refused,
    _burst,
    _fan_out,
    _descent,
    _growth,
    _talk,
    _unobserved,
)


def _steady_then_not(before: int) -> Iterator[Event]:
    """An agent that after some minutes of even use burns a hundredfold, calms down and does it again."""
    like = Event(agent="steady", kind=Kind.LLM, cost=50_000_000)
    for minute in range(before + 160):
        run = f"steady {minute // 50}"
        at = START + 60 * (minute - before)
        burns = minute - before in (0, 1, 2, 3, 90, 91, 92)
        for second in range(0, 60, 10) if burns else (0,):
            tokens = (2_000_000 if burns else 20_000 + minute % 7 * 1000) * 1000
            yield replace(like, ts=at + second, run=run, root=run, tokens=tokens, result=f"{minute} {second}")


DAY = 1600
"""Minutes after which an agent has a range of its own, though some of its events come late."""


def mixed(seed: int, *, late: float = 0.05, history: int = 60) -> list[Event]:
    """A random stream in which much goes wrong, in random order and at random times.

    Args:
        late: Share of the events that come up to `LATE_S` too late.
        history: Minutes of even use that one of the agents has behind it.
    """
    rng = random.Random(seed)  # noqa: S311 - made-up data
    events = list(_steady_then_not(history))
    for i in range(14):
        like = Event(agent=f"agent {i % 7}", run=f"run {i % 11}", root=f"task {i % 6}")
        at = START + rng.uniform(0, 3000)
        for phase in [_work, *rng.sample(_PHASES, 5)]:
            for gap, event in phase(rng, like):
                at += gap
                events.append(replace(event, ts=at))
    events += _stuck(random.Random(seed))  # noqa: S311 - made-up data
    events += _meetings()
    arrival = [event.ts + (rng.uniform(0, LATE_S) if rng.random() < late else 0.0) for event in events]
    return [events[i] for i in sorted(range(len(events)), key=arrival.__getitem__)]


def healthy(seed: int) -> list[Event]:
    """Four hours of agents that do one thing a minute, never the same twice."""
    rng = random.Random(seed)  # noqa: S311 - made-up data
    events = []
    for i in range(6):
        like = Event(agent=f"agent {i}", run=f"run {i}", root=f"task {i % 3}")
        for minute in range(240):
            # A context that has just been compacted has room for a while.
            kind = Kind.COMPACTION if minute % 30 == 29 else rng.choice([k for k in Kind if k is not Kind.COMPACTION])
            event = replace(like, kind=kind, ts=START + 60 * minute + rng.uniform(0, 50))
            event = replace(event, tokens=rng.randint(500, 5000) * 1000, cost=rng.randint(1, 9) * 10**6)
            text = f"{i} {minute}"
            if event.kind is Kind.TOOL:
                event = replace(event, tool="read", signature=f"read {text}")
            elif event.kind is Kind.MESSAGE:
                event = replace(event, signature=text, to=f"agent {(i + rng.randint(1, 5)) % 6}")
            elif event.kind is Kind.SPAWN:
                event = replace(event, spawned=True, depth=1)
            events.append(replace(event, result=f"result {text}"))
    return sorted(events, key=lambda event: event.ts)


# ------------------------------------------------------------------------------------------- tools


def _make(cls: type[Detector]) -> Detector:
    return cls(cls.Config())


def _batch(cls: type[Detector], events: Iterable[Event]) -> EventBatch:
    """The events with the one entity view that the detector may read."""
    return _with_entity(batch_of(events), cls.spec.scope)


@functools.cache
def _mixed_batch(seed: int, history: int) -> EventBatch:
    return batch_of(mixed(seed, history=history))


def _sample(cls: type[Detector], seed: int, history: int = 60) -> EventBatch:
    return _with_entity(_mixed_batch(seed, history), cls.spec.scope)


def _samples(cls: type[Detector]) -> Iterator[EventBatch]:
    yield _sample(cls, _SEEDS[0], DAY)  # a long history takes long: one is enough
    for seed in _SEEDS[1:]:
        yield _sample(cls, seed)


def _run(detector: Detector, batches: Iterable[EventBatch]) -> list[Finding]:
    return [finding for batch in batches for finding in detector.update(batch)]


def _same(found: Sequence[Finding], expected: Sequence[Finding], what: str) -> None:
    mine, theirs = ({finding.id: finding for finding in findings} for findings in (found, expected))
    for id_ in sorted(mine.keys() | theirs.keys()):
        assert mine.get(id_) == theirs.get(id_), f"{what}: {mine.get(id_)} instead of {theirs.get(id_)}"
    assert list(found) == list(expected), f"{what}: the same findings in another order, or one twice"


def _random_cuts(rng: random.Random, n: int, pieces: int) -> list[int]:
    return sorted(rng.sample(range(1, n), min(pieces, n) - 1))


# ---------------------------------------------------------------------------------- order and cuts


def check_batch_cuts_do_not_matter(cls: type[Detector]) -> None:
    """However a stream is cut into batches, the findings are the same in all fields and in order."""
    for seed, batch in zip(_SEEDS, _samples(cls), strict=True):
        whole = _run(_make(cls), [batch])
        for pieces in (2, 7, 40):
            cuts = _random_cuts(random.Random(seed + pieces), len(batch), pieces)  # noqa: S311
            _same(_run(_make(cls), batch.cut(cuts)), whole, f"cut at {cuts}")


def check_one_event_at_a_time(cls: type[Detector]) -> None:
    """Batches of a single event give what one batch of all events gives."""
    batch = _sample(cls, _SEEDS[0])
    singles = batch.cut(range(1, len(batch)))
    _same(_run(_make(cls), singles), _run(_make(cls), [batch]), "one event at a time")


def check_empty_batch(cls: type[Detector]) -> None:
    """A batch without events finds nothing and changes nothing."""
    batch = _sample(cls, _SEEDS[0])
    empty, detector = _batch(cls, ()), _make(cls)
    assert list(detector.update(empty)) == [], "found something in an empty batch"
    half = len(batch) // 2
    first, second = batch.cut([half])
    _same(_run(detector, (first, empty, second)), _run(_make(cls), [batch]), "with an empty batch between")


def check_late_events(cls: type[Detector]) -> None:
    """Events out of order by up to 15 minutes, and many at one time, still give the same however they are cut."""
    for seed in _SEEDS:
        coarse = [replace(event, ts=event.ts // 60 * 60) for event in mixed(seed, late=0.5)]
        batch = _batch(cls, coarse)
        whole = _run(_make(cls), [batch])
        cuts = _random_cuts(random.Random(seed), len(batch), 20)  # noqa: S311
        _same(_run(_make(cls), batch.cut(cuts)), whole, f"late events, cut at {cuts}")
        _all_finite(whole)


def check_deterministic(cls: type[Detector]) -> None:
    """Two instances say the same about the same events."""
    for batch in _samples(cls):
        _same(_run(_make(cls), [batch]), _run(_make(cls), [batch]), "a second instance")


# ------------------------------------------------------------------------------------------- state


def check_restart_equals_no_restart(cls: type[Detector]) -> None:
    """A fresh instance goes on from dumped pages, loaded into other rows, as if nothing had happened."""
    scope = cls.spec.scope
    for seed, batch in zip(_SEEDS, _samples(cls), strict=True):
        rng = random.Random(seed)  # noqa: S311 - made-up data
        whole = _run(_make(cls), [batch])
        rows = np.unique(batch.entities[scope].row)
        moved = np.array(rng.sample(range(3 * len(rows)), len(rows)))
        shuffled = np.array(rng.sample(rows.tolist(), len(rows)))
        for cut in _random_cuts(rng, len(batch), 4):
            first, second = batch.cut([cut])
            before, after = _make(cls), _make(cls)
            found = _run(before, [first])
            shared = before.dump_shared()
            after.load_shared(shared)
            assert after.dump_shared() == shared, "shared state: what was loaded is not what is dumped again"
            for piece in np.array_split(shuffled, 4):
                page = before.dump(piece)
                after.load(moved[piece], page)
                assert after.dump(moved[piece]) == page, "what was loaded is not what is dumped again"
            found += _run(after, [_with_entity(second, scope, row=moved[second.entities[scope].row])])
            _same(found, whole, f"restart after {cut} events")


def check_unused_rows(cls: type[Detector]) -> None:
    """Rows that nobody has used yet can be dumped, loaded, reserved and forgotten: they are blank."""
    batch = _sample(cls, _SEEDS[0])
    used = np.arange(_n_rows(batch, cls))
    far = used + 5000
    detector = _make(cls)
    detector.forget(far)
    blank = detector.dump(far)
    detector.load(used, blank)
    detector.reserve(6000)
    assert detector.dump(far) == blank, "reserved rows are not blank"
    _same(_run(detector, [batch]), _run(_make(cls), [batch]), "after loading blank rows")


def check_foreign_state_is_refused(cls: type[Detector]) -> None:
    """A page of another detector, of another version or damaged raises StateError and changes nothing."""
    batch = _sample(cls, _SEEDS[0])
    detector = _make(cls)
    detector.update(batch)
    rows = np.arange(_n_rows(batch, cls))
    page, blank = detector.dump(rows), _make(cls).dump(rows)
    fresh = _make(cls)
    for what, bad in _bad_pages(page):
        assert _refuses(fresh, rows, bad), f"{what} is taken"
        assert fresh.dump(rows) == blank, f"{what} is refused, but changed the state"
    # Within the numbers damage cannot be seen; wherever it is, it must not lead to another error.
    rng = random.Random(_SEEDS[0])  # noqa: S311 - made-up data
    for _ in range(300):
        damaged = bytearray(page)
        damaged[rng.randrange(min(len(page), 400))] ^= 1 << rng.randrange(8)
        _refuses(fresh, rows, bytes(damaged))


def _refuses(detector: Detector, rows: Ints, page: bytes) -> bool:
    try:
        detector.load(rows, page)
    except StateError:
        return True
    return False


def _bad_pages(page: bytes) -> Iterator[tuple[str, bytes]]:
    encode = msgspec.msgpack.encode
    name, version, tables = msgspec.msgpack.decode(page)
    yield "a page of another detector", encode((f"not {name}", version, tables))
    yield "a page of an older version", encode((name, version - 1, tables))
    yield "a page of a newer version", encode((name, version + 1, tables))
    yield "a page without a version", encode((name, tables))
    yield "a page that is no page", encode({"name": name})
    yield "a number", encode(7)
    yield "no bytes", b""
    yield "a page with nothing in it", encode((name, version, None))
    yield "a page with a list in it", encode((name, version, [1]))
    yield "a page with another table", encode((name, version, tables | {"other": {}}))
    for share in (0.1, 0.5, 0.99):
        yield "a page cut short", page[: int(len(page) * share)]
    for table, columns in tables.items():
        yield "a page without a table", encode((name, version, {k: v for k, v in tables.items() if k != table}))
        for column, (kind, shape, raw) in columns.items():
            for what, other in (
                ("no values", None),
                ("other types", ("<f2", shape, raw)),
                ("more values", (kind, shape, raw + b"?")),
                ("another shape", (kind, [shape[0] + 1, *shape[1:]], raw)),
                ("no shape", (kind, 1, raw)),
                ("numbers for bytes", (kind, shape, 5)),
            ):
                changed = tables | {table: columns | {column: other}}
                yield f"a page with {what} for {table}.{column}", encode((name, version, changed))
        less = {k: v for k, v in columns.items() if k != next(iter(columns))}
        yield "a page without a column", encode((name, version, tables | {table: less}))


def _n_rows(batch: EventBatch, cls: type[Detector]) -> int:
    return int(batch.entities[cls.spec.scope].row.max()) + 1


def check_entities_do_not_influence_each_other(cls: type[Detector]) -> None:
    """What is found in an entity alone is what is found in it among all others."""
    for batch in _samples(cls):
        mix = _run(_make(cls), [batch])
        row = batch.entities[cls.spec.scope].row
        for one in np.unique(row).tolist():
            own = np.flatnonzero(row == one)
            ids = {batch.event_id[i] for i in own.tolist()}
            alone = _run(_make(cls), [_take(batch, own)])
            _same([f for f in mix if f.event_id in ids], alone, f"entity {one} among others")


def check_rows_are_reused(cls: type[Detector]) -> None:
    """A row behaves like a fresh one where an entity begins its life, and after `forget`."""
    scope = cls.spec.scope
    same = _batch(cls, [Event(ts=START + i, tool="read", signature="read x", result="nothing") for i in range(3)])
    for earlier, later in ((_sample(cls, _SEEDS[0]), _sample(cls, _SEEDS[1])), (same, same)):
        begun = _make(cls)
        begun.update(earlier)
        _same(_run(begun, [later]), _run(_make(cls), [later]), "rows that begin anew")
        unmarked = _with_entity(later, scope, new=np.zeros(len(later), bool))
        forgotten = _make(cls)
        forgotten.update(earlier)
        forgotten.forget(np.unique(earlier.entities[scope].row))
        _same(_run(forgotten, [unmarked]), _run(_make(cls), [unmarked]), "rows that were forgotten")


def check_memory_is_bounded(cls: type[Detector]) -> None:
    """More events of entities that have had plenty take no more memory."""
    events = mixed(_SEEDS[0])
    span = max(event.ts for event in events) - min(event.ts for event in events)
    more = [
        replace(
            event,
            ts=event.ts + again * span,
            signature=event.signature and f"{event.signature} {again}",
            result=event.result and f"{event.result} {again}",
        )
        for again in range(15)
        for event in events
    ]
    # Some state is opened by what an entity does for the first time, or for the tenth.
    plenty, longer = _make(cls), _make(cls)
    for detector, stream in ((plenty, more[: 10 * len(events)]), (longer, more)):
        batch = _batch(cls, stream)
        _run(detector, batch.cut(range(1000, len(batch), 1000)))
        _run(detector, [_batch(cls, ())])  # what is kept of the last batch, until it is reviewed, is no growth
    for name, table in plenty.tables.items():
        assert longer.tables[name].nbytes == table.nbytes, f"table {name} has grown"
    grown = _bytes_held(longer) - _bytes_held(plenty)
    assert grown < 4096, f"holds {grown} bytes more after half as many events again"


def _bytes_held(detector: Detector) -> int:
    """Bytes of everything reachable from the detector's attributes, code left out."""
    seen: set[int] = set()
    total = 0
    todo: list[Any] = [vars(detector)]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        todo += gc.get_referents(item)
        if isinstance(item, np.ndarray) and item.base is not None:
            todo.append(item.base)
    return total


# ------------------------------------------------------------------------------------------- input


def check_input_is_not_changed(cls: type[Detector]) -> None:
    """The columns given are left as they were, whether they can be written to or not."""
    for batch in _samples(cls):
        writable = _copied(batch)
        found = _run(_make(cls), [writable])
        for name, column in _columns(writable).items():
            assert np.array_equal(column, _columns(batch)[name]), f"column {name} was changed"
        _same(found, _run(_make(cls), [batch]), "read-only columns")


def _columns(batch: EventBatch) -> dict[str, Any]:
    columns = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "entities"}
    for scope, entity in batch.entities.items():
        columns |= {f"{scope}.{f.name}": getattr(entity, f.name) for f in fields(entity)}
    return columns


def _copied(batch: EventBatch) -> EventBatch:
    return _take(batch, np.arange(len(batch)))


def check_huge_values(cls: type[Detector]) -> None:
    """The largest amounts that ingest lets through neither raise, warn nor give numbers that are not finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in _SEEDS:
            rng = random.Random(seed)  # noqa: S311 - made-up data
            events = [
                replace(event, tokens=_HUGE, cost=_HUGE, depth=event.depth * 10**6) if rng.random() < 0.3 else event
                for event in mixed(seed)
            ]
            _all_finite(_run(_make(cls), [_batch(cls, events)]))


def check_unknown_is_never_a_repetition(cls: type[Detector]) -> None:
    """What was not observed never equals itself: events without any hash make no loop.

    Compactions are counted, not compared: many of them with nothing in between are a loop by themselves.
    """
    for kind in set(Kind) - {Kind.COMPACTION}:
        blind = [Event(ts=START + i, kind=kind, tool="search") for i in range(200)]
        found = _run(_make(cls), [_batch(cls, blind)])
        assert found == [], f"200 unobserved {kind.name} events: {found[0]}"


def check_quiet_on_healthy_traffic(cls: type[Detector]) -> None:
    """Agents that do something else every minute are left alone."""
    for seed in _SEEDS:
        found = _run(_make(cls), [_batch(cls, healthy(seed))])
        assert found == [], f"found in healthy traffic: {found[0]}"


# ---------------------------------------------------------------------------------------- findings


def check_findings_name_their_event(cls: type[Detector]) -> None:
    """A finding carries the id, the time and the entities of an event of the batch that led to it."""
    for batch in _samples(cls):
        detector = _make(cls)
        for part in batch.cut(range(100, len(batch), 100)):
            place = {event_id: i for i, event_id in enumerate(part.event_id)}
            for finding in detector.update(part):
                assert finding.event_id in place, f"{finding} is about no event of its batch"
                i = place[finding.event_id]
                event = (float(part.ts[i]), part.agent_id[i], part.run_id[i], part.root_run_id[i])
                assert (finding.ts, finding.agent_id, finding.run_id, finding.root_run_id) == event, f"{finding}"
                assert (finding.detector, finding.scope) == (cls.spec.name, cls.spec.scope), f"{finding}"


def check_finding_ids(cls: type[Detector]) -> None:
    """Ids follow from what is said, and a rule says something once per event and severity."""
    for batch in _samples(cls):
        found = _run(_make(cls), [batch])
        for finding in found:
            assert finding.severity in SEVERITIES, f"{finding}"
            said = (finding.detector, finding.rule, finding.severity, finding.event_id)
            assert finding.id == finding_id(*said), f"{finding} has an id of its own making"
        assert len({finding.id for finding in found}) == len(found), "two findings have one id"


def check_findings_are_plain_and_finite(cls: type[Detector]) -> None:
    """Scores lie in [0, 1], numbers are finite, everything is plain data, and evidence is small."""
    for batch in _samples(cls):
        found = _run(_make(cls), [batch])
        _all_finite(found)
        for finding in found:
            assert finding.unit, f"{finding} has no unit"
            try:
                msgspec.json.encode(finding)
            except TypeError as error:  # such as numbers of numpy
                raise AssertionError(f"{finding} is not plain data: {error}") from error
            size = len(msgspec.json.encode(finding.evidence))
            assert size < _EVIDENCE_BYTES, f"{finding} has {size} bytes of evidence"


def _all_finite(found: Iterable[Finding]) -> None:
    for finding in found:
        assert 0.0 <= finding.score <= 1.0, f"{finding}: score outside [0, 1]"
        for number in _numbers((finding.ts, finding.score, finding.observed, finding.expected, finding.evidence)):
            assert math.isfinite(number), f"{finding}: a number is not finite"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        yield from _numbers(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def check_reasons(cls: type[Detector]) -> None:
    """The reason is one sentence that names the agent or the task."""
    for batch in _samples(cls):
        for finding in _run(_make(cls), [batch]):
            reason = finding.reason
            assert reason.strip() == reason != "", f"{finding} has no reason"
            assert not re.search(r"[.!?]\s|\n", reason), f"more than one sentence: {reason}"
            assert finding.agent_id in reason or finding.root_run_id in reason, f"about whom? {reason}"


# --------------------------------------------------------------------------------------- documents


def check_docstring(cls: type[Detector]) -> None:
    """The docstring says when it fires, when it is quiet, in which units, with what state and by what source."""
    text = inspect.getdoc(cls) or ""
    assert text.splitlines()[:1] != [""], "the docstring begins with no summary"
    for section in ("Fires when", "Quiet when", "Units", "State", "Source"):
        assert re.search(rf"^{section}: \S", text, re.MULTILINE), f"the docstring has no section {section!r}"


def check_configuration(cls: type[Detector]) -> None:
    """Every setting but `enabled` says what it means, its unit and where its default comes from."""
    for name, info in cls.Config.model_fields.items():
        assert info.description, f"setting {name} has no description"
        assert not info.is_required(), f"setting {name} has no default"
        extra = info.json_schema_extra
        if name != "enabled":
            assert isinstance(extra, dict), f"setting {name} is not made by `setting`"
            assert extra.get("unit"), f"setting {name} has no unit"
            assert extra.get("source"), f"setting {name} has no source"


def check_waivers(cls: type[Detector]) -> None:
    """What is waived exists, and says why."""
    names = {check.__name__.removeprefix("check_") for check in all_checks()}
    for name, reason in cls.spec.waived.items():
        assert name in names, f"there is no check {name!r} to waive"
        assert reason.strip(), f"the waiver of {name} has no reason"
