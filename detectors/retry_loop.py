"""Runs that do the same thing again and learn nothing from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from detectors.base import Detector, DetectorConfig, Spec, register
from detectors.loops.calls import Calls, CallState
from detectors.loops.config import RetryLoopConfig
from detectors.loops.talk import Talk, TalkState
from detectors.loops.verdicts import NAME, SCOPE, Found
from detectors.rounds import lives
from detectors.types import UNKNOWN, EventBatch, Finding, Kind

_TOOL = int(Kind.TOOL)


@register
class RetryLoop(Detector):
    """A run repeats itself and learns nothing: the same call, a cycle, failures, one answer to all questions,
    the same words, cut-off answers, compactions, or a storm of provider errors.

    Fires when: (in brackets: critical) a call and its result repeat 3 (6) times in a row, or 3 (8) times
        with little new in between, or 5 (8) times among the latest 32 calls; a cycle of 2 to 5 calls with
        equal results makes 3 (5) laps; the same call fails 3 (6) times in a row, whatever the error says;
        one tool fails 6 (12) times in the same way with changing arguments; any 6 (10) calls in a row fail;
        one tool that changes nothing answers 6 (10) times the same to changing arguments; 20 (40) calls
        bring nothing new; one target is read 24 (60) times, a quarter of them again; the same text is
        written 3 (6) times with no tool call between; 3 (5) answers in a row are cut off; the context is
        compacted 3 (5) times with nothing done between; 10 (30) model calls fail within 5 minutes; a run
        makes 1,000 tool calls; or, where no hashes are sent, 6 (12) model calls grow the context by the
        same amount. Without results, repeated calls need 5 (8).
    Quiet when: the result of a repeated call changes (polling that makes progress); something was changed
        since (edit, then test again); a tool that changes things gets one acknowledgement for all; a
        target is read part by part; calls belong to one round of parallel calls; repeats are a minute or
        more apart (polling), unless they fail; model calls back off; arguments are not observed.
    Units: calls, laps, messages, answers, compactions, errors; spend since the loop began in effective
        tokens and dollars.
    State: per run counters, 8 calls and their results, the latest words: about 468 bytes. Runs that repeat a call
        or make more get a memory of 32 calls and of 256 with their results (1.2 kB), those in which something
        goes on the places where it began (0.3 kB).
    Source: the rules on which 25 published loop detectors converged, with the thresholds of their tests;
        results before arguments, progress before repetition.
    """

    spec: ClassVar[Spec] = Spec(NAME, version=3, scope=SCOPE)
    Config: ClassVar[type[DetectorConfig]] = RetryLoopConfig

    def __init__(self, config: RetryLoopConfig) -> None:
        self.config = config
        self._calls, self._talk = CallState(config), TalkState()
        self.tables = self._calls.tables | self._talk.tables

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        if not len(batch):
            return ()
        self.reserve(int(batch.entities[SCOPE].row.max()) + 1)
        return [finding for part in lives(batch, SCOPE) for _, finding in self._update(part)]

    def _update(self, batch: EventBatch) -> Found:
        """What is found in events of which none follows on another life of its row."""
        entity = batch.entities[SCOPE]
        born = entity.row[entity.new]
        # Most begin in rows that are blank already.
        again = born[self._talk.runs["begun"][born]]
        if len(again):
            self.forget(again)
        called = ((batch.kind == _TOOL) & (batch.signature != UNKNOWN)).nonzero()[0]
        found, news = Calls(self.config, self._calls, batch, called).run()
        found += Talk(self.config, self._talk, batch).run(news)
        found.sort(key=lambda pair: pair[0])
        return found
