"""Agents that burn far more than they usually do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import msgspec
import numpy as np

from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    FleetFigures,
    LogGrid,
    ScoreGrid,
    Sparse,
    Spec,
    StateError,
    Table,
    group_figure,
    pace_in_order,
    register,
    setting,
    severity_of,
)
from detectors.day_maxima import DayMaxima
from detectors.expansion import FAST_S, FIELDS, MONEY, STEADY, TOKENS, UNITS, close_minutes, keep_fresh, lull_now
from detectors.limits import Excess, LimitSettings
from detectors.limits import Limits as Rules
from detectors.moved import adwin
from detectors.rounds import Segments, changes, lives, running, segments, ticks, unlike_recent
from detectors.types import UNKNOWN, Bools, EventBatch, Finding, Floats, Hashes, Ints, Kind, Scope, beyond

WINDOW_S = 1800.0
"""Length of the windows whose levels the drift detector sees."""

WINDOWS = 48
"""Windows remembered per agent: a day of activity."""

RESULTS = 4
"""Tool results remembered per agent, to know a new one."""

STATES = ("warming up", "young", "ready")
"""What is known of an agent: no range of its own yet; one that the cold-start rule guards; one of its own."""

_TOOL = int(Kind.TOOL)
_DAY = 1440
_CLEARLY = 0.1
"""Nats by which dollars must say more than tokens."""


class RunawayConfig(DetectorConfig):
    """The thresholds of the runaway score."""

    budget_per_agent_day: float = setting(
        1 / 30,
        unit="alarms per agent-day",
        why="How many false alarms per agent and day are allowed: the fleet's own record of the last week sets the "
        "threshold of the score accordingly, per group of agents.",
        source="one per agent and month",
        gt=0,
        lt=1,
    )
    critical_per_agent_day: float = setting(
        1 / 100,
        unit="alarms per agent-day",
        why="The same for critical alarms.",
        source="a third of the warnings; rarer rates are not resolved by 558 agent-days of production clients",
        gt=0,
        lt=1,
    )
    alarms_per_day: float = setting(
        20.0,
        unit="alarms per day",
        why="How many alarms the whole fleet may raise: where the agents' budgets add up to more, only those with "
        "the largest excess cost pass.",
        source="what one team can look at in a day",
        gt=0,
    )
    warning: float = setting(
        0.9,
        unit="nats",
        why="Threshold of the score while the fleet's record is too short for its budget: warning.",
        source="one false alarm per 30 agent-days on 62 production clients (ServeGen, days 6 to 14)",
        gt=0,
    )
    critical: float = setting(
        1.6,
        unit="nats",
        why="The same: critical; and the least that is, however calm the fleet's record.",
        source="about five times the range; one false alarm per 55 agent-days on the same clients",
        gt=0,
    )
    budget_days: int = setting(
        120,
        unit="agent-days",
        why="A group of agents has a threshold of its own, and the fleet has one, from so many agent-days on.",
        source="the threshold is the fourth largest of 120 daily maxima at one alarm per 30 agent-days",
        ge=1,
    )
    new_tokens: float = setting(
        10_000_000.0,
        unit="effective tokens per 5 min",
        why="An agent without a range of its own is quiet below this, and below the fleet's limit.",
        source="0.8-quantile of the 5-minute maxima of 62 production clients (ServeGen); $30 at $3 per million",
        gt=0,
    )
    still_burning: float = setting(
        0.5,
        unit="times",
        why="The use of this minute or the last must be this part of the 5-minute rate, or the burst is over.",
        source="half: bursts end within two minutes, and a decayed sum takes ten to say so",
        ge=0,
    )
    floor_tokens: float = setting(
        50_000.0,
        unit="effective tokens per 5 min",
        why="Below this an agent is too cheap to wake anybody.",
        source="about $0.15 per 5 minutes at $3 per million tokens, $43 if it lasts a day",
        ge=0,
    )
    floor_usd: float = setting(
        0.15,
        unit="dollars per 5 min",
        why="The same for its dollars.",
        source="as floor_tokens, at $3 per million tokens",
        ge=0,
    )
    floor_quantile: float = setting(
        0.9,
        unit="quantile",
        why="The floors are at least this quantile of the fleet's active 5-minute sums, "
        "once the fleet's figures are known.",
        source="an impact floor at q90 halved the false alarms of the score (0.032 to 0.019 per agent-day)",
        ge=0,
        lt=1,
    )
    ready_minutes: int = setting(
        30,
        unit="active minutes",
        why="An agent with less history has no range of its own.",
        source="shortest warm-up of the cold-start comparison on production clients",
        ge=1,
    )
    cold_minutes: int = setting(
        1440,
        unit="active minutes",
        why="Until then, or until cold_days have passed, the cold-start rule holds: beyond the own range and "
        "beyond the fleet's, and never more than a warning.",
        source="records of a young history are cheap: false alarms fall from 0.73 to 0.05 per agent on day 1",
        ge=1,
    )
    cold_days: float = setting(
        4.0,
        unit="days",
        why="So long after its first event even an agent that is seldom active has a range of its own.",
        source="the n-th day is a record with probability 1/n: the clients' false alarms reached their level on day 4",
        gt=0,
    )
    cold_quantile: float = setting(
        0.8,
        unit="quantile",
        why="Cold start: quantile of the fleet's per-agent 5-minute maxima to pass.",
        source="q80 measured 0.05 false alarms per agent on the first day, recall 0.52 at 30x",
        gt=0,
        lt=1,
    )
    fleet_agents: int = setting(
        10,
        unit="agents",
        why="The fleet's figures count as known from so many agents on.",
        source="a quantile of 0.8 or 0.9 needs at least ten values",
        ge=1,
    )
    memory_s: float = setting(
        7 * 86400.0,
        unit="s",
        why="Half-life of the learned range.",
        source="7-day half-life of the measured range statistic: a weekly peak is remembered",
        gt=0,
    )
    habit: float = setting(
        4.0,
        unit="times",
        why="An alarm that has ended widens the range by this factor at most.",
        source="a burst of ten times the range is reported twice before it counts as usual; at a factor of 1 the "
        "bursts that production clients repeat took twice the budget",
        ge=1,
    )
    calm_s: float = setting(
        3600.0,
        unit="s",
        why="So long below the threshold until the alarm is over and learning goes on.",
        source="60-minute refractory time of the measured comparison",
        gt=0,
    )
    relearn_s: float = setting(
        6 * 3600.0,
        unit="s",
        why="An alarm this old is asked whether the baseline has moved for good.",
        source="a quarter of a day: long enough that people have seen the incident",
        gt=0,
    )
    drift_delta: float = setting(
        0.002,
        unit="probability",
        why="Confidence of the drift test (ADWIN) on the windows' levels.",
        source="river's default for drift.ADWIN",
        gt=0,
        lt=1,
    )
    repeat_s: float = setting(
        60.0,
        unit="s",
        why="A runaway that lasts is reported again after this time.",
        source="keeps the incident alive; well under the quiet time of incidents",
        gt=0,
    )
    rearm_s: float = setting(
        3600.0,
        unit="s",
        why="After this time without firing, a runaway of the same agent is new.",
        source="equal to calm_s",
        gt=0,
    )
    context_times: float = setting(
        3.0,
        unit="times",
        why="A call's input beyond the largest of earlier days by this factor is a context that has grown.",
        source="runs that compact their context stay within a factor of two of each other",
        gt=1,
    )
    context_calls: float = setting(
        5.0,
        unit="calls in half an hour",
        why="So many such calls: warning; five times as many: critical.",
        source="a single large document is read in one or two calls",
        ge=1,
    )
    context_floor: float = setting(
        20_000.0,
        unit="input tokens per call",
        why="Smaller contexts are left alone.",
        source="$0.06 per call at $3 per million",
        ge=0,
    )
    outcome_times: float = setting(
        3.0,
        unit="times",
        why="Calls and effective tokens since the last outcome, over the most that one took before: warning; three "
        "times as much: critical. Only for agents that report outcomes.",
        source="one in n tasks is the costliest of n; three times the costliest is none of them",
        gt=1,
    )
    outcome_history: int = setting(
        10,
        unit="outcomes",
        why="Outcomes until it is known what one takes.",
        source="the costliest of ten is passed by one in ten, three times as much by far fewer",
        ge=2,
    )
    outcome_floor: float = setting(
        1_000_000.0,
        unit="effective tokens",
        why="Less than this without an outcome is left alone.",
        source="$3 at $3 per million",
        ge=0,
    )
    hour_usd: float = setting(
        0.0,
        unit="dollars per agent and clock hour",
        why="Hard budget: critical beyond it, whatever is usual; 0: none.",
        source="off: only its owner knows it",
        ge=0,
    )
    usd_per_million: float = setting(
        3.0,
        unit="dollars per million effective tokens",
        why="What effective tokens count for where an agent's dollars are not known.",
        source="list price of common models",
        gt=0,
    )


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the fleet's figures make of the settings."""

    version: str
    groups: Hashes
    """Groups with thresholds of their own, ascending."""
    warning: Floats
    """Of each of them, and at the end of everybody else."""
    critical: Floats
    known: bool
    """Everybody else's thresholds rest on the fleet's record, too; else they are the settings."""
    floors: Floats
    """(UNITS,) impact floors."""
    cold: float
    """What an agent must pass in its first days, effective tokens per 5 min."""
    excess_usd: float
    """Excess cost that the fleet's budget of alarms asks for."""

    def thresholds(self, group: Hashes) -> tuple[Floats, Floats, Bools]:
        """(k,) warning and critical thresholds of agents of these groups (k,); whether they keep to the budget."""
        if not len(self.groups):
            at = np.zeros(len(group), np.int64)
        else:
            at = np.minimum(np.searchsorted(self.groups, group), len(self.groups) - 1)
            at = np.where(self.groups[at] == group, at, len(self.groups))
        return self.warning[at], self.critical[at], self.known | (at < len(self.groups))


def fleet_of(config: RunawayConfig, figures: FleetFigures) -> Fleet:
    """Thresholds, floors and limits that the settings come to with these figures."""

    def thresholds(figure: str) -> tuple[float, float] | None:
        if figures.total(figure) < config.budget_days:
            return None
        warning = figures.exceeded_by(figure, config.budget_per_agent_day)
        if warning is None:
            return None
        critical = figures.exceeded_by(figure, config.critical_per_agent_day)
        return warning, max(warning, critical or 0.0, config.critical)

    fleet = thresholds("day_scores")
    own = {group: thresholds(name) for group, name in figures.groups("day_scores").items()}
    known = sorted((group, both) for group, both in own.items() if both is not None)
    pairs = [both for _, both in known] + [fleet or (config.warning, config.critical)]

    agents = figures.total("agent_maxima")
    enough = agents >= config.fleet_agents
    floors = [config.floor_tokens, config.floor_usd * 1e6]
    if enough:
        for unit, figure in ((TOKENS, "active_sums"), (MONEY, "active_costs")):
            floors[unit] = max(floors[unit], figures.quantile(figure, config.floor_quantile) or 0.0)
    cold = figures.quantile("agent_maxima", config.cold_quantile, config.fleet_agents)
    # So many days the agent-days are of: whatever the number of partitions, they all count the same week.
    days = figures.total("day_scores") / agents if agents else 0.0
    candidates = figures.total("day_excess")
    allowed = config.alarms_per_day * days
    excess = figures.quantile("day_excess", 1 - allowed / candidates) if 0 < allowed < candidates else 0.0
    return Fleet(
        version=figures.version,
        groups=np.array([group for group, _ in known], np.uint64),
        warning=np.array([warning for warning, _ in pairs]),
        critical=np.array([critical for _, critical in pairs]),
        known=fleet is not None,
        floors=np.array(floors),
        cold=config.new_tokens if cold is None else cold,
        excess_usd=(excess or 0.0) / 1e6,
    )


@register
class Runaway(Detector):
    """An agent uses effective tokens, or dollars, at a rate beyond everything in its own recent past.

    Two statistics are compared with the highest values that earlier minutes have seen, which fade with a
    half-life of a week: S, the exponentially decayed sum of 5 minutes (how high it bursts), and L, the lowest
    use of any two minutes in the last 25 (how long it keeps going without a lull):
    score = max(0, ln S/H) + max(0, ln L/H_L), in effective tokens and in dollars; the larger counts.
    `detectors/expansion.py` has the details.

    Fires when: the score passes the threshold that one false alarm per 30 agent-days (critical: 100) leaves by
        the last week's daily maxima of the agent's group, or of the fleet (0.9 and 1.6 nats until they are
        known), and S passes the impact floor; in an agent's first 4 days and 1,440 active minutes: S is also
        beyond the 0.8-quantile of the fleet's maxima (warning only).
        Beside the rate (`detectors/limits.py`): five calls in half an hour read three times what any call of
        earlier days did; calls and tokens since the last outcome are three times the most that one took; a
        budget per clock hour, where one is set, is used up.
    Quiet when: the agent is below the floor, however unusual; it has fewer than 30 active minutes and is
        within what the fleet does; tokens and dollars are unknown; the fleet's budget of alarms is spent on
        costlier ones. Unusual hours at a usual rate are invisible.
    Units: effective tokens, or dollars, per 5 minutes; score in nats (0.69 is a factor of two). Time passes in
        whole seconds: sums fade, and alarms repeat, between seconds; within one, each event counts in order.
    State: per agent sums, lulls, learned maxima, results, outcomes (about 364 bytes), 48 window levels once it has
        closed a half hour (192 more), and its alarm once it has had one (49 more); per partition histograms of a
        week of daily maxima per group, and of 5-minute sums. It learns nothing while it fires, and after an alarm at
        most a factor of 4. After 6 h of alarm river's ADWIN over the window levels decides whether the level has
        moved for good; a new agent's level is taken as it is.
    Source: range statistic, daily block maxima and cold-start rule as measured on 185 production clients; the
        lull and the lag by our own measurements on 62 of them; Bifet and Gavalda 2007 for ADWIN.
    """

    spec: ClassVar[Spec] = Spec("runaway", version=4, scope=Scope.AGENT)
    Config: ClassVar[type[DetectorConfig]] = RunawayConfig

    def __init__(self, config: RunawayConfig) -> None:
        self.config = config
        self._table = Table(
            {
                "begun": (np.bool_, False),
                "second": (np.int64, -1),  # the open second, since 1970
                "second_use": (np.int64, 0, UNITS),  # of the open second, in thousandths
                **FIELDS,
                "first_minute": (np.int32, -1),
                # The open day, and the most that its alarms may count for in the fleet's figures.
                "day": (np.int32, -1),
                "day_score": (np.float32, 0.0),
                "day_excess": (np.float32, -1.0),
                # The open half hour; the level of one is the mean ln of tokens per active minute.
                "window_sum": (np.float32, 0.0),
                "window_minutes": (np.int32, 0),
                "since": (np.float64, np.nan),  # when the alarm began
                "results": (np.uint64, UNKNOWN, RESULTS),
                "result_ts": (np.float64, np.nan),
            }
        )
        # Of agents that have closed a half hour.
        self._windows = Sparse({"levels": (np.float32, np.nan, WINDOWS)})
        # Of agents that have had an alarm: it, and the highest ln S and ln L while it lasts.
        self._alarms = Sparse(
            {
                "since_tokens": (np.int64, 0),
                "since_cost": (np.int64, 0),
                "last_over": (np.float64, -np.inf),
                "high": (np.float32, -np.inf, UNITS),
                "lull": (np.float32, -np.inf, UNITS),
                **ALARM_FIELDS,
            }
        )
        self._rules = Rules(LimitSettings(**{f.name: getattr(config, f.name) for f in fields(LimitSettings)}))
        self.tables = {
            "agents": self._table,
            "windows": self._windows,
            "alarms": self._alarms,
            **self._rules.tables,
        }
        self._sums = np.zeros((UNITS, LogGrid.BINS), np.int64)
        self._day_scores = DayMaxima(ScoreGrid.BINS)
        self._day_excess = DayMaxima(LogGrid.BINS)
        self._fleet = fleet_of(config, FleetFigures())

    # ---------------------------------------------------------------------------------- the fleet

    def sketch(self) -> dict[str, list[int]]:
        """What this partition has seen.

        `day_scores`: highest score of each agent and day, for the fleet and per group. Only what could have
        begun an alarm counts: scores below the impact floor, of a young agent, or while an alarm of an earlier
        day lasts, do not. `day_excess`: excess cost (millionths of a dollar) of each day with an alarm.
        `active_sums`, `active_costs`: 5-minute sums of all active minutes. `agent_maxima`: each ready agent's
        learned maximum.
        """
        table = self._table
        ready = (table["active_minutes"] >= self.config.ready_minutes) & np.isfinite(table["high"][:, TOKENS])
        highest = np.exp(table["high"][ready, TOKENS].astype(np.float64))
        scores = self._day_scores.counts()
        figures = {
            "active_sums": self._sums[TOKENS].tolist(),
            "active_costs": self._sums[MONEY].tolist(),
            "agent_maxima": np.bincount(LogGrid.index(highest), minlength=LogGrid.BINS).tolist(),
            "day_scores": np.sum([[0] * ScoreGrid.BINS, *scores.values()], 0).tolist(),
            "day_excess": self._day_excess.counts().get(int(UNKNOWN), [0] * LogGrid.BINS),
        }
        own = {group_figure("day_scores", group): counts for group, counts in scores.items() if group != UNKNOWN}
        return figures | own

    def calibrate(self, figures: FleetFigures) -> None:
        self._fleet = fleet_of(self.config, figures)

    def dump_shared(self) -> bytes:
        body = (self._sums.tobytes(), self._day_scores.dump(), self._day_excess.dump())
        return msgspec.msgpack.encode((self.spec.name, self.spec.version, body))

    def load_shared(self, page: bytes) -> None:
        if not page:
            return
        try:
            name, version, (sums, scores, excess) = msgspec.msgpack.decode(page, type=_SharedPage)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("shared state is damaged, or of another version") from error
        if (name, version) != (self.spec.name, self.spec.version) or len(sums) != self._sums.nbytes:
            raise StateError(f"shared state is of {name} version {version}")
        day_scores, day_excess = DayMaxima(ScoreGrid.BINS), DayMaxima(LogGrid.BINS)
        day_scores.load(scores)
        day_excess.load(excess)
        self._sums = np.frombuffer(sums, np.int64).reshape(self._sums.shape).copy()
        self._day_scores, self._day_excess = day_scores, day_excess

    def readiness(self, rows: Ints) -> list[str]:
        """What is known of the agents of these rows (k,), see `STATES`."""
        return [STATES[state] for state in self._states(rows, self._table["minute"][rows]).tolist()]

    def sums(self, rows: Ints, ts: float) -> Floats:
        """(k, UNITS) S of these agents, as it has faded by `ts`, s since 1970."""
        table = self._table
        silent = np.maximum(math.floor(ts) - table["second"][rows], 0)
        sums: Floats = table.take("fast", rows) + table.take("second_use", rows) / 1e3
        sums *= np.exp(silent / -FAST_S)[:, None]
        return sums

    def _states(self, rows: Ints, minute: Ints) -> Ints:
        """(k,) 0: no range yet, 1: cold start, 2: ready."""
        table, config = self._table, self.config
        n = table["active_minutes"][rows]
        aged = (minute - table["first_minute"][rows] >= config.cold_days * _DAY) | (n >= config.cold_minutes)
        states: Ints = np.where(n < config.ready_minutes, 0, 1 + aged)
        return states

    # --------------------------------------------------------------------------------- the events

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        if not len(batch):
            return ()
        self.reserve(int(batch.entities[self.spec.scope].row.max()) + 1)
        found = [pair for part in lives(batch, self.spec.scope) for pair in self._update(part)]
        return [finding for _, finding in found]

    def _update(self, batch: EventBatch) -> list[tuple[int, Finding]]:
        """What is found in events of which none follows on another life of its row."""
        entity, table = batch.entities[self.spec.scope], self._table
        born = entity.row[entity.new]
        again = born[table["begun"][born]]
        if len(again):
            self.forget(again)
        table["begun"][entity.row] = True
        order = entity.row.argsort(kind="stable")
        heard = self._hear(batch, order)
        found: list[tuple[int, Finding]] = []
        spent = order[((batch.tokens > 0) | (batch.cost > 0)).take(order)]
        if len(spent):
            found += self._burn(batch, spent, heard)
        found += [(excess.index, self._excess(batch, excess)) for excess in self._rules.update(batch, order)]
        found.sort(key=lambda pair: pair[0])
        return found

    def _hear(self, batch: EventBatch, order: Ints) -> _Heard:
        """Remembers when a tool last gave a result unlike the few before it."""
        table, row = self._table, batch.entities[self.spec.scope].row
        told = order[((batch.kind == _TOOL) & (batch.result != UNKNOWN) & ~batch.failed).take(order)]
        new = told[unlike_recent(table["results"], row.take(told), batch.result.take(told))]
        rows, ts = row.take(new), batch.ts.take(new)
        before = table["result_ts"].take(rows)
        np.fmax.at(table["result_ts"], rows, ts)
        return _Heard(new, rows, ts, before)

    def _burn(self, batch: EventBatch, at: Ints, heard: _Heard) -> list[tuple[int, Finding]]:
        """Takes in events that use something, a second of every agent at once."""
        table, fleet = self._table, self._fleet
        second = ticks(batch.ts[at], 1.0)
        parts = segments(batch.entities[self.spec.scope].row[at], second, table["second"])
        used = np.empty((len(at), UNITS), np.int64)
        used[:, TOKENS], used[:, MONEY] = batch.tokens.take(at), batch.cost.take(at)
        # A late event counts as much as it would have by now; the clock of the sums stays.
        counted, late = used, parts.spread(parts.tick) - second
        behind = late.nonzero()[0]
        if len(behind):
            counted = used.copy()
            counted[behind] = np.rint(used[behind] * np.exp(late[behind] / -FAST_S)[:, None])
        use = parts.sums(used)
        stretch = _Stretch(batch, heard, parts, at, used, counted)
        add = parts.sums(counted) if len(behind) else use
        minute = parts.tick // 60
        group = batch.group[at[parts.starts]]
        lowest = float(fleet.warning.min())
        found: list[tuple[int, Finding]] = []
        for k in parts.rounds():
            rows, now = parts.row[k], parts.tick[k]
            self._close(rows, minute[k], now, group[k])
            start, base = self._decayed(rows, now)
            open_use = table.take("open_use", rows)
            total, opened = base + add[k], open_use + use[k]
            table.put("second_use", rows, total)
            table.put("open_use", rows, opened)
            fast = start + total / 1e3
            hot = self._worth_rating(rows, fast)
            if len(hot):
                rated = self._rate(rows[hot], start[hot], fast[hot], opened[hot])
                # Within a second all of it only grows: what does not fire at its end has not fired before.
                fires = np.flatnonzero((rated.score > np.where(rated.states, lowest, 0.0)) & rated.burning)
                if len(fires):
                    some = hot[fires]
                    found += self._judge(stretch, k[some], start[some], base[some], open_use[some])
                # Scores of young agents, and of alarms that began on an earlier day, say nothing of alarms to come.
                today = rows[hot]
                began_today = ~(table["since"][today] < table["day"][today] * 86400.0)
                counts = (rated.states == 2) & began_today & rated.burning
                today = today[counts]
                table["day_score"][today] = np.maximum(table["day_score"][today], rated.score[counts])
            self._collect(rows, minute[k], fast)
        return found

    def _worth_rating(self, rows: Ints, fast: Floats) -> Ints:
        """Positions of the agents that use enough for a score above 0: what it takes of new ones is much more."""
        fleet = self._fleet
        hot: Ints = ((fast[:, TOKENS] >= fleet.floors[TOKENS]) | (fast[:, MONEY] >= fleet.floors[MONEY])).nonzero()[0]
        if len(hot):
            aged = self._table["active_minutes"][rows[hot]] >= self.config.ready_minutes
            hot = hot[aged | (fast[hot, TOKENS] > max(self.config.new_tokens, fleet.cold))]
        return hot

    def _decayed(self, rows: Ints, now: Ints) -> tuple[Any, Ints]:
        """Opens the second `now` of each row: (k, UNITS) S when it began, and what it has used so far.

        Sums decay between seconds only. Within one they are integers, so no cut changes them.
        """
        table = self._table
        start, base = table.take("fast", rows), table.take("second_use", rows)
        gap = now - table["second"][rows]
        kept = np.exp(gap / -FAST_S)[:, None]
        moved = gap > 0
        if moved.all():
            start = ((start + base / 1e3) * kept).astype(np.float32)
            base = np.zeros_like(base)
        else:
            ended = np.where(moved[:, None], base, 0)
            start = ((start + ended / 1e3) * kept).astype(np.float32)
            base = base - ended
        table.put("fast", rows, start)
        table["second"][rows] = now
        return start, base

    def _rate(self, rows: Ints, start: Any, fast: Floats, open_use: Ints) -> _Rated:
        """What sums of agents (k,) come to against their own ranges and the fleet's.

        Args:
            start: (k, UNITS) S when the second began.
            fast: (k, UNITS) S.
            open_use: (k, UNITS) of the open minute.
        """
        table, config, fleet = self._table, self.config, self._fleet
        use = (open_use / 1e3).astype(np.float32)
        last = table.take("last_use", rows)
        lull = lull_now(table.take("lull", rows), use, last)
        burst, lasts = self._parts(rows, fast, lull)
        states = self._states(rows, table["minute"][rows])
        material = fast >= fleet.floors
        material[states == 1] &= fast[states == 1, :1] >= fleet.cold
        score = np.where(material, burst + lasts, 0.0).max(1)
        # An agent without a range of its own is held against the fleet alone, and generously.
        new = states == 0
        if new.any():
            new_limit = max(config.new_tokens, fleet.cold)
            beyond_limit = np.log(np.maximum(fast[new, TOKENS] / new_limit, 1.0))
            score[new] = np.where(material[new, TOKENS], beyond_limit, 0.0)
        # After a burst the sum stays high for a while: only who still burns is worth a word.
        recent = np.maximum(use, last)
        burning = (recent >= config.still_burning * 60 / FAST_S * start).any(1)
        return _Rated(burst, lasts, lull, states, score, burning)

    def _judge(
        self, stretch: _Stretch, chosen: Ints, start: Any, base: Ints, open_use: Ints
    ) -> list[tuple[int, Finding]]:
        """Looks at each event of some segments (k,), of which some may fire.

        Args:
            start: (k, UNITS) S when the second began.
            base: (k, UNITS) use of the second before the segment.
            open_use: (k, UNITS) use of the minute before the segment.
        """
        batch, table, alarms, fleet, config = stretch.batch, self._table, self._alarms, self._fleet, self.config
        entity = batch.entities[self.spec.scope]
        of, inside = stretch.parts.events(chosen)
        at = stretch.at[inside]
        rows, now = entity.row[at], stretch.parts.tick[chosen][of].astype(np.float64)
        begins = changes(of)
        fast = start[of] + (base[of] + running(stretch.counted[inside], begins)) / 1e3
        rated = self._rate(rows, start[of], fast, open_use[of] + running(stretch.used[inside], begins))
        warning, critical, budgeted = fleet.thresholds(batch.group[at])
        warning = np.where(rated.states == 0, 0.0, warning)
        over = np.flatnonzero((rated.score > warning) & rated.burning)
        if not len(over):
            return []
        _, first = np.unique(of[over], return_index=True)
        first = over[first]
        opened = alarms.open(rows[first])
        alarms["last_over"][opened] = now[first]
        starts = first[np.isnan(table["since"][rows[first]])]
        begun, i = rows[starts], at[starts]
        table["since"][begun] = now[starts]
        place = alarms.find(begun)
        alarms["since_tokens"][place] = entity.tokens[i] - batch.tokens[i]
        alarms["since_cost"][place] = entity.cost[i] - batch.cost[i]
        # What led up to the alarm is part of it.
        table["fresh"][begun] = table["fresh_lull"][begun] = -np.inf

        rows_over = rows[over]
        excess = self._excess_usd(rows_over, entity.tokens[at[over]], entity.cost[at[over]], now[over])
        np.maximum.at(table["day_excess"], rows_over, (excess * 1e6).astype(np.float32))
        level = 1 + ((rated.score[over] > critical[over]) & (rated.states[over] == 2))
        level = np.where(excess >= fleet.excess_usd, level, 0)
        speak = pace_in_order(
            alarms, alarms.find(rows_over), level, now[over], repeat_s=config.repeat_s, rearm_s=config.rearm_s
        )
        found = []
        for j in speak.tolist():
            k = int(over[j])
            verdict = _Verdict(
                level=int(level[j]),
                score=float(rated.score[k]),
                threshold=float((warning, critical)[int(level[j]) - 1][k]),
                state=int(rated.states[k]),
                parts=np.stack([rated.burst[k], rated.lasts[k]], 1),
                lull=rated.lull[k],
                fast=fast[k],
                now=float(now[k]),
                news=stretch.heard.latest(table["result_ts"], int(rows[k]), int(at[k])),
                excess_usd=float(excess[j]),
                budgeted=bool(rated.states[k] and budgeted[k]),
            )
            found.append((int(at[k]), self._finding(batch, int(at[k]), int(rows[k]), verdict)))
        return found

    def _parts(self, rows: Ints, fast: Floats, lull: Any) -> tuple[Any, Any]:
        """(k, UNITS) how far S and (k, UNITS) how far L are above their highest; 0 where nothing is known."""
        table = self._table
        high = table.take("high", rows)
        known = np.isfinite(high)
        with np.errstate(divide="ignore", invalid="ignore"):
            burst = np.log(fast) - high
            lasts = lull - np.maximum(table.take("lull_high", rows), table.take("usual", rows))
        return np.where(known, np.maximum(burst, 0.0), 0.0), np.where(known, np.maximum(lasts, 0.0), 0.0)

    def _collect(self, rows: Ints, minute: Ints, fast: Floats) -> None:
        """Keeps the highest values of the open block, or of the alarm."""
        table = self._table
        with np.errstate(divide="ignore"):
            ln_fast = np.log(fast)
        calm = np.isnan(table["since"][rows])
        if calm.all():
            keep_fresh(table, rows, minute, ln_fast)
            return
        keep_fresh(table, rows[calm], minute[calm], ln_fast[calm])
        burns = rows[~calm]
        use = (table.take("open_use", burns) / 1e3).astype(np.float32)
        lull = lull_now(table.take("lull", burns), use, table.take("last_use", burns))
        alarms, place = self._alarms, self._alarms.find(burns)
        alarms["high"][place] = np.maximum(alarms["high"][place], ln_fast[~calm])
        alarms["lull"][place] = np.maximum(alarms["lull"][place], lull)

    def _excess_usd(self, rows: Ints, tokens: Ints, cost: Ints, now: Floats) -> Floats:
        """(k,) dollars beyond the agent's usual use since its alarm began."""
        table, alarms, place = self._table, self._alarms, self._alarms.find(rows)
        minutes = (now - table["since"][rows]) / 60
        usual = np.expm1(table.take("usual", rows).astype(np.float64)) / 1e6
        spent = (cost - alarms["since_cost"][place]) / 1e9
        by_tokens = (tokens - alarms["since_tokens"][place]) / 1e9 - usual[:, TOKENS] * minutes
        by_cost = spent - usual[:, MONEY] * minutes
        excess: Floats = np.maximum(0.0, np.where(spent > 0, by_cost, by_tokens * self.config.usd_per_million))
        return excess

    # -------------------------------------------------------------------------------- the learning

    def _close(self, rows: Ints, minute: Ints, now: Ints, group: Hashes) -> None:
        """Ends the open minute of every row that goes on in a later one, and what else ends with it."""
        table, config = self._table, self.config
        open_minute = table["minute"][rows]
        over = (minute > open_minute).nonzero()[0]
        if not len(over):
            return
        if len(over) < len(rows):
            rows, minute, now, group, open_minute = rows[over], minute[over], now[over], group[over], open_minute[over]
        self._close_days(rows, minute // _DAY, group)
        had = open_minute >= 0
        if not had.all():
            born = rows[~had]
            table["minute"][born] = table["first_minute"][born] = minute[~had]
            rows, minute, now = rows[had], minute[had], now[had]
            if not len(rows):
                return
        learn = np.isnan(table["since"][rows])
        if not learn.all():
            # What is read for agents without an alarm does not count.
            last_over = self._alarms["last_over"][self._alarms.find(rows)]
            calm = ~learn & (now - last_over >= config.calm_s)
            self._end_alarms(rows[calm])
            self._close_windows(rows, minute, now)
            # The minute that ends an alarm may be the one that raised it: it is learned only as a new level.
            learn |= ~calm & np.isnan(table["since"][rows])
        else:
            self._close_windows(rows, minute, now)
        chosen = rows[learn]
        sums = table.take("fast", chosen) + table.take("second_use", chosen) / 1e3
        bins = LogGrid.index(sums) + LogGrid.BINS * np.arange(UNITS)
        np.add.at(self._sums.reshape(-1), bins[sums > 0], 1)
        close_minutes(table, rows, minute, learn, config.memory_s)

    def _close_days(self, rows: Ints, day: Ints, group: Hashes) -> None:
        table = self._table
        was = table["day"][rows].astype(np.int64)
        changed = (day > was).nonzero()[0]
        if not len(changed):
            return
        rows, day, group, was = rows[changed], day[changed], group[changed], was[changed]
        table["day"][rows] = day
        known = (was >= 0).nonzero()[0]
        if not len(known):
            return
        rows, group, was = rows[known], group[known], was[known]
        # Days of young agents, and those that began within an alarm, are none that alarms are budgeted for.
        counts = self._states(rows, table["minute"][rows]) == 2
        counts &= ~(table["since"][rows] < was * 86400.0)
        self._day_scores.add(group[counts], was[counts], ScoreGrid.index(table["day_score"][rows[counts]]))
        alarmed = np.flatnonzero(table["day_excess"][rows] >= 0)
        excess = table["day_excess"][rows[alarmed]].astype(np.float64)
        self._day_excess.add(np.zeros(len(alarmed), np.uint64), was[alarmed], LogGrid.index(excess))
        table["day_score"][rows] = 0.0
        table["day_excess"][rows] = -1.0

    def _end_alarms(self, rows: Ints) -> None:
        table, alarms, place = self._table, self._alarms, self._alarms.find(rows)
        for highest, seen in (("high", "high"), ("lull_high", "lull")):
            table[highest][rows] = np.maximum(
                table[highest][rows],
                np.minimum(alarms[seen][place], table[highest][rows] + np.float32(math.log(self.config.habit))),
            )
            alarms[seen][place] = -np.inf
        table["since"][rows] = np.nan

    def _close_windows(self, rows: Ints, minute: Ints, now: Ints) -> None:
        """Adds the closing minute to its half hour, and closes that if the new minute lies beyond.

        The half hours go on while the alarm lasts: they are what tells a moved baseline from a runaway.
        """
        table = self._table
        table["window_sum"][rows] += np.log1p(table["open_use"][rows, TOKENS] / 1e3)
        table["window_minutes"][rows] += 1
        length = int(WINDOW_S // 60)
        over = minute // length > table["minute"][rows] // length
        closing, now = rows[over], now[over]
        if not len(closing):
            return
        level = table["window_sum"][closing] / table["window_minutes"][closing]
        levels, place = self._windows, self._windows.open(closing)
        levels["levels"][place] = np.concatenate([levels["levels"][place][:, 1:], level[:, None]], axis=1)
        table["window_sum"][closing] = 0.0
        table["window_minutes"][closing] = 0
        # At most once per half hour, and only for alarms that are hours old.
        old = now - table["since"][closing] >= self.config.relearn_s
        if not old.any():
            return
        alarms = self._alarms
        for row, window, alarm in zip(closing[old], place[old], alarms.find(closing[old]), strict=True):
            # Who was flagged before it had a range has no old level to have moved from.
            new = table["active_minutes"][row] < self.config.ready_minutes
            if new or self._moved(levels["levels"][window]):
                table["since"][row] = np.nan
                table["high"][row], table["lull_high"][row] = alarms["high"][alarm], alarms["lull"][alarm]
                alarms["high"][alarm] = alarms["lull"][alarm] = -np.inf
                table["active_minutes"][row] = max(table["active_minutes"][row], self.config.ready_minutes)

    def _moved(self, levels: Floats) -> bool:
        """Whether the window levels, oldest first, hold a change after which they stay put."""
        known = levels[~np.isnan(levels)].astype(np.float64)
        at = adwin(known, self.config.drift_delta)
        return at is not None and len(known) - at >= 4

    # -------------------------------------------------------------------------------- the findings

    def _finding(self, batch: EventBatch, i: int, row: int, verdict: _Verdict) -> Finding:
        entity, table, fleet = batch.entities[self.spec.scope], self._table, self._fleet
        # Where both say the same, tokens are what the next person can check.
        unit = MONEY if verdict.parts[MONEY].sum() > verdict.parts[TOKENS].sum() + _CLEARLY else TOKENS
        scale, of = ((1.0, "effective tokens"), (1e-6, "dollars"))[unit]
        now, news, since = verdict.now, verdict.news, float(table["since"][row])
        usual = max(1.0, STEADY * math.expm1(table["usual"][row, unit]))
        burst = verdict.state == 0 or bool(verdict.parts[unit, 0] >= verdict.parts[unit, 1])
        window = f"{of} per 5 min" if burst else f"{of} per min, for 25 min without a lull"
        observed = float(verdict.fast[unit]) if burst else math.expm1(verdict.lull[unit])
        if verdict.state == 0:
            expected = max(self.config.new_tokens, fleet.cold)
            what = f"is new and has used {observed / expected:.1f}x what any new agent should"
        else:
            expected = math.exp(table["high"][row, unit])
            if not burst:
                expected = math.expm1(max(table["lull_high"][row, unit], table["usual"][row, unit]))
            what = f"has used {observed * (1 if burst else STEADY) / usual:.0f}x its usual {of}"
        alarms, place = self._alarms, int(self._alarms.find(np.array([row]))[0])
        spend = _Spend(
            tokens=(int(entity.tokens[i]) - int(alarms["since_tokens"][place])) / 1e3,
            dollars=(int(entity.cost[i]) - int(alarms["since_cost"][place])) / 1e9,
            minutes=max(0.0, now - since) / 60,
        )
        heard = "" if math.isnan(news) else f"; last new result {max(0.0, now - news) / 60:.0f} min ago"
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule="cold_start" if verdict.state < 2 else "range" if burst else "no_lull",
            severity=severity_of(verdict.level),
            scope=self.spec.scope,
            score=1 - math.exp(verdict.threshold - verdict.score),
            observed=round(observed * scale, 4),
            expected=round(expected * scale, 4),
            unit=window,
            reason=f"agent {batch.agent_id[i]} {what} {spend.lasted(5 if burst else 25)} ({spend}){heard}",
            evidence={
                "since": since,
                "nats": round(verdict.score, 3),
                "threshold": round(verdict.threshold, 3),
                "usual": round(usual * scale, 4) if verdict.state else None,
                "floor": round(float(fleet.floors[unit]) * scale, 4),
                "baseline": STATES[verdict.state],
                "active_minutes": int(table["active_minutes"][row]),
                "effective_tokens": spend.tokens,
                "cost_usd": round(spend.dollars, 6),
                "excess_usd": round(verdict.excess_usd, 6),
                "calibration": fleet.version,
                "budget_per_agent_day": (
                    self.config.critical_per_agent_day if verdict.level > 1 else self.config.budget_per_agent_day
                )
                if verdict.budgeted
                else None,
                "fleet_alarms_per_day": self.config.alarms_per_day,
                "least_excess_usd": round(fleet.excess_usd, 6),
            },
        )

    def _excess(self, batch: EventBatch, excess: Excess) -> Finding:
        i = excess.index
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule=excess.rule,
            severity=severity_of(excess.level),
            scope=self.spec.scope,
            score=beyond(excess.observed, excess.expected),
            observed=excess.observed,
            expected=excess.expected,
            unit=excess.unit,
            reason=f"agent {batch.agent_id[i]} {excess.says}",
            evidence=excess.evidence,
        )


@dataclass(frozen=True, slots=True)
class _Spend:
    """What an alarm has cost so far."""

    tokens: float
    dollars: float
    minutes: float

    def lasted(self, window: int) -> str:
        """How long it has lasted, or else the minutes that were looked at."""
        return f"for {self.minutes:.0f} minutes" if self.minutes >= 1 else f"in the last {window} minutes"

    def __str__(self) -> str:
        known = self.dollars >= 0.005
        total = f"${self.dollars:,.2f}" if known else f"{self.tokens:,.0f} effective tokens"
        if self.minutes < 1:
            return total
        return f"{total}, " + (
            f"${self.dollars / self.minutes:,.2f}/min" if known else f"{self.tokens / self.minutes:,.0f}/min"
        )


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one event of one agent came to."""

    level: int
    score: float
    threshold: float
    state: int
    parts: Floats
    """(UNITS, 2) of the score: burst and lull."""
    lull: Any
    """(UNITS,) ln L."""
    fast: Any
    """(UNITS,) S."""
    now: float
    news: float
    """When a tool last gave a new result, NaN if never."""
    excess_usd: float
    budgeted: bool
    """The threshold is one that the fleet's record leaves by the budget."""


@dataclass(frozen=True, slots=True)
class _Rated:
    """What sums of agents (k,) come to."""

    burst: Any
    """(k, UNITS) how far S is above the highest so far."""
    lasts: Any
    """(k, UNITS) how far L is."""
    lull: Any
    """(k, UNITS) ln L."""
    states: Ints
    score: Floats
    burning: Bools


@dataclass(frozen=True, slots=True)
class _Heard:
    """New results of tools: positions of the events, their rows (ascending), times, and the row's latest before."""

    at: Ints
    row: Ints
    ts: Floats
    before: Floats

    def latest(self, now: Floats, row: int, i: int) -> float:
        """When the row had its latest new result as of event `i`; `now`: as of the last event, by row."""
        low, high = np.searchsorted(self.row, [row, row + 1]).tolist()
        if low == high:
            return float(now[row])
        earlier = self.ts[low:high][self.at[low:high] <= i]
        return float(np.fmax.reduce(earlier, initial=self.before[low]))


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Events that use something, cut into segments; (n, UNITS) use and use that counts, in the segments' order."""

    batch: EventBatch
    heard: _Heard
    parts: Segments
    at: Ints
    used: Ints
    counted: Ints


_Histograms = tuple[int, dict[str, bytes]]
_SharedPage = tuple[str, int, tuple[bytes, _Histograms, _Histograms]]
