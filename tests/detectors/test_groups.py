"""Closed groups of agents: who belongs together, what counts as inside, and who makes room."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import groups
from detectors.base import Table
from detectors.groups import MEMBERS, TICK_S, WINDOW_S, advance, closed, fruitful

ROW = np.array([0])


def graph(**messages: float) -> groups.Talk:
    """Messages by pair of letters: ab=3 are three from a to b."""
    talk = np.zeros((1, MEMBERS, MEMBERS), np.float32)
    for pair, n in messages.items():
        talk[0, ord(pair[0]) - ord("a"), ord(pair[1]) - ord("a")] = n
    return talk


def told(talk: groups.Talk) -> tuple[int, float, float]:
    size, inside, share = closed(talk)
    return int(size[0]), float(inside[0]), float(share[0])


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        pytest.param(graph(), (0, 0.0, 0.0), id="nobody talks"),
        pytest.param(graph(ab=9, ba=9), (0, 0.0, 0.0), id="two are a pair, not a group"),
        pytest.param(graph(ab=1, bc=2, ca=3), (3, 6.0, 1.0), id="a circle"),
        pytest.param(graph(ab=1, bc=2, cd=3), (0, 0.0, 0.0), id="a line never comes back"),
        pytest.param(graph(ab=2, bc=2, ca=2, da=3), (3, 6.0, 6 / 9), id="orders from outside"),
        pytest.param(graph(ab=2, bc=2, ca=2, ad=9), (3, 6.0, 1.0), id="what leaves the group does not reach it"),
        pytest.param(graph(ab=1, bc=1, ca=1, de=5, ef=5, fd=5), (3, 15.0, 1.0), id="the group that talks most"),
        pytest.param(graph(ab=1, bc=1, ca=0.4), (0, 0.0, 0.0), id="what has faded is no edge"),
        pytest.param(graph(ab=1, bc=1, ca=1, aa=7), (3, 3.0, 1.0), id="notes to oneself do not count"),
        pytest.param(
            graph(**{f"{a}{b}": 1 for a, b in zip("abcdefgh", "bcdefgha", strict=True)}),
            (8, 8.0, 1.0),
            id="all of them",
        ),
    ],
)
def test_closed_groups_by_hand(talk: groups.Talk, expected: tuple[int, float, float]) -> None:
    assert told(talk) == pytest.approx(expected)


GRAPHS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 9)), max_size=20)


@given(GRAPHS)
def test_a_group_is_who_reaches_each_other(messages: list[tuple[int, int, int]]) -> None:
    talk = np.zeros((1, MEMBERS, MEMBERS), np.float32)
    for one, other, n in messages:
        talk[0, one, other] += n

    def reach(start: int) -> set[int]:
        seen, todo = {start}, [start]
        while todo:
            at = todo.pop()
            new = {k for k in range(MEMBERS) if talk[0, at, k] > 0} - seen
            seen |= new
            todo += new
        return seen

    reached = [reach(k) for k in range(MEMBERS)]
    best = (0, 0.0, 0.0)
    for k in range(MEMBERS):
        group = {other for other in reached[k] if k in reached[other]}
        inside = sum(n for one, other, n in messages if one != other and {one, other} <= group)
        to_it = sum(n for one, other, n in messages if one != other and other in group)
        if len(group) >= 3 and inside > best[1]:
            best = (len(group), float(inside), inside / to_it)
    assert told(talk) == pytest.approx(best)


def say(table: Table, ts: float, sender: int, receiver: int) -> tuple[int, float]:
    size, inside, _ = advance(table, ROW, np.array([ts]), *(np.array([x], np.uint64) for x in (sender, receiver)))
    return int(size[0]), float(inside[0])


def circle(table: Table, ts: float = 0.0) -> None:
    for one, other in ((1, 2), (2, 3), (3, 1)):
        say(table, ts, one, other)


def test_groups_are_looked_for_once_a_tick_and_messages_fade() -> None:
    table = Table(groups.FIELDS)
    circle(table)
    assert say(table, TICK_S - 1, 1, 2) == (0, 0.0)
    assert say(table, TICK_S, 1, 2) == (3, 4.0)
    assert say(table, TICK_S, 1, 2) == (0, 0.0)
    # 4 messages of the first tick and 2 of the second, all seen from the tick after the next.
    size, inside = say(table, 3 * TICK_S, 1, 2)
    assert (size, inside) == (3, pytest.approx(4 * np.exp(-TICK_S / WINDOW_S) + 2, rel=1e-6))


def test_a_late_message_counts_in_the_open_tick() -> None:
    table = Table(groups.FIELDS)
    circle(table, 5 * TICK_S)
    assert say(table, 0.0, 1, 2) == (0, 0.0)
    assert say(table, 6 * TICK_S, 1, 2) == (3, 4.0)


def test_who_brings_something_new_was_not_spoken_to_in_vain() -> None:
    table = Table(groups.FIELDS)
    circle(table)
    fruitful(table, ROW, np.array([9], np.uint64))  # an agent nobody has heard of
    fruitful(table, ROW, np.array([0], np.uint64))  # an agent that is not known
    assert say(table, TICK_S, 1, 2)[0] == 3
    fruitful(table, ROW, np.array([2], np.uint64))
    assert say(table, 2 * TICK_S, 1, 2)[0] == 0


def test_who_is_unheard_of_for_longest_makes_room() -> None:
    table = Table(groups.FIELDS)
    circle(table)
    for other in range(4, MEMBERS + 2):
        say(table, 0.0, other, other - 1)
    # The ninth agent has taken the place of the first, whose messages are gone with it.
    assert say(table, TICK_S, MEMBERS + 1, 2) == (0, 0.0)
    assert 1 not in table["member"][0].tolist()


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=60))
def test_members_are_the_agents_heard_of_last(messages: list[tuple[int, int]]) -> None:
    table, heard = Table(groups.FIELDS), list[int]()
    for one, other in messages:
        say(table, 0.0, one, other)
        heard += [one, other]
    latest = list(dict.fromkeys(reversed(heard)))[:MEMBERS]
    assert set(table["member"][0].tolist()) - {0} == set(latest)
