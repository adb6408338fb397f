"""A made-up company's agents at work: a stream of usage events for demos, tests and first steps.

Nothing in it was recorded. The agents are invented, their rates, sizes and habits follow the figures in
`stream.simulate.figures`, which were measured on public recordings of real traffic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from stream.inject import Fault, fan_out, retry_loop, runaway
from stream.simulate import figures
from stream.simulate.company import COMPANY, Agent
from stream.simulate.runs import BEHAVIOURS, Event, Run

__all__ = ["COMPANY", "START", "Agent", "Event", "demo_stream", "simulate"]

START = 1772409600.0
"""Monday 2026-03-02 00:00 UTC, epoch seconds."""

HOUR, DAY = 3600.0, 86400.0

_STEP_S = 600.0
"""The rate of runs changes every 10 minutes, as it was measured."""

_LEVEL_SD = 0.45
"""Standard deviation of the log of an agent's rate around its daily course. Set so that the spread of
tokens per active minute comes out as in thinned ServeGen clients (`figures.ACTIVE_LOG_SD`)."""


def simulate(
    seed: int = 7, *, days: float = 4.0, start: float = START, company: Sequence[Agent] = COMPANY
) -> list[Event]:
    """The company's healthy traffic: native usage events (plain dicts), sorted by time.

    Four days hold about 135,000 events, and let the agents that work around the clock pass 1,440 active
    minutes before the last day. The same arguments give the same events; each agent draws from a stream of
    its own, so leaving one out of `company` does not change the others.

    Args:
        days: length of the stream; runs still going at the end are cut there.
        start: epoch seconds of the first midnight (UTC).
        company: who works; must hold the mates of each of its agents.
    """
    end = start + days * DAY
    colleagues = {agent.id: agent for agent in company}
    events: list[Event] = []
    for agent in company:
        rng = Random(f"{seed}/{agent.id}")  # noqa: S311 - a simulation, no secrets
        for number, at in enumerate(_run_starts(agent, rng, start, end)):
            run = Run(agent, f"{agent.id}-{number:04d}", at, rng, colleagues)
            BEHAVIOURS[agent.kind](run)
            events += run.events
    events = [event for event in events if event["ts"] < end]
    events.sort(key=lambda event: float(event["ts"]))
    for event in events:
        if colleagues[event["agent_id"]].plain:
            event["ts"] = _rfc3339(event["ts"])
    return events


def demo_stream(seed: int = 7, *, days: float = 4.0) -> tuple[list[Event], list[Fault]]:
    """`simulate` with three faults laid over its last day, and what was laid where.

    In the morning `data-sync` retries one broken call 120 times, after lunch a run of `contract-review`
    burns at 40 times the agent's usual rate, in the afternoon `research-planner` starts 188 agents within a
    minute. `days` must be at least 1.
    """
    events = simulate(seed, days=days)
    midnight = START + (math.ceil(days) - 1) * DAY
    morning, noon, afternoon = (midnight + hour * HOUR for hour in (9.7, 13.4, 16.2))
    broken = {"tool": "fetch_page", "error_type": "invalid_cursor"}
    events, retries = retry_loop(events, "data-sync", morning, n_calls=120, gap_s=5.0, **broken, seed=seed)
    events, burn = runaway(events, "contract-review", noon, factor=40.0, minutes=20.0, seed=seed)
    planner, worker = "research-planner", "research-worker"
    events, spiral = fan_out(events, planner, afternoon, agents=188, seconds=60.0, worker_id=worker, seed=seed)
    return events, [retries, burn, spiral]


def _run_starts(agent: Agent, rng: Random, start: float, end: float) -> Iterator[float]:
    """When the runs of an agent begin, epoch seconds, ascending."""
    if agent.kind == "batch":
        yield from _daily(2 * HOUR + rng.uniform(0, HOUR), rng, start, end, period=DAY)
    elif agent.kind == "sync":
        yield from _daily(rng.uniform(0, 0.8 * HOUR), rng, start, end, period=HOUR)
    elif agent.per_hour > 0:
        yield from _renewals(agent, rng, start, end)


def _daily(offset: float, rng: Random, start: float, end: float, period: float) -> Iterator[float]:
    """A scheduler's starts: every `period` seconds, up to a minute late."""
    at = start + offset
    while at < end:
        yield at + rng.uniform(0, 60)
        at += period


def _renewals(agent: Agent, rng: Random, start: float, end: float) -> Iterator[float]:
    """Starts with the measured burstiness, at a rate that drifts as measured and follows the hour.

    A Gamma renewal process runs on operational time, which passes at the agent's current rate; the log of
    the rate is an AR(1) in steps of 10 minutes around the daily course.
    """
    shape = 1 / figures.INTERARRIVAL_CV.p50**2
    shock = _LEVEL_SD * math.sqrt(1 - figures.RATE_LAG1**2)
    level = rng.gauss(0.0, _LEVEL_SD)
    due = rng.gammavariate(shape, 1 / shape)
    at = start
    while at < end:
        step = min(_STEP_S, end - at)
        rate = agent.per_hour / HOUR * _course(agent, at - start) * math.exp(level - _LEVEL_SD**2 / 2)
        passed = 0.0
        while due <= rate * step - passed:
            passed += due
            yield at + passed / rate
            due = rng.gammavariate(shape, 1 / shape)
        due -= rate * step - passed
        at += step
        level = figures.RATE_LAG1 * level + rng.gauss(0.0, shock)


def _course(agent: Agent, since_midnight: float) -> float:
    """The rate of an agent at this time of the day over its daily mean."""
    hour = since_midnight / HOUR % 24
    if agent.kind in ("coding", "planner", "pair"):
        # People start these: ten busy hours hold 90 % of the day's runs.
        return 0.9 * 24 / 10 if 8 <= hour < 18 else 0.1 * 24 / 14
    # A wave with its top at 14:00; with the drift on top, peak hours come out as measured (PEAK_HOUR).
    return 1 + 0.5 * math.cos(2 * math.pi * (hour - 14) / 24)


def _rfc3339(ts: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=round(ts * 1000))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
