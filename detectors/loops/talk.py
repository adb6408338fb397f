"""Loops that are not of tool calls: the same words, cut-off answers, compactions, refusals, and equal steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import ALARM_FIELDS, Records, Sparse, Table, levels, pace, pace_in_order
from detectors.loops.config import RetryLoopConfig
from detectors.loops.verdicts import SCOPE, Found, finding, totals_before
from detectors.rounds import changes, rounds
from detectors.types import UNKNOWN, Bools, EventBatch, Finish, Hashes, Ints, Kind

# Where a streak began: event time, and the run's totals before it.
_MARK: Final = {"since": (np.float64, 0.0), "since_tokens": (np.int64, 0), "since_cost": (np.int64, 0)}

_FEW_CALLS: Final = 2
"""Model calls and messages between two compactions that do not count as work."""
_GROWING: Final = 3
"""Gaps in a row that each are longer than the one before: the caller backs off."""
_GROWTH: Final = 1.25
"""A gap so many times the one before is longer; less may be jitter."""
_INPUT_SHARE, _OUTPUT_SHARE = 0.02, 0.05
"""How far equal steps may differ."""


# Plain numbers: numpy takes ten times as long to compare with members of an enumeration.
_LLM, _TOOL, _MESSAGE, _COMPACTION, _OUTCOME = (
    int(kind) for kind in (Kind.LLM, Kind.TOOL, Kind.MESSAGE, Kind.COMPACTION, Kind.OUTCOME)
)
_UNFINISHED, _TRUNCATED = int(Finish.UNKNOWN), int(Finish.TRUNCATED)


class _Streak:
    """Counts, per run, something that goes on, with an alarm of its own; for the few runs in which it does."""

    def __init__(self, fields: dict[str, tuple[Any, ...]]) -> None:
        self.table = Sparse({"count": (np.int32, 0), **_MARK, **ALARM_FIELDS, **fields})

    def mark(self, batch: EventBatch, at: Ints, places: Ints, begins: Bools) -> None:
        """Notes that a streak begins with these events."""
        at, places = at[begins], places[begins]
        if not len(at):
            return
        tokens, cost = totals_before(batch, at)
        for name, value in zip(_MARK, (batch.ts[at], tokens, cost), strict=True):
            self.table[name][places] = value

    def verdicts(
        self,
        config: RetryLoopConfig,
        batch: EventBatch,
        at: Ints,
        places: Ints,
        counts: NDArray[Any],
        *,
        rule: str,
        warning: float,
        critical: float,
        unit: str,
        what: str,
        paced: int,
    ) -> Found:
        """Findings about the streaks that these events carry on, one of a run.

        Args:
            places: Of their runs in the table.
            what: What the agent does, with {} for how often.
            paced: Times the warning threshold at which paced streaks warn; 0: never.
        """
        if not (counts >= warning).any():
            return []
        level = levels(counts, warning, critical)
        table, ts = self.table, batch.ts[at]
        slow = ts - table["since"][places] >= config.paced_gap_s * np.maximum(counts - 1, 1)
        level[slow] = (counts[slow] >= paced * warning) if paced else 0
        speak = pace(table, places, level, ts, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (
                int(at[j]),
                finding(
                    batch,
                    int(at[j]),
                    rule=rule,
                    level=int(level[j]),
                    observed=float(counts[j]),
                    threshold=warning,
                    unit=unit,
                    what=what.format(f"{int(counts[j])} times in a row"),
                    mark=[table[name][places[j]] for name in _MARK],
                    evidence={},
                ),
            )
            for j in np.flatnonzero(speak)
        ]


class TalkState:
    """What lasts from batch to batch: little of every run, the rest of those that something goes on in."""

    def __init__(self) -> None:
        self.runs = Records(
            {
                "asked": (np.float64, 0.0),  # newest event time of a model call
                # The latest words, how often they came in a row, and since when.
                "last": (np.uint64, 0),
                **_MARK,
                "said": (np.int32, 0),
                "calls": (np.int32, 0),  # model calls and messages since the latest compaction
                "begun": (np.bool_, False),
                "hashed": (np.bool_, False),  # the producer sends hashes: the other rules see more
            }
        )
        self.words = Sparse(ALARM_FIELDS)
        self.cut = _Streak({})
        self.compactions = _Streak({})
        self.steps = _Streak({"input": (np.int64, -1), "grown": (np.int64, -1), "output": (np.int64, -1)})
        self.storm = Sparse(
            {
                "errors": (np.float64, 0.0),
                "ts": (np.float64, 0.0),
                "refused": (np.float64, -np.inf),
                "gap": (np.float64, np.inf),
                "growing": (np.int16, 0),
                **ALARM_FIELDS,
            }
        )
        self.tables: dict[str, Table] = {
            "talk": self.runs,
            "words": self.words,
            "cut": self.cut.table,
            "compactions": self.compactions.table,
            "steps": self.steps.table,
            "storm": self.storm,
        }


class Talk:
    """Rules over the model calls, messages and compactions of one batch, of which no event follows on another life
    of its run.

    What hardly any run does is looked at round by round, for the events of these runs alone; the words of all
    runs at once.
    """

    def __init__(self, config: RetryLoopConfig, state: TalkState, batch: EventBatch) -> None:
        self._config, self._state, self._batch = config, state, batch
        self._row = batch.entities[SCOPE].row
        self._kind = batch.kind

    def run(self, news: Bools) -> Found:
        """What is found; `news`: (n,) after which events their runs had got something new by a call."""
        batch, state = self._batch, self._state
        order = np.argsort(self._row, kind="stable")
        row, kind, failed = self._row[order], self._kind[order], batch.failed[order]
        opens = changes(row)
        starts = opens.nonzero()[0]
        rows = row[starts]
        of = opens.cumsum() - 1
        runs = state.runs.gather(rows)
        tool, llm, message = kind == _TOOL, kind == _LLM, kind == _MESSAGE
        answers = llm & ~failed
        result = batch.result[order]
        said = np.where(message, batch.signature[order], result)
        found = self._say(order, of, starts, tool, answers | message, said, runs)
        # From here on it is only some rows' events that matter.
        finish = batch.finish[order]
        truncated = (finish == _TRUNCATED) & answers
        on = state.cut.table.find(rows) >= 0
        if truncated.any() or on.any():
            on[of[truncated]] = True
            found += self._by_rounds(order[(answers & (finish != _UNFINISHED) & on[of]).nonzero()[0]], self._end)
        compacts = kind == _COMPACTION
        talks = ~tool & ~compacts
        if compacts.any() or (state.compactions.table.find(rows) >= 0).any():
            found += self._compactions(order, of, rows, runs, compacts, talks, news)
        else:
            runs["calls"] += np.add.reduceat(talks.view(np.int8), starts, dtype=np.int32)
        hashed = (said != UNKNOWN) | (result != UNKNOWN) | (batch.signature[order] != UNKNOWN)
        known = np.logical_or.reduceat(hashed, starts)
        # A run of which not all events are hashed, and none was before.
        bare = (answers & ~hashed & ~runs["hashed"][of]).nonzero()[0]
        if len(bare):
            found += self._unhashed(order, of, starts, hashed, bare)
        runs["hashed"] |= known
        found += self._asks(order, of, starts, llm, failed, rows, runs)
        runs["begun"] = True
        state.runs.scatter(rows, runs)
        return found

    def _unhashed(self, order: Ints, of: Ints, starts: Ints, hashed: Bools, bare: Ints) -> Found:
        """Model calls of runs that had no hash before: those that came before the first one are compared."""
        batch, at = self._batch, order[bare]
        number = hashed.cumsum()
        before = number[bare] - (number - hashed)[starts[of[bare]]]
        at = at[(before == 0) & (batch.input[at] >= 0) & (batch.output[at] > 0)]
        return self._by_rounds(at, self._grow) if len(at) else []

    def _by_rounds(self, at: Ints, rule: Callable[[Ints], Found]) -> Found:
        """A rule over events, one per run at a time."""
        return [pair for part in rounds(self._row[at]) for pair in rule(at[part])]

    # ---------------------------------------------------------------------------------- rules

    def _say(
        self, order: Ints, of: Ints, starts: Ints, tool: Bools, speaks: Bools, said: Hashes, runs: NDArray[Any]
    ) -> Found:
        """The same words again; what is done in between ends the streak."""
        batch, config = self._batch, self._config
        w = (speaks & (said != UNKNOWN) & ~batch.empty[order]).nonzero()[0]
        done = tool.cumsum()
        at_start = (done - tool)[starts]
        ends = np.empty_like(starts)
        ends[:-1] = starts[1:] - 1
        ends[-1] = len(order) - 1
        found: Found = []
        if len(w):
            at, run, words = order[w], of[w], said[w]
            opens = changes(run)
            first = opens.nonzero()[0]
            mine = run[first]
            earlier, worked = np.empty_like(words), np.empty_like(w)
            earlier[1:], worked[1:] = words[:-1], done[w[:-1]]
            earlier[first], worked[first] = runs["last"][mine], at_start[mine]
            same = (words == earlier) & (done[w] == worked)
            place = np.arange(len(w))
            # Where the streak that each belongs to begins, or the batch does.
            since = np.maximum.accumulate(place * (opens | ~same))
            counts = place - since
            counts += 1
            from_before = same[since]
            if from_before.any():
                counts += runs["said"][run] * from_before
            tokens, cost = totals_before(batch, at)
            marks = (batch.ts[at], tokens, cost)
            if counts.max() >= config.said_warning:
                found = self._same_words(at, counts, since, from_before, run, runs, marks)
            latest = np.empty_like(first)
            latest[:-1] = first[1:] - 1
            latest[-1] = len(w) - 1
            runs["last"][mine], runs["said"][mine] = words[latest], counts[latest]
            begun = (~from_before[latest]).nonzero()[0]
            begin = since[latest[begun]]
            for name, value in zip(_MARK, marks, strict=True):
                runs[name][mine[begun]] = value[begin]
            at_start[mine] = done[w[latest]]
        # Whether something was done after the latest words of each run.
        runs["last"][done[ends] > at_start] = UNKNOWN
        return found

    def _same_words(
        self, at: Ints, counts: Ints, since: Ints, from_before: Bools, run: Ints, runs: NDArray[Any], marks: Any
    ) -> Found:
        batch, config, table = self._batch, self._config, self._state.words
        some = (counts >= config.said_warning).nonzero()[0]
        at, counts, run = at[some], counts[some], run[some]
        level = levels(counts, config.said_warning, config.said_critical)
        told = [
            np.where(from_before[some], runs[name][run], value[since[some]])
            for name, value in zip(_MARK, marks, strict=True)
        ]
        ts = batch.ts[at]
        level[ts - told[0] >= config.paced_gap_s * np.maximum(counts - 1, 1)] = 0
        rows = self._row[at]
        firing = (level > 0).nonzero()[0]
        if not len(firing):
            return []
        table.open(np.unique(rows[firing]))
        places = table.find(rows[firing])
        speak = pace_in_order(
            table, places, level[firing], ts[firing], repeat_s=config.repeat_s, rearm_s=config.rearm_s
        )
        return [
            (
                int(at[j]),
                finding(
                    batch,
                    int(at[j]),
                    rule="same_words",
                    level=int(level[j]),
                    observed=float(counts[j]),
                    threshold=config.said_warning,
                    unit="messages",
                    what=f"has written the same text {int(counts[j])} times in a row",
                    mark=[value[j] for value in told],
                    evidence={},
                ),
            )
            for j in firing[speak].tolist()
        ]

    def _end(self, at: Ints) -> Found:
        batch, config, table = self._batch, self._config, self._state.cut.table
        places = table.open(self._row[at])
        cut = batch.finish[at] == _TRUNCATED
        known = table["count"][places]
        counts = np.where(cut, known + 1, 0)
        table["count"][places] = counts
        self._state.cut.mark(batch, at, places, cut & (known == 0))
        return self._state.cut.verdicts(
            config,
            batch,
            at,
            places,
            counts,
            rule="truncated",
            warning=config.truncated_warning,
            critical=config.truncated_critical,
            unit="answers",
            what="has run into its limit of output tokens {}",
            paced=config.paced_factor,
        )

    def _compactions(
        self, order: Ints, of: Ints, rows: Ints, runs: NDArray[Any], compacts: Bools, talks: Bools, news: Bools
    ) -> Found:
        """Compactions, and what is done between them."""
        table = self._state.compactions.table
        fruitful = news[order] | (self._kind[order] == _OUTCOME)
        goes_on = table.find(rows) >= 0
        goes_on[of[compacts]] = True
        others = talks & ~goes_on[of]
        runs["calls"] += np.bincount(of[others], minlength=len(rows)).astype(np.int32)
        found: Found = []
        events = (goes_on[of] & (compacts | talks | fruitful)).nonzero()[0]
        for part in rounds(of[events]):
            at = events[part]
            done = at[fruitful[at]]
            if len(done):
                place = table.find(rows[of[done]])
                table["count"][place[place >= 0]] = 0
            now = at[compacts[at]]
            if len(now):
                found += self._compact(order[now], runs, of[now])
            runs["calls"][of[at[talks[at]]]] += 1
        return found

    def _compact(self, at: Ints, runs: NDArray[Any], run: Ints) -> Found:
        batch, config, table = self._batch, self._config, self._state.compactions.table
        places = table.open(self._row[at])
        known = np.where(runs["calls"][run] <= _FEW_CALLS, table["count"][places], 0)
        counts = known + 1
        table["count"][places], runs["calls"][run] = counts, 0
        self._state.compactions.mark(batch, at, places, known == 0)
        return self._state.compactions.verdicts(
            config,
            batch,
            at,
            places,
            counts,
            rule="compactions",
            warning=config.compaction_warning,
            critical=config.compaction_critical,
            unit="compactions",
            what="has had its context compacted {} without doing anything new",
            paced=config.paced_factor,
        )

    def _grow(self, at: Ints) -> Found:
        """A producer without hashes shows its loops by steps of one size."""
        batch, config, table = self._batch, self._config, self._state.steps.table
        places = table.open(self._row[at])
        read, written = batch.input[at], batch.output[at]
        grown = np.where(table["input"][places] >= 0, read - table["input"][places], -1)
        before, output = table["grown"][places], table["output"][places]
        alike = (grown > 0) & (before > 0) & (np.abs(grown - before) <= np.maximum(_INPUT_SHARE * before, 1.0))
        alike &= np.abs(written - output) <= np.maximum(_OUTPUT_SHARE * output, 1.0)
        known = table["count"][places]
        counts = np.where(alike, np.maximum(known, 1) + 1, 1)
        table["count"][places], table["input"][places] = counts, read
        table["grown"][places], table["output"][places] = grown, written
        self._state.steps.mark(batch, at, places, counts == 1)
        return self._state.steps.verdicts(
            config,
            batch,
            at,
            places,
            counts,
            rule="equal_steps",
            warning=config.weak_warning,
            critical=config.weak_critical,
            unit="calls",
            what="has added as much to its context and written as much {} (its calls are not sent)",
            paced=config.paced_factor,
        )

    def _asks(
        self, order: Ints, of: Ints, starts: Ints, llm: Bools, failed: Bools, rows: Ints, runs: NDArray[Any]
    ) -> Found:
        """A storm of refusals: many in a short time, with gaps that do not grow."""
        table = self._state.storm
        begin = of[llm & failed]
        storms = table.find(rows) >= 0
        found: Found = []
        if len(begin) or storms.any():
            new = np.unique(begin[~storms[begin]])
            # Until now nothing was known of them but when they asked last.
            places = table.open(rows[new])
            table["ts"][places] = runs["asked"][new]
            storms[new] = True
            found = self._by_rounds(order[(llm & storms[of]).nonzero()[0]], self._ask)
        asked = np.where(llm, self._batch.ts[order], -np.inf)
        runs["asked"] = np.maximum(runs["asked"], np.maximum.reduceat(asked, starts))
        return found

    def _ask(self, at: Ints) -> Found:
        batch, config, table = self._batch, self._config, self._state.storm
        places, ts, failed = table.find(self._row[at]), batch.ts[at], batch.failed[at]
        last = table["ts"][places]
        table["ts"][places] = np.maximum(ts, last)
        # Most models answer.
        storms = (failed | (table["errors"][places] > 0)).nonzero()[0]
        if not len(storms):
            return []
        at, places, ts, failed, last = at[storms], places[storms], ts[storms], failed[storms], last[storms]
        fade = np.exp(-np.abs(ts - last) / config.storm_window_s)
        late = ts < last
        errors = table["errors"][places] * np.where(late, 1.0, fade) + failed * np.where(late, fade, 1.0)
        table["errors"][places] = errors
        gap = ts - table["refused"][places]
        longer = gap >= _GROWTH * table["gap"][places]
        growing = np.where(failed, np.where(longer, table["growing"][places] + 1, 0), table["growing"][places])
        table["growing"][places] = np.minimum(growing, _GROWING)
        table["gap"][places] = np.where(failed, np.where(gap > 0, gap, np.inf), table["gap"][places])
        table["refused"][places] = np.where(failed, np.maximum(ts, table["refused"][places]), table["refused"][places])
        if not (errors >= config.storm_warning).any():
            return []
        level = np.where(failed & (growing < _GROWING), levels(errors, config.storm_warning, config.storm_critical), 0)
        speak = pace(table, places, level, ts, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (int(at[j]), self._refusals(int(at[j]), int(level[j]), float(errors[j]))) for j in np.flatnonzero(speak)
        ]

    def _refusals(self, i: int, level: int, errors: float) -> Any:
        config, status = self._config, int(self._batch.http_status[i])
        why = f" (last: HTTP {status})" if status else ""
        return finding(
            self._batch,
            i,
            rule="provider_errors",
            level=level,
            observed=round(errors, 1),
            threshold=config.storm_warning,
            unit="errors",
            what=f"keeps calling a failing model: about {errors:.0f} errors within "
            f"{config.storm_window_s / 60:.0f} min{why}",
            mark=None,
            evidence={"window_s": config.storm_window_s, "http_status": status or None},
        )
