"""Loops of tool calls: the same call again, cycles, failures, answers that never change, nothing new.

Every rule counts something that has been going on; all counts of a run are updated by one call at a time,
for all runs of a round at once. Hashes are kept as 32 bits: a rule needs several equal ones to fire.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detectors.base import Records, Sparse, Table, levels
from detectors.loops.config import RetryLoopConfig
from detectors.loops.verdicts import SCOPE, Found, finding, totals_before
from detectors.rounds import rounds
from detectors.types import UNKNOWN, Bools, EventBatch, Floats, Hashes, Ints, ToolKind

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
# Plain numbers: numpy takes ten times as long to compare with members of an enumeration.
_SHELL, _POLL, _UNSURE, _MUTATE = (
    int(kind) for kind in (ToolKind.SHELL, ToolKind.POLL, ToolKind.UNKNOWN, ToolKind.MUTATE)
)
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
_MARK |= {rule: PERIODS + i for i, rule in enumerate((_FAILING, _ONE_ERROR, _STREAK, _STAGNATION, _DROUGHT))}
_MARKS = len(_MARK)
_NEVER, _FAR = int(np.iinfo(np.int64).max), int(np.iinfo(np.int32).max)
_LENGTHS = np.arange(1, PERIODS + 1)
_NOTHING = (np.empty((0, PERIODS), np.int64), np.empty(0, np.int64), np.empty(0, np.int64))


YOUNG: Final = 8
"""Calls of a run that are remembered before it gets a memory of full size: most runs end, or are stopped, before."""
_KEYS: Final = 16
"""Pairs of (call, result) remembered until then."""
_LATER = np.triu(np.ones((_KEYS, _KEYS), np.bool_), 1)
# Where things stand in the memory of a young run, in words.
_YOUNG_ITEM, _YOUNG_SPENT, _YOUNG_KEY = YOUNG, 2 * YOUNG, 5 * YOUNG
_YOUNG_WORDS = _YOUNG_KEY + _KEYS
_YOUNG_PIECE = np.dtype((np.void, 4 * _YOUNG_WORDS))


class CallState:
    """What lasts from batch to batch.

    Most runs never come near a loop. So what every run has is small; the full memory of calls is opened for
    those that repeat a call or make many, and the places where streaks began for those that carry one on.
    """

    def __init__(self, config: RetryLoopConfig) -> None:
        self.lowest = _lowest(config)
        self.low_counts = np.full(_COUNTERS, _FAR, np.int32)
        for rule, counter in _COUNTED.items():
            self.low_counts[counter] = min(self.lowest[rule], _FAR)
        self.runs = Records(
            {
                "start": (np.float64, 0.0),  # event time of the first call
                "round": (np.uint64, 0),
                # Where streaks began that began with the latest call: event time, the run's tokens and cost before.
                "ts": (np.float64, 0.0),
                "tokens": (np.int64, 0),
                "cost": (np.int64, 0),
                # Where reading the target began.
                "sweep": (np.float64, 0.0, 3),
                "n": (np.int32, 0),  # calls that counted
                "barrier": (np.int32, -1),  # the last call that changed something
                "poll": (np.int32, -RING),  # the last call that waits for something
                "blind": (np.int32, -RING),  # the last call without a result
                "progress": (np.int32, 0),  # new results so far; a change counts as `rearm_news` of them
                "count": (np.int32, 0, _COUNTERS),
                "id": (np.uint32, 0, _IDS),
                "novel": (np.uint32, 0),  # a bit per call of the ring: not seen before
                "unsure": (np.uint32, 0),  # a bit per call of the ring: not seen before, may have changed something
                "epoch": (np.uint16, 0),  # how often something was changed
                "in_round": (np.uint8, 0),  # how many of the latest calls are of that round
                "keys": (np.uint8, 0),  # pairs in the memory of a young run
                "flag": (np.bool_, False, _FLAGS),
            }
        )
        # Of a young run: hashes of its calls, the same with results, what `spent` says below, and pairs seen.
        self.young = Table({"word": (np.uint32, 0, _YOUNG_WORDS)})
        self.memory = Sparse(
            {
                "call": (np.uint32, 0, RING),  # hash of tool and arguments, by number of the call modulo RING
                "item": (np.uint32, 0, RING),  # the same with the result
                "changed": (np.uint32, 0),  # a bit per call of the ring: answered differently than last time
                "spent": (np.float32, 0.0, 3 * RING),  # per call: s since the start, tokens and cost before
                "matches": (np.int32, 0, PERIODS),  # how often in a row an item equalled the one p before it
                "seen": (np.uint16, 0, SETS * WAYS),
            }
        )
        self.streaks = Sparse(
            {
                "since": (np.float64, 0.0, 3 * _MARKS),  # event times, and the run's tokens and cost before
                "alarm": (np.uint32, 0, ALARMS),  # which loops spoke
                "alarm_level": (np.uint8, 0, ALARMS),
                "alarm_ts": (np.float64, -np.inf, ALARMS),
                "alarm_progress": (np.int32, 0, ALARMS),
            }
        )
        self.tables: dict[str, Table] = {
            "calls": self.runs,
            "young": self.young,
            "memory": self.memory,
            "streaks": self.streaks,
        }


@dataclass(slots=True)
class _Calls:
    """The calls of one round that count, one per run, and what was found out about them."""

    at: Any
    """Where they stand among the calls of the batch: a slice, or positions."""
    rows: Ints
    run: NDArray[Any]
    """State of their runs; put back when all is counted."""
    number: Ints
    """How many calls of the run came before."""
    place: Ints
    """Of the run's full memory, -1 for young runs."""
    same_round: Bools
    """Not the first call of its round."""
    novel: Bools

    def some(self, chosen: Ints) -> _Calls:
        """A few of them, by position."""
        at = np.arange(self.at.start, self.at.stop)[chosen] if isinstance(self.at, slice) else self.at[chosen]
        return _Calls(
            at,
            self.rows[chosen],
            self.run[chosen],
            self.number[chosen],
            self.place[chosen],
            self.same_round[chosen],
            self.novel[chosen],
        )


class Calls:
    """Rules over the tool calls of one batch, of which none follows on another life of its run."""

    def __init__(self, config: RetryLoopConfig, state: CallState, batch: EventBatch, at: Ints) -> None:
        """`at`: (n,) positions of the calls with a known signature."""
        self._config, self._state, self._batch = config, state, batch
        self._lowest, self._low_counts = state.lowest, state.low_counts
        row = batch.entities[SCOPE].row[at]
        parts = list(rounds(row))
        if len(parts) > 1:
            # Round by round, so that a round is a slice of every column.
            order = np.concatenate(parts)
            at, row = at[order], row[order]
        ends = [0, *itertools.accumulate(map(len, parts))]
        self._rounds = [slice(low, high) for low, high in itertools.pairwise(ends)]
        self._i, self._row = at, row
        signature, result, self._failed = batch.signature[at], batch.result[at], batch.failed[at]
        self._ts, self._round = batch.ts[at], batch.round[at]
        tool, error, target = batch.tool_id[at], batch.error[at], batch.target[at]
        self._blind, self._named, self._empty = result == UNKNOWN, tool != UNKNOWN, batch.empty[at]
        self._told, self._aimed = error != UNKNOWN, target != UNKNOWN
        # Multiplication wraps around, as it should; with arrays numpy does not warn of that.
        item: Hashes = (
            signature * _MIX ^ np.where(self._blind, _BLIND, result) ^ np.where(self._failed, _FAILED, UNKNOWN)
        )
        self._mixed = item * _MIX
        self._answer = (tool * _MIX ^ result) * _BLIND
        self._item, self._call, self._tool = _half(item), _half(signature), _half(tool)
        self._result, self._error, self._target = _half(result), _half(error), _half(target)
        kind = batch.tool_kind[at]
        self._shell, self._poll, self._unsure = kind == _SHELL, kind == _POLL, kind == _UNSURE
        # A command that says nothing has done something.
        self._changes = (kind == _MUTATE) | (self._shell & self._empty)
        # Nor do we hold against a tool that nobody knows what is normal for one that changes things.
        self._mutates = self._changes | self._unsure
        self._succeeds, self._heard = ~self._failed, ~self._blind
        answers = self._succeeds & self._heard
        self._acks = self._unsure & answers
        # One answer to all that is asked says something of a tool that changes nothing.
        looks = ~self._mutates
        self._asks = self._named & answers & ~self._empty & looks
        self._reads = self._aimed & looks
        self._tokens, self._cost = totals_before(batch, at)

    def run(self) -> tuple[Found, Bools]:
        """What is found, and (events of the batch,) which calls left their runs with something new."""
        found: Found = []
        news = np.zeros(len(self._batch), np.bool_)
        for part in self._rounds:
            run = self._state.runs.gather(self._row[part])
            calls = self._remember(part, run)
            if calls is not None:
                found += self._count(calls)
                if calls.run is not run:  # some had been told
                    run = self._state.runs.gather(self._row[part])
            news[self._i[part]] = run["count"][:, _STALE] == 0
        return found, news

    def _count(self, calls: _Calls) -> Found:
        known = (calls.place >= 0).nonzero()[0]
        matches, again, oldest = self._repeats(calls, known) if len(known) else _NOTHING
        self._streaks(calls, known, matches)
        self._state.runs.scatter(calls.rows, calls.run)
        # Most calls are far from every threshold: only the others are looked at closely.
        count = calls.run["count"]
        near = _any8(count >= self._low_counts)
        near |= calls.number + 1 >= self._lowest[_VOLUME]
        if len(known):
            laps = matches // _LENGTHS + 1
            near[known] |= (laps >= self._lowest[:PERIODS]).any(1) | (again >= self._lowest[_AGAIN])
            if self._config.early:
                near |= self._repeated
        chosen = near.nonzero()[0]
        if not len(chosen):
            return []
        some = calls.some(chosen)
        k = len(chosen)
        observed = np.ones((k, _RULES), np.int64)
        all_matches, all_oldest = np.zeros((k, PERIODS), np.int64), some.number.copy()
        if len(known):
            where = np.searchsorted(known, chosen)
            own = (some.place >= 0).nonzero()[0]
            where = where[own]
            all_matches[own], all_oldest[own] = matches[where], oldest[where]
            observed[own, :PERIODS], observed[own, _AGAIN] = laps[where], again[where]
        for rule, counter in _COUNTED.items():
            observed[:, rule] = some.run["count"][:, counter]
        observed[:, _VOLUME] = some.number + 1
        observed[:, _REPEAT] = 1 + self._repeated[chosen]
        level, warning = self._levels(some, observed, some.run["count"], all_matches, all_oldest)
        return self._tell(some, level, observed, warning, all_oldest) if level.any() else []

    # ---------------------------------------------------------------------------------- memory

    def _remember(self, at: slice, run: NDArray[Any]) -> _Calls | None:
        """Puts calls into the ring and the memory of what was seen."""
        chosen: Any = at
        rows, number = self._row[at], run["n"].astype(np.int64)
        place = self._state.memory.find(rows)
        # Identical calls fanned out in one round are one decision of the model, not a repetition.
        round_ = self._round[at]
        same_round = (round_ != UNKNOWN) & (round_ == run["round"])
        if same_round.any():
            told = self._told_in_round(at, run, number, place, same_round)
            if told.any():
                kept = (~told).nonzero()[0]
                if not len(kept):
                    return None
                chosen = np.arange(at.start, at.stop)[kept]
                rows, run, number, place = rows[kept], run[kept], number[kept], place[kept]
                same_round, round_ = same_round[kept], round_[kept]
            run["in_round"] = np.where(same_round, np.minimum(run["in_round"] + 1, RING), 1)
        else:
            run["in_round"] = 1
        run["round"], run["n"] = round_, number + 1

        # After a change everything may answer anew; changes themselves are new only once.
        key, epoch = self._mixed[chosen], run["epoch"]
        if epoch.any():
            key = key + np.where(self._mutates[chosen], UNKNOWN, epoch * _BLIND)
        key = key ^ (key >> np.uint64(32))
        call = self._call[chosen]
        block = self._young(rows)
        repeats = _any8(block[:, :YOUNG] == call[:, None])
        outgrown = ((repeats | (number >= YOUNG) | (run["keys"] > _KEYS - 2)) & (place < 0)).nonzero()[0]
        if len(outgrown):
            place[outgrown] = self._grow_up(rows[outgrown], block[outgrown])
        is_old = place >= 0
        young, old = (~is_old).nonzero()[0], is_old.nonzero()[0]
        ok = self._succeeds[chosen]
        # Set and tag in one word, which is never 0.
        word = _word(key)
        keys, known, end = block[:, _YOUNG_KEY:], np.zeros(len(rows), np.bool_), rows * _YOUNG_WORDS + _YOUNG_KEY
        words = self._state.young["word"].reshape(-1)
        if len(young):
            known = _any16(keys == word[:, None])
            end += run["keys"]
            # Of what is known already a second copy does no harm; the next one takes its place.
            if len(old):
                words[end[young]] = word[young]
            else:
                words[end] = word
            run["keys"] += ~known & ~is_old
        if len(old):
            known[old] = self._known(place[old], key[old])
        novel = ~known
        calls = _Calls(chosen, rows, run, number, place, same_round, novel)
        changes = self._changes[chosen]
        acks = self._acks[chosen].nonzero()[0]
        if len(acks):
            # A tool of unknown kind that gives an answer it has given before: "ok" after "ok" is work done.
            answer = self._answer[chosen][acks]
            answer ^= answer >> np.uint64(32)
            word_too = _word(answer)
            repeated = _any16(keys[acks] == word_too[:, None]) | (word_too == word[acks])
            olds = is_old[acks].nonzero()[0]
            if len(olds):
                repeated[olds] = self._known(place[acks[olds]], answer[olds])
            added = (~repeated & ~is_old[acks]).nonzero()[0]
            at_end = acks[added]
            words[rows[at_end] * _YOUNG_WORDS + _YOUNG_KEY + run["keys"][at_end]] = word_too[added]
            run["keys"][at_end] += 1
            changes = changes.copy()
            changes[acks] |= repeated
        changes = changes & novel & ok
        if changes.any():
            run["epoch"] += changes
            np.copyto(run["barrier"], number, where=changes, casting="same_kind")
        np.copyto(run["poll"], number, where=self._poll[chosen], casting="same_kind")
        np.copyto(run["blind"], number, where=self._blind[chosen], casting="same_kind")

        ts = self._ts[chosen]
        np.copyto(run["start"], ts, where=number == 0)
        spent = (ts - run["start"], self._tokens[chosen], self._cost[chosen])
        slot = number % RING
        bit = slot.astype(np.uint32)
        fresh = novel.astype(np.uint32) << bit
        others = ~(np.uint32(1) << bit)
        run["novel"] = run["novel"] & others | fresh
        run["unsure"] = run["unsure"] & others | fresh * (self._unsure[chosen] & ok)
        if len(young):
            self._note_young(rows, slot, young, call, self._item[chosen], spent)
        return calls

    def _told_in_round(self, at: slice, run: NDArray[Any], number: Ints, place: Ints, same_round: Bools) -> Bools:
        """Which calls came before in their round."""
        told = np.zeros(len(number), np.bool_)
        chosen = same_round.nonzero()[0]
        number, place = number[chosen], place[chosen]
        items = np.zeros((len(chosen), RING), np.uint32)
        items[:, :YOUNG] = self._young(self._row[at][chosen])[:, _YOUNG_ITEM:_YOUNG_SPENT]
        old = (place >= 0).nonzero()[0]
        items[old] = self._state.memory["item"][place[old]]
        age = (number[:, None] - 1 - np.arange(RING)) % RING
        of_round = age < run["in_round"][chosen][:, None]
        told[chosen] = ((items == self._item[at][chosen][:, None]) & of_round).any(axis=1)
        return told

    def _young(self, rows: Ints) -> Words:
        """(k, words) copies of the memories of young runs."""
        words = self._state.young["word"].view(_YOUNG_PIECE)[:, 0].take(rows).view(np.uint32)
        return words.reshape(-1, _YOUNG_WORDS)

    def _note_young(self, rows: Ints, slot: Ints, young: Ints, call: Words, item: Words, spent: Any) -> None:
        words = self._state.young["word"].reshape(-1)
        everybody = len(young) == len(rows)
        base = rows * _YOUNG_WORDS + slot
        if not everybody:
            base, call, item = base[young], call[young], item[young]
        words[base], words[base + _YOUNG_ITEM] = call, item
        for i, value in enumerate(spent):
            value = value.astype(np.float32).view(np.uint32)
            words[base + (_YOUNG_SPENT + i * YOUNG)] = value if everybody else value[young]

    def _grow_up(self, rows: Ints, block: Words) -> Ints:
        """Opens the full memory for runs, with what their small ones hold."""
        memory = self._state.memory
        place = memory.open(rows)
        memory["call"][place, :YOUNG] = block[:, :YOUNG]
        memory["item"][place, :YOUNG] = block[:, _YOUNG_ITEM:_YOUNG_SPENT]
        spent = np.ascontiguousarray(block[:, _YOUNG_SPENT:_YOUNG_KEY]).view(np.float32)
        for i in range(3):
            memory["spent"][place, i * RING : i * RING + YOUNG] = spent[:, i * YOUNG : (i + 1) * YOUNG]
        # The latest of a set come first.
        keys = block[:, _YOUNG_KEY:]
        group = keys & np.uint32(SETS - 1)
        way = ((group[:, :, None] == group[:, None, :]) & (keys != 0)[:, None, :] & _LATER).sum(axis=2)
        one, which = ((keys != 0) & (way < WAYS)).nonzero()
        ways = group[one, which].astype(np.int64) * WAYS + way[one, which]
        memory["seen"][place[one], ways] = (keys[one, which] >> np.uint32(8)).astype(np.uint16)
        return place

    def _known(self, place: Ints, key: Hashes) -> Bools:
        """Whether full memories hold these; from now on they do."""
        seen, where = self._state.memory["seen"], place[:, None]
        ways = (key % np.uint64(SETS)).astype(np.int64)[:, None] * WAYS + np.arange(WAYS)
        tag = (key >> np.uint64(8)).astype(np.uint16) | np.uint16(1)
        kept = seen[where, ways]
        known: Bools = (kept == tag[:, None]).any(axis=1)
        new = (~known).nonzero()[0]
        seen[where[new], ways[new]] = np.concatenate([tag[new, None], kept[new, :-1]], axis=1)
        return known

    def _repeats(self, calls: _Calls, known: Ints) -> tuple[Ints, Ints, Ints]:
        """Of runs with a full memory: matches per period; how often the call came lately, and the number of the
        oldest of these."""
        t, some = self._state.memory, calls.some(known)
        at, place, number = some.at, some.place, some.number
        item, call = self._item[at], self._call[at]
        items, called = t.take("item", place), t.take("call", place)
        before = items[np.arange(len(at))[:, None], (number[:, None] - _LENGTHS) % RING]
        matches = np.where((before == item[:, None]) & (number[:, None] >= _LENGTHS), t.take("matches", place) + 1, 0)
        t["matches"][place] = matches

        slot = number % RING
        bit = np.uint32(1) << slot.astype(np.uint32)
        age = (slot[:, None] - np.arange(RING)) % RING  # 0 is the place this call takes, and the oldest one's
        same_call = (called == call[:, None]) & (age > 0) & (age <= number[:, None])
        changed = np.zeros(len(at), np.bool_)
        again = np.ones(len(at), np.int64)
        oldest = number.copy()
        chosen = same_call.any(axis=1).nonzero()[0]
        if len(chosen):
            latest = np.where(same_call[chosen], age[chosen], RING).argmin(axis=1)
            changed[chosen] = items[chosen, latest] != item[chosen]
        t["item"][place, slot], t["call"][place, slot] = item, call
        spent = t["spent"]
        spent[place, slot] = self._ts[at] - some.run["start"]
        spent[place, slot + RING] = self._tokens[at]
        spent[place, slot + 2 * RING] = self._cost[at]
        t["changed"][place] = (t["changed"][place] & ~bit) | np.where(changed, bit, np.uint32(0))
        chosen = chosen[~changed[chosen]]
        if len(chosen):
            again[chosen], oldest[chosen] = self._again(some, chosen, same_call, items, age, matches)
        return matches.astype(np.int64), again, oldest

    def _again(
        self, calls: _Calls, chosen: Ints, same_call: Bools, items: Words, age: Ints, matches: Ints
    ) -> tuple[Ints, Ints]:
        """How often the chosen calls came with this result in the ring, if that means anything; the oldest's number."""
        run, number = calls.run[chosen], calls.number[chosen]
        age, same_call = age[chosen], same_call[chosen]
        same = same_call & (items[chosen] == self._item[calls.at[chosen]][:, None])
        # Back to where this call answered differently, or where something was changed.
        limit = np.where(same_call & ~same, age, RING).min(axis=1)
        limit = np.minimum(limit, number - run["barrier"])
        same &= age < limit[:, None]
        count = same.sum(axis=1) + 1
        span = np.where(same, age, 0).max(axis=1)
        within = (age < span[:, None]) & (age > 0)
        bits = np.arange(RING, dtype=np.uint32)

        def flagged(flags: Words) -> Bools:
            found: Bools = ((flags[:, None] >> bits) & 1).astype(np.bool_) & within
            return found

        changed = flagged(self._state.memory["changed"][calls.place[chosen]]).any(axis=1)
        novel = flagged(run["novel"]).sum(axis=1)
        # What goes round in a cycle is left to the cycle, which knows its length.
        cycling = (matches[chosen][:, 1:] >= np.arange(2, PERIODS + 1)).any(axis=1)
        config = self._config
        sparse = (novel >= count) | cycling | flagged(run["unsure"]).any(axis=1)
        # One after the other is another rule's.
        meaningless = changed | (span < count) | (sparse & (count < config.sparse_warning))
        return np.where(meaningless, 1, count), number - span

    # --------------------------------------------------------------------------------- streaks

    def _streaks(self, calls: _Calls, known: Ints, matches: Ints) -> None:
        """Counts failures, equal errors, equal answers, calls without news and reads of one target, and notes where
        they began."""
        at, run = calls.at, calls.run
        k = len(calls.rows)
        count, ids, flags = run["count"], run["id"], run["flag"]
        failed, call, tool = self._failed[at], self._call[at], self._tool[at]
        single = (~calls.same_round).astype(np.int32)
        changes = run["barrier"] == calls.number
        begins = np.zeros((k, _MARKS), np.bool_)
        # Streaks that go on: where they began must be known from now on.
        goes_on = np.zeros(k, np.bool_)

        # The call before is the same: only in a full memory can that be.
        self._repeated = np.zeros(k, np.bool_)
        same_as_before = self._repeated
        if len(known):
            own = calls.number[known]
            before = self._state.memory["call"][calls.place[known], (own - 1) % RING]
            same_as_before = np.zeros(k, np.bool_)
            same_as_before[known] = (call[known] == before) & (own > 0)
            self._repeated = same_as_before & ~calls.same_round
            begins[:, :PERIODS] = True
            begins[known, :PERIODS] = matches == 0
            goes_on[known] = (matches > 0).any(1)
        else:
            begins[:, :PERIODS] = True

        count[:, _FAILURES] = np.where(same_as_before & failed, count[:, _FAILURES], 0)
        errors = (count[:, _SAME_ERROR] > 0) & ~failed
        if errors.any():
            ends = errors & (changes | (tool == ids[:, _ERR_TOOL]))
            count[:, _SAME_ERROR] *= ~ends
            goes_on |= errors & ~ends
        some = failed.nonzero()[0]
        if len(some):
            self._errors(calls, some, same_as_before[some], single[some], changes[some], begins, goes_on)
        count[:, _ERRORS] *= failed
        count[:, _ERROR_CALLS] *= failed
        flags[:, _STREAK_MIXED] &= failed

        # One answer, whatever is asked.
        result, asks = self._result[at], self._asks[at]
        like = asks & (count[:, _STAGNANT] > 0)
        like &= (tool == ids[:, _STAG_TOOL]) & (result == ids[:, _STAG_RESULT])
        if like.any():
            count[:, _STAGNANT] = np.where(like, count[:, _STAGNANT] + single, asks)
            flags[:, _STAG_VARIED] = like & (flags[:, _STAG_VARIED] | (call != ids[:, _STAG_FIRST]))
            ids[:, _STAG_FIRST] = np.where(like, ids[:, _STAG_FIRST], call)
            goes_on |= like
        else:
            count[:, _STAGNANT] = asks
            flags[:, _STAG_VARIED] = False
            ids[:, _STAG_FIRST] = call
        # Where they are alike, these are the same already.
        ids[:, _STAG_TOOL], ids[:, _STAG_RESULT] = tool, result
        begins[:, _MARK[_STAGNATION]] = ~like

        # Nothing new. Waiting and answers that were not sent say nothing either way.
        heard = self._heard[at]
        news = (calls.novel & heard & self._succeeds[at] & ~like) | changes | (calls.number == 0)
        stale = count[:, _STALE] + (heard & ~self._poll[at]) * single
        stale[news] = 0
        count[:, _STALE] = stale
        begins[:, _MARK[_DROUGHT]] = news
        goes_on |= ~news
        run["progress"] += news + changes * np.int32(self._config.rearm_news - 1)

        # Reading one target again and again.
        target, reads = self._target[at], self._reads[at]
        same = reads & (target == ids[:, _TARGET]) & (count[:, _READS] > 0)
        fresh = reads & ~same
        ends = fresh | changes
        count[:, _REREADS] = np.where(ends, 0, count[:, _REREADS] + (same & ~calls.novel))
        count[:, _READS] = np.where(ends, fresh, count[:, _READS] + (same * single))
        np.copyto(ids[:, _TARGET], target, where=fresh)

        now = np.empty((k, 3))
        now[:, 0], now[:, 1], now[:, 2] = self._ts[at], self._tokens[at], self._cost[at]
        np.copyto(run["sweep"], now, where=fresh[:, None])
        self._mark(calls, begins, goes_on, now)

    def _errors(
        self,
        calls: _Calls,
        some: Ints,
        same_as_before: Bools,
        single: Any,
        changes: Bools,
        begins: Bools,
        goes_on: Bools,
    ) -> None:
        """Counts failures: of calls (k,) that fail."""
        at = some + calls.at.start if isinstance(calls.at, slice) else calls.at[some]
        run = calls.run[some]
        count, ids, flags = run["count"], run["id"], run["flag"]
        call, tool = self._call[at], self._tool[at]
        known = count[:, _FAILURES] > 0
        count[:, _FAILURES] = np.maximum(count[:, _FAILURES] + single, 1)

        # The same tool fails with the same kind of error.
        error, counted = self._error[at], count[:, _SAME_ERROR]
        comparable = self._named[at] & self._told[at]
        like = comparable & (counted > 0) & (tool == ids[:, _ERR_TOOL]) & (error == ids[:, _ERR_CLASS])
        fresh = comparable & ~like
        flags[:, _ERR_VARIED] = ~fresh & (flags[:, _ERR_VARIED] | (like & (call != ids[:, _ERR_FIRST])))
        count[:, _SAME_ERROR] = np.where(fresh, 1, np.where(changes & ~like, 0, counted + like * single))
        for which, value in ((_ERR_TOOL, tool), (_ERR_CLASS, error), (_ERR_FIRST, call)):
            np.copyto(ids[:, which], value, where=fresh)

        # Whatever is called fails. Counted in parts of a call, of which a shell's failures are one each.
        first = count[:, _ERROR_CALLS] == 0
        count[:, _ERRORS] += single * np.where(self._shell[at], 1, self._config.shell_factor).astype(np.int32)
        count[:, _ERROR_CALLS] += single
        # The calls of a round after its first count with it; they alone make no streak.
        flags[:, _STREAK_MIXED] = ~first & (flags[:, _STREAK_MIXED] | ~same_as_before)
        calls.run[some] = run
        begins[some, _MARK[_FAILING]], begins[some, _MARK[_ONE_ERROR]], begins[some, _MARK[_STREAK]] = (
            ~known,
            fresh,
            first,
        )
        goes_on[some] |= known | ~first | (~fresh & (count[:, _SAME_ERROR] > 0))

    def _mark(self, calls: _Calls, begins: Bools, goes_on: Bools, now: Any) -> None:
        """Notes that streaks begin with these calls."""
        run = calls.run
        place = self._state.streaks.find(calls.rows)
        opened = (goes_on & (place < 0)).nonzero()[0]
        if len(opened):
            # What went on until now began with the call before.
            place[opened] = self._open(calls.rows[opened], run[opened])
        run["ts"], run["tokens"], run["cost"] = now[:, 0], self._tokens[calls.at], self._cost[calls.at]
        own = (place >= 0).nonzero()[0]
        if len(own):
            since, place = self._state.streaks["since"], place[own]
            before = since.take(place, axis=0).reshape(-1, 3, _MARKS)
            marked = np.where(begins[own][:, None, :], now[own][:, :, None], before)
            since[place] = marked.reshape(-1, 3 * _MARKS)

    def _open(self, rows: Ints, run: NDArray[Any]) -> Ints:
        """Places where it is kept where streaks of these runs began: with their latest calls."""
        place = self._state.streaks.open(rows)
        latest = np.stack([run["ts"], run["tokens"], run["cost"]], axis=1)
        self._state.streaks["since"][place] = latest.repeat(_MARKS, axis=1)
        return place

    def _since(self, calls: _Calls) -> Floats:
        """(k, _MARKS) event times at which streaks began."""
        place = self._state.streaks.find(calls.rows)
        since = np.repeat(calls.run["ts"][:, None], _MARKS, axis=1)
        own = (place >= 0).nonzero()[0]
        since[own] = self._state.streaks["since"][place[own], :_MARKS]
        return since

    # --------------------------------------------------------------------------------- verdicts

    def _levels(
        self, calls: _Calls, observed: Ints, count: Ints, matches: Ints, oldest: Ints
    ) -> tuple[NDArray[np.uint8], Ints]:
        """Level of every rule, and its threshold for a warning."""
        c, run, at = self._config, calls.run, calls.at
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
            extra = np.where(calls.number - run["poll"] < period, c.poll_laps, 0)
            if period > 2:
                extra += np.where(calls.number - run["blind"] < period, c.blind_laps, 0)
            put(period - 1, c.laps_warning + extra, c.laps_critical + extra)
        put(_FAILING, c.failing_warning, c.failing_critical)
        waits = calls.number - run["poll"] <= calls.number - oldest
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
        flags = run["flag"]
        level[:, _ONE_ERROR] *= flags[:, _ERR_VARIED] & self._failed[at]
        level[:, _STREAK] *= flags[:, _STREAK_MIXED]
        level[:, _STAGNATION] *= flags[:, _STAG_VARIED]
        level[:, _SWEEP] *= (self._target[at] == run["id"][:, _TARGET]) & self._aimed[at]
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
        run, gap, ts = calls.run, self._config.paced_gap_s, self._ts[calls.at]
        lasted = ts[:, None] - self._since(calls)
        level[:, :PERIODS][lasted[:, :PERIODS] >= gap * np.maximum(matches, 1)] = 0
        first = ts.copy()
        own = (calls.place >= 0).nonzero()[0]
        first[own] = run["start"][own] + self._state.memory["spent"][calls.place[own], oldest[own] % RING]
        level[:, _AGAIN][ts - first >= gap * np.maximum(observed[:, _AGAIN] - 1, 1)] = 0
        for rule in _COUNTED:
            late = self._config.paced_factor if rule in (_FAILING, _ONE_ERROR, _STREAK) else _NEVER
            since = ts - run["sweep"][:, 0] if rule == _SWEEP else lasted[:, _MARK[rule]]
            paced = (level[:, rule] > 0) & (since >= gap * np.maximum(observed[:, rule] - 1, 1))
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
            mark = self._mark_of(which, calls, j, int(oldest[j]))
            if self._speaks(calls, j, self._identity(which, calls, j), int(highest[j]), mark):
                count, threshold = int(observed[j, which]), int(warning[j, which])
                i = int(self._i[calls.at[j]])
                found.append((i, self._finding(calls, j, which, int(highest[j]), count, threshold, mark)))
        return found

    def _has_spoken(self, calls: _Calls, level: NDArray[np.uint8]) -> Bools:
        """Where an alarm as high went off a moment ago, and nothing new has come since: still the same trouble."""
        t, place = self._state.streaks, self._state.streaks.find(calls.rows)
        spoken = np.zeros(len(place), np.bool_)
        own = (place >= 0).nonzero()[0]
        place = place[own]
        last = t["alarm_ts"][place]
        latest = last.argmax(axis=1)[:, None]
        recent = self._ts[calls.at[own]][:, None] - last < self._config.repeat_s
        as_high = t["alarm_level"][place] >= level[own][:, None]
        progress = calls.run["progress"][own]
        still = np.take_along_axis(t["alarm_progress"][place], latest, axis=1)[:, 0] == progress
        spoken[own] = (recent & as_high).any(axis=1) & still
        return spoken

    def _mark_of(self, rule: int, calls: _Calls, j: int, oldest: int) -> tuple[float, float, float] | None:
        run = calls.run[j]
        if rule in _MARK:
            place = int(self._state.streaks.find(calls.rows[j : j + 1])[0])
            if place < 0:
                return float(run["ts"]), float(run["tokens"]), float(run["cost"])
            since, tokens, cost = self._state.streaks["since"][place, _MARK[rule] + np.arange(3) * _MARKS].tolist()
            return since, tokens, cost
        if rule == _SWEEP:
            since, tokens, cost = run["sweep"].tolist()
            return since, tokens, cost
        if rule == _AGAIN:
            memory, place = self._state.memory, int(calls.place[j])
            seconds, tokens, cost = memory["spent"][place, oldest % RING + np.arange(3) * RING].tolist()
            return float(run["start"]) + seconds, tokens, cost
        return None

    def _identity(self, rule: int, calls: _Calls, j: int) -> int:
        """What makes two alerts the same loop: its calls, in whatever order they came."""
        c = int(calls.at[j])
        of_one_call = rule in (0, _FAILING, _AGAIN, _REPEAT)
        if of_one_call:
            parts = [int(self._call[c])]
        elif rule < PERIODS:
            latest = (int(calls.number[j]) - np.arange(rule + 1)) % RING
            parts = self._state.memory["call"][int(calls.place[j]), latest].tolist()
        elif rule == _ONE_ERROR:
            parts = [int(self._tool[c]), int(self._error[c])]
        elif rule == _STAGNATION:
            parts = [int(self._tool[c]), int(self._result[c])]
        elif rule == _SWEEP:
            parts = [int(self._target[c])]
        else:
            parts = []
        family = 0 if of_one_call or rule < PERIODS else rule
        return (sum(parts) + family * 0x9E3779B1) % 2**32

    def _speaks(
        self, calls: _Calls, j: int, identity: int, level: int, mark: tuple[float, float, float] | None
    ) -> bool:
        """Whether a firing loop is reported now; remembers that it was."""
        t, c, ts = self._state.streaks, self._config, float(self._ts[calls.at[j]])
        row = calls.rows[j : j + 1]
        place = int(t.find(row)[0])
        if place < 0:
            place = int(self._open(row, calls.run[j : j + 1])[0])
        loops, levels_, last = t["alarm"][place], t["alarm_level"][place], t["alarm_ts"][place]
        progress = int(calls.run["progress"][j])
        same = np.flatnonzero((loops == identity) & (levels_ > 0) & (ts - last < c.rearm_s))
        which = int(same[0]) if len(same) else int(last.argmax())
        reported, recent = float(last[which]), ts - float(last[which]) < c.repeat_s
        news = progress - int(t["alarm_progress"][place, which])
        # A streak that began after the last report is another one, if there was progress in between: a little
        # of it between loops of different calls, more between two of the same.
        another = mark is not None and mark[0] > reported and news >= (c.rearm_news if len(same) else 1)
        if recent and level <= int(levels_[which]) and not another:
            return False
        if not len(same):
            which = int(last.argmin())
        elif not another:
            level = max(level, int(levels_[which]))
        t["alarm"][place, which], t["alarm_level"][place, which] = identity, level
        t["alarm_ts"][place, which] = max(ts, reported) if len(same) else ts
        t["alarm_progress"][place, which] = progress
        return True

    def _finding(
        self,
        calls: _Calls,
        j: int,
        rule: int,
        level: int,
        count: int,
        threshold: int,
        mark: tuple[float, float, float] | None,
    ) -> Any:
        batch, i = self._batch, int(self._i[calls.at[j]])
        tool = batch.tool[i] or "a tool"
        blind = bool(self._blind[calls.at[j]])
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
            what = (
                f"has read the same target {count} times, {int(calls.run['count'][j, _REREADS])} of them nothing new,"
            )
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
            news=None if blind else float(self._since(calls.some(np.array([j])))[0, _MARK[_DROUGHT]]),
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


def _any8(table: Bools) -> Bools:
    """`table.any(1)` of (n, 8) contiguous truth values, all eight at once."""
    found: Bools = table.view(np.uint64)[:, 0] != 0
    return found


def _any16(table: Bools) -> Bools:
    """The same of (n, 16)."""
    halves = table.view(np.uint64)
    found: Bools = (halves[:, 0] | halves[:, 1]) != 0
    return found


def _word(key: Hashes) -> Words:
    """Of a key what the memory of calls holds, in one word: the tag above the set."""
    word: Words = (key & np.uint64(0xFFFF00 | (SETS - 1)) | np.uint64(0x100)).astype(np.uint32)
    return word


def _half(hashes: Hashes) -> Words:
    """32 of the 64 bits."""
    halves: Words = (hashes >> np.uint64(32)).astype(np.uint32)
    return halves
