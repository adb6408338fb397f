"""Vectorising over entities: the k-th event of every entity is processed at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detectors.types import Ints


def rounds(row: Ints) -> Iterator[Ints]:
    """Yields arrays of positions; the k-th holds the k-th event of every row, each row at most once.

    Within a round all rows differ, so state can be gathered, changed and scattered as whole columns,
    and the order of events within an entity is kept.

    >>> [list(map(int, r)) for r in rounds(np.array([5, 3, 5, 5, 3]))]
    [[0, 1], [2, 4], [3]]
    """
    n = len(row)
    if n == 0:
        return
    order = np.argsort(row, kind="stable")
    ordered = row[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, n])
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(starts, sizes)
    by_rank = np.argsort(rank, kind="stable")
    edges = np.searchsorted(rank[by_rank], np.arange(int(sizes.max()) + 1))
    for low, high in zip(edges, [*edges[1:], n], strict=True):
        if high > low:
            yield by_rank[low:high]
