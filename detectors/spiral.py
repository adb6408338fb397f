"""Trees of agents that set each other off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors import groups
from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    FleetFigures,
    LogGrid,
    Sparse,
    Spec,
    StateError,
    Table,
    group_figure,
    levels,
    pace,
    register,
    setting,
    severity_of,
)
from detectors.reproduction import FIELDS, advance
from detectors.rounds import changes, lives, rounds
from detectors.types import (
    UNKNOWN,
    Bools,
    EventBatch,
    Finding,
    Floats,
    Hashes,
    Ints,
    Kind,
    Scope,
    beyond,
    spend,
)

RECENT = 16
"""Results and contents remembered per tree to tell new ones from old."""

TREES = 8
"""Trees per entry agent whose sizes are remembered."""

AGENTS = 4096
"""Entry agents whose trees' sizes are remembered, and kinds of tasks."""

TASKS = 64
"""Finished tasks per kind whose tokens and messages are remembered."""

PERIODS = (3, 4, 5)
"""Lengths of circles among agents; two agents alone are the rule on pairs."""

TOLD = 256
"""Agents, and kinds of tasks, of which a partition tells the fleet: a few hundred kB at most."""

_TOOL, _MESSAGE = int(Kind.TOOL), int(Kind.MESSAGE)

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio (Knuth, TAOCP 6.4): tells the parts of a joined hash apart."""

_decode_shared = msgspec.msgpack.Decoder(
    tuple[str, int, list[tuple[int, list[int]]], list[tuple[int, tuple[list[int], list[int]]]]]
).decode


class SpiralConfig(DetectorConfig):
    """The thresholds of the spiral rules."""

    window_s: float = setting(
        60.0,
        unit="s",
        why="Window of the spawn rates (spawns fade exponentially).",
        source="public incident: 188 agents started in one minute",
        gt=0,
    )
    spawns_warning: float = setting(
        60.0,
        unit="runs",
        why="Runs started by the root of a tree within the window: warning.",
        source="a map-reduce over 50 workers is healthy; hermes-agent caps sub-agents at 50",
        gt=1,
    )
    spawns_critical: float = setting(
        100.0,
        unit="runs",
        why="Runs started by the root of a tree within the window: critical.",
        source="half of the public incident's 188 agents in a minute",
        gt=1,
    )
    nested_warning: float = setting(
        12.0,
        unit="runs",
        why="Runs started by runs that were themselves started, within the window: warning.",
        source="simulated: one in 70 trees that begin with healthy reproduction 0.6 reaches it, and none later",
        gt=1,
    )
    nested_critical: float = setting(
        12.5,
        unit="runs",
        why="Runs started by started runs, within the window: critical.",
        source="critical before the 20th start where every run starts four, as in public incidents",
        gt=1,
    )
    planned: float = setting(
        4.0,
        unit="runs",
        why="The limits on started runs that start others grow with the square of the root's own starts over this.",
        source="at reproduction 0.6 the root's starts and theirs grow alike; a spiral needs few of the root's",
        gt=0,
    )
    memory_s: float = setting(
        600.0,
        unit="s",
        why="How long the root's own starts count for the limits on depth and on runs that start others.",
        source="ten windows: a tree at a steady rate has so many that only the reproduction number counts",
        gt=0,
    )
    burst_runs: int = setting(
        20,
        unit="runs",
        why="Runs started without a pause that go on for `burst_s`, not asked for by its first model answer: critical.",
        source="hermes-agent and loop guards warn at 20 sub-agents",
        gt=1,
    )
    burst_s: float = setting(
        10.0,
        unit="s",
        why="A planned fan-out has been started after this time; a pause as long ends a burst.",
        source="public incident: 188 agents in a minute, to be seen within 10 s",
        gt=0,
    )
    usual_factor: float = setting(
        1.5,
        unit="ratio",
        why="A tree may start so many times the runs that two earlier trees of the same entry agent had.",
        source="assumed: a nightly batch grows, but not by half between nights",
        ge=1,
    )
    healthy_reproduction: float = setting(
        0.6,
        unit="runs per run",
        why="Runs that a started run starts itself, on average, without being a spiral.",
        source="assumed: below 1 a tree dies out; 0.6 is where the threshold was measured",
        gt=0,
        lt=1,
    )
    kernel_s: float = setting(
        5.0,
        unit="s",
        why="Mean time from a run's start to the starts of the runs it starts.",
        source="assumed: one model call before it starts others; the simulations use the same",
        gt=0,
    )
    evidence_warning: float = setting(
        14.75,
        unit="nats",
        why="Evidence that started runs start more than the healthy number: warning.",
        source="simulated: 0.02 false alarms per day of a tree with healthy reproduction 0.6",
        gt=0,
    )
    evidence_critical: float = setting(
        20.0,
        unit="nats",
        why="Evidence that started runs start more than the healthy number: critical.",
        source="about 5 nats above the warning: some 150 times less likely by chance",
        gt=0,
    )
    handoffs_warning: int = setting(
        20,
        unit="messages",
        why="Turns taken among any agents of a tree, no new tool result between: warning.",
        source="strands: max_handoffs 20",
        ge=2,
    )
    handoffs_critical: int = setting(
        40,
        unit="messages",
        why="Turns taken among any agents of a tree, no new tool result between: critical.",
        source="twice the warning",
        ge=2,
    )
    depth_warning: int = setting(
        5,
        unit="levels",
        why="Depth of the tree below its root: warning.",
        source="hop limits of 5 to 7 are the usual remedy against agent loops",
        ge=1,
    )
    depth_critical: int = setting(
        8,
        unit="levels",
        why="Depth of the tree below its root: critical.",
        source="one above the usual hop limit of 7",
        ge=1,
    )
    depth_per_doubling: float = setting(
        4.0,
        unit="levels",
        why="Levels a tree may be deeper each time its root's own starts double.",
        source="simulated at reproduction 0.6, where a chance of one more level is 0.6: 2 would be the average",
        ge=0,
    )
    hops_warning: int = setting(
        20,
        unit="messages",
        why="Messages to and fro between two agents, no new tool result between: warning.",
        source="cortex: 20 alternations; strands: 20 handoffs",
        ge=2,
    )
    hops_critical: int = setting(
        40,
        unit="messages",
        why="Messages to and fro between two agents, no new tool result between: critical.",
        source="twice the warning",
        ge=2,
    )
    echo_warning: int = setting(
        6,
        unit="messages",
        why="The same, counting only messages whose words were said before: warning.",
        source="commonly#508: two agents acknowledged each other for about 15 cycles",
        ge=2,
    )
    echo_critical: int = setting(
        12,
        unit="messages",
        why="The same, counting only messages whose words were said before: critical.",
        source="twice the warning",
        ge=2,
    )
    verbatim_warning: int = setting(
        1,
        unit="messages",
        why="Messages that an agent sent to the same agent before, word for word, no new tool result since: warning.",
        source="on conversations labelled by their orchestrator one such repeat is never healthy",
        ge=1,
    )
    verbatim_critical: int = setting(
        4,
        unit="messages",
        why="Messages sent to the same agent before, word for word, no new tool result since: critical.",
        source="assumed: four times the warning",
        ge=1,
    )
    verbatim_turns: int = setting(
        10,
        unit="messages",
        why="Turns without a new tool result after which word for word repeats count.",
        source="half of the limit on turns: short talks repeat their formulas",
        ge=1,
    )
    group_warning: float = setting(
        40.0,
        unit="messages",
        why="Messages within ten minutes (faded) in a group of agents that only feed each other: warning.",
        source="twice the limit on turns: several talks may go on side by side in a group",
        gt=1,
    )
    group_critical: float = setting(
        80.0,
        unit="messages",
        why="Messages within ten minutes (faded) in a group of agents that only feed each other: critical.",
        source="twice the warning",
        gt=1,
    )
    group_share: float = setting(
        0.9,
        unit="share",
        why="So much of what reaches a group must come from inside for it to be closed.",
        source="the share is the reproduction number of a steady group: well above the 0.6 taken for healthy",
        gt=0,
        le=1,
    )
    amplification_warning: float = setting(
        10.0,
        unit="ratio",
        why="Tokens or messages of a task over the most that tasks of its kind have taken twice: warning.",
        source="public spirals took 50 to 500 times the usual; 3 times happens to one window in ten of real clients",
        gt=1,
    )
    amplification_critical: float = setting(
        50.0,
        unit="ratio",
        why="Tokens or messages of a task over the most that tasks of its kind have taken twice: critical.",
        source="the least of the public spirals",
        gt=1,
    )
    amplification_tokens: float = setting(
        1e6,
        unit="effective tokens",
        why="Fewer tokens than these are no amplification.",
        source="assumed: about $3",
        gt=0,
    )
    amplification_messages: int = setting(
        100,
        unit="messages",
        why="Fewer messages than these are no amplification.",
        source="assumed: five times the limit on turns",
        gt=0,
    )
    amplification_tasks: int = setting(
        20,
        unit="tasks",
        why="Finished tasks of a kind before anything is said about its next ones.",
        source="assumed: of 20 the second largest lies near the 0.95 quantile",
        ge=2,
        le=TASKS,
    )
    repeat_s: float = setting(
        60.0,
        unit="s",
        why="A spiral that lasts is reported again after this time.",
        source="keeps the incident alive; well under the quiet time of incidents",
        gt=0,
    )
    rearm_s: float = setting(
        300.0,
        unit="s",
        why="After this time without firing, a spiral of the same tree is new.",
        source="equal to the quiet time of incidents",
        gt=0,
    )


@register
class Spiral(Detector):
    """One task starts too many agents, too deep, or two of its agents only talk to each other.

    Fires when: within a minute the root of a tree starts 60 (100) runs, or its started runs start 12 (12.5)
        themselves; the root starts 20 runs and, 10 s after the first, still more than one a second (critical);
        started runs start more than 0.6 runs each, or messages cause more, with evidence of 14.75 (20) nats;
        the tree is 5 (8) levels deep; two agents exchange 20 (40) messages, or 6 (12) that repeat what was
        said, or any agents take 20 (40) turns, or 1 (4) of 10 turns repeat a message word for word, without a
        new tool result in between; three and more agents feed only each other, with 40 (80) messages within
        ten minutes and no new tool result of theirs; a task of several agents takes 10 (50) times the tokens or
        messages that its kind takes at most. In brackets: critical.
    Quiet when: a planner starts up to some 50 workers within 10 s or by one model answer; trees begun by the same
        agent have twice been about as large (for runs started directly); the root starts so many that depth and
        nested runs are to be expected at 0.6; handoffs bring new tool results; groups are told what to do from
        outside; fewer than 20 tasks of a kind have ended (for amplification); producers send no root run and no
        parents.
    Units: runs per minute, levels, messages; spend of the whole tree.
    State: per root run, decayed start counts, the burst, the evidence on reproduction, the depth, the current
        pair with its message counts, what is usual, and 16 remembered results: about 480 bytes. Where messages are
        written, the latest five hops, 16 contents and messages each, and how much 8 agents wrote to each other
        (708 more).
    Source: limits of public agent frameworks and reports, named at each threshold.
    """

    spec: ClassVar[Spec] = Spec("spiral", version=4, scope=Scope.ROOT)
    Config: ClassVar[type[DetectorConfig]] = SpiralConfig

    def __init__(self, config: SpiralConfig) -> None:
        self.config = config
        self._tree = Table(
            {
                "ts": (np.float64, -np.inf),
                "spawns": (np.float64, 0.0),
                "nested": (np.float64, 0.0),
                "own": (np.float64, 0.0),
                "fast": (np.float64, 0.0),
                "burst_last": (np.float64, -np.inf),
                "burst_since": (np.float64, -np.inf),
                "burst": (np.int64, 0),
                "burst_round": (np.uint64, 0),
                "runs": (np.int64, 0),
                "caused": (np.bool_, False),  # some message has set a run going: parents are known
                "depth": (np.int64, 0),
                "base": (np.int64, 0),
                "entry": (np.uint64, 0),
                "usual": (np.float64, 0.0),
                "sender": (np.uint64, 0),
                "receiver": (np.uint64, 0),
                "hops": (np.int32, 0),
                "echoes": (np.int32, 0),
                "turns": (np.int32, 0),
                "repeats": (np.int32, 0),
                "messages": (np.int64, 0),
                "spent": (np.int64, 0),
                "kind": (np.uint64, 0),
                "usual_tokens": (np.float64, np.inf),
                "usual_messages": (np.float64, np.inf),
                "results": (np.uint64, 0, RECENT),
                "since": (np.float64, np.nan),
            }
        )
        # Of trees in which messages are written.
        self._talks = Sparse(
            {
                "path": (np.uint64, 0, max(PERIODS)),
                "circling": (np.int32, 0, len(PERIODS)),
                "contents": (np.uint64, 0, RECENT),
                "asked": (np.uint64, 0, RECENT),
                **groups.FIELDS,
            }
        )
        # One alarm per rule, so that a deep tree does not hide a fan-out.
        of_starts = ("fan_out", "burst", "nested", "reproduction", "depth")
        of_talk = ("ping_pong", "handoffs", "circle", "verbatim", "closed_group")
        self._alarms = {rule: Table(ALARM_FIELDS) for rule in (*of_starts, *of_talk, "amplification")}
        self._growth = Table(FIELDS)
        # Agent that begins trees -> runs of its latest trees; the agent unheard of for longest goes first.
        self._sizes: dict[int, list[int]] = {}
        # Kind of task -> tokens and messages of its latest tasks, in bins of `LogGrid`.
        self._tasks: dict[int, tuple[list[int], list[int]]] = {}
        self.tables = {"trees": self._tree, "growth": self._growth, "talks": self._talks} | self._alarms
        self._fleet = FleetFigures()
        self._usual_runs: dict[int, float] = {}
        self._usual_task: dict[int, tuple[float, float] | None] = {}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        if not len(batch):
            return ()
        self.reserve(int(batch.entities[self.spec.scope].row.max()) + 1)
        return [finding for part in lives(batch, self.spec.scope) for _, finding in self._update(part)]

    def _update(self, batch: EventBatch) -> list[tuple[int, Finding]]:
        """What is found in events of which none follows on another life of its row."""
        entity = batch.entities[self.spec.scope]
        born = entity.row[entity.new]
        # Most begin in rows that are blank already.
        again = born[~np.isnan(self._tree["since"][born])]
        if len(again):
            # Nothing is learned here: when this happens among trees depends on how batches are cut.
            super().forget(again)
        self._begin(batch)
        is_message = (batch.kind == _MESSAGE) & (batch.receiver != UNKNOWN)
        is_result = (batch.kind == _TOOL) & (batch.result != UNKNOWN)
        usual = self._tree["usual_tokens"][entity.row]
        judged = np.isfinite(usual)
        acts = is_message | is_result | batch.spawned
        if judged.any():
            acts |= entity.tokens / 1e3 >= self.config.amplification_warning * usual
        found: list[tuple[int, Finding]] = []
        for results, at in _phases(entity.row, acts.nonzero()[0], is_message | batch.spawned | judged):
            self._results_between(batch, results)
            if len(at):
                self._results(batch, at[is_result[at]])
                found += self._spawns(batch, at[batch.spawned[at]])
                told = at[is_message[at]]
                found += self._messages(batch, told)
                found += self._closed_groups(batch, told)
                found += self._amplified(batch, at)
        self._tree["spent"][entity.row] = entity.tokens  # of several in a row the last one stays
        found.sort(key=lambda pair: pair[0])
        return found

    def forget(self, rows: Ints) -> None:
        """A tree that ends tells how large the trees of the agent that began it become."""
        known, tree = rows[rows < self._tree.rows], self._tree
        sized = known[(tree["entry"][known] != UNKNOWN) & (tree["runs"][known] > 0)]
        for entry, runs in zip(tree["entry"][sized].tolist(), tree["runs"][sized].tolist(), strict=True):
            self._sizes[entry] = [*self._sizes.pop(entry, []), runs][-TREES:]
        # What was reported is not what tasks usually take.
        quiet = np.all([alarms["alarm_level"][known] == 0 for alarms in self._alarms.values()], axis=0)
        usual = known[quiet & (tree["kind"][known] != UNKNOWN)]
        tokens, messages = LogGrid.index(tree["spent"][usual] / 1e3), LogGrid.index(tree["messages"][usual])
        for kind, *latest in zip(tree["kind"][usual].tolist(), tokens.tolist(), messages.tolist(), strict=True):
            before = self._tasks.pop(kind, ([], []))
            self._tasks[kind] = ([*before[0], latest[0]][-TASKS:], [*before[1], latest[1]][-TASKS:])
        for memory in (self._sizes, self._tasks):
            while len(memory) > AGENTS:
                memory.pop(next(iter(memory)))
        super().forget(rows)

    def dump_shared(self) -> bytes:
        """How large the agents' earlier trees were, and what tasks of each kind took."""
        memory = (list(self._sizes.items()), list(self._tasks.items()))
        return msgspec.msgpack.encode((self.spec.name, self.spec.version, *memory))

    def load_shared(self, page: bytes) -> None:
        """Takes a page of `dump_shared`."""
        if not page:
            return
        try:
            name, version, sizes, tasks = _decode_shared(page)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("saved shared state is damaged: it is not a page of a detector") from error
        if (name, version) != (self.spec.name, self.spec.version):
            raise StateError(
                f"saved shared state is of {name} version {version}, "
                f"this is {self.spec.name} version {self.spec.version}"
            )
        self._sizes, self._tasks = dict(sizes), dict(tasks)

    def sketch(self) -> dict[str, list[int]]:
        """How large the trees of an agent became, and what tasks of a kind took: of those heard of last."""
        told: dict[str, list[int]] = {}
        for agent, sizes in list(self._sizes.items())[-TOLD:]:
            told[group_figure("tree_runs", agent)] = _histogram(LogGrid.index(np.array(sizes, np.float64)))
        for kind, both in list(self._tasks.items())[-TOLD:]:
            for figure, bins in zip(("task_tokens", "task_messages"), both, strict=True):
                told[group_figure(figure, kind)] = _histogram(np.array(bins, np.int64))
        return told

    def calibrate(self, figures: FleetFigures) -> None:
        self._fleet = figures
        self._usual_runs.clear()
        self._usual_task.clear()

    def _runs_of(self, agent: int) -> float:
        """Runs that the trees of an agent have twice had; 0 where that is not known."""
        if agent not in self._usual_runs:
            self._usual_runs[agent] = self._fleet.largest(group_figure("tree_runs", agent), 2) or 0.0
        return self._usual_runs[agent]

    def _taken_by(self, kind: int) -> tuple[float, float] | None:
        """Tokens and messages that tasks of a kind have twice taken; None while too few have ended."""
        if kind not in self._usual_task:
            names = [group_figure(figure, kind) for figure in ("task_tokens", "task_messages")]
            enough = self._fleet.total(names[0]) >= max(2, self.config.amplification_tasks)
            tokens, messages = (self._fleet.largest(name, 2) or 0.0 for name in names) if enough else (0.0, 0.0)
            self._usual_task[kind] = (tokens, messages) if enough else None
        return self._usual_task[kind]

    def _begin(self, batch: EventBatch) -> None:
        """Trees whose first event is among these: who began them, and what is usual for it."""
        every = batch.entities[self.spec.scope].row
        unknown = (self._tree["entry"][every] == UNKNOWN).nonzero()[0]
        if not len(unknown):
            return
        rows, first = np.unique(every[unknown], return_index=True)
        at = unknown[first]
        entry = batch.sender[at]
        kind = _joined(entry, batch.group[at])
        self._tree["entry"][rows], self._tree["kind"][rows], self._tree["since"][rows] = entry, kind, batch.ts[at]
        if not self._fleet.counts:  # nothing is known of earlier tasks
            return
        least = np.array((self.config.amplification_tokens, self.config.amplification_messages))
        for row, task in zip(rows.tolist(), kind.tolist(), strict=True):
            # One large task may have been a spiral: what is usual has happened twice.
            if (usual := self._taken_by(task)) is not None:
                floored = np.maximum(usual, least / self.config.amplification_warning)
                self._tree["usual_tokens"][row], self._tree["usual_messages"][row] = floored
        for row, agent in zip(rows.tolist(), entry.tolist(), strict=True):
            self._tree["usual"][row] = self._runs_of(agent)

    def _spawns(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        if not len(at):
            return []
        config, tree = self.config, self._tree
        rows, ts, depth = batch.entities[self.spec.scope].row[at], batch.ts[at], batch.depth[at]
        evidence, each = advance(
            self._growth, rows, ts, depth >= 2, healthy=config.healthy_reproduction, kernel_s=config.kernel_s
        )
        # A started run that starts many, none of which start any, is a planner one level down.
        evidence = np.where(depth >= 3, evidence, 0.0)
        # A message that sets a run of its receiver going counts for reproduction; it starts no agent.
        started = batch.kind[at] != Kind.MESSAGE
        tree["caused"][rows] |= ~started
        last = tree["ts"][rows]
        late = ts < last
        direct, below = started & (depth <= 1), started & (depth >= 2)
        tree["ts"][rows] = np.maximum(ts, last)
        spawns = self._faded("spawns", rows, np.abs(ts - last) / config.window_s, late, direct)
        nested = self._faded("nested", rows, np.abs(ts - last) / config.window_s, late, below)
        own = self._faded("own", rows, np.abs(ts - last) / config.memory_s, late, direct)
        tree["depth"][rows] = np.maximum(tree["depth"][rows], depth)
        tree["runs"][rows] += 1

        burst = self._burst(batch, at, direct)
        # Only starts by one planner are excused by history: a recursion is none the better for having been seen.
        unusual = direct & (tree["runs"][rows] > config.usual_factor * tree["usual"][rows])
        burst = np.where(unusual, burst, 0)
        flat = np.where(unusual, spawns, 0.0)
        # Trees at a steady rate become deep and have many nested runs: there, only evidence on R counts.
        steady = np.maximum(own / config.planned, 1.0) ** 2
        nested = np.where(below, nested / steady, 0.0)
        # Where nobody says that an agent was started, it may be a handoff: one that brought new results is work.
        base = np.where(batch.kind[at] == Kind.SPAWN, 0, tree["base"][rows])
        deep = np.where(started, depth - base - config.depth_per_doubling * np.log2(np.maximum(own, 1.0)), 0.0)
        rules = (
            ("fan_out", flat, config.spawns_warning, config.spawns_critical, "runs"),
            ("burst", burst, config.burst_runs, config.burst_runs, "runs"),
            ("nested", nested, config.nested_warning, config.nested_critical, "runs"),
            ("reproduction", evidence, config.evidence_warning, config.evidence_critical, "nats"),
            ("depth", deep, config.depth_warning, config.depth_critical, "levels"),
        )
        window = f"within {config.window_s:.0f} s"
        says: dict[str, Callable[[float, int], str]] = {
            "fan_out": lambda n, _: f"has started about {n:.0f} runs {window}",
            "burst": lambda n, _: f"keeps starting runs: {n:.0f} without a pause, for more than {config.burst_s:.0f} s",
            "nested": lambda _, k: f"has runs that start runs: about {tree['nested'][rows[k]]:.0f} more {window}",
            "reproduction": lambda _, k: (
                f"feeds itself: each {'started run starts' if started[k] else 'message causes'} {each[k]:.1f} more"
            ),
            "depth": lambda _, k: f"is {depth[k]:.0f} levels deep",
        }
        found = []
        for rule, count, warning, critical, unit in rules:
            for k, level in self._speaking(rule, rows, count, warning, critical, ts):
                found.append(
                    (
                        int(at[k]),
                        self._finding(
                            batch,
                            int(at[k]),
                            rule,
                            level,
                            float(count[k]),
                            warning,
                            unit,
                            says[rule](float(count[k]), k),
                            {"reproduction": round(float(each[k]), 2)} if rule == "reproduction" else {},
                        ),
                    )
                )
        return found

    def _faded(self, field: str, rows: Ints, age: Floats, late: Bools, count: Bools) -> Floats:
        """A decayed count with one more event, `age` time constants from the newest one."""
        # The fade is 0 for the first event of a tree: it lies infinitely far from none.
        fade = np.exp(-age)
        value: Floats = self._tree[field][rows] * np.where(late, 1.0, fade) + np.where(late, fade, 1.0) * count
        self._tree[field][rows] = value
        return value

    def _burst(self, batch: EventBatch, at: Ints, direct: Bools) -> Ints:
        """Runs of the burst where it outlasts a planned one, else 0.

        What one model answer asks for is one decision, of which the fan-out thresholds judge the size. A burst
        is another matter once it goes on after a plan would have been carried out.
        """
        config, tree = self.config, self._tree
        bursts = np.zeros(len(at), np.int64)
        chosen = np.flatnonzero(direct)
        at = at[chosen]
        rows, ts, decided = batch.entities[self.spec.scope].row[at], batch.ts[at], batch.round[at]
        last = tree["burst_last"][rows]
        late = ts < last
        begins = ~late & (ts - last > config.burst_s)
        since = np.where(begins, ts, tree["burst_since"][rows])
        count = np.where(begins, 1, tree["burst"][rows] + 1)
        first_round = np.where(begins, decided, tree["burst_round"][rows])
        fast = np.where(late, tree["fast"][rows], tree["fast"][rows] * np.exp(-np.abs(ts - last) / config.burst_s) + 1)
        tree["burst_last"][rows], tree["burst_since"][rows] = np.maximum(ts, last), since
        tree["burst"][rows], tree["burst_round"][rows], tree["fast"][rows] = count, first_round, fast
        planned = (decided != UNKNOWN) & (decided == first_round)
        lasting = ~late & ~planned & (ts - since >= config.burst_s) & (fast >= config.burst_runs / 2)
        bursts[chosen] = np.where(lasting, count, 0)
        return bursts

    def _messages(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        if not len(at):
            return []
        config, tree = self.config, self._tree
        rows, content = batch.entities[self.spec.scope].row[at], batch.signature[at]
        sender, receiver = batch.sender[at], batch.receiver[at]
        last_receiver = tree["receiver"][rows]
        answer = (sender == last_receiver) & (receiver == tree["sender"][rows])
        same_way = (sender == tree["sender"][rows]) & (receiver == tree["receiver"][rows])
        pair = answer | same_way
        hops = np.where(pair, tree["hops"][rows] + answer, 1)
        talk = self._talks.open(rows)
        said = self._remember(self._talks, "contents", talk, content)
        echoes = np.where(pair, tree["echoes"][rows] + (answer & said), 0)
        # A turn is taken by whom the last message was for; who writes to several at once takes one turn.
        again = np.where(sender == tree["sender"][rows], tree["turns"][rows], 1)
        turns = np.where(sender == last_receiver, tree["turns"][rows] + 1, again)
        tree["turns"][rows] = turns
        # The same words to the same agent again, whoever spoke in between.
        addressed = np.where(content == UNKNOWN, UNKNOWN, _joined(sender, receiver, content))
        asked = self._remember(self._talks, "asked", talk, addressed)
        repeats = tree["repeats"][rows] + asked
        tree["repeats"][rows] = repeats
        tree["messages"][rows] += 1
        period = self._circle(talk, _joined(sender, receiver), sender == last_receiver, turns)
        tree["sender"][rows], tree["receiver"][rows] = sender, receiver
        tree["hops"][rows], tree["echoes"][rows] = hops, echoes

        # The graver rule names the finding, of equals the one that is further gone.
        hops_level = levels(hops, config.hops_warning, config.hops_critical)
        echo_level = levels(echoes, config.echo_warning, config.echo_critical)
        further = echoes * config.hops_warning >= hops * config.echo_warning
        by_echo = np.where(echo_level == hops_level, further, echo_level > hops_level)
        count = np.where(by_echo, echoes, hops)
        warning = np.where(by_echo, config.echo_warning, config.hops_warning)
        critical = np.where(by_echo, config.echo_critical, config.hops_critical)
        found = []
        for k, level in self._speaking("ping_pong", rows, count, warning, critical, batch.ts[at]):
            i = int(at[k])
            how = " that repeat what was said" if by_echo[k] else ""
            one, other = batch.agent_id[i], batch.to_agent_id[i]
            who = f"{one} and {other}" if one != other else f"runs of {one}"
            what = f"has {who} exchange {int(count[k])} messages{how} without a new tool result"
            found.append(
                (
                    i,
                    self._finding(
                        batch,
                        i,
                        "ping_pong",
                        level,
                        float(count[k]),
                        float(warning[k]),
                        "messages",
                        what,
                        {"agents": sorted((batch.agent_id[i], batch.to_agent_id[i]))},
                    ),
                )
            )
        # What two agents alone do is told by the rule above, with their names.
        among_more = np.where(hops >= turns, 0, turns)
        handoffs, circle = np.where(period == 0, among_more, 0), np.where(period > 0, among_more, 0)
        verbatim = np.where(turns >= config.verbatim_turns, repeats, 0)
        limits = (config.handoffs_warning, config.handoffs_critical)
        words = (config.verbatim_warning, config.verbatim_critical)
        since = "without a new tool result"
        says: dict[str, Callable[[int], str]] = {
            "handoffs": lambda k: f"has its agents take {turns[k]} turns {since}",
            "circle": lambda k: f"goes round in a circle of {period[k]} messages: {turns[k]} turns {since}",
            "verbatim": lambda k: (
                f"has {repeats[k]} message{'s' if repeats[k] > 1 else ''} sent again word for word to the same agent, "
                f"{turns[k]} turns {since}"
            ),
        }
        for rule, n, (warns, alarms) in (
            ("handoffs", handoffs, limits),
            ("circle", circle, limits),
            ("verbatim", verbatim, words),
        ):
            for k, level in self._speaking(rule, rows, n, warns, alarms, batch.ts[at]):
                i = int(at[k])
                what = says[rule](k)
                found.append((i, self._finding(batch, i, rule, level, float(n[k]), warns, "messages", what, {})))
        return found

    def _closed_groups(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        """Groups of three and more agents that only feed each other, however their talks go on side by side."""
        if not len(at):
            return []
        config, rows = self.config, batch.entities[self.spec.scope].row[at]
        talk = self._talks.find(rows)
        size, inside, share = groups.advance(self._talks, talk, batch.ts[at], batch.sender[at], batch.receiver[at])
        # Where agents take turns, the rules on turns tell it, and sooner; where it is known what caused what,
        # the reproduction number does, and better.
        told = (self._tree["turns"][rows] >= config.handoffs_warning) | self._tree["caused"][rows]
        count = np.where((share >= config.group_share) & ~told, inside, 0.0)
        found = []
        limits = (config.group_warning, config.group_critical)
        for k, level in self._speaking("closed_group", rows, count, *limits, batch.ts[at]):
            i, n = int(at[k]), float(count[k])
            what = (
                f"has a group of {size[k]} agents that feed only each other: about {n:.0f} messages within "
                f"{groups.WINDOW_S / 60:.0f} min, {share[k]:.0%} of all that reach them, no new tool result of theirs"
            )
            members = {"members": int(size[k]), "share": round(float(share[k]), 3)}
            found.append((i, self._finding(batch, i, "closed_group", level, n, limits[0], "messages", what, members)))
        return found

    def _circle(self, talk: Ints, hop: Hashes, passed_on: Bools, turns: Ints) -> Ints:
        """Length of the circle in which all turns were taken, or 0."""
        path, circling = self._talks["path"][talk], self._talks["circling"][talk]
        before = path[:, [period - 1 for period in PERIODS]]
        circling = np.where((before == hop[:, None]) & passed_on[:, None], circling + 1, 0)
        self._talks["path"][talk] = np.concatenate([hop[:, None], path[:, :-1]], axis=1)
        self._talks["circling"][talk] = circling
        periods = np.array(PERIODS)
        whole = (circling > 0) & (circling + periods >= turns[:, None])
        return np.where(whole.any(axis=1), periods[whole.argmax(axis=1)], 0)

    def _amplified(self, batch: EventBatch, at: Ints) -> list[tuple[int, Finding]]:
        """Tasks that took many times what tasks of their kind have taken."""
        config, tree = self.config, self._tree
        entity = batch.entities[self.spec.scope]
        rows = entity.row[at]
        # A task of one agent that talks to nobody is no spiral, however much it takes.
        shared = (tree["runs"][rows] > 0) | (tree["messages"][rows] > 0)
        judged = np.isfinite(tree["usual_tokens"][rows]) & shared
        if not judged.any():
            return []
        at, rows = at[judged], rows[judged]
        by_tokens = entity.tokens[at] / 1e3 / tree["usual_tokens"][rows]
        by_messages = tree["messages"][rows] / tree["usual_messages"][rows]
        ratio = np.maximum(by_tokens, by_messages)
        found = []
        limits = (config.amplification_warning, config.amplification_critical)
        for k, level in self._speaking("amplification", rows, ratio, *limits, batch.ts[at]):
            i, n = int(at[k]), float(ratio[k])
            what = "effective tokens" if by_tokens[k] == n else "messages"
            says = f"has taken {n:.0f} times the {what} that tasks of its kind take at most"
            found.append((i, self._finding(batch, i, "amplification", level, n, limits[0], "ratio", says, {})))
        return found

    def _results_between(self, batch: EventBatch, at: Ints) -> None:
        """The same for tool results (k,), tree by tree, any number of a tree."""
        if not len(at):
            return
        row, value = batch.entities[self.spec.scope].row[at], batch.result[at]
        begins = changes(row)
        starts = begins.nonzero()[0]
        if len(starts) == len(at):
            self._results(batch, at)
            return
        rings = self._tree.take("results", row[starts])
        tree = begins.cumsum() - 1
        hit = rings[tree] == value[:, None]
        halves = hit.view(np.uint64)
        known = (halves[:, 0] | halves[:, 1]) != 0
        # Trees in which anything comes twice go round by round.
        by_value = np.lexsort((value, row))
        twice = (np.diff(row[by_value]) == 0) & (value[by_value][1:] == value[by_value][:-1])
        known[by_value[1:][twice]] = True
        slow = np.logical_or.reduceat(known, starts)
        if slow.any():
            late = slow[tree].nonzero()[0]
            for part in rounds(row[late]):
                self._results(batch, at[late[part]])
        quick = (~slow).nonzero()[0]
        if not len(quick):
            return
        # All are new, so they go to the front as they came.
        ends = np.append(starts[1:], len(at))[quick]
        count, back = (ends - starts[quick])[:, None], np.arange(RECENT)
        moved = np.take_along_axis(rings[quick], np.maximum(back - count, 0), axis=1)
        moved = np.where(back < count, value[np.maximum(ends[:, None] - 1 - back, 0)], moved)
        self._tree["results"][row[starts[quick]]] = moved
        self._bring(batch, at[(~slow)[tree]])

    def _results(self, batch: EventBatch, at: Ints) -> None:
        """A tool result not seen before in the tree is progress: the conversation starts afresh."""
        if not len(at):
            return
        rows = batch.entities[self.spec.scope].row[at]
        new = (~self._remember(self._tree, "results", rows, batch.result[at])).nonzero()[0]
        self._bring(batch, at[new])

    def _bring(self, batch: EventBatch, at: Ints) -> None:
        """These events (k,) are new results, any number of a tree."""
        fresh, tree = batch.entities[self.spec.scope].row[at], self._tree
        tree["base"][fresh] = tree["depth"][fresh]
        talk = self._talks.find(fresh)
        spoken = (talk >= 0).nonzero()[0]
        if not len(spoken):  # nothing was said that this could put an end to
            return
        fresh, talk = fresh[spoken], talk[spoken]
        groups.fruitful(self._talks, talk, batch.sender[at[spoken]])
        for name in ("hops", "echoes", "turns", "repeats"):
            tree[name][fresh] = 0
        self._talks["asked"][talk] = 0

    def _remember(self, table: Table, field: str, rows: Ints, value: NDArray[np.uint64]) -> NDArray[Any]:
        """Whether each row knew its value already; moves it to the front of what the row knows."""
        ring = table.take(field, rows)
        observed = value != UNKNOWN
        hit = ring == value[:, None]
        # RECENT truth values at once.
        halves = hit.view(np.uint64)
        known: NDArray[Any] = ((halves[:, 0] | halves[:, 1]) != 0) & observed
        moved = np.empty_like(ring)
        moved[:, 0], moved[:, 1:] = value, ring[:, :-1]
        again = known.nonzero()[0]
        if len(again):
            # Only what came before the value's old place moves back by one.
            stays = np.arange(RECENT) > hit[again].argmax(axis=1)[:, None]
            moved[again] = np.where(stays, ring[again], moved[again])
        if not observed.all():
            rows, moved = rows[observed], moved[observed]
        table[field][rows] = moved
        return known

    def _speaking(
        self, rule: str, rows: Ints, count: Any, warning: Any, critical: Any, ts: Any
    ) -> list[tuple[int, int]]:
        if not (count >= warning).any():
            return []
        level = levels(count, warning, critical)
        alarms = self._alarms[rule]
        speak = pace(alarms, rows, level, ts, repeat_s=self.config.repeat_s, rearm_s=self.config.rearm_s)
        return [(int(k), int(level[k])) for k in np.flatnonzero(speak)]

    def _finding(
        self,
        batch: EventBatch,
        i: int,
        rule: str,
        level: int,
        observed: float,
        threshold: float,
        unit: str,
        what: str,
        evidence: dict[str, Any],
    ) -> Finding:
        entity, tree = batch.entities[self.spec.scope], self._tree
        row = entity.row[i]
        tokens, dollars = int(entity.tokens[i]) / 1e3, int(entity.cost[i]) / 1e9
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule=rule,
            severity=severity_of(level),
            scope=self.spec.scope,
            score=beyond(observed, threshold),
            observed=round(observed, 2),
            expected=float(threshold),
            unit=unit,
            reason=f"task {batch.root_run_id[i]} {what}" + (f" ({spend(tokens, dollars)} so far)" if tokens else ""),
            evidence=evidence
            | {
                "since": float(tree["since"][row]),
                "runs": int(tree["runs"][row]),
                "depth": int(tree["depth"][row]),
                "effective_tokens": tokens,
                "cost_usd": round(dollars, 6),
            },
        )


def _phases(row: Ints, acts: Ints, alone: Bools) -> Iterator[tuple[Ints, Ints]]:
    """Events in the order in which they are to be looked at.

    Args:
        row: (n,) tree of each event.
        acts: (k,) positions of those that count.
        alone: (n,) which are looked at one per tree at a time; the others between them are results of tools.

    Yields:
        Positions of results, then of at most one other event per tree that comes after them.
    """
    if not len(acts):
        return
    order = acts[np.argsort(row[acts], kind="stable")]
    single = alone[order]
    number = np.cumsum(single)
    begins = changes(row[order])
    first = begins.nonzero()[0]
    before: Ints = (number - single)[first]
    phase = 2 * (number - single - before[begins.cumsum() - 1]) + single
    last = int(phase.max())
    by_phase = order[np.argsort(phase, kind="stable")]
    edges = np.searchsorted(np.sort(phase), np.arange(0, last + 3 + last % 2)).tolist()
    for k in range(0, last + 1, 2):
        yield by_phase[edges[k] : edges[k + 1]], by_phase[edges[k + 1] : edges[k + 2]]


def _joined(first: Hashes, *others: Hashes) -> Hashes:
    """(n,) one hash of several, of which the order matters; never UNKNOWN."""
    joined = first
    with np.errstate(over="ignore"):
        for other in others:
            joined = (joined ^ (joined >> np.uint64(29))) * _SPREAD + other
    return joined | np.uint64(1)


def _histogram(bins: Ints) -> list[int]:
    """Counts per bin of `LogGrid`."""
    counts: list[int] = np.bincount(bins, minlength=LogGrid.BINS).tolist()
    return counts
