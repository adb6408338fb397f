"""`burnfuse demo`: a simulated company's agents, three injected faults, and what burnfuse makes of them."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from detectors.types import Finding
from stream.clock import Clock
from stream.errors import UsageError
from stream.incidents import Change, Incident
from stream.ingest.ingest import Record
from stream.ingest.reject import Reject
from stream.inject import Fault
from stream.pipeline import Totals
from stream.report import Reporter
from stream.settings import default_settings
from stream.simulate import demo_stream
from stream.text import moment
from stream.watch import Watcher

_encode = msgspec.json.Encoder().encode


def run(seed: int, reporter: Reporter, clock: Clock, *, quiet: bool) -> None:
    """Simulates, runs the pipeline, and says which of the faults were found.

    Args:
        quiet: Nothing but what the reporter prints.
    """
    if not quiet:
        sys.stderr.write("The company and its traffic are simulated; see docs/simulation.md.\n")
    events, faults = demo_stream(seed)
    kept = _Incidents(reporter)
    watcher = Watcher(default_settings(), kept, clock, lambda _, position: f"demo:{position}", act=False)
    read = 0

    def records() -> Iterator[Record]:
        nonlocal read
        for event in events:
            read += 1
            yield Record(_encode(event), 0, read)

    watcher.run(records(), lambda: read / len(events))
    if not quiet:
        sys.stdout.write("\n".join(summary(faults, list(kept.first.values()))) + "\n")


def write(seed: int, path: str) -> None:
    """Writes the simulated events as JSON lines, gzipped if the name ends in .gz.

    Raises:
        UsageError: the file cannot be written.
    """
    events, _ = demo_stream(seed)
    try:
        # A fixed time in the header: the same seed gives the same file.
        out = gzip.GzipFile(path, "wb", mtime=0) if path.endswith(".gz") else Path(path).open("wb")  # noqa: SIM115
        with out:
            out.writelines(_encode(event) + b"\n" for event in events)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


class _Incidents:
    """Passes everything on, and remembers each incident as it opened and at its gravest."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.first: dict[str, tuple[Incident, Incident]] = {}

    def happened(self, item: Finding | Change) -> None:
        if isinstance(item, Change):
            opened = self.first.get(item.incident.id, (item.incident, item.incident))[0]
            self.first[item.incident.id] = (opened, item.incident)
        self._reporter.happened(item)

    def rejected(self, reject: Reject) -> None:
        self._reporter.rejected(reject)

    def progress(self, done: float, clock: float, totals: Totals) -> None:
        self._reporter.progress(done, clock, totals)

    def finish(self, totals: Totals, wall_s: float) -> None:
        self._reporter.finish(totals, wall_s)


def summary(faults: Sequence[Fault], incidents: Sequence[tuple[Incident, Incident]]) -> list[str]:
    """Lines that say of each injected fault whether and when it was found, and what else was reported."""
    lines, blamed = ["", "Injected faults:"], set()
    for fault in faults:
        mine = [pair for pair in incidents if _is_about(pair[0], fault)]
        blamed |= {pair[0].id for pair in mine}
        what = f"  {fault.kind:<11} {fault.agent_id:<17}"
        if not mine:
            lines.append(f"{what} MISSED: {fault.events:,} events from {moment(fault.start)}")
            continue
        opened, last = min(mine, key=lambda pair: pair[0].opened_ts)
        delay = opened.opened_ts - fault.start
        lines.append(f"{what} found after {delay:,.0f} s  {last.severity:<8}  ${last.cost_usd:,.2f}  {last.rules[0]}")
    others = len(incidents) - len(blamed)
    lines.append(f"Other incidents, about healthy traffic: {others}")
    return lines


def _is_about(incident: Incident, fault: Fault) -> bool:
    names = {name for name in (fault.run_id, fault.root_run_id) if name}
    return bool(names & {incident.run_id, incident.root_run_id})
