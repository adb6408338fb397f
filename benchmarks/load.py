"""The load of all benchmarks: usage events of a large fleet, always the same for the same figures.

Native events of 250 to 400 bytes: model calls and tool calls of many agents, whose activity follows Zipf's
law. A fifth of the agents work in trees and write messages. Now and then a run calls a tool with the same
arguments again and again, so that there is something to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 50_000
"""Events made at once; each chunk has random numbers of its own, so a shorter load is the start of a longer one."""

RUN_EVENTS = 20
"""Events of a run."""
_RUN_RATE = 0.2
"""Events of one run per second: an agent that is busier has several runs at once."""
_IN_TREES = 5
"""One agent of so many works in trees."""
_TREE_SPAN = 4 * _IN_TREES
"""The tree agents among so many neighbours share their trees."""

_KINDS = ("llm", "tool", "message")
_SHARES = (0.55, 0.41, 0.04)
_RAW, _HASHED, _BARE = range(3)
_CONTENT_SHARES = (0.35, 0.50, 0.15)
"""Of tool calls: how many carry arguments and result, their hashes, or nothing of both."""
_FAILS = 0.02

LOOP_CALLS = 6
"""Identical calls of a planted loop: the fourth is a warning, the sixth is critical."""
_LOOP_SLOTS = 8
_LOOPED = '"kind":"tool","tool":"read_file","args_hash":"{loop:016x}","result_hash":"{loop:016x}","latency_ms":31.5'

_MODELS = (
    ("openai", "gpt-4.1"),
    ("openai", "gpt-4.1-mini"),
    ("anthropic", "claude-sonnet-4"),
    ("anthropic", "claude-3-5-haiku-latest"),
    ("google", "gemini-2.5-flash"),
    ("own", "llama-3.3-70b-local"),
)
_TOOLS = (
    "read_file",
    "search_code",
    "web_search",
    "run_shell",
    "edit_file",
    "query_database",
    "send_email",
    "list_jobs",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be made.

    Attributes:
        zipf: Exponent of the agents' activity; 0: every agent in turn.
        start: Event time of the first event, s since 1970.
        rate: Events per second of event time.
        loop_every: One planted loop in so many events; 0: none.
    """

    events: int = 2_000_000
    agents: int = 50_000
    zipf: float = 1.0
    seed: int = 1
    start: float = 1_750_000_000.0
    rate: float = 1000.0
    loop_every: int = 10_000


class Usage(NamedTuple):
    """One event as it goes onto Kafka."""

    agent: str
    value: bytes


def chunks(load: Load) -> Iterator[list[Usage]]:
    """All events, in order, in pieces of at most `CHUNK`."""
    weights = np.arange(1, load.agents + 1) ** -load.zipf
    share = weights / weights.sum()
    reach = np.cumsum(share)
    # So many runs of the agent go on at the same time.
    parallel = np.maximum(1, np.rint(share * load.rate / _RUN_RATE)).astype(np.int64)
    counts = np.zeros(load.agents, np.int64)
    for number, low in enumerate(range(0, load.events, CHUNK)):
        rng = np.random.default_rng((load.seed, number))
        # All random numbers of a chunk are drawn, whatever its length.
        draws = rng.random((6, CHUNK))
        integers = rng.integers(0, 1 << 32, (3, CHUNK))
        n = min(CHUNK, load.events - low)
        index = np.arange(low, low + n)
        by_share = np.minimum(np.searchsorted(reach, draws[0, :n]), load.agents - 1)
        agent = by_share if load.zipf else index % load.agents
        looping = loops(load, index)
        agent = np.where(looping >= 0, looping * 7919 % load.agents, agent)
        yield _format(load, index, agent, looping, _runs(agent, counts, parallel), draws[1:, :n], integers[:, :n])


def event_index(event_id: str) -> int:
    """The number of an event of a load, from its id."""
    return int(event_id.rpartition("-")[2], 16)


def loops(load: Load, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) number of the planted loop each event belongs to, -1 for none."""
    if not load.loop_every:
        return np.full(len(index), -1)
    call, rest = np.divmod(index % load.loop_every, max(1, load.loop_every // _LOOP_SLOTS))
    return np.where((rest == 0) & (call < LOOP_CALLS), index // load.loop_every, -1)


def _runs(agent: NDArray[np.int64], counts: NDArray[np.int64], parallel: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) number of each event's run among those of its agent; `counts` (events so far) goes on."""
    order = np.argsort(agent, kind="stable")
    ordered = agent[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(agent)])
    rank = np.empty(len(agent), np.int64)
    rank[order] = np.arange(len(agent)) - np.repeat(starts, sizes)
    k = counts[agent] + rank
    counts[ordered[starts]] += sizes
    return k // (RUN_EVENTS * parallel[agent]) * parallel[agent] + k % parallel[agent]


def _format(
    load: Load,
    index: NDArray[np.int64],
    agent: NDArray[np.int64],
    looping: NDArray[np.int64],
    run: NDArray[np.int64],
    draws: NDArray[np.float64],
    integers: NDArray[np.int64],
) -> list[Usage]:
    kind = np.searchsorted(np.cumsum(_SHARES)[:-1], draws[0], side="right")
    tree = agent % _IN_TREES == _IN_TREES - 2
    kind[~tree & (kind == 2)] = 0  # only trees write messages
    content = np.searchsorted(np.cumsum(_CONTENT_SHARES)[:-1], draws[1], side="right")
    # Tokens: an agent has its size, a call varies around it.
    size = np.exp(6.5 + 1.5 * np.sin(agent * 0.7) + 0.6 * (draws[2] + draws[3] - 1.0) * 2.0)
    columns = zip(
        index.tolist(),
        agent.tolist(),
        looping.tolist(),
        run.tolist(),
        kind.tolist(),
        tree.tolist(),
        content.tolist(),
        size.astype(np.int64).tolist(),
        (draws[4] < _FAILS).tolist(),
        *integers.tolist(),
        strict=True,
    )
    events = []
    for i, a, loop, r, k, in_tree, kept, tokens, fails, x, y, z in columns:
        name = f"agent-{a:06d}"
        run_id = f"run-{a}-{r}" if loop < 0 else f"loop-{a}-{loop}"
        place = ""
        if in_tree:
            root = f"task-{a // _TREE_SPAN}-{r}"
            place = f'"root_run_id":"{root}","parent_run_id":"{root}",'
        if loop >= 0:
            body = _LOOPED.format(loop=loop)
        elif k == 0:
            body = _llm(tokens, x, y, z, kept)
        elif k == 1:
            body = _tool(x, y, z, kept, fails)
        else:
            lead = a // _TREE_SPAN * _TREE_SPAN + _IN_TREES - 2
            body = f'"kind":"message","to_agent_id":"agent-{lead:06d}","args_hash":"{x:08x}{y:08x}"'
        ts = load.start + i / load.rate
        text = (
            f'{{"event_id":"{z:08x}-{i:012x}","agent_id":"{name}","ts":{ts:.4f},"tenant":"t-{a % 40:02d}",'
            f'"team":"team-{a % 400:03d}","run_id":"{run_id}",{place}{body}}}'
        )
        events.append(Usage(name, text.encode()))
    return events


def _llm(tokens: int, x: int, y: int, z: int, kept: int) -> str:
    provider, model = _MODELS[x % len(_MODELS)]
    said = "" if kept == _BARE else f'"result_hash":"{y:08x}{z:08x}",'
    return (
        f'"kind":"llm","provider":"{provider}","model":"{model}","input_tokens":{tokens},'
        f'"cached_input_tokens":{tokens // 3},"output_tokens":{tokens // 8 + z % 40},{said}'
        f'"latency_ms":{x % 9000}.5,"finish_reason":"{"tool_calls" if y % 3 else "stop"}"'
    )


def _tool(x: int, y: int, z: int, kept: int, fails: bool) -> str:
    tool = _TOOLS[x % len(_TOOLS)]
    failed = ',"status":"error","error_type":"TimeoutError","http_status":504' if fails else ""
    if kept == _RAW:
        content = (
            f'"args":{{"path":"src/part_{y % 90}/module_{z % 997}.py","line":{x % 5000}}},'
            f'"result":"{y % 100000} lines, the last one changed in revision {z:08x}",'
        )
    elif kept == _HASHED:
        content = (
            f'"args_hash":"{x:08x}{y:08x}","result_hash":"{y:08x}{z:08x}","target_hash":"{z % 100000:016x}",'
            f'"round_id":"resp_{x:08x}{z:08x}",'
        )
    else:
        content = f'"attempt":{x % 2},"round_id":"resp_{x:08x}{z:08x}","attributes":{{"region":"eu-west-{y % 3}"}},'
    return f'"kind":"tool","tool":"{tool}",{content}"latency_ms":{y % 3000}.25{failed}'
