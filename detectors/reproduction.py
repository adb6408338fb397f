"""How many more each started run starts: a running likelihood test on the reproduction number.

Runs that are started by started runs are children; runs that the root run starts come from outside. A
started run is expected to have R children, spread over time with an exponential kernel. Parents are known, so
the rate of what comes from outside cancels out and need not be estimated.
"""

from __future__ import annotations

import numpy as np

from detectors.base import Table
from detectors.types import Bools, Floats, Ints

SUSPECTS = (1.0, 1.5, 2.5)
"""Reproduction numbers that are tested against the healthy one; the test is best near these."""

FIELDS: dict[str, tuple[object, ...]] = {
    "at": (np.float64, -np.inf),
    "active": (np.float64, 0.0),
    "evidence": (np.float64, 0.0, len(SUSPECTS)),
    "children": (np.float64, 0.0),
    "expected": (np.float64, 0.0),
}
"""Fields that the table of `advance` needs."""


def advance(
    table: Table, rows: Ints, ts: Floats, child: Bools, *, healthy: float, kernel_s: float
) -> tuple[Floats, Floats]:
    """Takes in one started run of each row; an out-of-order one counts as starting at the newest time.

    Args:
        rows: (k,) distinct rows.
        ts: (k,) when the runs started, s.
        child: (k,) whether a started run started it.
        healthy: Reproduction number that is no spiral.
        kernel_s: Mean time from a run's start to the starts of its children, s.

    Returns:
        (k,) evidence against the healthy number, nats, and (k,) the estimated number.
    """
    before = table["at"][rows]
    now = np.maximum(ts, before)
    gap = np.where(np.isfinite(before), now - before, 0.0)
    kept = np.exp(-gap / kernel_s)
    active = table["active"][rows]
    passed = active * (1 - kept)  # the kernel mass that went by, per unit of R
    suspects = np.array(SUSPECTS)
    evidence = np.maximum(table["evidence"][rows] - np.outer(passed, suspects - healthy), 0.0)
    # The estimate is over what happened since the middle suspect was last cleared.
    cleared = evidence[:, 1] <= 0
    evidence = evidence + np.outer(child, np.log(suspects / healthy))
    children = np.where(cleared, 0.0, table["children"][rows]) + child
    expected = np.where(cleared, 0.0, table["expected"][rows] + passed)
    table["at"][rows], table["active"][rows] = now, active * kept + 1
    table["evidence"][rows] = evidence
    table["children"][rows], table["expected"][rows] = children, expected
    # Two runs' worth of the healthy number keep the first few starts from giving wild estimates.
    return evidence.max(axis=1), (children + 2 * healthy) / (expected + 2)
