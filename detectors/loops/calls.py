"""Loops of tool calls: the same call again, cycles, failures, answers that never change, nothing new.

Every rule counts something that has been going on; all counts of a run are updated by one call at a time,
for all runs of a round at once. Hashes are kept as 32 bits: a rule needs several equal ones to fire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detectors.base import Table, levels
from detectors.loops.config import RetryLoopConfig
from detectors.loops.verdicts import SCOPE, Found, finding, totals_before
from detectors.types import UNKNOWN, Bools, EventBatch, Hashes, Ints, ToolKind

Words: TypeAlias = NDArray[np.uint32]

PERIODS: Final = 5
"""Longest cycle looked for; the public detectors that look for cycles stop at 4 or 5."""
RING: Final = 32
"""Latest calls that are remembered one by one."""
SETS, WAYS = 64, 4
"""Memory of (call, result) pairs: so many sets of so many pairs, of which the oldest makes room. A pair that was
forgotten counts as new, so it can only hide a loop."""
ALARMS: Final = 4
"""Loops of one run that can be told apart at a time."""

# Salts keep apart what must never be equal: a call whose result was seen, one whose result was not, and
# a failed call from a successful one with the same text.
_MIX, _BLIND, _FAILED = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

# Counters of a run, in one column.
_FAILURES, _SAME_ERROR, _ERRORS, _ERROR_CALLS, _STAGNANT, _STALE, _READS, _REREADS = range(8)
_COUNTERS = 8
# Hashes of a run, in one column.
_ERR_TOOL, _ERR_CLASS, _ERR_FIRST, _STAG_TOOL, _STAG_RESULT, _STAG_FIRST, _TARGET = range(7)
_IDS = 7
# Yes or no of a run, in one column.
_ERR_VARIED, _STREAK_MIXED, _STAG_VARIED = range(3)
_FLAGS = 3

# The rules, in the order in which the first of those that fire names the loop. Period p is rule p - 1.
_FAILING, _AGAIN, _ONE_ERROR, _STREAK, _STAGNATION, _SWEEP, _DROUGHT, _VOLUME, _REPEAT = range(PERIODS, PERIODS + 9)
_NAMES = (
    *("same_call", "cycle", "cycle", "cycle", "cycle", "failing_repeat", "same_call_again", "same_error"),
    *("error_streak", "stagnation", "sweep", "nothing_new", "volume", "repeat"),
)
_RULES = len(_NAMES)
_COUNTED = {
    _FAILING: _FAILURES,
    _ONE_ERROR: _SAME_ERROR,
    _STREAK: _ERROR_CALLS,
    _STAGNATION: _STAGNANT,
    _SWEEP: _READS,
    _DROUGHT: _STALE,
}
# Where a rule's streak began is kept for those that count over calls: for the periods by number, then these.
_MARK = {rule: rule for rule in range(PERIODS)}
_MARK |= {rule: PERIODS + i for i, rule in enumerate((_FAILING, _ONE_ERROR, _STREAK, _STAGNATION, _SWEEP, _DROUGHT))}
_MARKS = len(_MARK)
_NEVER = int(np.iinfo(np.int64).max)


def fields() -> dict[str, tuple[Any, ...]]:
    """Columns of the state of calls."""
    return {
        "n": (np.int32, 0),  # calls that counted
        "barrier": (np.int32, -1),  # the last call that changed something
        "poll": (np.int32, -RING),  # the last call that waits for something
        "blind": (np.int32, -RING),  # the last call without a result
        "epoch": (np.uint16, 0),  # how often something was changed
        "call": (np.uint32, 0, RING),  # hash of tool and arguments, by number of the call modulo RING
        "item": (np.uint32, 0, RING),  # the same with the result
        "novel": (np.uint32, 0),  # a bit per call of the ring: not seen before
        "changed": (np.uint32, 0),  # a bit per call of the ring: answered differently than last time
        "unsure": (np.uint32, 0),  # a bit per call of the ring: not seen before, and may have changed something
        "start": (np.float64, 0.0),  # event time of the first call
        "spent": (np.float32, 0.0, 3 * RING),  # per call of the ring: s since the start, tokens and cost before
        "matches": (np.int32, 0, PERIODS),  # how often in a row an item equalled the one p before it
        "round": (np.uint64, 0),
        "in_round": (np.uint8, 0),  # how many of the latest calls are of that round
        "count": (np.int32, 0, _COUNTERS),
        "id": (np.uint32, 0, _IDS),
        "flag": (np.bool_, False, _FLAGS),
        "since": (np.float64, 0.0, 3 * _MARKS),  # event times, and the run's tokens and cost before
        "seen": (np.uint16, 0, SETS * WAYS),
        "progress": (np.int32, 0),  # new results so far; a change counts as `rearm_news` of them
        "alarm": (np.uint32, 0, ALARMS),  # which loops spoke
        "alarm_level": (np.uint8, 0, ALARMS),
        "alarm_ts": (np.float64, -np.inf, ALARMS),
        "alarm_progress": (np.int32, 0, ALARMS),
    }


@dataclass(slots=True)
class _Calls:
    """The calls of one round that count, one per run, and what was found out about them."""

    at: Ints
    rows: Ints
    number: Ints
    """How many calls of the run came before."""
    same_round: Bools
    """Not the first call of its round."""
    novel: Bools


class Calls:
    """Rules over the tool calls of one batch; what lasts is in the table."""

    def __init__(self, config: RetryLoopConfig, table: Table, batch: EventBatch) -> None:
        self._config, self._table, self._batch = config, table, batch
        self._row = batch.entities[SCOPE].row
        result = batch.result
        self._blind = result == UNKNOWN
        with np.errstate(over="ignore"):
            item: Hashes = (
                batch.signature * _MIX
                ^ np.where(self._blind, _BLIND, result)
                ^ np.where(batch.failed, _FAILED, UNKNOWN)
            )
            self._mixed = item * _MIX
        self._item = _half(item)
        self._call, self._tool = _half(batch.signature), _half(batch.tool_id)
        self._result, self._error, self._target = _half(result), _half(batch.error), _half(batch.target)
        kind = batch.tool_kind
        self._shell = kind == ToolKind.SHELL
        self._poll = kind == ToolKind.POLL
        self._unsure = kind == ToolKind.UNKNOWN
        # A command that says nothing has done something.
        self._changes = (kind == ToolKind.MUTATE) | (self._shell & batch.empty)
        # Nor do we hold against a tool that nobody knows what is normal for one that changes things.
        self._mutates = self._changes | self._unsure
        self._tokens, self._cost = totals_before(batch, slice(None))
        self._lowest = _lowest(config)

    def step(self, at: Ints) -> Found:
        """One call per run: counts it and says what that leads to."""
        calls = self._remember(at)
        if calls is None:
            return []
        at = calls.at
        k = len(at)
        begins = np.zeros((k, _MARKS), np.bool_)
        matches, again, oldest = self._repeats(calls, begins)
        count = self._streaks(calls, begins)
        self._mark(calls, begins)
        observed = np.empty((k, _RULES), np.int64)
        observed[:, :PERIODS] = matches // np.arange(1, PERIODS + 1) + 1
        observed[:, _AGAIN] = again
        for rule, counter in _COUNTED.items():
            observed[:, rule] = count[:, counter]
        observed[:, _VOLUME] = calls.number + 1
        before = self._table["call"][calls.rows, (calls.number - 1) % RING]
        observed[:, _REPEAT] = 1 + ((self._call[at] == before) & (calls.number > 0) & ~calls.same_round)
        # Most calls are far from every threshold: only the others are looked at closely.
        near = np.flatnonzero((observed >= self._lowest).any(axis=1))
        if not len(near):
            return []
        calls = _Calls(at[near], calls.rows[near], calls.number[near], calls.same_round[near], calls.novel[near])
        observed, oldest = observed[near], oldest[near]
        level, warning = self._levels(calls, observed, count[near], matches[near], oldest)
        return self._tell(calls, level, observed, warning, oldest) if level.any() else []

    def have_news(self, rows: Ints) -> Bools:
        """Whether the latest calls of these runs brought something new."""
        news: Bools = self._table["count"][rows, _STALE] == 0
        return news

    # ---------------------------------------------------------------------------------- memory

    def _remember(self, at: Ints) -> _Calls | None:
        """Puts calls into the ring and the memory of what was seen."""
        t, batch = self._table, self._batch
        rows = self._row[at]
        number = t["n"][rows].astype(np.int64)
        # Identical calls fanned out in one round are one decision of the model, not a repetition.
        round_ = batch.round[at]
        same_round = (round_ != UNKNOWN) & (round_ == t["round"][rows])
        if same_round.any():
            age = (number[:, None] - 1 - np.arange(RING)) % RING
            of_round = age < t["in_round"][rows][:, None]
            told = same_round & ((t["item"][rows] == self._item[at][:, None]) & of_round).any(axis=1)
            at, rows, number, same_round, round_ = (column[~told] for column in (at, rows, number, same_round, round_))
        if not len(at):
            return None
        t["in_round"][rows] = np.where(same_round, np.minimum(t["in_round"][rows] + 1, RING), 1)
        t["round"][rows] = round_
        t["n"][rows] = number + 1

        # After a change everything may answer anew; changes themselves are new only once.
        mutates = self._mutates[at]
        epoch = t["epoch"][rows]
        with np.errstate(over="ignore"):
            key = self._mixed[at] + np.where(mutates, np.uint64(0), epoch * _BLIND)
            key ^= key >> np.uint64(32)
        novel = ~self._known(rows, key)
        changes = novel & ~batch.failed[at] & (self._changes[at] | self._acknowledges(at, rows))
        t["epoch"][rows] = epoch + changes
        t["barrier"][rows] = np.where(changes, number, t["barrier"][rows])
        t["poll"][rows] = np.where(self._poll[at], number, t["poll"][rows])
        t["blind"][rows] = np.where(self._blind[at], number, t["blind"][rows])

        start = np.where(number == 0, batch.ts[at], t["start"][rows])
        t["start"][rows] = start
        place = number % RING
        t["spent"][rows, place] = batch.ts[at] - start
        t["spent"][rows, place + RING] = self._tokens[at]
        t["spent"][rows, place + 2 * RING] = self._cost[at]
        return _Calls(at, rows, number, same_round, novel)

    def _known(self, rows: Ints, key: Hashes) -> Bools:
        """Whether the memory holds these; from now on it does."""
        seen = self._table["seen"]
        ways = (key % np.uint64(SETS)).astype(np.int64)[:, None] * WAYS + np.arange(WAYS)
        tag = (key >> np.uint64(8)).astype(np.uint16) | np.uint16(1)
        kept = seen[rows[:, None], ways]
        known: Bools = (kept == tag[:, None]).any(axis=1)
        new = ~known
        seen[rows[new, None], ways[new]] = np.concatenate([tag[new, None], kept[new, :-1]], axis=1)
        return known

    def _acknowledges(self, at: Ints, rows: Ints) -> Bools:
        """Where a tool of unknown kind gives an answer that it has given before: "ok" after "ok" is work done."""
        batch = self._batch
        says: Bools = self._unsure[at] & ~self._blind[at] & ~batch.failed[at]
        chosen = np.flatnonzero(says)
        if len(chosen):
            with np.errstate(over="ignore"):
                key = (batch.tool_id[at[chosen]] * _MIX ^ batch.result[at[chosen]]) * _BLIND
                key ^= key >> np.uint64(32)
            says[chosen] = self._known(rows[chosen], key)
        return says

    def _repeats(self, calls: _Calls, begins: Bools) -> tuple[Ints, Ints, Ints]:
        """Matches per period; how often the call came lately, and the number of the oldest of these."""
        t, at, rows, number = self._table, calls.at, calls.rows, calls.number
        item, call = self._item[at], self._call[at]
        items, called = t["item"][rows], t.take("call", rows)
        before = items[np.arange(len(at))[:, None], (number[:, None] - np.arange(1, PERIODS + 1)) % RING]
        known = number[:, None] >= np.arange(1, PERIODS + 1)
        matches = np.where((before == item[:, None]) & known, t.take("matches", rows) + 1, 0)
        t["matches"][rows] = matches
        # The last item before the first match: the streak's first for p = 1, late by p - 1 items otherwise.
        begins[:, :PERIODS] = matches == 0

        place = number % RING
        bit = np.uint32(1) << place.astype(np.uint32)
        age = (place[:, None] - np.arange(RING)) % RING  # 0 is the place this call takes, and the oldest one's
        filled = (age > 0) & (age <= number[:, None])
        same_call = (called == call[:, None]) & filled
        changed = np.zeros(len(at), np.bool_)
        again = np.ones(len(at), np.int64)
        oldest = number.copy()
        chosen = np.flatnonzero(same_call.any(axis=1))
        if len(chosen):
            latest = np.where(same_call[chosen], age[chosen], RING).argmin(axis=1)
            changed[chosen] = items[chosen, latest] != item[chosen]
        t["item"][rows, place], t["call"][rows, place] = item, call
        t["novel"][rows] = (t["novel"][rows] & ~bit) | np.where(calls.novel, bit, np.uint32(0))
        unsure = calls.novel & self._unsure[at] & ~self._batch.failed[at]
        t["unsure"][rows] = (t["unsure"][rows] & ~bit) | np.where(unsure, bit, np.uint32(0))
        t["changed"][rows] = (t["changed"][rows] & ~bit) | np.where(changed, bit, np.uint32(0))
        chosen = chosen[~changed[chosen]]
        if len(chosen):
            again[chosen], oldest[chosen] = self._again(calls, chosen, same_call, items, age, matches)
        return matches, again, oldest

    def _again(
        self, calls: _Calls, chosen: Ints, same_call: Bools, items: Words, age: Ints, matches: Ints
    ) -> tuple[Ints, Ints]:
        """How often the chosen calls came with this result in the ring, if that means anything; the oldest's number."""
        t, rows, number = self._table, calls.rows[chosen], calls.number[chosen]
        age, same_call = age[chosen], same_call[chosen]
        same = same_call & (items[chosen] == self._item[calls.at[chosen]][:, None])
        # Back to where this call answered differently, or where something was changed.
        limit = np.where(same_call & ~same, age, RING).min(axis=1)
        limit = np.minimum(limit, number - t["barrier"][rows])
        same &= age < limit[:, None]
        count = same.sum(axis=1) + 1
        span = np.where(same, age, 0).max(axis=1)
        within = (age < span[:, None]) & (age > 0)
        bits = np.arange(RING, dtype=np.uint32)

        def flagged(name: str) -> Bools:
            found: Bools = ((t[name][rows][:, None] >> bits) & 1).astype(np.bool_) & within
            return found

        novel, changed = flagged("novel").sum(axis=1), flagged("changed").any(axis=1)
        # What goes round in a cycle is left to the cycle, which knows its length.
        cycling = (matches[chosen][:, 1:] >= np.arange(2, PERIODS + 1)).any(axis=1)
        config = self._config
        sparse = (novel >= count) | cycling | flagged("unsure").any(axis=1)
        # One after the other is another rule's.
        meaningless = changed | (span < count) | (sparse & (count < config.sparse_warning))
        return np.where(meaningless, 1, count), number - span

    # --------------------------------------------------------------------------------- streaks

    def _streaks(self, calls: _Calls, begins: Bools) -> Ints:
        """Counts failures, equal errors, equal answers, calls without news and reads of one target."""
        t, at, rows, batch = self._table, calls.at, calls.rows, self._batch
        count, ids, flags = t["count"][rows], t["id"][rows], t.take("flag", rows)
        failed, call, tool = batch.failed[at], self._call[at], self._tool[at]
        one = (~calls.same_round).astype(np.int32)
        named = batch.tool_id[at] != UNKNOWN
        changes = t["barrier"][rows] == calls.number

        before = t["call"][rows, (calls.number - 1) % RING]
        known = np.where((call == before) & (calls.number > 0), count[:, _FAILURES], 0)
        count[:, _FAILURES] = np.where(failed, np.maximum(known + one, 1), 0)
        begins[:, _MARK[_FAILING]] = failed & (known == 0)

        # The same tool fails with the same kind of error.
        error = self._error[at]
        comparable = failed & named & (batch.error[at] != UNKNOWN)
        like = comparable & (count[:, _SAME_ERROR] > 0) & (tool == ids[:, _ERR_TOOL]) & (error == ids[:, _ERR_CLASS])
        ends = changes | (~failed & (tool == ids[:, _ERR_TOOL]))
        fresh = comparable & ~like
        count[:, _SAME_ERROR] = np.where(
            like, count[:, _SAME_ERROR] + one, np.where(fresh, 1, np.where(ends, 0, count[:, _SAME_ERROR]))
        )
        flags[:, _ERR_VARIED] = np.where(fresh, False, flags[:, _ERR_VARIED] | (like & (call != ids[:, _ERR_FIRST])))
        for which, value in ((_ERR_TOOL, tool), (_ERR_CLASS, error), (_ERR_FIRST, call)):
            ids[:, which] = np.where(fresh, value, ids[:, which])
        begins[:, _MARK[_ONE_ERROR]] = fresh

        # Whatever is called fails. Counted in parts of a call, of which a shell's failures are one each.
        part = np.where(self._shell[at], 1, self._config.shell_factor).astype(np.int32)
        first = failed & (count[:, _ERROR_CALLS] == 0)
        count[:, _ERRORS] = np.where(failed, count[:, _ERRORS] + one * part, 0)
        count[:, _ERROR_CALLS] = np.where(failed, count[:, _ERROR_CALLS] + one, 0)
        # The calls of a round after its first count with it; they alone make no streak.
        flags[:, _STREAK_MIXED] = failed & ~first & (flags[:, _STREAK_MIXED] | (call != before))
        begins[:, _MARK[_STREAK]] = first

        # One answer, whatever is asked.
        result = self._result[at]
        asks = named & ~failed & ~self._blind[at] & ~batch.empty[at] & ~self._mutates[at]
        like = asks & (count[:, _STAGNANT] > 0) & (tool == ids[:, _STAG_TOOL]) & (result == ids[:, _STAG_RESULT])
        count[:, _STAGNANT] = np.where(like, count[:, _STAGNANT] + one, asks)
        fresh = ~like
        flags[:, _STAG_VARIED] = np.where(fresh, False, flags[:, _STAG_VARIED] | (call != ids[:, _STAG_FIRST]))
        for which, value in ((_STAG_TOOL, tool), (_STAG_RESULT, result), (_STAG_FIRST, call)):
            ids[:, which] = np.where(fresh, value, ids[:, which])
        begins[:, _MARK[_STAGNATION]] = fresh

        # Nothing new. Waiting and answers that were not sent say nothing either way.
        says = ~self._blind[at] & ~self._poll[at]
        news = (calls.novel & ~self._blind[at] & ~failed & ~like) | changes | (calls.number == 0)
        count[:, _STALE] = np.where(news, 0, count[:, _STALE] + says * one)
        begins[:, _MARK[_DROUGHT]] = news
        t["progress"][rows] += news + changes * np.int32(self._config.rearm_news - 1)

        # Reading one target again and again.
        target = self._target[at]
        reads = (batch.target[at] != UNKNOWN) & ~self._mutates[at]
        same = reads & (target == ids[:, _TARGET]) & (count[:, _READS] > 0)
        fresh = reads & ~same
        count[:, _REREADS] = np.where(fresh | changes, 0, count[:, _REREADS] + (same & ~calls.novel))
        count[:, _READS] = np.where(fresh, 1, np.where(changes, 0, count[:, _READS] + (same * one)))
        ids[:, _TARGET] = np.where(fresh, target, ids[:, _TARGET])
        begins[:, _MARK[_SWEEP]] = fresh

        t["count"][rows], t["id"][rows], t["flag"][rows] = count, ids, flags
        return count

    def _mark(self, calls: _Calls, begins: Bools) -> None:
        """Notes that streaks begin with these calls."""
        t, at, rows = self._table, calls.at, calls.rows
        now = np.stack([self._batch.ts[at], self._tokens[at], self._cost[at]], axis=1)[:, :, None]
        since = t.take("since", rows).reshape(-1, 3, _MARKS)
        t["since"][rows] = np.where(begins[:, None, :], now, since).reshape(-1, 3 * _MARKS)

    # --------------------------------------------------------------------------------- verdicts

    def _levels(
        self, calls: _Calls, observed: Ints, count: Ints, matches: Ints, oldest: Ints
    ) -> tuple[NDArray[np.uint8], Ints]:
        """Level of every rule, and its threshold for a warning."""
        c, t, at, rows = self._config, self._table, calls.at, calls.rows
        k = len(at)
        blind, poll = self._blind[at], self._poll[at]
        warning = np.empty((k, _RULES), np.int64)
        critical = np.empty_like(warning)

        def put(column: int, w: Any, cr: Any) -> None:
            warning[:, column], critical[:, column] = w, cr

        put(
            0,
            np.where(poll, c.poll_warning, np.where(blind, c.blind_warning, c.repeat_warning)),
            np.where(poll, c.poll_critical, np.where(blind, c.blind_critical, c.repeat_critical)),
        )
        for period in range(2, PERIODS + 1):
            extra = np.where(calls.number - t["poll"][rows] < period, c.poll_laps, 0)
            if period > 2:
                extra += np.where(calls.number - t["blind"][rows] < period, c.blind_laps, 0)
            put(period - 1, c.laps_warning + extra, c.laps_critical + extra)
        put(_FAILING, c.failing_warning, c.failing_critical)
        waits = calls.number - t["poll"][rows] <= calls.number - oldest
        often = np.where(waits, c.poll_warning, np.where(blind, c.sparse_warning + 1, c.again_warning))
        put(_AGAIN, often, np.where(waits, c.poll_critical, c.again_critical + blind))
        factor = np.where(self._shell[at], c.shell_factor, 1)
        put(_ONE_ERROR, c.same_error_warning * factor, c.same_error_critical * factor)
        put(_STREAK, c.errors_warning, c.errors_critical)
        unsure = np.where(self._shell[at], c.shell_extra, 0)
        patience = np.where(poll, c.paced_factor, 1)
        put(_STAGNATION, (c.stagnant_warning + unsure) * patience, (c.stagnant_critical + unsure) * patience)
        rereads = count[:, _REREADS] * 4 >= count[:, _READS]
        put(
            _SWEEP,
            np.where(rereads, c.sweep_warning, 4 * c.sweep_warning),
            np.where(rereads, c.sweep_critical, _NEVER),
        )
        put(_DROUGHT, c.stale_warning, c.stale_critical)
        put(_VOLUME, c.volume_warning, _NEVER)
        put(_REPEAT, np.where(poll, _NEVER, 2) if c.early else _NEVER, _NEVER)

        # A streak of failures is counted in parts of a call.
        scaled = observed.copy()
        scaled[:, _STREAK] = count[:, _ERRORS] // c.shell_factor
        level = levels(scaled, warning, critical)
        flags = t.take("flag", rows)
        level[:, _ONE_ERROR] *= flags[:, _ERR_VARIED] & self._batch.failed[at]
        level[:, _STREAK] *= flags[:, _STREAK_MIXED]
        level[:, _STAGNATION] *= flags[:, _STAG_VARIED]
        level[:, _SWEEP] *= (self._target[at] == t["id"][rows, _TARGET]) & (self._batch.target[at] != UNKNOWN)
        if level.any():
            self._pace(calls, level, scaled, warning, matches, oldest)
        return level, warning

    def _pace(
        self,
        calls: _Calls,
        level: NDArray[np.uint8],
        observed: Ints,
        warning: Ints,
        matches: Ints,
        oldest: Ints,
    ) -> None:
        """Quiets what happens a minute or more apart, for that is polling; what fails so slowly warns late."""
        t, rows, gap, ts = self._table, calls.rows, self._config.paced_gap_s, self._batch.ts[calls.at]
        lasted = ts[:, None] - t["since"][rows, :_MARKS]
        level[:, :PERIODS][lasted[:, :PERIODS] >= gap * np.maximum(matches, 1)] = 0
        first = t["start"][rows] + t["spent"][rows, oldest % RING]
        level[:, _AGAIN][ts - first >= gap * np.maximum(observed[:, _AGAIN] - 1, 1)] = 0
        for rule in _COUNTED:
            late = self._config.paced_factor if rule in (_FAILING, _ONE_ERROR, _STREAK) else _NEVER
            paced = (level[:, rule] > 0) & (lasted[:, _MARK[rule]] >= gap * np.maximum(observed[:, rule] - 1, 1))
            if paced.any():
                level[paced, rule] = observed[paced, rule] // late >= warning[paced, rule]

    def _tell(self, calls: _Calls, level: NDArray[np.uint8], observed: Ints, warning: Ints, oldest: Ints) -> Found:
        """One alert per loop: findings for those that are new, have risen, or last."""
        # The first rule at the highest level names the loop.
        rule = level.argmax(axis=1)
        highest = level[np.arange(len(rule)), rule]
        chosen = np.flatnonzero((highest > 0) & ~self._has_spoken(calls, highest))
        found: Found = []
        for j in chosen.tolist():
            which = int(rule[j])
            row, i = int(calls.rows[j]), int(calls.at[j])
            mark = self._mark_of(which, row, int(oldest[j]))
            if self._speaks(row, self._identity(which, row, i), int(highest[j]), float(self._batch.ts[i]), mark):
                count, threshold = int(observed[j, which]), int(warning[j, which])
                found.append((i, self._finding(i, row, which, int(highest[j]), count, threshold, mark)))
        return found

    def _has_spoken(self, calls: _Calls, level: NDArray[np.uint8]) -> Bools:
        """Where an alarm as high went off a moment ago, and nothing new has come since: still the same trouble."""
        t, rows = self._table, calls.rows
        last = t.take("alarm_ts", rows)
        latest = last.argmax(axis=1)[:, None]
        recent = self._batch.ts[calls.at][:, None] - last < self._config.repeat_s
        as_high = t.take("alarm_level", rows) >= level[:, None]
        still = np.take_along_axis(t.take("alarm_progress", rows), latest, axis=1)[:, 0] == t["progress"][rows]
        spoken: Bools = (recent & as_high).any(axis=1) & still
        return spoken

    def _mark_of(self, rule: int, row: int, oldest: int) -> tuple[float, float, float] | None:
        t = self._table
        if rule in _MARK:
            since, tokens, cost = t["since"][row, _MARK[rule] + np.arange(3) * _MARKS].tolist()
            return since, tokens, cost
        if rule == _AGAIN:
            seconds, tokens, cost = t["spent"][row, oldest % RING + np.arange(3) * RING].tolist()
            return float(t["start"][row]) + seconds, tokens, cost
        return None

    def _identity(self, rule: int, row: int, i: int) -> int:
        """What makes two alerts the same loop: its calls, in whatever order they came."""
        t = self._table
        of_one_call = rule in (0, _FAILING, _AGAIN, _REPEAT)
        if of_one_call:
            parts = [int(self._call[i])]
        elif rule < PERIODS:
            parts = t["call"][row, (int(t["n"][row]) - 1 - np.arange(rule + 1)) % RING].tolist()
        elif rule == _ONE_ERROR:
            parts = [int(self._tool[i]), int(self._error[i])]
        elif rule == _STAGNATION:
            parts = [int(self._tool[i]), int(self._result[i])]
        elif rule == _SWEEP:
            parts = [int(self._target[i])]
        else:
            parts = []
        family = 0 if of_one_call or rule < PERIODS else rule
        return (sum(parts) + family * 0x9E3779B1) % 2**32

    def _speaks(self, row: int, identity: int, level: int, ts: float, mark: tuple[float, float, float] | None) -> bool:
        """Whether a firing loop is reported now; remembers that it was."""
        t, c = self._table, self._config
        loops, levels_, last = t["alarm"][row], t["alarm_level"][row], t["alarm_ts"][row]
        progress = int(t["progress"][row])
        same = np.flatnonzero((loops == identity) & (levels_ > 0) & (ts - last < c.rearm_s))
        place = int(same[0]) if len(same) else int(last.argmax())
        reported, recent = float(last[place]), ts - float(last[place]) < c.repeat_s
        news = progress - int(t["alarm_progress"][row, place])
        # A streak that began after the last report is another one, if there was progress in between: a little
        # of it between loops of different calls, more between two of the same.
        another = mark is not None and mark[0] > reported and news >= (c.rearm_news if len(same) else 1)
        if recent and level <= int(levels_[place]) and not another:
            return False
        if not len(same):
            place = int(last.argmin())
        elif not another:
            level = max(level, int(levels_[place]))
        t["alarm"][row, place], t["alarm_level"][row, place] = identity, level
        t["alarm_ts"][row, place] = max(ts, reported) if len(same) else ts
        t["alarm_progress"][row, place] = progress
        return True

    def _finding(
        self,
        i: int,
        row: int,
        rule: int,
        level: int,
        count: int,
        threshold: int,
        mark: tuple[float, float, float] | None,
    ) -> Any:
        batch, t = self._batch, self._table
        tool = batch.tool[i] or "a tool"
        blind = bool(self._blind[i])
        outcome = "with no result sent" if blind else f"with the same {'error' if batch.failed[i] else 'result'}"
        n_calls, period, unit = count, 1, "calls"
        if rule == 0:
            what = f"has made the same call of {tool} {count} times in a row {outcome}"
        elif rule < PERIODS:
            n_calls, period, unit = count * (rule + 1), rule + 1, "laps"
            what = f"has gone round the same {period} calls {count} times with the same results"
        elif rule == _FAILING:
            what = f"has called {tool} {count} times in a row and it failed every time"
        elif rule == _AGAIN:
            what = f"has come back {count} times to the same call of {tool} {outcome}"
        elif rule == _ONE_ERROR:
            what = f"has called {tool} {count} times with changing arguments and it failed in the same way"
        elif rule == _STREAK:
            what = f"has made {count} calls in a row that all failed"
        elif rule == _STAGNATION:
            what = f"has called {tool} {count} times in a row with changing arguments and always got the same answer"
        elif rule == _SWEEP:
            what = f"has read the same target {count} times, {int(t['count'][row, _REREADS])} of them nothing new,"
        elif rule == _DROUGHT:
            what = f"has made {count} calls without a new result"
        elif rule == _VOLUME:
            what = f"has made {count} tool calls"
        else:
            what = f"has repeated its latest call of {tool}"
        return finding(
            batch,
            i,
            rule=_NAMES[rule],
            level=level,
            observed=count,
            threshold=threshold,
            unit=unit,
            what=what,
            mark=mark,
            evidence={"calls": n_calls, "period": period, "tool": batch.tool[i]},
            news=None if blind else float(t["since"][row, _MARK[_DROUGHT]]),
        )


def _lowest(c: RetryLoopConfig) -> Ints:
    """Below these counts no rule fires, whatever else holds."""
    lowest = np.empty(_RULES, np.int64)
    lowest[0] = min(c.repeat_warning, c.blind_warning, c.poll_warning)
    lowest[1:PERIODS] = c.laps_warning
    lowest[_FAILING], lowest[_AGAIN] = c.failing_warning, min(c.again_warning, c.sparse_warning + 1, c.poll_warning)
    lowest[_ONE_ERROR], lowest[_STREAK] = c.same_error_warning, c.errors_warning
    lowest[_STAGNATION], lowest[_SWEEP], lowest[_DROUGHT] = c.stagnant_warning, c.sweep_warning, c.stale_warning
    lowest[_VOLUME], lowest[_REPEAT] = c.volume_warning, 2 if c.early else _NEVER
    return lowest


def _half(hashes: Hashes) -> Words:
    """32 of the 64 bits."""
    return (hashes >> np.uint64(32)).astype(np.uint32)
