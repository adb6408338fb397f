"""Ids to rows: what a dict would say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from detectors.types import Hashes
from stream.slots import SlotMap, first_of

# Few ids, and many that share a slot: collisions and free slots within chains are what can go wrong.
IDS = st.integers(2, 40) | st.integers(2**64 - 40, 2**64 - 1) | st.integers(2, 2**64 - 1)
SETS = st.lists(IDS, max_size=60, unique=True)


def array(ids: list[int]) -> Hashes:
    return np.array(ids, np.uint64)


class LikeADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.model, self.next = SlotMap(), dict[int, int](), 0

    @rule(ids=SETS)
    def add(self, ids: list[int]) -> None:
        fresh = [i for i in ids if i not in self.model]
        rows = range(self.next, self.next + len(fresh))
        self.map.add(array(fresh), np.array(rows, np.int64))
        self.model |= dict(zip(fresh, rows, strict=True))
        self.next += len(fresh)

    @rule(ids=SETS)
    def remove(self, ids: list[int]) -> None:
        known = [i for i in ids if i in self.model]
        self.map.remove(array(known))
        for i in known:
            del self.model[i]

    @rule(ids=st.lists(IDS, max_size=60))
    def find(self, ids: list[int]) -> None:
        assert self.map.find(array(ids)).tolist() == [self.model.get(i, -1) for i in ids]

    @rule()
    def clear(self) -> None:
        self.map.clear()
        self.model.clear()

    @invariant()
    def all_are_there(self) -> None:
        assert len(self.map) == len(self.model)
        assert self.map.find(array(list(self.model))).tolist() == list(self.model.values())


TestLikeADict = LikeADict.TestCase


def test_coming_and_going_takes_no_more_memory() -> None:
    held = SlotMap()
    rng = np.random.default_rng(1)
    sizes = set()
    for _ in range(300):
        ids = rng.integers(2, 2**63, 300).astype(np.uint64)
        held.add(ids, np.arange(300))
        held.remove(ids)
        sizes.add(held.nbytes)
    assert len(held) == 0
    assert max(sizes) <= 4 * min(sizes)


def test_a_million_ids_are_all_found() -> None:
    held, n = SlotMap(), 1_000_000
    ids = np.random.default_rng(2).permutation(np.arange(2, n + 2, dtype=np.uint64) << np.uint64(20))
    for low in range(0, n, 50_000):
        held.add(ids[low : low + 50_000], np.arange(low, low + 50_000))
    assert (held.find(ids) == np.arange(n)).all()
    assert (held.find(ids + np.uint64(1)) == -1).all()
    assert held.nbytes <= 80 * n


@given(st.lists(st.integers(2, 9)))
def test_first_of_marks_what_was_not_there_before(ids: list[int]) -> None:
    assert first_of(array(ids)).tolist() == [i not in ids[:k] for k, i in enumerate(ids)]
