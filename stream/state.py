"""Saved state: what a stage knows, as pages under keys, so that another process can go on from there.

A state is a log of pages in which the latest page of a key counts, as on a compacted topic. A checkpoint is the
pages that hold what has changed since the one before, and a *manifest* last: it says what the pages are, and how
far the stage's input has gone into them. A reader takes the pages in order and then the latest manifest; without
a manifest there is no state. This module knows nothing of Kafka: `stream.checkpoints` does.

Rows of entities are saved the way log-structured file systems save blocks: the rows that have changed go into new
pages, whichever they are; an older page that has lost half of its rows to newer ones is given up, and what is
left in it is written along. So a checkpoint costs what has changed, not what is known, there are at most twice as
many rows on the topic as there are, and a page is always large enough to be worth a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np

from detectors.base import StateError
from detectors.types import Ints, Scope
from stream.engine import Engine, Noted, RecentIds, SavedRows, SavedTime
from stream.errors import SavedStateError
from stream.incidents import Change, ChangeKind, Incident, Incidents, SavedIncident
from stream.sequencer import Offset, Position

FORMAT = 2
"""Version of what this module writes. Raise it with every change to `SavedRows`, `SavedTime`, `Position`, the
manifests, pages of tables, or the tables of `stream.entities`. Detectors have versions of their own."""

READ = (1, FORMAT)
"""Versions that can be read; a saved state of another one is refused. In version 1 no column leaves blanks out."""

MANIFEST = b"manifest"

PAGE_BYTES = 600_000
"""Pages are filled up to about so much."""
_MOST_BYTES = 900_000
"""The largest page; brokers take records of 1 MiB unless told otherwise."""
_ENOUGH_ROWS = 100
"""So many rows tell how large a row is on average."""
_SMALL_PAGES = 32
"""So many pages that are less than half full are merged into one."""
_IDS = 8192
"""A page of ids is filled up to so many."""
_MOST_PIECES = 10_000
_MOST_IDS = PAGE_BYTES // 9
_NONE: Noted = (np.empty(0, np.uint64), np.empty(0, np.uint8))

T = TypeVar("T")


class Page(NamedTuple):
    """A record of the state; without a value it says that the key is gone."""

    key: bytes
    value: bytes | None


def encode(content: Any) -> bytes:
    """A page's value: the version first."""
    return msgspec.msgpack.encode((FORMAT, content))


def decode(value: bytes, kind: type[T], name: str) -> T:
    """What `encode` was given.

    Args:
        name: Of the state, for people.

    Raises:
        SavedStateError: it is of another version, or damaged.
    """
    try:
        found, content = _decode_versioned(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(name) from error
    if found not in READ:
        raise SavedStateError(
            f"the saved state of {name} has format {found}, this version of burnfuse reads up to {FORMAT}: "
            "run the version that wrote it, or give the state up with `burnfuse state reset`"
        )
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(name) from error


_decode_versioned = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode


def damaged(name: str) -> SavedStateError:
    """The error for a state that cannot be read."""
    return SavedStateError(
        f"the saved state of {name} is damaged: nothing but burnfuse may write there; "
        "give the state up with `burnfuse state reset`"
    )


class Saved:
    """A state as it stands on its topic: the latest page of every key, in the order in which they were written."""

    def __init__(self) -> None:
        self.pages: dict[bytes, bytes] = {}

    def take(self, pages: Iterable[Page]) -> None:
        """These pages were written, in this order."""
        for key, value in pages:
            self.pages.pop(key, None)
            if value is not None:
                self.pages[key] = value

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(map(len, self.pages.values()))


# ------------------------------------------------------------------------------------ pages of rows


class RowPages:
    """Which page holds the latest state of each row."""

    def __init__(self) -> None:
        self._home = np.full(0, -1, np.int32)
        self._live: dict[int, int] = {}
        """Page -> how many rows have their latest state in it."""
        self._size: dict[int, int] = {}
        self._next = 0

    def renew(self, changed: Ints, full: int) -> tuple[Ints, list[int]]:
        """The rows to write now: those that have changed, and what is left of pages that are given up.

        Args:
            full: Rows of a full page.

        Returns:
            The rows, ascending, and the numbers of the pages that are given up.
        """
        if not len(changed):
            return changed, []
        self._leave(changed)
        given_up = [page for page, live in self._live.items() if 2 * live < self._size[page]]
        small = [page for page, live in self._live.items() if 2 * live < full]
        if len(small) >= _SMALL_PAGES:
            given_up = sorted({*given_up, *small})
        if not given_up:
            return changed, []
        rows: Ints = np.union1d(changed, np.flatnonzero(np.isin(self._home, given_up)))
        for page in given_up:
            del self._live[page], self._size[page]
        return rows, given_up

    def put(self, rows: Ints) -> int:
        """These rows are in a new page from now on; its number."""
        page, self._next = self._next, self._next + 1
        self.load(page, rows)
        return page

    def load(self, page: int, rows: Ints) -> None:
        """This page was read, after all that were written before it."""
        self._leave(rows)
        self._home[rows] = page
        self._live[page] = self._size[page] = len(rows)
        self._next = max(self._next, page + 1)

    def _leave(self, rows: Ints) -> None:
        more = int(rows.max(initial=-1)) + 1 - len(self._home)
        if more > 0:
            self._home = np.concatenate([self._home, np.full(max(more, len(self._home) // 2), -1, np.int32)])
        pages, counts = np.unique(self._home[rows], return_counts=True)
        for page, count in zip(pages.tolist(), counts.tolist(), strict=True):
            if page in self._live:
                self._live[page] -= count


# ------------------------------------------------------------------------------------- pages of ids


class IdPages:
    """Pages of remembered ids: the last page of a generation is filled up, full ones are never written again."""

    def __init__(self, ids: RecentIds, prefix: str) -> None:
        self._ids, self._prefix = ids, prefix
        self._last: dict[int, tuple[int, Noted]] = {}
        """Generation -> number of its last page, and what is in it."""
        self._loaded: dict[int, dict[int, Noted]] = {}

    def changes(self) -> Iterator[Page]:
        """Pages that hold what is new."""
        if self._ids.worn:
            self._ids.all_changed()
            yield from self.restart()
        for generation, (new, known) in self._ids.changed().items():
            number, (ids, what) = self._last.get(generation, (0, _NONE))
            ids, what = np.concatenate([ids, new]), np.concatenate([what, known])
            for low in range(0, len(ids), _MOST_IDS):
                piece = ids[low : low + _MOST_IDS], what[low : low + _MOST_IDS]
                raw = piece[0].astype("<u8").tobytes(), piece[1].tobytes()
                yield Page(self._key(generation, number), encode(raw))
                full = len(piece[0]) >= _IDS
                number += full
                self._last[generation] = number, _NONE if full else piece
        for generation in [g for g in self._last if g < self._ids.generation - 1]:
            last, _ = self._last.pop(generation)
            yield from (Page(self._key(generation, number), None) for number in range(last + 1))

    def restart(self) -> Iterator[Page]:
        """All ids are written anew: what there was is gone."""
        for generation, (last, _) in self._last.items():
            yield from (Page(self._key(generation, number), None) for number in range(last + 1))
        self._last = {}

    def _key(self, generation: int, number: int) -> bytes:
        return f"{self._prefix}/{generation}/{number}".encode()

    def load(self, generation: int, number: int, value: bytes, name: str) -> None:
        """Takes a page."""
        ids, what = decode(value, tuple[bytes, bytes], name)
        if len(ids) != 8 * len(what) or what.strip(b"\0\1"):
            raise damaged(name)
        page = np.frombuffer(ids, "<u8").astype(np.uint64), np.frombuffer(what, np.uint8)
        self._loaded.setdefault(generation, {})[number] = page

    def loaded(self, generation: int, name: str) -> None:
        """All pages have come; `generation` is the young one."""
        both: list[Noted] = []
        for which in (generation, generation - 1):
            pages = self._loaded.get(which, {})
            parts = [_NONE, *(pages[number] for number in sorted(pages))]
            both.append((np.concatenate([ids for ids, _ in parts]), np.concatenate([what for _, what in parts])))
            if pages:
                last = max(pages)
                full = len(pages[last][0]) >= _IDS
                self._last[which] = last + full, _NONE if full else pages[last]
        self._ids.load(generation, both[0], both[1])
        self._loaded = {}


# ------------------------------------------------------------------------------------ the manifests


class Origin(msgspec.Struct, frozen=True):
    """What must be the same for a state to be of use, and who wrote it.

    Attributes:
        topic: Topic whose partition the state belongs to.
        partitions: How many it has: with others, entities would lie elsewhere.
        hash_key: Fingerprint of the key that ids are hashed with.
        program: Version of burnfuse.
    """

    topic: str
    partitions: int
    hash_key: str = ""
    program: str = ""


def origin(topic: str, partitions: int, hash_key: str | None) -> Origin:
    """The origin of what this process writes."""
    fingerprint = hashlib.blake2b(b"fingerprint", key=(hash_key or "").encode(), digest_size=8).hexdigest()
    return Origin(topic, partitions, fingerprint, version("burnfuse"))


def _check_origin(saved: Origin, mine: Origin, name: str) -> None:
    """Whether a state can be used here.

    Raises:
        SavedStateError: it cannot.
    """
    for what, before, now in (
        ("topic", saved.topic, mine.topic),
        ("number of partitions", saved.partitions, mine.partitions),
        ("hash_key", saved.hash_key, mine.hash_key),
    ):
        if before != now:
            values = "" if what == "hash_key" else f" ({before}, now {now})"
            raise SavedStateError(
                f"the saved state of {name} was made with another {what}{values}: "
                "set it as it was, or give the state up with `burnfuse state reset`"
            )


class _Manifest(Protocol):
    @property
    def origin(self) -> Origin: ...


M = TypeVar("M", bound=_Manifest)


def manifest_of(saved: Saved, kind: type[M], mine: Origin, name: str) -> M | None:
    """What the pages of a saved state are; None: nothing is saved.

    Raises:
        SavedStateError: it cannot be used here.
    """
    value = saved.pages.get(MANIFEST)
    if value is None:
        return None
    manifest = decode(value, kind, name)
    _check_origin(manifest.origin, mine, name)
    return manifest


# One more fits as well: a number that is saved is counted on.
_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class DetectManifest(msgspec.Struct):
    """What a detect stage's pages are.

    Attributes:
        number: Of the checkpoint, from 1.
        at: When it was made, s since 1970.
        detectors: Name -> version of its state.
        shapes: Name -> settings that give its state its meaning.
        rows: Scope -> rows given out to its entities.
        shared: Name -> pages of its shared state.
        generation: Of remembered ids, the young one.
    """

    origin: Origin
    number: _Number
    at: float
    position: Position
    time: SavedTime
    detectors: dict[str, int]
    shapes: dict[str, str]
    rows: dict[str, Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]]
    shared: dict[str, Annotated[int, msgspec.Meta(ge=0, le=_MOST_PIECES)]]
    generation: _Number
    told_clock: float


def shapes(engine: Engine) -> dict[str, str]:
    """Detector -> the settings that give its saved state its meaning, as text."""
    found = {}
    for name, detector in engine.detectors.items():
        config = getattr(detector, "config", None)
        found[name] = ", ".join(f"{key}={getattr(config, key)!r}" for key in detector.spec.shaped_by)
    return found


# --------------------------------------------------------------------------- state of a detect stage


class DetectState:
    """Saves and restores an engine.

    Args:
        name: Of the partition, for people.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._rows = {scope: RowPages() for scope in engine.scopes}
        self._ids = IdPages(engine.seen, "ids")
        self._shared: dict[str, list[int]] = {}
        """Detector -> hash of each page of its shared state as it was saved."""
        self._shared_loaded: dict[str, dict[int, bytes]] = {}
        self._all = False
        self._number = 0
        self._sizes: dict[Scope, int] = {}
        """Bytes of a row, as of late."""

    def save_all(self) -> None:
        """The next checkpoint holds everything: the last one did not get through, or is of no use any more."""
        self._all = True

    def changes(self, manifest: Callable[[int, dict[str, int]], DetectManifest]) -> Iterator[Page]:
        """The pages of a checkpoint; all must be taken, while the engine is left alone.

        Args:
            manifest: Makes the manifest: given the checkpoint's number, and how many pages of shared state
                each detector has.
        """
        everything, self._all = self._all, False
        if everything:
            self._engine.all_changed()
            yield from self._ids.restart()
        for scope, pages in self._rows.items():
            yield from self._row_pages(scope, pages)
        yield from self._ids.changes()
        shared: dict[str, int] = {}
        for name, detector in list(self._engine.detectors.items()):
            pieces = _pieces(detector.dump_shared())
            before, now = ([] if everything else self._shared.get(name, [])), [hash(piece) for piece in pieces]
            for i, piece in enumerate(pieces):
                if i >= len(before) or before[i] != now[i]:
                    yield Page(f"shared/{name}/{i}".encode(), encode(piece))
            for i in range(len(now), len(self._shared.get(name, []))):
                yield Page(f"shared/{name}/{i}".encode(), None)
            self._shared[name] = now
            shared[name] = len(pieces)
        self._number += 1
        yield Page(MANIFEST, encode(manifest(self._number, shared)))

    def _row_pages(self, scope: Scope, pages: RowPages) -> Iterator[Page]:
        changed = self._engine.changed(scope)
        if scope not in self._sizes and len(changed):
            # With too many or too few rows in them the first pages would soon be written anew.
            some = changed[:: max(1, len(changed) // _ENOUGH_ROWS)]
            self._sizes[scope] = 1 + len(encode(self._engine.dump(scope, some))) // len(some)
        full = max(1, PAGE_BYTES // self._sizes.get(scope, PAGE_BYTES))
        rows, given_up = pages.renew(changed, full)
        written = 0
        for low in range(0, len(rows), full):
            for page in self._page(scope, pages, rows[low : low + full]):
                written += len(page.value or b"")
                yield page
        if len(rows) >= _ENOUGH_ROWS:
            self._sizes[scope] = 1 + written // len(rows)
        yield from (Page(_row_key(scope, page), None) for page in given_up)

    def _page(self, scope: Scope, pages: RowPages, rows: Ints) -> Iterator[Page]:
        value = encode(self._engine.dump(scope, rows))
        if len(rows) > 1 and len(value) > _MOST_BYTES:  # rows differ in size
            half = len(rows) // 2
            yield from self._page(scope, pages, rows[:half])
            yield from self._page(scope, pages, rows[half:])
            return
        yield Page(_row_key(scope, pages.put(rows)), value)

    # ------------------------------------------------------------------------------- restoring

    def load(self, key: bytes, value: bytes, manifest: DetectManifest, anew: Collection[str] = ()) -> None:
        """Takes a page, in the order of the log; the manifest is not one of them.

        Raises:
            SavedStateError: it cannot be used.
        """
        try:
            self._load(key, value, manifest, anew)
        except StateError as error:
            raise SavedStateError(
                f"the saved state of {self._name} cannot be used ({error}): "
                "run the version that wrote it, or give the state up with `burnfuse state reset`"
            ) from error

    def _load(self, key: bytes, value: bytes, manifest: DetectManifest, anew: Collection[str]) -> None:
        kind, *rest = key.decode(errors="replace").split("/")
        try:
            if kind == "rows":
                scope, number = Scope(rest[0]), int(rest[1])
                saved = decode(value, SavedRows, self._name)
                rows = self._engine.load(scope, saved, manifest.rows.get(scope.value, 0), anew)
                self._rows[scope].load(number, rows)
            elif kind == "ids":
                self._ids.load(int(rest[0]), int(rest[1]), value, self._name)
            elif kind == "shared":
                self._shared_loaded.setdefault(rest[0], {})[int(rest[1])] = decode(value, bytes, self._name)
            else:
                raise damaged(self._name)
        except (ValueError, KeyError, IndexError) as error:
            raise damaged(self._name) from error

    def finish(self, manifest: DetectManifest, anew: Collection[str] = ()) -> None:
        """All pages have come.

        Raises:
            SavedStateError: they are not what the manifest says.
        """
        try:
            for name, detector in self._engine.detectors.items():
                pieces = [self._shared_loaded.get(name, {}).get(i) for i in range(manifest.shared.get(name, 0))]
                whole = [piece for piece in pieces if piece is not None]
                if len(whole) < len(pieces):
                    raise damaged(self._name)
                if name not in anew:
                    detector.load_shared(b"".join(whole))
                self._shared[name] = [hash(piece) for piece in whole]
            self._ids.loaded(manifest.generation, self._name)
            self._engine.loaded(manifest.time)
        except StateError as error:
            raise SavedStateError(
                f"the saved state of {self._name} cannot be used ({error}): "
                "run the version that wrote it, or give the state up with `burnfuse state reset`"
            ) from error
        self._shared_loaded = {}
        self._number = manifest.number
        self._all = bool(anew)


def _row_key(scope: Scope, page: int) -> bytes:
    return f"rows/{scope.value}/{page}".encode()


def _pieces(data: bytes) -> list[bytes]:
    return [data[low : low + PAGE_BYTES // 2] for low in range(0, len(data), PAGE_BYTES // 2)]


def refuse_versions(saved: Mapping[str, int], engine: Engine, name: str) -> None:
    """Checks the versions of all detectors at once, before any page is looked at.

    Raises:
        SavedStateError: the state of a detector is of another version.
    """
    other = [
        f"{detector} version {saved[detector]}, here {found.spec.version}"
        for detector, found in engine.detectors.items()
        if saved.get(detector, found.spec.version) != found.spec.version
    ]
    if other:
        raise SavedStateError(
            f"the saved state of {name} is of another version of its detectors ({'; '.join(other)}): "
            "run the version of burnfuse that wrote it, or give the state up with `burnfuse state reset`"
        )


# -------------------------------------------------------------------------------- state of incidents


class Pending(msgspec.Struct, array_like=True):
    """A change that is still to be told by actions."""

    kind: ChangeKind
    incident: Incident


class IncidentManifest(msgspec.Struct):
    """What an incident stage's pages are.

    Attributes:
        number: Of the checkpoint, from 1.
        at: When it was made, s since 1970.
        end: Offset of the first record of the findings topic that has not been taken in.
        clocks: Partition that findings come from -> its stream clock, s.
        generation: Of remembered findings, the young one.
    """

    origin: Origin
    number: _Number
    at: float
    end: Offset
    clocks: dict[str, float]
    generation: _Number


class IncidentState:
    """Saves and restores incidents, which findings were seen, and what was done about incidents.

    Args:
        name: Of the partition, for people.
    """

    def __init__(self, incidents: Incidents, seen: RecentIds, name: str) -> None:
        self._incidents, self._seen, self._name = incidents, seen, name
        self._ids = IdPages(seen, "seen")
        self.pending: dict[int, Pending] = {}
        self._left: dict[int, set[str]] = {}
        """Number of a pending change -> actions that have not told it."""
        self.remembered: dict[tuple[str, str], bytes] = {}
        self._changed: set[bytes] = set()
        self._loaded: list[SavedIncident] = []
        self._last = self._number = 0
        self._all = False

    def begin(self, change: Change, actions: Collection[str]) -> int:
        """See `IncidentStage.begin`."""
        self._last += 1
        self.pending[self._last] = Pending(change.kind, change.incident)
        self._left[self._last] = set(actions)
        self._changed.add(f"pending/{self._last}".encode())
        return self._last

    def left(self, number: int, actions: Collection[str]) -> None:
        """These actions are to tell a pending change, if it was restored."""
        self._left.setdefault(number, set(actions))

    def finish(self, action: str, incident_id: str, upto: int, remembered: bytes) -> None:
        """See `IncidentStage.finish`."""
        for number in [n for n, one in self.pending.items() if n <= upto and one.incident.id == incident_id]:
            left = self._left.setdefault(number, set())
            left.discard(action)
            if not left:
                del self.pending[number], self._left[number]
                self._changed.add(f"pending/{number}".encode())
        place = action, incident_id
        if self.remembered.get(place, b"") != remembered:
            self._changed.add(f"action/{action}/{incident_id}".encode())
        if remembered:
            self.remembered[place] = remembered
        else:
            self.remembered.pop(place, None)

    def save_all(self) -> None:
        """The next checkpoint holds everything."""
        self._all = True

    def changes(self, origin: Origin, at: float, end: int) -> Iterator[Page]:
        """The pages of a checkpoint; all must be taken, at once, while the stage is left alone."""
        everything, self._all = self._all, False
        if everything:
            self._seen.all_changed()
            self._incidents.all_changed()
            self._changed.update(f"pending/{number}".encode() for number in self.pending)
            self._changed.update(f"action/{action}/{incident}".encode() for action, incident in self.remembered)
            yield from self._ids.restart()
        for name, incident in self._incidents.changed().items():
            yield Page(f"incident/{name}".encode(), None if incident is None else encode(incident))
        for key in sorted(self._changed):
            kind, *rest = key.decode().split("/")
            if kind == "pending":
                waiting = self.pending.get(int(rest[0]))
                yield Page(key, None if waiting is None else encode(waiting))
            else:
                value = self.remembered.get((rest[0], rest[1]))
                yield Page(key, None if value is None else encode(value))
        self._changed = set()
        yield from self._ids.changes()
        self._number += 1
        manifest = IncidentManifest(origin, self._number, at, end, self._incidents.clocks, self._seen.generation)
        yield Page(MANIFEST, encode(manifest))

    def load(self, key: bytes, value: bytes) -> None:
        """Takes a page; the manifest is not one of them.

        Raises:
            SavedStateError: it cannot be used.
        """
        kind, *rest = key.decode(errors="replace").split("/")
        try:
            if kind == "incident":
                self._loaded.append(decode(value, SavedIncident, self._name))
            elif kind == "pending":
                self.pending[int(rest[0])] = decode(value, Pending, self._name)
            elif kind == "action":
                self.remembered[rest[0], rest[1]] = decode(value, bytes, self._name)
            elif kind == "seen":
                self._ids.load(int(rest[0]), int(rest[1]), value, self._name)
            else:
                raise damaged(self._name)
        except (ValueError, IndexError) as error:
            raise damaged(self._name) from error

    def finish_loading(self, manifest: IncidentManifest) -> None:
        """All pages have come.

        Raises:
            SavedStateError: they are not what the manifest says.
        """
        self._incidents.load(self._loaded, manifest.clocks)
        self._loaded = []
        self.pending = dict(sorted(self.pending.items()))
        self._last = max(self.pending, default=0)
        self._ids.loaded(manifest.generation, self._name)
        self._number = manifest.number
