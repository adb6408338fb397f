"""What every detector is: a registered class with a configuration, and its state in columns."""

from __future__ import annotations

import importlib
import math
import mmap
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from detectors.rounds import rounds
from detectors.types import EventBatch, Finding, Floats, Ints, Scope, Severity


class DetectorError(Exception):
    """Root of what detectors raise on purpose."""


class StateError(DetectorError):
    """A saved state cannot be used: it is of another detector, another version, or damaged."""


# ---------------------------------------------------------------------------------- configuration


class DetectorConfig(BaseModel):
    """Settings of one detector; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    enabled: bool = Field(default=True, description="Whether the detector runs.")

    @model_validator(mode="after")
    def _warning_comes_first(self) -> Self:
        for name in type(self).model_fields:
            critical = name.removesuffix("warning") + "critical"
            if name.endswith("warning") and getattr(self, critical, math.inf) < getattr(self, name):
                raise ValueError(f"{name} ({getattr(self, name)}) must not be above {critical}")
        return self


def setting(default: Any, *, unit: str, why: str, source: str, **bounds: Any) -> Any:
    """A threshold: a default with its unit, its meaning and where the default comes from."""
    return Field(default=default, description=why, json_schema_extra={"unit": unit, "source": source}, **bounds)


@dataclass(frozen=True, slots=True)
class Spec:
    """What the engine needs to know of a detector."""

    name: str
    version: int
    """Version of the state format; a saved state of another version is refused."""
    scope: Scope
    waived: Mapping[str, str] = field(default_factory=dict)
    """Contract checks the detector does not have to pass: name of the check -> reason."""
    shaped_by: tuple[str, ...] = ()
    """Settings that the saved state means something else under: where one has changed, the detector begins anew."""
    second_stage: bool = False
    """Whether an overloaded worker may leave the detector out: what it finds can wait, what it has not seen must
    not mislead it (`Detector.resume`)."""


# ------------------------------------------------------------------------------------------ state

TableField: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""Values of a column: (dtype, shape, bytes). Where most are blank: `_THIN` and the dtype, and as bytes a bit per value,
whether it is not blank, and then those that are not."""
TablePage: TypeAlias = dict[str, TableField]
"""Rows of a table as plain data."""

_THIN = "~"

# The tables of a page are looked at only when its name and version are right.
_decode_page = msgspec.msgpack.Decoder(tuple[str, int, msgspec.Raw]).decode
_decode_tables = msgspec.msgpack.Decoder(dict[str, TablePage]).decode


_WHOLE = {8: np.dtype(np.uint64), 16: np.dtype(np.complex128)}


class Table:
    """State in columns: one row per entity, one numpy array per field.

    `fields` maps a name to (dtype, blank value) or (dtype, blank value, width); a width gives every
    entity a small vector. Rows grow on demand and are blank until written.
    """

    def __init__(self, fields: Mapping[str, tuple[Any, ...]]) -> None:
        self._fields = {name: (np.dtype(f[0]), f[1], f[2] if len(f) > 2 else 0) for name, f in fields.items()}
        self._room = {n: np.empty((0, w) if w else 0, dtype) for n, (dtype, _, w) in self._fields.items()}
        # Views of the rows that exist.
        self._columns = dict(self._room)
        # By their bits, for a blank may be NaN, and -0.0 is not 0.0.
        self._blank_bits = {
            name: np.array(blank, dtype).view(f"u{dtype.itemsize}") for name, (dtype, blank, _) in self._fields.items()
        }
        # Vectors as long as a number are moved as one.
        lengths = {name: dtype.itemsize * width for name, (dtype, _, width) in self._fields.items() if width}
        self._whole = {name: _WHOLE[length] for name, length in lengths.items() if length in _WHOLE}
        self._rows = 0
        self.reserve(16)

    @property
    def rows(self) -> int:
        """Rows that exist."""
        return self._rows

    @property
    def nbytes(self) -> int:
        """Bytes held by all columns."""
        return sum(c.nbytes for c in self._columns.values())

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def take(self, name: str, rows: Ints) -> NDArray[Any]:
        """`table[name][rows]`, which takes numpy five times as long where each row is a small vector."""
        column = self._columns[name]
        if (whole := self._whole.get(name)) is not None:
            return column.view(whole)[:, 0].take(rows).view(column.dtype).reshape(len(rows), column.shape[1])
        return column.take(rows, axis=0)

    def put(self, name: str, rows: Ints, values: NDArray[Any]) -> None:
        """`table[name][rows] = values` for a column of small vectors: faster one after the other, too."""
        column = self._columns[name]
        if (whole := self._whole.get(name)) is not None:
            values = np.ascontiguousarray(values, column.dtype)
            column.view(whole)[:, 0][rows] = values.view(whole)[:, 0]
            return
        for i in range(column.shape[1]):
            column[:, i][rows] = values[:, i]

    def reserve(self, rows: int) -> None:
        """Makes sure that rows 0 .. rows - 1 exist; some more come to exist with them (half as many as there are, in
        large tables a 32nd), so growth stays cheap. Room beyond these takes no memory until it is written."""
        if rows <= self._rows:
            return
        size = _grown(self._rows, rows)
        for name, (_, blank, _) in self._fields.items():
            room = self._room[name] = _with_room(self._room[name], self._rows, size)
            room[self._rows : size] = blank
            self._columns[name] = room[:size]
        self._rows = size

    def clear(self, rows: Ints) -> None:
        """Makes rows blank again; rows that do not exist yet are blank anyway."""
        rows = rows[rows < self._rows]
        for name, (_, blank, _) in self._fields.items():
            self._columns[name][rows] = blank

    def dump(self, rows: Ints) -> TablePage:
        """The rows as plain data."""
        self.reserve(int(rows.max(initial=-1)) + 1)
        return {name: self._field(name, self.take(name, rows)) for name in self._fields}

    def _field(self, name: str, column: NDArray[Any]) -> TableField:
        bits = self._blank_bits[name]
        used = column.view(bits.dtype) != bits
        if 2 * np.count_nonzero(used) > used.size:
            return column.dtype.str, column.shape, column.tobytes()
        return _THIN + column.dtype.str, column.shape, np.packbits(used).tobytes() + column[used].tobytes()

    def decode(self, n: int, page: TablePage) -> dict[str, NDArray[Any]]:
        """The columns of a page of n rows; `write` takes them.

        Raises:
            StateError: the page does not hold these fields in these types for this many rows.
        """
        if set(page) != set(self._fields):
            raise StateError(f"saved state has fields {sorted(page)}, expected {sorted(self._fields)}")
        columns = {}
        for name, (dtype, blank, width) in self._fields.items():
            kind, shape, raw = page[name]
            want = (n, width) if width else (n,)
            values, used = raw, None
            if kind == _THIN + dtype.str:
                begin = -(-math.prod(want) // 8)
                used = np.unpackbits(np.frombuffer(raw[:begin], np.uint8)).view(bool)
                values = raw[begin:]
            some = math.prod(want) if used is None else int(used.sum())
            if kind.removeprefix(_THIN) != dtype.str or tuple(shape) != want or len(values) != dtype.itemsize * some:
                raise StateError(f"saved field {name!r} is {kind}{tuple(shape)}, expected {dtype.str}{want}")
            if used is None:
                columns[name] = np.frombuffer(raw, dtype).reshape(want)
                continue
            # Short or with a bit too many: it would not be of so many values.
            if len(used) < math.prod(want) or used[math.prod(want) :].any():
                raise StateError(f"saved field {name!r} is damaged")
            columns[name] = column = np.full(want, blank, dtype)
            column[used[: math.prod(want)].reshape(want)] = np.frombuffer(values, dtype)
        return columns

    def write(self, rows: Ints, columns: Mapping[str, NDArray[Any]]) -> None:
        """Puts values into `rows`."""
        self.reserve(int(rows.max(initial=-1)) + 1)
        for name, values in columns.items():
            self._columns[name][rows] = values


class Records(Table):
    """A table whose rows lie in one piece each: all of a row is read, or written, at once.

    Columns are views with gaps; `take` and `reshape` of numpy would copy all of them.
    """

    def __init__(self, fields: Mapping[str, tuple[Any, ...]]) -> None:
        parts = [(name, f[0], f[2]) if len(f) > 2 else (name, f[0]) for name, f in fields.items()]
        self._record = np.dtype(parts, align=True)
        blank = np.zeros(1, self._record)
        for name, f in fields.items():
            blank[name] = f[1]
        # As bytes without a type numpy copies records in one piece, not field by field.
        self._piece = np.dtype((np.void, self._record.itemsize))
        self._blank = blank.view(self._piece)
        self._all = self._pieces = np.empty(0, self._piece)
        super().__init__(fields)

    @property
    def nbytes(self) -> int:
        return self._pieces.nbytes

    def gather(self, rows: Ints) -> NDArray[Any]:
        """(k,) copies of the records of these rows (k,), with the fields of the table."""
        return self._pieces.take(rows).view(self._record)

    def scatter(self, rows: Ints, records: NDArray[Any]) -> None:
        """Puts records (k,) as `gather` gives them into these rows (k,)."""
        self._pieces[rows] = records.view(self._piece)

    def take(self, name: str, rows: Ints) -> NDArray[Any]:
        values: NDArray[Any] = self._columns[name][rows]
        return values

    def reserve(self, rows: int) -> None:
        if rows <= self._rows:
            return
        size = _grown(self._rows, rows)
        self._all = _with_room(self._all, self._rows, size)
        self._all[self._rows : size] = self._blank
        self._pieces, self._rows = self._all[:size], size
        whole = self._pieces.view(self._record)
        self._columns = {name: whole[name] for name in self._fields}

    def clear(self, rows: Ints) -> None:
        self._pieces[rows[rows < self._rows]] = self._blank


class Sparse(Table):
    """A table of which few rows are in use: a row takes memory from when it is opened until it is cleared.

    Columns are asked with places, as `find` and `open` give them, instead of rows.
    """

    def __init__(self, fields: Mapping[str, tuple[Any, ...]]) -> None:
        self._place = np.full(16, -1, np.int32)
        self._free: list[int] = []
        self._open = 0
        super().__init__(fields)

    @property
    def rows(self) -> int:
        return len(self._place)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._place.nbytes

    def find(self, rows: Ints) -> Ints:
        """(k,) places of rows (k,), -1 for those that are not in use."""
        return self._place[rows].astype(np.int64)

    def open(self, rows: Ints) -> Ints:
        """(k,) places of distinct rows (k,); those not in use yet begin blank."""
        places = self.find(rows)
        closed = (places < 0).nonzero()[0]
        if n := len(closed):
            reused = self._free[-n:]
            del self._free[-n:]
            given = np.arange(self._open - len(reused), self._open + n - len(reused))
            given[: len(reused)] = reused
            places[closed] = given
            self._open += n - len(reused)
            super().reserve(self._open)
            self._place[rows] = places
        return places

    def reserve(self, rows: int) -> None:
        if rows > (before := len(self._place)):
            place = np.full(_grown(before, rows), -1, np.int32)
            place[:before] = self._place
            self._place = place

    def clear(self, rows: Ints) -> None:
        rows = rows[rows < len(self._place)]
        places = self.find(rows)
        rows, places = rows[places >= 0], places[places >= 0]
        if len(rows):
            super().clear(places)
            self._place[rows] = -1
            self._free += np.unique(places).tolist()

    def dump(self, rows: Ints) -> TablePage:
        self.reserve(int(rows.max(initial=-1)) + 1)
        places = self.find(rows)
        used = places >= 0
        held: TablePage = {_USED: (used.dtype.str, used.shape, used.tobytes())}
        return held | super().dump(places[used])

    def decode(self, n: int, page: TablePage) -> dict[str, NDArray[Any]]:
        kind, shape, raw = page.get(_USED, ("nothing", (), b""))
        if kind != "|b1" or tuple(shape) != (n,) or len(raw) != n:
            raise StateError(f"saved field {_USED!r} is {kind}{tuple(shape)}, expected |b1{(n,)}")
        used = np.frombuffer(raw, np.uint8) != 0
        fields = {name: value for name, value in page.items() if name != _USED}
        return {_USED: used} | super().decode(int(used.sum()), fields)

    def write(self, rows: Ints, columns: Mapping[str, NDArray[Any]]) -> None:
        self.reserve(int(rows.max(initial=-1)) + 1)
        self.clear(rows)
        places = self.open(rows[columns[_USED]])
        super().write(places, {name: value for name, value in columns.items() if name != _USED})


_USED = "in use"
"""What a page of a `Sparse` table holds beside its fields: which of the rows are in use."""


_LARGE = 1 << 10
_APART_BYTES = 1 << 18
_HUGE_BYTES = 1 << 22
"""From here on memory in pages of 2 MiB, as numpy has it by itself: rows are read in no order."""


def _grown(before: int, rows: int) -> int:
    """How many rows are to exist when so many are asked for."""
    return max(rows, before + before // (32 if before >= _LARGE else 2))


def _with_room(column: NDArray[Any], rows: int, size: int) -> NDArray[Any]:
    """The column, or one in its place with the same first rows, and room for `size` rows and half as many as before.

    A large one lies apart from the heap: there, room that is not yet in use is often memory that once was, and what
    smaller ones leave behind is not given back.
    """
    if size <= len(column):
        return column
    shape = (max(size, rows + rows // 2), *column.shape[1:])
    nbytes = math.prod(shape) * column.dtype.itemsize
    if nbytes < _APART_BYTES or sys.platform == "win32":
        larger = np.empty(shape, column.dtype)
    else:
        # Shared, as it would be by default, it has no huge pages, and a child process would write into it.
        apart = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= _HUGE_BYTES and sys.platform == "linux":
            with suppress(OSError):  # a kernel that knows none
                apart.madvise(mmap.MADV_HUGEPAGE)
        larger = np.frombuffer(apart, column.dtype).reshape(shape)
    larger[:rows] = column[:rows]
    return larger


# ----------------------------------------------------------------------------------- alert pacing

ALARM_FIELDS: dict[str, tuple[Any, ...]] = {
    "alarm_level": (np.uint8, 0),
    "alarm_ts": (np.float64, -np.inf),
}
"""Fields a table needs for `pace`."""


def pace(table: Table, rows: Ints, level: NDArray[Any], ts: Floats, *, repeat_s: float, rearm_s: float) -> NDArray[Any]:
    """Which of the firing entities speak now; remembers that they did.

    An alarm speaks when it is new or rises, and again every `repeat_s` while it lasts, so that its
    incident is seen to go on. After `rearm_s` without firing it counts as new again.

    Args:
        rows: (k,) distinct rows.
        level: (k,) 0 quiet, 1 warning, 2 critical.
        ts: (k,) event time, s.

    Returns:
        (k,) bool.
    """
    last = table["alarm_ts"][rows]
    before = np.where(ts - last >= rearm_s, 0, table["alarm_level"][rows])
    speak: NDArray[Any] = (level > 0) & ((level > before) | (ts - last >= repeat_s))
    chosen = rows[speak]
    table["alarm_level"][chosen] = np.maximum(level, before)[speak]
    table["alarm_ts"][chosen] = np.maximum(ts, last)[speak]
    return speak


def pace_in_order(
    table: Table, rows: Ints, level: NDArray[Any], ts: Floats, *, repeat_s: float, rearm_s: float
) -> Ints:
    """`pace` for events in order, among them any number of one row: the positions of those that speak.

    While one row's alarm stands at one time and level it is asked about once; times in whole seconds make
    that once a second.
    """
    fires = np.flatnonzero(level > 0)
    if not len(fires):
        return fires
    who, high, when = rows[fires], level[fires], ts[fires]
    first = np.ones(len(fires), np.bool_)
    first[1:] = (who[1:] != who[:-1]) | (high[1:] != high[:-1]) | (when[1:] != when[:-1])
    fires = fires[first]
    speak = np.zeros(len(fires), np.bool_)
    for k in rounds(rows[fires]):
        at = fires[k]
        speak[k] = pace(table, rows[at], level[at], ts[at], repeat_s=repeat_s, rearm_s=rearm_s)
    return fires[speak]


def levels(count: Any, warning: Any, critical: Any) -> NDArray[np.uint8]:
    """Alarm levels of counts: 0 quiet, 1 warning, 2 critical; the thresholds themselves fire."""
    reached: NDArray[np.uint8] = np.add(count >= warning, count >= critical, dtype=np.uint8)
    return reached


def severity_of(level: int) -> Severity:
    """The name of an alarm level (1 or 2)."""
    return "critical" if level >= 2 else "warning"


# -------------------------------------------------------------------------------------- detectors


READINESS = ("warming up", "young", "ready")
"""How far a baseline has come: too little is known to judge; judged with care; judged by its own past."""


class Detector(ABC):
    """Columns in, findings out; state in `tables`, a row per entity of `spec.scope`.

    What must hold for every detector is written as checks in `detectors/checks.py`.
    """

    spec: ClassVar[Spec]
    Config: ClassVar[type[DetectorConfig]] = DetectorConfig

    tables: dict[str, Table]
    """All state that belongs to entities; filled by the subclass's constructor."""

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def update(self, batch: EventBatch) -> Sequence[Finding]:
        """Scores, then learns, the batch's events in order; returns what was found."""

    def resume(self, clock: float) -> None:  # noqa: B027 - only those of the second stage need it
        """Events before `clock` (stream clock, s) were left out, since the last `update`: what was counted in part
        must not be taken for little."""

    def review(self, batch: EventBatch, found: Sequence[Finding]) -> Sequence[Finding]:
        """What all detectors found in a batch, after `update` has seen it: the same findings in the same order,
        with more evidence or another severity where this detector knows better."""
        return found

    def readiness(self, rows: Ints) -> Sequence[str] | None:
        """How far the baselines of these entities (k,) have come, each one of READINESS; None: there are none."""
        return None

    def reserve(self, rows: int) -> None:
        """Makes sure that state exists for rows 0 .. rows - 1."""
        for table in self.tables.values():
            table.reserve(rows)

    def forget(self, rows: Ints) -> None:
        """The entities of these rows are gone; the rows will be given to others."""
        for table in self.tables.values():
            table.clear(rows)

    def dump(self, rows: Ints) -> bytes:
        """The state of `rows` as one page, with the detector's name and state version."""
        page = {name: table.dump(rows) for name, table in self.tables.items()}
        return msgspec.msgpack.encode((self.spec.name, self.spec.version, page))

    def load(self, rows: Ints, page: bytes) -> None:
        """Takes a page of `dump` into `rows`.

        Raises:
            StateError: the page is of another detector or version, or damaged.
        """
        try:
            name, version, body = _decode_page(page)
            if (name, version) != (self.spec.name, self.spec.version):
                raise StateError(
                    f"saved state is of {name} version {version}, this is {self.spec.name} version {self.spec.version}"
                )
            saved = _decode_tables(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("saved state is damaged: it is not a page of a detector") from error
        if set(saved) != set(self.tables):
            raise StateError(f"saved state has tables {sorted(saved)}, expected {sorted(self.tables)}")
        # All of it is checked before any of it is taken.
        columns = {name: table.decode(len(rows), saved[name]) for name, table in self.tables.items()}
        for name, table in self.tables.items():
            table.write(rows, columns[name])

    # State that belongs to no entity of its own; most detectors have none.

    def dump_shared(self) -> bytes:
        """What the entities of this partition share, with the detector's name and state version."""
        return b""

    def load_shared(self, page: bytes) -> None:
        """Takes a page of `dump_shared`, before any event.

        Raises:
            StateError: the page is of another detector or version, or damaged.
        """
        if page:
            raise StateError(f"{self.spec.name} has no shared state, but some was saved")

    # Figures of the whole fleet; most detectors need none.

    def sketch(self) -> dict[str, list[int]]:
        """Mergeable histograms this detector contributes to the fleet's calibration."""
        return {}

    def calibrate(self, figures: FleetFigures) -> None:  # noqa: B027 - most detectors need none
        """Takes new figures of the whole fleet."""


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """Histograms over the whole fleet, merged from all partitions, under a version.

    `counts` maps a figure's name to its histogram, on the grid that its reader knows it to be on: sums and
    costs on `LogGrid`, scores on `ScoreGrid`. A figure that is kept per group of agents has one histogram
    for each, under `group_figure`.
    """

    version: str = "none"
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def quantile(self, figure: str, q: float, at_least: int = 1) -> float | None:
        """The q-quantile of a figure on `LogGrid`, or None where fewer than `at_least` values are known."""
        counts = self._of(figure)
        total = int(counts.sum())
        if total < max(1, at_least):
            return None
        # Rank 1 at least: the smallest value rather than an empty bin below it.
        return LogGrid.value(int(np.searchsorted(np.cumsum(counts), max(1.0, q * total))))

    def largest(self, figure: str, k: int) -> float | None:
        """The k-th largest value of a figure on `LogGrid`, rounded down to the grid; None where fewer are known."""
        above = np.cumsum(self._of(figure)[::-1])[::-1]
        at = np.flatnonzero(above >= k)
        return math.exp(int(at[-1]) * LogGrid.STEP) if len(at) else None

    def total(self, figure: str) -> int:
        """How many values a figure holds."""
        return int(self._of(figure).sum())

    def exceeded_by(self, figure: str, share: float) -> float | None:
        """A score that a new value of a figure on `ScoreGrid` exceeds with a probability of at most `share`.

        It is the k-th largest of the n known values, k = floor(share * (n + 1)), rounded up to the grid:
        if old and new values are exchangeable, a new one is among the k largest with probability
        k / (n + 1). None where n is too small to say (k = 0).
        """
        counts = self._of(figure)
        k = math.floor(share * (int(counts.sum()) + 1) + 1e-9)
        if k < 1:
            return None
        above = np.cumsum(counts[::-1])[::-1]
        return ScoreGrid.upper(int(np.flatnonzero(above >= k)[-1]))

    def groups(self, figure: str) -> dict[int, str]:
        """Groups of agents that have this figure -> the name it has for them."""
        head = f"{figure}/"
        return {int(name[len(head) :], 16): name for name in self.counts if name.startswith(head)}

    def _of(self, figure: str) -> Ints:
        return np.asarray(self.counts.get(figure, ()), np.int64)


def group_figure(figure: str, group: int) -> str:
    """The name that a figure has for one group of agents."""
    return f"{figure}/{group:016x}"


class LogGrid:
    """A fixed logarithmic grid for mergeable histograms of positive values.

    Bins are 5 % wide from 1 to 10^13, so a quantile read from it is within 2.5 % of the true one.
    """

    STEP = 0.05
    BINS = 600

    @classmethod
    def index(cls, values: Floats) -> Ints:
        """(n,) bins of (n,) values."""
        steps = np.log(np.maximum(values, 1.0)) / cls.STEP
        return np.minimum(steps.astype(np.int64), cls.BINS - 1)

    @classmethod
    def value(cls, index: int) -> float:
        """The middle of a bin."""
        return float(np.exp((index + 0.5) * cls.STEP))


class ScoreGrid:
    """A fixed grid for mergeable histograms of scores in nats: bins of 0.01 from 0 to 6.

    The first bin holds 0 alone, so "nothing unusual" stays apart from the smallest score; the last one
    holds everything beyond (6 nats is a factor of 400).
    """

    STEP = 0.01
    BINS = 600

    @classmethod
    def index(cls, scores: Floats) -> Ints:
        """(n,) bins of (n,) scores."""
        return np.minimum(np.ceil(np.maximum(scores, 0.0) / cls.STEP), cls.BINS - 1).astype(np.int64)

    @classmethod
    def upper(cls, index: int) -> float:
        """The largest score of a bin; of the last bin, the smallest."""
        return float(min(index, cls.BINS - 2) * cls.STEP)


_registry: dict[str, type[Detector]] = {}
D = TypeVar("D", bound=type[Detector])


def register(cls: D) -> D:
    """Class decorator: makes a detector known under `spec.name`.

    Raises:
        DetectorError: the name is taken.
    """
    name = cls.spec.name
    known = _registry.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise DetectorError(f"two detectors are called {name!r}: {known.__module__} and {cls.__module__}")
    _registry[name] = cls
    return cls


def registered() -> dict[str, type[Detector]]:
    """All detectors by name, in alphabetical order."""
    return dict(sorted(_registry.items()))


def discover(package: str = "detectors") -> Iterator[str]:
    """Imports every module of the package, so that a new file is all a new detector needs."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
        yield module.name
