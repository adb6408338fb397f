"""What `watch` and `demo` tell: JSON lines for machines, plain lines for logs and pipes."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, Protocol, TextIO

import msgspec

from detectors.base import READINESS
from detectors.types import Finding
from stream.incidents import Change
from stream.ingest.reject import Reason, Reject
from stream.pipeline import Totals
from stream.text import clean, moment, plural
from stream.wire import finding_json, incident_json

_REJECTS_SHOWN = 10
"""Rejects printed one by one, per reason; the rest is counted."""

_encode = msgspec.json.Encoder().encode


class Reporter(Protocol):
    """Shows what happens, as it happens."""

    def happened(self, item: Finding | Change) -> None:
        """A finding, or a change of an incident."""

    def rejected(self, reject: Reject) -> None:
        """An event turned away."""

    def progress(self, done: float, clock: float, totals: Totals) -> None:
        """`done` is the share of the input that was read, 0 to 1, or below 0 if unknown."""

    def finish(self, totals: Totals, wall_s: float) -> None:
        """The input ended."""


def summary_json(totals: Totals, wall_s: float) -> dict[str, Any]:
    """The last line of `watch --json`."""
    return {
        "type": "summary",
        "events": totals.events,
        "rejected": totals.rejected.total(),
        "findings": totals.findings,
        "incidents": totals.incidents,
        "wall_s": round(wall_s, 3),
        "duplicates": totals.duplicates,
        "rejected_by_reason": dict(totals.rejected),
        "cost_usd": round(totals.cost_usd, 6),
        "effective_tokens": round(totals.effective_tokens, 1),
        "baselines": dict(Counter(totals.baselines.values())),
    }


class Rejections:
    """Prints rejects to standard error, the first of each reason one by one."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._seen: Counter[Reason] = Counter()

    def add(self, reject: Reject) -> None:
        """Prints or counts one."""
        self._seen[reject.reason] += 1
        if self._seen[reject.reason] <= _REJECTS_SHOWN:
            fate = "ignored" if reject.reason is Reason.DUPLICATE else "rejected"
            self._print(f"{fate} {reject.source}: {reject.reason}: {reject.detail}")

    def finish(self) -> None:
        """Says what was not printed."""
        for reason, count in self._seen.items():
            if count > _REJECTS_SHOWN:
                self._print(f"and {count - _REJECTS_SHOWN} more {reason}")

    def _print(self, text: str) -> None:
        print(clean(text), file=self._out or sys.stderr)


class JsonReporter:
    """One JSON object per line on standard output, and nothing else there."""

    def __init__(self) -> None:
        self._rejections = Rejections()

    def happened(self, item: Finding | Change) -> None:
        if isinstance(item, Finding):
            self._print(finding_json(item))
        elif item.kind != "updated":
            self._print(incident_json(item.incident))

    def rejected(self, reject: Reject) -> None:
        self._rejections.add(reject)

    def progress(self, done: float, clock: float, totals: Totals) -> None:
        pass

    def finish(self, totals: Totals, wall_s: float) -> None:
        self._rejections.finish()
        self._print(summary_json(totals, wall_s))
        sys.stdout.flush()

    def _print(self, value: dict[str, Any]) -> None:
        # A reader at the other end of a pipe wants findings when they happen, not when a buffer is full.
        sys.stdout.write(_encode(value).decode() + "\n")
        sys.stdout.flush()


class PlainReporter:
    """A line per incident that opens, escalates or is resolved, and a summary."""

    def __init__(self) -> None:
        self._rejections = Rejections()
        self._tenths = 0

    def happened(self, item: Finding | Change) -> None:
        if isinstance(item, Change) and item.kind != "updated":
            print(incident_line(item), flush=True)

    def rejected(self, reject: Reject) -> None:
        self._rejections.add(reject)

    def progress(self, done: float, clock: float, totals: Totals) -> None:
        if done * 10 >= self._tenths + 1:
            self._tenths = int(done * 10)
            print(f"{self._tenths * 10:3d} % read, {totals.events:,} events, {moment(clock)}", file=sys.stderr)

    def finish(self, totals: Totals, wall_s: float) -> None:
        self._rejections.finish()
        print(summary_line(totals, wall_s))


def incident_line(change: Change) -> str:
    """One line about a change of an incident."""
    incident = change.incident
    word = f"merged into {incident.merged_into}" if incident.merged_into else change.kind
    what = "" if change.kind == "resolved" else f"  {incident.title}"
    return clean(f"{moment(incident.ts)}  {word:<9}  {incident.severity:<8}  {incident.id}{what}")


def summary_line(totals: Totals, wall_s: float) -> str:
    """One line about the whole stream."""
    rejected = ", ".join(f"{count} {reason}" for reason, count in totals.rejected.items()) or "none"
    return (
        f"{totals.events:,} events in {wall_s:.1f} s, {plural(totals.findings, 'finding')}, "
        f"{plural(totals.incidents, 'incident')}, "
        f"${totals.cost_usd:,.2f}, {totals.effective_tokens:,.0f} effective tokens; "
        f"rejected: {rejected}; duplicates: {totals.duplicates}; "
        f"agents' baselines: {_baselines(totals)}"
    )


def _baselines(totals: Totals) -> str:
    """How many agents are how far; who is not judged yet is never counted as healthy."""
    counts = Counter(totals.baselines.values())
    return ", ".join(f"{counts[state]} {state}" for state in READINESS if counts[state]) or "none"
