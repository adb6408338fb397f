"""Faults of a stated size, laid over any recorded stream of native usage events.

Each function takes a list of events (dicts, as decoded from JSON) and gives back a new list with the
fault's events merged in by time, and a `Fault` that says what was laid where. The given list and its
events are left as they are, in their order; what burnfuse would reject stays where it is. A fault is a run
of its own, `fault-<kind>-<agent>-<time>`, made to look like the agent's own work: its team, model and token
sizes are taken from what the agent did before. What the agent's events do not tell (tokens, models, teams),
the fault's do not tell either.

The same arguments give the same events. Times are epoch seconds, sizes tokens.

>>> work = {"event_id": "a", "ts": 0.0, "agent_id": "bot", "input_tokens": 900, "output_tokens": 100}
>>> events, fault = retry_loop([work], "bot", at=60.0, n_calls=3, gap_s=5.0)
>>> fault.run_id, fault.size, fault.events, len(events)
('fault-retry-loop-bot-60', '3 calls', 6, 7)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from statistics import median
from typing import Any

from stream.ingest.decode import Invalid, event_time

Event = dict[str, Any]

STEP_TOKENS = 200
"""Tokens that one tool call and its result add to the context (tau-bench: median 194 over 796 calls)."""

MIN_GAP_S = 2.0
"""Shortest time between two model calls of one run, s (p10 of coding agents, Multi-SWE-bench logs)."""

CONTEXT_LIMIT = 200_000
"""Largest context of an injected call, tokens: the window of common models."""

_SHORTEST_S = 0.05
"""Shortest mean time between the model calls of a runaway, s. Whoever burns more than such a run can read makes
larger calls instead of more."""

_IDENTITY = ("tenant", "team", "user", "provider", "model")


@dataclass(frozen=True, slots=True)
class Fault:
    """What was laid where."""

    name: str
    """Unique in a stream: kind, agent and time."""
    kind: str
    size: str
    """What was asked for, in words."""
    agent_id: str
    run_id: str
    """The run at fault; for a fault of many runs the one at their top."""
    root_run_id: str
    start: float
    """Time of the first event, epoch seconds."""
    end: float
    """Time of the last event, epoch seconds."""
    events: int


def retry_loop(
    events: Sequence[Event],
    agent_id: str,
    at: float,
    *,
    n_calls: int = 120,
    gap_s: float = 5.0,
    tool: str = "http_request",
    error_type: str = "invalid_request",
    seed: int = 0,
) -> tuple[list[Event], Fault]:
    """One tool call, repeated: same arguments, same error, a model round before each.

    Args:
        n_calls: failing calls.
        gap_s: mean seconds between them.
    """
    lay = _Layer("retry-loop", events, agent_id, at, seed)
    run = lay.run(agent_id)
    args, error = lay.hash("args"), lay.hash("error")
    for step in range(n_calls):
        thought = at + gap_s * step
        round_id = run.think(thought, asks=True, extra=STEP_TOKENS * step)
        run.write(
            "tool",
            thought + gap_s * lay.rng.uniform(0.3, 0.7),
            tool=tool,
            args_hash=args,
            result_hash=error,
            status="error",
            error_type=error_type,
            round_id=round_id,
        )
    return lay.merged(f"{n_calls} calls")


def runaway(
    events: Sequence[Event],
    agent_id: str,
    at: float,
    *,
    factor: float = 40.0,
    minutes: float = 20.0,
    growth: float = 6.0,
    doubling_min: float | None = None,
    tool: str = "search",
    seed: int = 0,
) -> tuple[list[Event], Fault]:
    """One run burns, on top of the agent's other work, `factor` times what the agent usually does.

    "Usually" is the median of tokens per active minute before `at`. The rate holds for the whole time while
    the context grows, so calls get fewer and larger. The shares of cached and of written tokens are the
    agent's own over all its calls, so that weighting tokens by kind or by price keeps the factor's size.
    Every call is followed by a tool call with new arguments and a new result, so that nothing repeats. Where
    the agent's tokens are not known, the factor is that of its events per active minute.

    Args:
        factor: rate of the run over the agent's usual rate.
        minutes: duration.
        growth: context at the end over context at the start (never above `CONTEXT_LIMIT`).
        doubling_min: the rate begins as the agent's usual one and doubles every so many minutes until it
            has reached `factor`; None: it begins there.
    """
    lay = _Layer("runaway", events, agent_id, at, seed)
    run, usual = lay.run(agent_id), lay.usual(agent_id)
    rate, writes = usual.tokens_per_active_minute / 60, usual.output_share
    end = at + 60 * minutes

    def times(ts: float) -> float:
        return factor if doubling_min is None else min(factor, 2 ** ((ts - at) / 60 / doubling_min))

    # Sizes are of a whole call, read and written.
    limit = CONTEXT_LIMIT / (1 - writes) if writes < 1 else math.inf
    own = usual.input_tokens / (1 - writes) if writes < 1 else usual.output_tokens
    first = min(max(own, times(at) * rate * MIN_GAP_S), limit)
    last = max(first, min(growth * first, limit))
    ts = at
    while True:
        if rate:
            size = max(first * (last / first) ** ((ts - at) / (end - at)), times(ts) * rate * _SHORTEST_S)
            pause = size / rate
            written = max(1, round(size * writes))
        else:
            pause = 2 * 60 / usual.events_per_active_minute  # a round writes two events
        ts += pause / times(ts) * lay.rng.uniform(0.8, 1.2)
        if ts > end:
            break
        context = round(size * (1 - writes)) if rate else None
        cached = None if context is None or usual.cached_share is None else round(context * usual.cached_share)
        round_id = run.call_model(
            ts, asks=True, input_tokens=context, cached=cached, output_tokens=written if rate else None
        )
        run.write(
            "tool",
            ts,
            tool=tool,
            args_hash=lay.hash("args", run.written),
            result_hash=lay.hash("result", run.written),
            round_id=round_id,
        )
    pace = f"{factor:g}x" if doubling_min is None else f"doubling every {doubling_min:g} min to {factor:g}x"
    return lay.merged(f"{pace} for {minutes:g} min")


def fan_out(
    events: Sequence[Event],
    agent_id: str,
    at: float,
    *,
    agents: int = 188,
    seconds: float = 60.0,
    children: int = 4,
    depth: int = 8,
    worker_id: str | None = None,
    seed: int = 0,
) -> tuple[list[Event], Fault]:
    """A run starts agents, which start agents: the tree grows exponentially.

    The i-th of n starts comes at `seconds * ln(1 + i) / ln(1 + n)`. Every run asks its model once, starts
    its children, and messages the run that started it.

    Args:
        agents: runs started, the first one not counted.
        seconds: time of the last start after the first model call.
        children: how many one run starts, at most.
        depth: levels below the first run, at most; where they are too few for `agents`, `children` grows.
        worker_id: agent that is started; default: the agent starts itself.
    """
    lay = _Layer("fan-out", events, agent_id, at, seed)
    worker_id = worker_id or agent_id
    if min(agents, children, depth) < 1:
        raise ValueError("agents, children and depth must be at least 1")
    while sum(children**level for level in range(1, depth + 1)) < agents:
        children += 1
    started = [at + seconds * math.log1p(i) / math.log1p(agents) for i in range(agents + 1)]
    top = lay.run(agent_id)
    runs, rounds = [top], [top.think(at, asks=True)]
    for i in range(1, agents + 1):
        mother = runs[(i - 1) // children]
        child = lay.run(worker_id, parent=mother, name=f"{i}")
        mother.write(
            "spawn",
            started[i],
            to_agent_id=worker_id,
            to_run_id=child.id,
            args_hash=lay.hash("task", i),
            round_id=rounds[(i - 1) // children],
        )
        first_child = i * children + 1
        # A run thinks before it starts its own children; those without children take a few seconds.
        until = started[first_child] if first_child <= agents else started[i] + 6.0
        thought = started[i] + (until - started[i]) * lay.rng.uniform(0.3, 0.9)
        runs.append(child)
        rounds.append(child.think(thought, asks=first_child <= agents))
        child.write(
            "message",
            thought + lay.rng.uniform(0.5, 3.0),
            to_agent_id=mother.agent_id,
            to_run_id=mother.id,
            args_hash=lay.hash("report", i),
        )
    return lay.merged(f"{agents} agents in {seconds:g} s")


def cycle(
    events: Sequence[Event],
    agent_id: str,
    at: float,
    *,
    laps: int = 15,
    gap_s: float = 5.0,
    tools: Sequence[str] = ("open_ticket", "read_ticket", "close_ticket"),
    seed: int = 0,
) -> tuple[list[Event], Fault]:
    """The same few successful calls in turn, lap after lap, with the same results.

    Args:
        laps: rounds through `tools`.
        gap_s: mean seconds between two calls.
        tools: names of the calls of one lap; their number is the period.
    """
    lay = _Layer("cycle", events, agent_id, at, seed)
    run = lay.run(agent_id)
    for step in range(laps * len(tools)):
        place = step % len(tools)
        thought = at + gap_s * step
        round_id = run.think(thought, asks=True, extra=STEP_TOKENS * step)
        run.write(
            "tool",
            thought + gap_s * lay.rng.uniform(0.3, 0.7),
            tool=tools[place],
            args_hash=lay.hash("args", place),
            result_hash=lay.hash("result", place),
            round_id=round_id,
        )
    return lay.merged(f"{laps} laps of {len(tools)}")


def ping_pong(
    events: Sequence[Event],
    agent_id: str,
    other_id: str,
    at: float,
    *,
    messages: int = 40,
    gap_s: float = 8.0,
    seed: int = 0,
) -> tuple[list[Event], Fault]:
    """Two agents thank each other: the same two messages in turn, no tool call, nothing made.

    Args:
        messages: messages sent, both ways together.
        gap_s: mean seconds between two of them.
    """
    lay = _Layer("ping-pong", events, agent_id, at, seed)
    first = lay.run(agent_id)
    sides = (first, lay.run(other_id, parent=first, name=other_id))
    for step in range(messages):
        speaker, listener = sides[step % 2], sides[1 - step % 2]
        thought = at + gap_s * step
        speaker.think(thought, extra=STEP_TOKENS * (step // 2), says=speaker.id)
        speaker.write(
            "message",
            thought + gap_s * lay.rng.uniform(0.3, 0.7),
            to_agent_id=listener.agent_id,
            to_run_id=listener.id,
            args_hash=lay.hash("words", speaker.id),
        )
    return lay.merged(f"{messages} messages")


def merged(events: Sequence[Event], laid: Iterable[Event]) -> list[Event]:
    """A stream with other events laid over it by time.

    The stream's own events keep their order, so that one that came late stays late; they come first where
    times are equal.
    """
    came = accumulate((-math.inf if ts is None else ts for ts in map(_time, events)), max)
    both = [*zip(came, events, strict=True), *((event_time(event["ts"]), event) for event in laid)]
    both.sort(key=lambda entry: entry[0])
    return [event for _, event in both]


# ------------------------------------------------------------------------------------- how it is laid


@dataclass(frozen=True, slots=True)
class _Usual:
    """What an agent did before the fault; token figures are 0 where it reported none."""

    identity: Event
    """The `_IDENTITY` fields of its last model call, or of its last event if it has none."""
    input_tokens: float
    """Median per model call."""
    output_tokens: float
    """Median per model call."""
    output_share: float
    """Output tokens over all tokens."""
    cached_share: float | None
    """Cached input tokens over input tokens; None where the agent reports none."""
    tokens_per_active_minute: float
    """Median over the minutes with tokens."""
    events_per_active_minute: float
    """Median over the minutes with events."""


class _Layer:
    """The events of one fault while it is being made."""

    def __init__(self, kind: str, events: Sequence[Event], agent_id: str, at: float, seed: int) -> None:
        self._events = events
        self._times = [_time(event) for event in events]
        self._at = at
        self._kind = kind
        self._agent_id = agent_id
        self._laid: list[tuple[float, Event]] = []
        self._usual: dict[str, _Usual] = {}
        self.name = f"fault-{kind}-{agent_id}-{at:.0f}"
        self.rng = Random(f"{self.name}/{seed}")  # noqa: S311 - a simulation, no secrets
        if any(self.name in (event.get("root_run_id"), event.get("run_id")) for event in events):
            raise ValueError(f"the stream already holds {self.name!r}: choose another time")

    def usual(self, agent_id: str) -> _Usual:
        """What this agent did before the fault."""
        if agent_id not in self._usual:
            own = [
                (ts, event)
                for ts, event in zip(self._times, self._events, strict=True)
                if ts is not None and ts < self._at and event.get("agent_id") == agent_id
            ]
            if not own:
                raise ValueError(f"the stream holds no event of agent {agent_id!r} before {self._at}")
            self._usual[agent_id] = _usual(own)
        return self._usual[agent_id]

    def run(self, agent_id: str, *, parent: _Run | None = None, name: str = "") -> _Run:
        """A run of the fault; without a parent the one at the top."""
        return _Run(self, agent_id, f"{self.name}/{name}" if name else self.name, self.usual(agent_id), parent)

    def add(self, ts: float, event: Event) -> None:
        self._laid.append((ts, event))

    def hash(self, *of: object) -> str:
        """16 hex digits that belong to this fault and to `of`."""
        text = "/".join(map(str, (self.name, *of)))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def merged(self, size: str) -> tuple[list[Event], Fault]:
        """All events, and what was laid."""
        if not self._laid:
            raise ValueError(f"{self.name}: nothing to lay; make it longer or larger")
        self._laid.sort(key=lambda entry: entry[0])
        fault = Fault(
            name=self.name,
            kind=self._kind,
            size=size,
            agent_id=self._agent_id,
            run_id=self.name,
            root_run_id=self.name,
            start=self._laid[0][0],
            end=self._laid[-1][0],
            events=len(self._laid),
        )
        return merged(self._events, [event for _, event in self._laid]), fault


class _Run:
    """One run of a fault."""

    def __init__(self, lay: _Layer, agent_id: str, run_id: str, usual: _Usual, parent: _Run | None) -> None:
        self.agent_id = agent_id
        self.id = run_id
        self.written = 0
        self._lay = lay
        self._usual = usual
        self._identity: Event = {"agent_id": agent_id, "run_id": run_id, "root_run_id": lay.name}
        if parent:
            self._identity |= {"parent_run_id": parent.id, "parent_agent_id": parent.agent_id}
        self._identity |= {k: v for k, v in usual.identity.items() if k not in ("provider", "model")}

    def write(self, kind: str, ts: float, **fields: object) -> None:
        """One event at `ts`, epoch seconds."""
        ts = round(ts, 3)
        event = {"event_id": f"{self.id}#{self.written}", "ts": ts, "kind": kind, **self._identity, **fields}
        self._lay.add(ts, event)
        self.written += 1

    def think(self, ts: float, *, asks: bool = False, extra: float = 0.0, says: object = None) -> str:
        """A model call of the agent's usual size, `extra` tokens longer; returns its round id.

        Args:
            asks: whether the model asks for tools.
            says: what the text is made of; equal texts for equal values, by default always new.
        """
        usual = self._usual
        size = min(usual.input_tokens + extra, max(usual.input_tokens, CONTEXT_LIMIT))
        return self.call_model(
            ts,
            asks=asks,
            input_tokens=round(size) if usual.input_tokens else None,
            output_tokens=max(1, round(usual.output_tokens)) if usual.input_tokens else None,
            cached=None if usual.cached_share is None else round(size * usual.cached_share),
            says=says,
        )

    def call_model(
        self,
        ts: float,
        *,
        asks: bool,
        input_tokens: int | None,
        output_tokens: int | None,
        cached: int | None,
        says: object = None,
    ) -> str:
        """A model call with these tokens, unknown ones left out; returns its round id."""
        round_id = f"{self.id}/{self.written}"
        counts = {
            "input_tokens": input_tokens,
            "cached_input_tokens": cached,
            "output_tokens": output_tokens,
        }
        fields: Event = {k: self._usual.identity[k] for k in ("provider", "model") if k in self._usual.identity}
        fields |= {k: v for k, v in counts.items() if v is not None}
        self.write(
            "llm",
            ts,
            **fields,
            result_hash=self._lay.hash("text", round_id if says is None else says),
            round_id=round_id,
            finish_reason="tool_calls" if asks else "stop",
        )
        return round_id


def _time(event: Event) -> float | None:
    """When it happened, epoch seconds; None where burnfuse would reject it."""
    try:
        return event_time(event["ts"])
    except (KeyError, TypeError, Invalid):
        return None


def _usual(own: Sequence[tuple[float, Event]]) -> _Usual:
    """Figures of one agent's events, given with their times."""
    calls = [(ts, e) for ts, e in own if (e.get("kind") or "llm") == "llm" and e.get("input_tokens") is not None]
    inputs = [float(e["input_tokens"]) for _, e in calls]
    outputs = [float(e.get("output_tokens") or 0) for _, e in calls]
    caching = [e for _, e in calls if e.get("cached_input_tokens") is not None]
    per_minute: defaultdict[int, float] = defaultdict(float)
    for (ts, _), read, written in zip(calls, inputs, outputs, strict=True):
        per_minute[int(ts // 60)] += read + written
    events_per_minute = Counter(int(ts // 60) for ts, _ in own)
    last = calls[-1][1] if calls else own[-1][1]
    return _Usual(
        identity={key: last[key] for key in _IDENTITY if last.get(key) is not None},
        input_tokens=_median(inputs),
        output_tokens=_median(outputs),
        output_share=_ratio(sum(outputs), sum(inputs) + sum(outputs)),
        cached_share=_ratio(sum(e["cached_input_tokens"] for e in caching), sum(inputs)) if caching else None,
        tokens_per_active_minute=_median(per_minute.values()),
        events_per_active_minute=_median(events_per_minute.values()),
    )


def _median(values: Iterable[float]) -> float:
    listed = list(values)
    return median(listed) if listed else 0.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
