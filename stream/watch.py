"""`watch` and `demo`: recorded events through the whole pipeline in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from burnfuse.event import UsageEvent
from detectors.base import FleetFigures
from stream import calibration
from stream.actions.base import Tools
from stream.actions.runner import Runner
from stream.clock import Clock
from stream.errors import InputError
from stream.incidents import Change
from stream.ingest import formats
from stream.ingest.decode import Invalid, event_time
from stream.ingest.files import PAUSE_S, Source, find, following, merged
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason, Reject
from stream.pipeline import Pipeline, Step
from stream.report import Reporter
from stream.settings import Settings, secret

log = logging.getLogger(__name__)

_BATCH = 1000
_SEVERITIES = {"warning": ("warning", "critical"), "critical": ("critical",)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of `watch` came to."""

    unreadable: bool
    """Some input could not be read at all."""
    opened: frozenset[str]
    """Severities that incidents reached."""

    def fails_on(self, severity: str | None) -> bool:
        """Whether an incident of that severity, or a graver one, was there."""
        return severity is not None and bool(self.opened & set(_SEVERITIES[severity]))


class Watcher:
    """Drives a pipeline over records, tells a reporter and takes the configured actions."""

    def __init__(
        self,
        settings: Settings,
        reporter: Reporter,
        clock: Clock,
        name_of: Callable[[int, int], str],
        *,
        figures: FleetFigures | None = None,
        act: bool = True,
    ) -> None:
        self._reporter, self._clock = reporter, clock
        self.pipeline = Pipeline(settings, clock=clock, name_of=name_of, figures=figures, hash_key=secret("hash_key"))
        self._severities: set[str] = set()
        self._unreadable = False
        # Not asyncio.Runner: it can swallow a Ctrl-C that comes while an action ends.
        self._loop = asyncio.new_event_loop()
        tools = Tools(publish=_publish_nowhere, clock=clock, secret=secret)
        self._runner = Runner(settings, tools) if act else None

    def run(
        self, records: Iterable[Record | Reject | None], done: Callable[[], float], endless: bool = False
    ) -> Outcome:
        """Takes all records; None in between means that nothing came for a while.

        Args:
            endless: The records do not end by themselves: Ctrl-C is their end.
        """
        started = self._clock.monotonic()
        with closing(self._loop):
            try:
                self._take(records, done)
            except KeyboardInterrupt:
                if not endless:
                    raise
            if self._runner is not None:
                self._loop.run_until_complete(self._runner.close())
        self._reporter.finish(self.pipeline.totals, self._clock.monotonic() - started)
        return Outcome(self._unreadable, frozenset(self._severities))

    def _take(self, records: Iterable[Record | Reject | None], done: Callable[[], float]) -> None:
        for batch in _batches(records):
            if batch:
                good = [r for r in batch if isinstance(r, Record)]
                step = self.pipeline.process(good)
                step.rejects += self._file_rejects(r for r in batch if isinstance(r, Reject))
            else:
                step = self.pipeline.idle(PAUSE_S)
            self._tell(step)
            self._reporter.progress(done(), self.pipeline.clock, self.pipeline.totals)

    def _file_rejects(self, rejects: Iterable[Reject]) -> list[Reject]:
        taken = list(rejects)
        for reject in taken:
            self._unreadable |= reject.reason is Reason.UNREADABLE
            self.pipeline.totals.rejected[reject.reason] += 1
        return taken

    def _tell(self, step: Step) -> None:
        for reject in step.rejects:
            self._reporter.rejected(reject)
        for item in step.happened:
            self._reporter.happened(item)
            if isinstance(item, Change):
                self._severities.add(item.incident.severity)
                if self._runner is not None:
                    self._loop.run_until_complete(self._runner.act(item.incident))


def watch(
    settings: Settings,
    paths: Sequence[str],
    reporter: Reporter,
    clock: Clock,
    *,
    calibration_file: str | None = None,
    save_calibration: str | None = None,
    follow: bool = False,
    act: bool = True,
) -> Outcome:
    """The pipeline over files, folders or standard input.

    Raises:
        InputError: no path could be read.
    """
    sources = find(paths, settings.input.max_record_bytes)
    total = sum(source.size() for source in sources)

    def done() -> float:
        return sum(source.bytes_read for source in sources) / total if total and not follow else -1.0

    file = calibration_file or settings.calibration.file
    watcher = Watcher(
        settings,
        reporter,
        clock,
        lambda source, position: f"{sources[source].path}:{position}",
        figures=calibration.load(file) if file else None,
        act=act,
    )
    outcome = watcher.run(_records(sources, settings, follow, clock), done, endless=follow)
    if save_calibration is not None:
        calibration.save(save_calibration, watcher.pipeline.figures())
    if outcome.unreadable and not watcher.pipeline.totals.events:
        raise InputError("nothing could be read; see the reasons above")
    return outcome


def _records(
    sources: Sequence[Source], settings: Settings, follow: bool, clock: Clock
) -> Iterator[Record | Reject | None]:
    if follow:
        yield from following(sources)
    elif len(sources) == 1:
        yield from sources[0].records()
    else:
        yield from merged(sources, _time_of(settings, clock.now() + settings.input.future_s))


def _time_of(settings: Settings, latest: float) -> Callable[[Record], float | None]:
    """Event time of a record; none if it will be rejected, lest the rest of its file waits for that time."""
    chosen = formats.named(settings.input.format)

    def time_of(record: Record) -> float | None:
        for event in chosen.events(record.value or b""):
            if isinstance(event, UsageEvent):
                try:
                    ts = event_time(event.ts)
                except Invalid:
                    return None
                return ts if ts <= latest else None
        return None

    return time_of


def _batches(records: Iterable[Record | Reject | None]) -> Iterator[list[Record | Reject]]:
    """Batches of records; an empty one where nothing came for a while."""
    batch: list[Record | Reject] = []
    for record in records:
        if record is None:
            yield batch
            batch = []
            continue
        batch.append(record)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _publish_nowhere(topic: str, key: bytes, value: bytes) -> None:
    """Without Kafka there is nobody to tell; what would have been sent is logged."""
    log.info("not sent to %s, because this is not the worker: %d bytes", topic, len(value))
