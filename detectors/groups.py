"""Groups of agents within a task that only feed each other, found in the graph of who writes to whom.

Not a detector: state and arithmetic for one. Every task remembers its latest `MEMBERS` agents and how much
each has written to each of them lately, without a new tool result of either. On a slow tick of event time,
the strongly connected components of that graph are looked at: in one of them everybody hears, by some way,
from everybody.

Why not the spectral radius of messages sent per message received, which is the textbook's criterion: in a
group that hears from nobody else the numbers of messages received are themselves an eigenvector of that
matrix, with eigenvalue 1, whatever the group does. What tells a closed group from one at work is how much of
what reaches it comes from inside: where the flow is steady, that share is the reproduction number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Table
from detectors.types import UNKNOWN, Floats, Hashes, Ints

MEMBERS = 8
"""Agents remembered per task; the one unheard of for longest makes room."""
TICK_S = 10.0
"""How often groups are looked for, s: an evaluation costs microseconds, a conversation takes minutes."""
WINDOW_S = 600.0
"""Time constant with which messages fade, s."""
_EDGE = 0.5
"""Messages below which nobody counts as having written lately: one message counts for seven minutes."""

FIELDS: dict[str, tuple[Any, ...]] = {
    "member": (np.uint64, 0, MEMBERS),
    "heard": (np.int64, -1, MEMBERS),  # number of the message at which the member last wrote or was written to
    "messages": (np.int64, 0),
    "talk": (np.float32, 0.0, MEMBERS * MEMBERS),  # messages from one (row) to another (column)
    "tick": (np.int64, -1),
}
"""Columns of the state, a row per task."""

Talk = NDArray[np.float32]


def advance(table: Table, rows: Ints, ts: Floats, sender: Hashes, receiver: Hashes) -> tuple[Ints, Floats, Floats]:
    """Takes in one message per task.

    Args:
        rows: (k,) distinct rows.
        ts: (k,) event time, s; a late message counts in the open tick.
        sender, receiver: (k,) hashes of agents, known ones.

    Returns:
        (k,) members of the largest closed group as of the tick before, 0 where there is none or this is not
        the first message of its tick; (k,) messages within it; (k,) share of all messages to it.
    """
    open_tick, tick = table["tick"][rows], np.floor(ts / TICK_S).astype(np.int64)
    over = np.flatnonzero(tick > open_tick)
    size, inside, share = np.zeros(len(rows), np.int64), np.zeros(len(rows)), np.zeros(len(rows))
    if len(over):
        due = rows[over]
        talk = table["talk"][due].reshape(-1, MEMBERS, MEMBERS)
        size[over], inside[over], share[over] = closed(talk)
        fade = np.exp(-(tick[over] - open_tick[over]) * TICK_S / WINDOW_S)
        table["talk"][due] = (talk * fade[:, None, None].astype(np.float32)).reshape(-1, MEMBERS * MEMBERS)
        table["tick"][due] = tick[over]
    number = table["messages"][rows]
    table["messages"][rows] = number + 1
    # The receiver comes second, so the sender is never the one to make room.
    one, other = _place(table, rows, sender, 2 * number), _place(table, rows, receiver, 2 * number + 1)
    table["talk"][rows, one * MEMBERS + other] += 1
    return size, inside, share


def fruitful(table: Table, rows: Ints, agents: Hashes) -> None:
    """These agents (k,) brought something new to their tasks (k,): what they said and heard was not in vain."""
    hit = table.take("member", rows) == agents[:, None]
    # MEMBERS truth values at once.
    known = ((hit.view(np.uint64)[:, 0] != 0) & (agents != UNKNOWN)).nonzero()[0]
    _silence(table, rows[known], hit[known].argmax(axis=1))


def closed(talk: Talk) -> tuple[Ints, Floats, Floats]:
    """Of each graph (k, m, m) the strongly connected group of three or more that talks most.

    Returns:
        (k,) its members, 0 if there is none; (k,) messages within it; (k,) share of all messages to it.
    """
    k = len(talk)
    sizes, most, share = np.zeros(k, np.int64), np.zeros(k), np.zeros(k)
    # Three agents that all hear from each other need three of them to write.
    some = ((talk > _EDGE).sum(axis=(1, 2)) >= 3).nonzero()[0]
    if len(some):
        sizes[some], most[some], share[some] = _closed(talk[some])
    return sizes, most, share


def _closed(talk: Talk) -> tuple[Ints, Floats, Floats]:
    m = talk.shape[1]
    reach = (talk > _EDGE) | np.eye(m, dtype=bool)
    for _ in range(int(m - 1).bit_length()):
        reach = np.matmul(reach.astype(np.uint8), reach.astype(np.uint8)) > 0
    together = reach & reach.transpose(0, 2, 1)
    size = together.sum(axis=2)
    # Of each member's group, a row per member: messages within it, and to it from anybody known.
    apart = talk * ~np.eye(m, dtype=bool)
    group = together.astype(np.float32)
    inside = np.einsum("dga,dab,dgb->dg", group, apart, group)
    to_it = np.einsum("dab,dgb->dg", apart, group)
    inside = np.where(size >= 3, inside, 0.0)
    best = inside.argmax(axis=1)
    at = np.arange(len(talk))
    most = inside[at, best]
    found = most > 0
    share = np.where(found, most / np.maximum(to_it[at, best], 1e-9), 0.0)
    return np.where(found, size[at, best], 0), most.astype(np.float64), share.astype(np.float64)


def _place(table: Table, rows: Ints, agents: Hashes, now: Ints) -> Ints:
    """(k,) places of agents among the members of their tasks; who is new takes the place unheard of for longest."""
    member = table.take("member", rows)
    hit = member == agents[:, None]
    place: Ints = hit.argmax(axis=1)
    new = (hit.view(np.uint64)[:, 0] == 0).nonzero()[0]
    if len(new):
        place[new] = table["heard"][rows[new]].argmin(axis=1)
        _silence(table, rows[new], place[new])
    table["member"][rows, place] = agents
    table["heard"][rows, place] = now
    return place


def _silence(table: Table, rows: Ints, place: Ints) -> None:
    """Forgets what the members at these places said and heard."""
    if not len(rows):
        return
    across = np.arange(MEMBERS)
    table["talk"][rows[:, None], place[:, None] * MEMBERS + across] = 0.0
    table["talk"][rows[:, None], across * MEMBERS + place[:, None]] = 0.0
