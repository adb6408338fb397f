"""Where runs lie in their trees: what a look at every event would say."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.types import Entity, Kind
from stream import engine
from stream.columns import TEXTS, Columns
from stream.numeric import NUMBERS

KEPT = 12


class Event(NamedTuple):
    root: int
    run: int
    parent: int
    child: int
    kind: Kind
    new_root: bool
    new_run: bool


EVENTS = st.lists(
    st.builds(
        Event,
        root=st.integers(0, 2),
        run=st.integers(0, 8),
        parent=st.integers(0, 8),
        child=st.integers(0, 12),
        kind=st.sampled_from([Kind.LLM, Kind.TOOL, Kind.MESSAGE, Kind.SPAWN]),
        new_root=st.just(value=False) | st.booleans(),
        new_run=st.just(value=False) | st.booleans(),
    ),
    max_size=60,
)


def looked_at(events: list[Event]) -> list[tuple[bool, int]]:
    """(brings a run, depth) of each, one after the other."""
    trees: dict[int, dict[str, int]] = {}
    told = []
    for event in events:
        root, run, child = f"root {event.root}", f"{event.run}", f"{event.child}"
        parent = f"{event.parent}" if event.parent else ""
        if event.new_root or event.root not in trees:
            trees[event.root] = {root: 0}
        tree, spawned = trees[event.root], False
        if run not in tree:
            tree[run], spawned = tree.get(parent, 0) + 1, event.parent > 0
        depth = own = tree[run]
        if event.child and event.kind in (Kind.MESSAGE, Kind.SPAWN) and child not in tree:
            depth = tree[child] = own + 1 if event.kind is Kind.SPAWN else max(own, min(own + 1, 3))
            spawned = True
        told.append((spawned, depth))
        if len(tree) > KEPT:
            trees[event.root] = {root: 0} | dict(list(tree.items())[len(tree) // 2 :])
    return told


def place(events: list[Event], cuts: list[int]) -> list[tuple[bool, int]]:
    trees, told, known = engine._Trees(), [], set[int]()
    for low, high in pairwise([0, *sorted(cuts), len(events)]):
        part = events[low:high]
        if not part:
            continue
        numbers = {name: np.zeros(len(part), dtype) for name, dtype in NUMBERS.items()}
        numbers["kind"][:] = [event.kind for event in part]
        texts = dict.fromkeys(TEXTS, [""] * len(part)) | {
            "root_run_id": [f"root {event.root}" for event in part],
            "run_id": [f"{event.run}" for event in part],
            "parent_run_id": [f"{event.parent}" if event.parent else "" for event in part],
            "to_run_id": [f"{event.child}" if event.child else "" for event in part],
        }
        new = []
        for event in part:
            new.append(event.new_root or event.root not in known)
            known.add(event.root)
        zeros = np.zeros(len(part), np.int64)
        roots = Entity(np.array([event.root for event in part]), np.array(new), zeros, zeros)
        runs = np.array([event.run for event in part])
        spawned, depth = trees.place(
            Columns(texts, numbers), roots, Entity(runs, np.array([event.new_run for event in part]), zeros, zeros)
        )
        told += list(zip(spawned.tolist(), depth.tolist(), strict=True))
    return told


@given(EVENTS, st.data())
def test_runs_lie_where_a_look_at_every_event_finds_them(events: list[Event], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_RUNS_KEPT", KEPT)
        assert place(events, cuts) == looked_at(events)
