"""Compact events for tests of detectors.

    found = find(RetryLoop, every(2, [call("x", "nothing")] * 4))

Events are `detectors.checks.Event`; batches are made of them as the engine would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from detectors.base import Detector
from detectors.checks import START, Event, batch_of
from detectors.types import Finding, Kind, ToolKind

__all__ = [
    "START",
    "Event",
    "batch_of",
    "call",
    "every",
    "find",
    "message",
    "refused",
    "said",
    "spawn",
    "used",
    "verdicts",
]


KINDS = {"search": ToolKind.READ, "read": ToolKind.READ, "write": ToolKind.MUTATE, "edit": ToolKind.MUTATE}
KINDS |= {"test": ToolKind.SHELL, "shell": ToolKind.SHELL, "status": ToolKind.POLL}
"""What the tools of made-up calls do; others are of unknown kind."""


def call(args: str = "x", result: str = "same", *, tool: str = "search", **more: Any) -> Event:
    """A tool call; "" for arguments or a result that the producer does not send."""
    kind = KINDS.get(tool, ToolKind.UNKNOWN)
    signature = args and f"{tool} {args}"
    return Event(kind=Kind.TOOL, tool=tool, tool_kind=kind, signature=signature, result=result, **more)


def said(text: str, **more: Any) -> Event:
    """A model call that wrote this text."""
    return Event(kind=Kind.LLM, result=text, **more)


def message(sender: str, to: str, text: str = "", **more: Any) -> Event:
    """A message from one agent to another."""
    return Event(kind=Kind.MESSAGE, agent=sender, to=to, signature=text, **more)


def refused(http_status: int = 429, **more: Any) -> Event:
    """A model call that the provider refused."""
    return Event(kind=Kind.LLM, failed=True, http_status=http_status, **more)


def spawn(depth: int = 1, **more: Any) -> Event:
    """An event that brings a run of that depth into its tree."""
    return Event(kind=Kind.SPAWN, spawned=True, depth=depth, **more)


def used(tokens: float, **more: Any) -> Event:
    """A model call that used so many effective tokens, at $3 per million."""
    return Event(kind=Kind.LLM, tokens=round(tokens * 1000), cost=round(tokens * 3000), **more)


def every(gap_s: float, events: Iterable[Event], start: float = 0.0) -> list[Event]:
    """The events one after the other, `gap_s` apart, the first `start` seconds after START."""
    return [replace(event, ts=START + start + gap_s * i) for i, event in enumerate(events)]


def find(cls: type[Detector], events: Iterable[Event], **config: Any) -> list[Finding]:
    """What a fresh detector finds in the events."""
    return list(cls(cls.Config(**config)).update(batch_of(events)))


def verdicts(found: Sequence[Finding]) -> list[tuple[str, str, int]]:
    """(rule, severity, number of the event) of each finding."""
    return [(finding.rule, finding.severity, int(finding.event_id.removeprefix("e"))) for finding in found]
