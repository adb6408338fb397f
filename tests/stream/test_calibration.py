"""The fleet's figures: merging does not depend on order, files come back, and damage is told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.base import FleetFigures, LogGrid, group_figure
from stream.calibration import decode, encode, load, merge, save
from stream.errors import ConfigError, UsageError


def histogram(*filled: int) -> list[int]:
    """One value in each of the bins."""
    counts = [0] * LogGrid.BINS
    for index in filled:
        counts[index] += 1
    return counts


HISTOGRAMS = st.dictionaries(st.integers(0, LogGrid.BINS - 1), st.integers(0, 1000), max_size=5).map(
    lambda some: [some.get(index, 0) for index in range(LogGrid.BINS)]
)
SKETCHES = st.lists(st.dictionaries(st.sampled_from(["spend", "peak", "x"]), HISTOGRAMS), max_size=5)


@given(SKETCHES, st.randoms())
def test_the_order_of_partitions_does_not_count(sketches: list[dict[str, list[int]]], random: st.DataObject) -> None:
    shuffled = list(sketches)
    random.shuffle(shuffled)
    assert merge(shuffled) == merge(sketches)


@given(SKETCHES)
def test_merging_adds(sketches: list[dict[str, list[int]]]) -> None:
    figures = merge(sketches)
    for name, counts in figures.counts.items():
        assert sum(counts) == sum(sum(sketch.get(name, ())) for sketch in sketches)
    if sketches:
        assert merge([merge(sketches[:1]).counts, merge(sketches[1:]).counts]) == figures


@given(SKETCHES)
def test_figures_come_back_from_a_file(sketches: list[dict[str, list[int]]]) -> None:
    figures = merge(sketches)
    assert decode(encode(figures), "f") == figures
    assert encode(decode(encode(figures), "f")) == encode(figures)


def test_the_version_is_that_of_the_content() -> None:
    one, other = merge([{"a": histogram(1, 2)}]), merge([{"a": histogram(1, 3)}])
    assert one.version != other.version
    assert one.version == merge([{"a": histogram(2)}, {"a": histogram(1)}]).version
    assert merge([]).version == merge([{"a": histogram()}]).version == "none"


def test_a_quantile_is_read_from_the_merged_figures() -> None:
    figures = merge([{"a": histogram(*[10] * 6)}, {"a": histogram(*[200] * 4)}])
    assert figures.quantile("a", 0.5) == LogGrid.value(10)
    assert figures.quantile("a", 0.9) == LogGrid.value(200)
    assert figures.quantile("a", 0.9, at_least=11) is None
    assert figures.quantile("b", 0.9) is None


def test_groups_are_merged_each_on_its_own() -> None:
    one, other = (group_figure("scores", group) for group in (7, 2**64 - 1))
    figures = merge([{one: histogram(3)}, {one: histogram(3), other: histogram(9)}])
    assert figures.groups("scores") == {7: one, 2**64 - 1: other}
    assert [figures.total(name) for name in (one, other, "scores")] == [2, 1, 0]
    assert decode(encode(figures), "f").groups("scores") == figures.groups("scores")


FINE = json.loads(encode(merge([{"a": histogram(1)}])))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a calibration; make one with burnfuse watch --save-calibration"),
        (b"\xff\xfe", "is not a calibration"),
        (b"[" * 100_000, "is not a calibration"),
        (b"[]", "is not a calibration"),
        (b"{}", "is not a calibration"),
        (json.dumps(FINE | {"counts": {"a": "1"}}).encode(), "is not a calibration"),
        (json.dumps(FINE | {"counts": {"a": [-1]}}).encode(), "is not a calibration"),
        (json.dumps(FINE | {"counts": {"a": [10**30]}}).encode(), "is not a calibration"),
        (
            json.dumps(FINE | {"steps": {"log": 0.1, "score": 0.01}}).encode(),
            "is a calibration of another version of burnfuse; make it anew",
        ),
        (b'{"version": "v", "step": 0.05, "counts": {}}', "is a calibration of another version"),
        (json.dumps(FINE | {"counts": {"a": [0] * 601}}).encode(), "is a calibration of another version"),
    ],
)
def test_what_is_no_calibration_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "figures.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"figures\.json {says}"):
        load(str(file))


@given(st.binary(max_size=100) | st.integers(0, 200).map(lambda n: encode(merge([{"a": histogram(1)}]))[:n]))
def test_noise_is_no_calibration_and_nothing_else(noise: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(decode(noise, "f"), FleetFigures)


def test_files_that_cannot_be_read_or_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the calibration .*gone: No such file"):
        load(str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"cannot write the calibration .*: No such file"):
        save(str(tmp_path / "no" / "folder"), merge([]))
    save(str(tmp_path / "there"), merge([{"a": histogram(1)}]))
    assert load(str(tmp_path / "there")) == merge([{"a": histogram(1)}])
