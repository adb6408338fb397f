from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks import results
from benchmarks.saved import Again, age_s, family_of, longest_piece_s, phase, total
from stream.clock import ManualClock
from stream.health import Health
from stream.metrics import Metrics, PartitionState


def test_what_comes_again_is_as_old_as_its_oldest_record() -> None:
    none, some = Again(), Again(records=2, events=30, oldest_ms=98_500)
    assert none + some == some
    both = some + Again(records=1, events=5, oldest_ms=99_000)
    assert both == Again(records=3, events=35, oldest_ms=98_500)
    assert age_s(both, 101.0) == pytest.approx(2.5)
    assert age_s(none, 101.0) == 0.0


def test_how_far_a_worker_is_comes_from_its_own_page() -> None:
    health = Health(ManualClock(), 30.0, 30.0)
    assert phase(None) == "starting"
    assert phase(health.unready()) == "joining"
    health.assigned(2)
    health.restoring("bf.events/0")
    assert phase(health.unready()) == "restoring"
    health.restored("bf.events/0")
    health.answered()
    assert phase(health.unready()) == "ready"


def test_metrics_are_read_from_the_workers_page() -> None:
    metrics = Metrics(ManualClock())
    metrics.taken(7)
    metrics.partitions([PartitionState("a", 0, 3, 0.0), PartitionState("a", 1, 4, 0.0)])
    for seconds in (0.0004, 0.013, 0.004):
        metrics.checkpoint_piece(seconds)
    served: list[bytes] = list(metrics.wsgi()({"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET"}, lambda *_: None))
    found = family_of(b"".join(served).decode())
    assert total(found, "burnfuse_events_taken", "burnfuse_events_taken_total") == 7
    assert total(found, "burnfuse_lag_records") == 7
    assert total(found, "burnfuse_nothing") == 0
    pieces = found["burnfuse_checkpoint_piece_seconds"]
    assert longest_piece_s(pieces) == 0.02
    metrics.checkpoint_piece(7.0)
    served = list(metrics.wsgi()({"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET"}, lambda *_: None))
    assert longest_piece_s(family_of(b"".join(served).decode())["burnfuse_checkpoint_piece_seconds"]) == math.inf
    assert longest_piece_s(()) == 0.0


def restore_figures(agents: int) -> dict[str, Any]:
    runs = {"default": [{"cpu_s": 2.0}, {"cpu_s": 1.0}, {"cpu_s": 1.5}], "rare": [{"cpu_s": 1.25}]}
    cost: dict[str, Any] = {"events": 100_000, "share": 0.07, "making_share": 0.04, "longest_piece_s": 0.02,
                            "bytes_per_event": 130.0, "runs": runs}  # fmt: skip
    restored = {"from_start_s": 20.0, "from_assignment_s": 9.0, "cpu_s": 8.0, "memory_mb": 1700.0, "peak_mb": 1900.0,
                "disk_mb": 350.0, "after": "load"}  # fmt: skip
    killed = {"input_events": 10, "input_age_s": 1.0, "inner_events": 500, "inner_age_s": 3.5, "state_mb": 300.0}
    return {
        "agents": agents, "rate": 5000.0, "before": {"memory_mb": 1800.0, "peak_mb": 1800.0},
        "cost": {"as in the other benchmarks": cost, "every event of another agent": cost | {"share": 0.12}},
        "restores": [restored, restored | {"from_start_s": 22.0}],
        "kills": [killed, killed | {"input_age_s": 4.0}],
    }  # fmt: skip


def test_bars_of_saved_state_take_the_worst_of_what_was_measured() -> None:
    rows = {what: rest for what, *rest in results.bars({"restore": restore_figures(1_000_000)})}
    assert rows["checkpoints, share of CPU time"][2:] == ["0.07", "reaches the bar"]
    assert rows["checkpoints, share of CPU time, at worst"][2:] == ["0.12", "below the bar"]
    assert rows["restore of 1 M agents, s"][2:] == ["22.00", "reaches the aim"]
    assert rows["replay after kill -9, s of input"][2:] == ["4.00", "reaches the bar"]


def test_the_restore_of_fewer_agents_says_nothing_about_the_bar() -> None:
    rows = dict.fromkeys(row[0] for row in results.bars({"restore": restore_figures(20_000)}))
    assert "restore of 1 M agents, s" not in rows
    assert "replay after kill -9, s of input" in rows


def test_each_restore_and_each_kill_has_its_rows() -> None:
    figures = restore_figures(1_000_000)
    rows = [what for what, _ in results.restore_rows(figures)]
    assert sum(what.startswith("restored after") for what in rows) == 2
    assert sum(what.startswith("killed with -9") for what in rows) == 2
    alone = dict(results.restore_rows({"cost": figures["cost"]}))
    assert alone["... CPU s per million events with checkpoints, and with next to none"] == (
        "15.0 (10.0 to 20.0), 12.5 (12.5 to 12.5)"
    )
