"""Pictures: PNG files of a fixed size, the same for the same data, whatever the data."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import UsageError
from stream.evaluate import plots
from stream.evaluate.base import Plot

pytest.importorskip("matplotlib")

TS = [1_780_000_000.0 + 60 * i for i in range(30)]
PLAIN = Plot("p", "A title", TS, [1.0] * 30, "tokens")
FULL = Plot(
    "f",
    "A title",
    TS,
    [1.0] * 20 + [500.0] * 10,
    "tokens",
    band=([0.0] * 30, [2.0] * 30),
    score=[0.0] * 20 + [3.0] * 10,
    threshold=1.0,
    events=[(TS[20], TS[29])],
    alarms=[TS[21], TS[25]],
)


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_picture_has_a_fixed_size_and_is_taller_with_a_score(tmp_path: Path) -> None:
    plots.draw(PLAIN, tmp_path / "plain.png")
    plots.draw(FULL, tmp_path / "full.png")
    assert (size(tmp_path / "plain.png"), size(tmp_path / "full.png")) == ((1200, 500), (1200, 700))


def test_the_same_plot_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.draw(FULL, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        plots.draw(PLAIN, tmp_path / "nowhere" / "p.png")


@pytest.mark.parametrize(
    "plot",
    [
        Plot("p", "Nothing", [], [], "tokens"),
        Plot("p", "Nothing with a score", [], [], "tokens", score=[], threshold=1.0),
        Plot("p", "Relative", [0.0, 60.0], [1.0, 2.0], "tokens", events=[(0.0, 60.0)], alarms=[30.0]),
        Plot("p", "Unknown", TS[:3], [float("nan"), 1.0, float("inf")], "tokens"),
        Plot("p", "$x^2 & a very long title " * 20, TS[:2], [1.0, 2.0], "$y_{"),
    ],
    ids=lambda plot: plot.title[:20],
)
def test_odd_data_are_drawn(tmp_path: Path, plot: Plot) -> None:
    plots.draw(plot, tmp_path / "p.png")
    assert size(tmp_path / "p.png")[0] == 1200


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=200)
def test_names_of_files_are_safe(family: str, name: str) -> None:
    made = plots.file_name(family, Plot(name, "", [], [], ""))
    assert made.endswith(".png")
    assert "/" not in made
    assert not made.startswith("-")
