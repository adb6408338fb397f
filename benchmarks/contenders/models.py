"""What the contenders compute per agent: is this model call unusually large for its agent?"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from river.anomaly import GaussianScorer

from burnfuse.event import UsageEvent

_decode = msgspec.json.Decoder(UsageEvent).decode

Average: TypeAlias = tuple[float, float, int]
"""Mean, variance, and number of calls."""

_WEIGHT = 0.05
_CALLS = 30
_FAR = 6.0
_RARE = 1 - 1e-6


def agent_and_tokens(value: bytes) -> tuple[str, int | None]:
    """The event's agent, and the tokens of a model call; None for anything else, which no model learns."""
    event = _decode(value)
    if event.kind != "llm":
        return event.agent_id, None
    return event.agent_id, (event.input_tokens or 0) + (event.output_tokens or 0)


def step(average: Average | None, tokens: int) -> tuple[Average, bool]:
    """The moving average after a call, and whether the call lay far outside."""
    if average is None:
        return (float(tokens), 0.0, 1), False
    mean, variance, calls = average
    off = tokens - mean
    far = calls >= _CALLS and off * off > _FAR * _FAR * variance
    return (mean + _WEIGHT * off, (1 - _WEIGHT) * (variance + _WEIGHT * off * off), calls + 1), far


class Scorers:
    """One river model per agent, asked and taught for every model call."""

    def __init__(self) -> None:
        self._scorers: dict[str, GaussianScorer] = {}
        self.alarms = 0

    def take(self, value: bytes) -> None:
        """Handles one event."""
        agent, tokens = agent_and_tokens(value)
        if tokens is None:
            return
        scorer = self._scorers.get(agent)
        if scorer is None:
            scorer = self._scorers[agent] = GaussianScorer()
        self.alarms += scorer.score_one(None, tokens) > _RARE
        scorer.learn_one(None, tokens)
