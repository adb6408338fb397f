"""Agents that burn far more than they usually do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from river import drift

from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    FleetFigures,
    LogGrid,
    Spec,
    Table,
    pace,
    register,
    setting,
    severity_of,
)
from detectors.rounds import rounds
from detectors.types import EventBatch, Finding, Floats, Ints, Scope

FAST_S, SLOW_S = 300.0, 1800.0
"""Time constants of the two decayed sums. Measured on 185 production clients: the sum of the range
statistics of a 5-minute and a 30-minute sum found more injected faults (mean recall 0.52 at one false
alarm per agent-month) than any of about 55 statistics tried."""

WINDOW_S = 1800.0
"""Length of the windows whose levels the drift detector sees."""

WINDOWS = 48
"""Windows remembered per agent: a day of activity."""


class RunawayConfig(DetectorConfig):
    """The thresholds of the runaway score."""

    warning: float = setting(
        0.72,
        unit="nats",
        why="How far the decayed sums are above the agent's own learned range, fast and slow added: warning.",
        source="one false alarm per 100 agent-days on 62 production clients (ServeGen, days 6 to 14)",
        gt=0,
    )
    critical: float = setting(
        1.6,
        unit="nats",
        why="The same: critical.",
        source="about five times the learned range; twice the warning and more",
        gt=0,
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
        why="The fast sum's rate must be this part of the slow sum's, or the burst is over.",
        source="half: the rate of the last 5 minutes against that of the last 30",
        ge=0,
    )
    floor_tokens: float = setting(
        50_000.0,
        unit="effective tokens per 5 min",
        why="Below this an agent is too cheap to wake anybody.",
        source="about $0.15 per 5 minutes at $3 per million tokens, $43 if it lasts a day",
        ge=0,
    )
    floor_quantile: float = setting(
        0.9,
        unit="quantile",
        why="The floor is at least this quantile of the fleet's active 5-minute sums, "
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
        why="Until then the cold-start rule holds: beyond the own range and "
        "beyond the fleet's, and never more than a warning.",
        source="records of a young history are cheap: false alarms fall from 0.73 to 0.05 per agent on day 1",
        ge=1,
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


@register
class Runaway(Detector):
    """An agent uses effective tokens at a rate beyond everything in its own recent past.

    Two exponentially decayed sums of effective tokens, S5 and S30 (time constants 5 and 30 minutes),
    are compared with the highest values that earlier minutes have seen, H5 and H30, which fade with a
    half-life of a week: score = max(0, ln S5/H5) + max(0, ln S30/H30).

    Fires when: the score passes 0.72 (1.6: critical) and S5 passes the impact floor; in an agent's first
        1,440 active minutes: S5 is also beyond the 0.8-quantile of the fleet's maxima (warning only).
    Quiet when: the agent is below the floor, however unusual; it has fewer than 30 active minutes and is
        within what the fleet does; tokens are unknown. Unusual hours at a usual rate are invisible.
    Units: effective tokens per 5 minutes; score in nats (0.69 is a factor of two).
    State: per agent 2 sums, 2 learned maxima, the open minute, the open half-hour window, 48 window
        levels (about 340 bytes); fleet-wide two histograms of 600 bins. It never learns while it fires. After 6 h
        of alarm river's ADWIN over the window levels decides whether the level has moved for good; a new
        agent's level is taken as it is.
    Source: range statistic and cold-start rule as measured on 185 production clients; Bifet and Gavalda
        2007 for ADWIN.
    """

    spec: ClassVar[Spec] = Spec("runaway", version=1, scope=Scope.AGENT)
    Config: ClassVar[type[DetectorConfig]] = RunawayConfig

    def __init__(self, config: RunawayConfig) -> None:
        self.config = config
        self._table = Table(
            {
                "ts": (np.float64, -np.inf),
                "fast": (np.float64, 0.0),
                "slow": (np.float64, 0.0),
                # Learned maxima, ln of effective tokens, as of the end of the last learned minute.
                "fast_high": (np.float64, -np.inf),
                "slow_high": (np.float64, -np.inf),
                # The open minute: learned when it is over, so an event is never compared with itself.
                "minute": (np.int64, -1),
                "fast_peak": (np.float64, 0.0),
                "slow_peak": (np.float64, 0.0),
                "active_minutes": (np.int64, 0),
                "usual": (np.float64, 0.0),  # mean of ln S5 over active minutes
                # The open half hour, and the levels (mean ln of tokens per active minute) of those before.
                "window_sum": (np.float64, 0.0),
                "window_minutes": (np.int64, 0),
                "minute_tokens": (np.float64, 0.0),
                "levels": (np.float32, np.nan, WINDOWS),
                # The alarm.
                "since": (np.float64, np.nan),
                "since_tokens": (np.int64, 0),
                "since_cost": (np.int64, 0),
                "last_over": (np.float64, -np.inf),
                **ALARM_FIELDS,
            }
        )
        self.tables = {"agents": self._table}
        self._active_sums = np.zeros(LogGrid.BINS, np.int64)
        self._fleet = FleetFigures()

    # ---------------------------------------------------------------------------------- the fleet

    def sketch(self) -> dict[str, list[int]]:
        """Histograms of all active 5-minute sums, and of each ready agent's learned maximum."""
        table = self._table
        ready = (table["active_minutes"] >= self.config.ready_minutes) & np.isfinite(table["fast_high"])
        maxima = np.bincount(LogGrid.index(np.exp(table["fast_high"][ready])), minlength=LogGrid.BINS)
        return {"active_sums": self._active_sums.tolist(), "agent_maxima": maxima.tolist()}

    def calibrate(self, figures: FleetFigures) -> None:
        self._fleet = figures

    def _floor(self) -> float:
        known = self._fleet.quantile("agent_maxima", 0.5, self.config.fleet_agents) is not None
        fleet = self._fleet.quantile("active_sums", self.config.floor_quantile) if known else None
        return max(self.config.floor_tokens, fleet or 0.0)

    def _cold_limit(self) -> float:
        fleet = self._fleet.quantile("agent_maxima", self.config.cold_quantile, self.config.fleet_agents)
        return self.config.new_tokens if fleet is None else fleet

    # --------------------------------------------------------------------------------- the events

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        entity = batch.entities[self.spec.scope]
        if not len(batch):
            return ()
        self.reserve(int(entity.row.max()) + 1)
        floor, cold_limit = self._floor(), self._cold_limit()
        found: list[tuple[int, Finding]] = []
        for at in rounds(entity.row):
            if entity.new[at].any():
                self.forget(entity.row[at[entity.new[at]]])
            at = at[batch.tokens[at] > 0]
            if len(at):
                found += self._update_round(batch, at, floor, cold_limit)
        found.sort(key=lambda pair: pair[0])
        return [finding for _, finding in found]

    def _update_round(self, batch: EventBatch, at: Ints, floor: float, cold_limit: float) -> list[tuple[int, Finding]]:
        entity, config, table = batch.entities[self.spec.scope], self.config, self._table
        rows, ts = entity.row[at], batch.ts[at]
        used = batch.tokens[at] / 1e3
        self._close_minutes(rows, ts)

        # A late event counts as much as it would have by now; the clock of the sums stays.
        last = table["ts"][rows]
        gap = np.where(np.isfinite(last), ts - last, 0.0)
        fast = table["fast"][rows] * np.exp(-np.maximum(gap, 0) / FAST_S) + used * np.exp(np.minimum(gap, 0) / FAST_S)
        slow = table["slow"][rows] * np.exp(-np.maximum(gap, 0) / SLOW_S) + used * np.exp(np.minimum(gap, 0) / SLOW_S)
        table["fast"][rows], table["slow"][rows] = fast, slow
        table["ts"][rows] = now = np.maximum(ts, last)

        ln_fast, ln_slow = np.log(fast), np.log(slow)
        minutes = table["active_minutes"][rows]
        ready = minutes >= config.ready_minutes
        with np.errstate(invalid="ignore"):
            range_score = np.maximum(0, ln_fast - table["fast_high"][rows]) + np.maximum(
                0, ln_slow - table["slow_high"][rows]
            )
        cold = minutes < config.cold_minutes
        # An agent without a range of its own is held against the fleet alone, and generously.
        new_limit = max(config.new_tokens, cold_limit)
        score = np.where(ready, range_score, np.maximum(0.0, ln_fast - np.log(new_limit)))
        threshold = np.where(ready, config.warning, 0.0)
        # After a burst the slow sum stays high for a while: only who still burns is worth a word, and what
        # was reported already is not reported again as the next burst's.
        burning = fast / FAST_S >= config.still_burning * slow / SLOW_S
        echo = ~burning & ~np.isnan(table["since"][rows])
        table["slow"][rows[echo]] = np.minimum(slow[echo], np.exp(table["slow_high"][rows[echo]]))
        over = (score > threshold) & burning & (fast >= floor) & (~cold | (fast >= cold_limit))
        level = np.where(over, 1 + ((score >= config.critical) & ~cold), 0)

        starts = over & np.isnan(table["since"][rows])
        begun = rows[starts]
        table["since"][begun] = now[starts]
        table["since_tokens"][begun] = (entity.tokens[at] - batch.tokens[at])[starts]
        table["since_cost"][begun] = (entity.cost[at] - batch.cost[at])[starts]
        table["last_over"][rows[over]] = now[over]

        # The open minute collects what it will teach; while the alarm lasts it teaches nothing.
        table["fast_peak"][rows] = np.maximum(table["fast_peak"][rows], fast)
        table["slow_peak"][rows] = np.maximum(table["slow_peak"][rows], slow)
        table["minute_tokens"][rows] += used

        speak = pace(table, rows, level, now, repeat_s=config.repeat_s, rearm_s=config.rearm_s)
        return [
            (
                int(at[k]),
                self._finding(
                    batch,
                    int(at[k]),
                    int(rows[k]),
                    int(level[k]),
                    float(score[k]),
                    float(threshold[k]),
                    bool(cold[k]),
                    floor,
                    cold_limit,
                ),
            )
            for k in np.flatnonzero(speak)
        ]

    # -------------------------------------------------------------------------------- the learning

    def _close_minutes(self, rows: Ints, ts: Floats) -> None:
        """Learns the open minute of every row whose event lies in a later one."""
        table, config = self._table, self.config
        minute = np.floor(ts / 60).astype(np.int64)
        open_minute = table["minute"][rows]
        over = minute > open_minute
        rows, minute, open_minute, ts = rows[over], minute[over], open_minute[over], ts[over]
        if not len(rows):
            return
        firing = ~np.isnan(table["since"][rows])
        calm = firing & (ts - table["last_over"][rows] >= config.calm_s)
        table["since"][rows[calm]] = np.nan
        had = table["fast_peak"][rows] > 0
        self._close_windows(rows[had], open_minute[had], minute[had], ts[had])
        moved = firing & ~calm & np.isnan(table["since"][rows])

        # The minute that ends an alarm may be the one that raised it: it is learned only as a new level.
        learn = had & (~firing | moved)
        chosen = rows[learn]
        if len(chosen):
            fast, slow = np.log(table["fast_peak"][chosen]), np.log(table["slow_peak"][chosen])
            faded = np.log(2) * 60 / config.memory_s * (minute[learn] - open_minute[learn])
            with np.errstate(invalid="ignore"):
                table["fast_high"][chosen] = np.maximum(table["fast_high"][chosen] - faded, fast)
                table["slow_high"][chosen] = np.maximum(table["slow_high"][chosen] - faded, slow)
            n = table["active_minutes"][chosen] + 1
            rate = np.maximum(1 / n, 1 / 1440)
            table["usual"][chosen] += rate * (fast - table["usual"][chosen])
            table["active_minutes"][chosen] = n
            np.add.at(self._active_sums, LogGrid.index(table["fast_peak"][chosen]), 1)
        table["minute"][rows] = minute
        table["fast_peak"][rows] = 0.0
        table["slow_peak"][rows] = 0.0
        table["minute_tokens"][rows] = 0.0

    def _close_windows(self, rows: Ints, closed: Ints, minute: Ints, ts: Floats) -> None:
        """Adds the closed minute to its half hour, and closes that if the new minute lies beyond.

        The half hours go on while the alarm lasts: they are what tells a moved baseline from a runaway.
        """
        table = self._table
        table["window_sum"][rows] += np.log1p(table["minute_tokens"][rows])
        table["window_minutes"][rows] += 1
        length = int(WINDOW_S // 60)
        over = minute // length > closed // length
        closing, ts = rows[over], ts[over]
        level = table["window_sum"][closing] / table["window_minutes"][closing]
        table["levels"][closing] = np.concatenate([table["levels"][closing][:, 1:], level[:, None]], axis=1)
        table["window_sum"][closing] = 0.0
        table["window_minutes"][closing] = 0
        # At most once per half hour, and only for alarms that are hours old.
        for row in closing[ts - table["since"][closing] >= self.config.relearn_s]:
            # Who was flagged before it had a range has no old level to have moved from.
            new = table["active_minutes"][row] < self.config.ready_minutes
            if new or self._moved(table["levels"][row]):
                table["since"][row] = np.nan
                table["fast_high"][row] = table["slow_high"][row] = -np.inf
                table["active_minutes"][row] = max(table["active_minutes"][row], self.config.ready_minutes)

    def _moved(self, levels: Floats) -> bool:
        """Whether the window levels, oldest first, hold a change after which they stay put.

        The model is a function of the remembered levels, so it needs no saved state of its own.
        """
        # river carries no types.
        model = drift.ADWIN(delta=self.config.drift_delta, min_window_length=3, grace_period=4, clock=1)  # type: ignore[no-untyped-call]
        changes = 0
        for level in levels[~np.isnan(levels)]:
            model.update(float(level))  # type: ignore[no-untyped-call]
            changes += bool(model.drift_detected)
        # After the change ADWIN has dropped the old level: what it still holds is the new one.
        return changes > 0 and model.width >= 4

    # -------------------------------------------------------------------------------- the findings

    def _finding(
        self,
        batch: EventBatch,
        i: int,
        row: int,
        level: int,
        score: float,
        threshold: float,
        cold: bool,
        floor: float,
        cold_limit: float,
    ) -> Finding:
        entity, table, config = batch.entities[self.spec.scope], self._table, self.config
        observed = float(table["fast"][row])
        ready = table["active_minutes"][row] >= config.ready_minutes
        expected = float(np.exp(table["fast_high"][row])) if ready else max(config.new_tokens, cold_limit)
        tokens = (int(entity.tokens[i]) - int(table["since_tokens"][row])) / 1e3
        dollars = (int(entity.cost[i]) - int(table["since_cost"][row])) / 1e9
        minutes = max(0.0, float(table["ts"][row] - table["since"][row])) / 60
        if ready:
            usual = float(np.exp(table["usual"][row]))
            times, record = observed / usual, observed / expected
            what = f"is using {times:.0f}x its usual effective tokens, {record:.1f}x its highest so far"
        else:
            usual = None
            what = f"is new and uses {observed / expected:.1f}x what any new agent should"
        money = f", ${dollars:.2f}" if dollars >= 0.005 else ""
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule="cold_start" if cold else "range",
            severity=severity_of(level),
            scope=self.spec.scope,
            score=1 - math.exp(threshold - score),
            observed=round(observed, 1),
            expected=round(expected, 1),
            unit="effective tokens per 5 min",
            reason=f"agent {batch.agent_id[i]} {what}, for {minutes:.0f} min ({tokens:,.0f} effective tokens{money})",
            evidence={
                "since": float(table["since"][row]),
                "nats": round(score, 3),
                "usual": None if usual is None else round(usual, 1),
                "floor": round(floor, 1),
                "active_minutes": int(table["active_minutes"][row]),
                "effective_tokens": tokens,
                "cost_usd": round(dollars, 6),
                "calibration": self._fleet.version,
            },
        )
