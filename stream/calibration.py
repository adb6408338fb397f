"""Figures of the whole fleet: merged from what the partitions saw, under a version.

Thresholds, cold-start limits and impact floors need the whole fleet, or all agents of a group, but a partition
sees only its share. So every partition contributes histograms; merging is adding, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from burnfuse.event import MAX_NUMBER
from detectors.base import FleetFigures, LogGrid, ScoreGrid
from stream.errors import ConfigError, UsageError

Sketch = Mapping[str, Sequence[int]]

_BINS = max(LogGrid.BINS, ScoreGrid.BINS)
_STEPS = {"log": LogGrid.STEP, "score": ScoreGrid.STEP}
"""Grids that the histograms are on; figures on others mean something else."""


def merge(sketches: Iterable[Sketch]) -> FleetFigures:
    """The fleet's figures from its partitions' histograms; the version is derived from the content."""
    sums: dict[str, NDArray[np.int64]] = {}
    for sketch in sketches:
        for name, histogram in sketch.items():
            sums[name] = sums.get(name, 0) + np.asarray(histogram, np.int64)
    counts = {name: total.tolist() for name, total in sums.items()}
    return FleetFigures(_version(counts), counts)


def encode(figures: FleetFigures) -> bytes:
    """The figures as JSON; empty bins at the end are left out."""
    counts = {name: _trim(histogram) for name, histogram in sorted(figures.counts.items())}
    return msgspec.json.encode({"version": figures.version, "steps": _STEPS, "counts": counts})


def decode(data: bytes, name: str) -> FleetFigures:
    """Figures from what `encode` gave.

    Raises:
        ConfigError: this is no calibration, or one on another grid.
    """
    try:
        wire = msgspec.json.decode(data, type=_Wire)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not a calibration; make one with burnfuse watch --save-calibration") from error
    if wire.steps != _STEPS or any(len(h) > _BINS for h in wire.counts.values()):
        raise ConfigError(f"{name} is a calibration of another version of burnfuse; make it anew")
    counts = {key: histogram + [0] * (_BINS - len(histogram)) for key, histogram in wire.counts.items()}
    return FleetFigures(wire.version, counts)


def load(path: str) -> FleetFigures:
    """Figures from a file.

    Raises:
        ConfigError: the file cannot be read, or is no calibration.
    """
    try:
        return decode(Path(path).read_bytes(), path)
    except OSError as error:
        raise ConfigError(f"cannot read the calibration {path}: {error.strerror}") from error


def save(path: str, figures: FleetFigures) -> None:
    """Writes figures to a file.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        Path(path).write_bytes(encode(figures))
    except OSError as error:
        raise UsageError(f"cannot write the calibration {path}: {error.strerror}") from error


# Of a figure, or of one that is kept per group of agents.
_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,64}(/[0-9a-f]{16})?\Z")]


class _Wire(msgspec.Struct):
    version: str
    counts: dict[_Name, list[Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]]]
    steps: dict[str, float] = {}  # version 1 had one grid, and named it otherwise


def _trim(histogram: Sequence[int]) -> list[int]:
    last = max((i for i, count in enumerate(histogram) if count), default=-1)
    return list(histogram[: last + 1])


def _version(counts: Mapping[str, Sequence[int]]) -> str:
    if not any(any(histogram) for histogram in counts.values()):
        return "none"
    text = msgspec.json.encode({name: _trim(h) for name, h in counts.items()}, order="sorted")
    return hashlib.blake2b(text, digest_size=6).hexdigest()
