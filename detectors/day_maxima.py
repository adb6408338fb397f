"""Values per agent and day, counted per group of agents over the trailing days: what false-alarm budgets rest on.

Minutes of one agent depend on each other so strongly that no threshold per minute keeps what it promises;
days of agents are close enough to exchangeable. A histogram belongs to a partition; the fleet's is the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import StateError
from detectors.types import UNKNOWN, Hashes, Ints

DAYS = 7
"""Days that count: a week holds every weekday once."""

GROUPS = 1000
"""Groups counted on their own, at most; the agents of further ones count for the fleet alone."""


class DayMaxima:
    """Histograms of one value per agent and day, of the newest `DAYS` days, per group.

    What it holds does not depend on the order in which values come.
    """

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._newest = -1
        self._groups = {int(UNKNOWN): self._blank()}

    def _blank(self) -> NDArray[np.uint32]:
        return np.zeros((DAYS, self._bins), np.uint32)

    def add(self, group: Hashes, day: Ints, index: Ints) -> None:
        """Counts values: of an agent of `group` (n,), on `day` (n,) since 1970, in bin `index` (n,)."""
        if not len(day):
            return
        self._advance(int(day.max()))
        kept = day > self._newest - DAYS
        group, day, index = group[kept], day[kept], index[kept]
        for known in np.unique(group).tolist():
            own = group == known
            if known not in self._groups:
                if len(self._groups) < GROUPS:
                    self._groups[known] = self._blank()
                else:
                    known = int(UNKNOWN)
            np.add.at(self._groups[known], (day[own] % DAYS, index[own]), 1)

    def _advance(self, day: int) -> None:
        if day <= self._newest:
            return
        passed = np.arange(max(self._newest + 1, day - DAYS + 1), day + 1) % DAYS
        self._newest = day
        for counts in self._groups.values():
            counts[passed] = 0
        self._groups = {g: c for g, c in self._groups.items() if g == UNKNOWN or c.any()}

    def counts(self) -> dict[int, list[int]]:
        """Group -> its histogram over all days that count; groups without values are left out."""
        sums = {group: counts.sum(0) for group, counts in sorted(self._groups.items())}
        return {group: total.tolist() for group, total in sums.items() if total.any()}

    def dump(self) -> Any:
        """All of it as plain data."""
        return self._newest, {f"{group:016x}": counts.tobytes() for group, counts in sorted(self._groups.items())}

    def load(self, saved: tuple[int, dict[str, bytes]]) -> None:
        """Takes what `dump` gave.

        Raises:
            StateError: it is damaged.
        """
        newest, pages = saved
        try:
            groups = {
                int(name, 16): np.frombuffer(page, np.uint32).reshape(DAYS, self._bins).copy()
                for name, page in pages.items()
            }
        except ValueError as error:
            raise StateError("saved daily values are damaged") from error
        self._newest = newest
        self._groups = {int(UNKNOWN): self._blank()} | groups
