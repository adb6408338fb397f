"""The evaluation of runaways: where faults lie, what counts as caught, and that they leave no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detectors.base import Detector
from detectors.null import Null
from detectors.runaway import Runaway, RunawayConfig
from detectors.types import Floats
from stream.evaluate import runaway
from stream.evaluate.base import Contender, families
from stream.evaluate.runaway import DAY, WARM_UP, RunawayFamily

CLIENTS = 6


@pytest.fixture(scope="module")
def tokens() -> Floats:
    """A week of clients that are active from 8 to 12, at rates that vary by a quarter."""
    random = np.random.default_rng(1)
    active = (np.arange(7 * DAY) % DAY // 60 >= 8) & (np.arange(7 * DAY) % DAY // 60 < 12)
    return np.where(active, np.exp(random.normal(10, 0.25, (CLIENTS, 7 * DAY))), 0.0)


def ours() -> dict[str, Detector]:
    return {"runaway": Runaway(RunawayConfig(floor_tokens=0.0))}


def test_the_family_is_known_and_finds_its_data(tmp_path: Path) -> None:
    family = families()["runaway"]
    assert not family.found_in(tmp_path)
    (tmp_path / "servegen").mkdir()
    np.savez(tmp_path / "servegen" / "minutes.npz", tokens=np.ones((1, DAY)))
    assert family.found_in(tmp_path)


def test_every_client_has_two_faults_of_each_kind_in_the_scored_days(tokens: Floats) -> None:
    faults = runaway._faults(tokens)
    assert len(faults) == CLIENTS * 6 * 2
    assert [fault.start for fault in faults] == sorted(fault.start for fault in faults)
    assert all(WARM_UP <= fault.start <= tokens.shape[1] - len(fault.added) for fault in faults)
    usual = [np.median(own[own > 0]) for own in tokens]
    for fault in faults:
        times = fault.added / usual[fault.client]
        lengths = {
            "10x for 30 min": (30, 10, 10),
            "doubling every 3 min": (30, 2 ** (1 / 3), 200),
            "context growth": (45, 1.15, 20),
            "4x for 3 h": (180, 4, 4),
            "usual rate in the idlest hour": (60, 1, 1),
            "30x for 10 min": (10, 30, 30),
        }
        assert (len(times), times[0], times.max()) == pytest.approx(lengths[fault.kind])
    assert [(f.kind, f.client, f.start) for f in faults] == [
        (f.kind, f.client, f.start) for f in runaway._faults(tokens)
    ]


def test_findings_without_an_hours_pause_between_them_are_one_alarm() -> None:
    told = runaway._Told(row=[0, 0, 0, 1, 0], minute=[10, 69, 128, 128, 188], critical=[False] * 5)
    assert told.alarms() == [(0, 10), (1, 128), (0, 188)]


def test_steady_clients_have_their_faults_found_and_no_false_alarms(tokens: Floats) -> None:
    faults = runaway._faults(tokens)
    fleet, caught = runaway._lay(ours, tokens, faults, daily=False, told=lambda _: None)
    assert fleet.told.row == []
    kinds = np.array([fault.kind for fault in faults])
    for kind in ("10x for 30 min", "doubling every 3 min", "30x for 10 min"):
        assert (caught.delay[kinds == kind] >= 0).all(), kind
    # Ten times the usual is seen in the first minutes, and what was added until then is what was burnt.
    early = kinds == "30x for 10 min"
    assert (caught.delay[early] <= 1).all()
    for i in np.flatnonzero(early):
        assert caught.burnt[i] == pytest.approx(faults[i].added[: caught.delay[i] + 1].sum())


def test_faults_leave_no_trace_in_the_clients_own_state(tokens: Floats) -> None:
    faults = runaway._faults(tokens)
    fleet, _ = runaway._lay(ours, tokens, faults, daily=True, told=lambda _: None)
    alone = runaway._Fleet(ours(), tokens)
    alone.run(0, tokens.shape[1])
    rows = np.arange(CLIENTS)
    assert fleet.detectors["runaway"].dump(rows) == alone.detectors["runaway"].dump(rows)
    assert fleet.sketch() == alone.sketch()


def test_the_null_detector_misses_all_and_alarms_never(tokens: Floats) -> None:
    made = Contender("null", lambda: {"null": Null(Null.Config())}, baseline=True)
    rows = runaway._rows(made.name, made.make, tokens, runaway._faults(tokens), lambda _: None)
    assert [row.data for row in rows] == [*runaway._KINDS, "all kinds"]
    for row in rows:
        assert (row.caught, row.false_alarms, row.recall) == (0, 0, 0.0)
        assert row.agent_days == CLIENTS * 2
    assert rows[-1].missed == CLIENTS * 6 * 2


def test_the_plots_show_a_fault_its_alarm_and_the_band(tmp_path: Path, tokens: Floats) -> None:
    (tmp_path / "servegen").mkdir()
    np.savez(tmp_path / "servegen" / "minutes.npz", tokens=tokens)
    plots = list(RunawayFamily().plots(tmp_path))
    assert len(plots) == 6
    for plot in plots:
        (begin, end), *others = plot.events
        assert others == []
        assert plot.ts[0] < begin < end <= plot.ts[-1] + 60
        assert plot.band is not None
        assert len(plot.ts) == len(plot.value) == len(plot.band[1])
    assert sum(bool(plot.alarms) for plot in plots) >= 3
