"""Figures of all benchmarks in one JSON file, the bars they are held to, and tables for people."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

DEFAULT = Path(".cache/bench/results.json")

Figures = dict[str, Any]


class Run(msgspec.Struct, frozen=True):
    """What one measurement gave.

    Attributes:
        events: Handled within the time that was measured.
        cpu_s_per_million: CPU seconds of the contender per million events.
        broker_cores: CPU seconds of the broker per second.
        peak_mb: The most memory held, of all its processes, 10^6 bytes.
    """

    events: int
    seconds: float
    rate: float
    cpu_s_per_million: float
    broker_cores: float
    peak_mb: float


def spread(values: Iterable[float]) -> dict[str, float]:
    """Least, median and largest of repeated measurements."""
    ordered = sorted(values)
    return {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}


def summary(label: str, runs: Sequence[Run]) -> Figures:
    """Repeated measurements of one contender."""
    return {
        "label": label,
        "events": [run.events for run in runs],
        "rate": spread(run.rate for run in runs),
        "cpu_s_per_million": spread(run.cpu_s_per_million for run in runs),
        "broker_cores": spread(run.broker_cores for run in runs),
        "peak_mb": spread(run.peak_mb for run in runs),
        "runs": msgspec.to_builtins(runs),
    }


def load(path: Path) -> Figures:
    """All figures measured so far."""
    found: Figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def save(path: Path, part: str, figures: Figures) -> None:
    """Puts one benchmark's figures into the file, in place of its older ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = load(path) | {"machine": machine(), part: figures}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


# -------------------------------------------------------------------------------------------- bars


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach, and what it should.

    Attributes:
        figure: Takes all figures; raises KeyError where it was not measured.
        most: The figure must be at most so much; else at least.
    """

    what: str
    must: float
    aim: float
    figure: Callable[[Figures], float]
    unit: str = ""
    most: bool = False

    def verdict(self, value: float) -> str:
        """Whether the figure reaches its bars."""
        sign = -1 if self.most else 1
        reached = sum(sign * value >= sign * bar for bar in (self.must, self.aim))
        return ("below the bar", "reaches the bar", "reaches the aim")[reached]


def _rate(all_: Figures, name: str) -> float:
    return float(all_["throughput"]["contenders"][name]["rate"]["median"])


def _others(all_: Figures) -> float:
    known = all_["throughput"]["contenders"]
    rates = [known[name]["rate"]["median"] for name in ("quix", "bytewax") if name in known]
    if not rates:
        raise KeyError("quix")
    return float(max(rates))


def _checkpoints(all_: Figures, load: str) -> float:
    return float(all_["restore"]["cost"][load]["share"])


def _restored(all_: Figures) -> float:
    if all_["restore"]["agents"] < 1_000_000:
        raise KeyError("1 M agents")
    return float(max(one["from_start_s"] for one in all_["restore"]["restores"]))


def _replayed(all_: Figures) -> float:
    return float(max(one[way] for one in all_["restore"]["kills"] for way in ("input_age_s", "inner_age_s")))


BARS = (
    Bar("worker / ceiling, any key", 0.25, 0.40, lambda a: _rate(a, "burnfuse") / _rate(a, "ceiling")),
    Bar("worker / ceiling, keyed by agent", 0.35, 0.60, lambda a: _rate(a, "burnfuse-keyed") / _rate(a, "ceiling")),
    Bar("worker / plain Faust with river", 15, 25, lambda a: _rate(a, "burnfuse") / _rate(a, "faust")),
    Bar("worker / the better of Quix Streams and Bytewax", 5, 10, lambda a: _rate(a, "burnfuse") / _others(a)),
    Bar("rate with 1 M agents / with 1,000", 0.6, 0.8, lambda a: float(a["scaling"]["rate_ratio"])),
    Bar(
        "memory per agent, 1 M agents", 1500, 700, lambda a: float(a["scaling"]["bytes_per_agent"]), "bytes", most=True
    ),
    Bar("Kafka to finding, p99", 500, 150, lambda a: float(a["latency"]["finding"]["p99"]), "ms", most=True),
    Bar("Kafka to Slack call, p99", 2000, 1000, lambda a: float(a["latency"]["slack"]["p99"]), "ms", most=True),
    Bar("detectors alone", 1e6, 3e6, lambda a: float(a["detectors"]["even"]["all"]["rate"]), "events/s"),
    Bar(
        "checkpoints, share of CPU time", 0.10, 0.05, lambda a: _checkpoints(a, "as in the other benchmarks"), most=True
    ),
    Bar(
        "checkpoints, share of CPU time, at worst",
        0.10,
        0.05,
        lambda a: _checkpoints(a, "every event of another agent"),
        most=True,
    ),
    Bar("restore of 1 M agents", 60, 30, lambda a: _restored(a), "s", most=True),
    Bar("replay after kill -9", 5, 3, lambda a: _replayed(a), "s of input", most=True),
    Bar("two workers / one worker", 1.5, 1.8, lambda a: float(a["scaling"]["two_workers_ratio"])),
)


def bars(figures: Figures) -> list[tuple[str, ...]]:
    """Rows (what, must, aim, measured, verdict) of the bars whose figures were measured."""
    rows = []
    for bar in BARS:
        try:
            value = bar.figure(figures)
        except KeyError:
            continue
        cells = [f"{number:,.{0 if bar.must >= 100 else 2}f}" for number in (bar.must, bar.aim, value)]
        rows.append((bar.what + (f", {bar.unit}" if bar.unit else ""), *cells, bar.verdict(value)))
    return rows


# ------------------------------------------------------------------------------------------ tables

BARS_HEAD = ("what", "must", "aim", "measured", "")
THROUGHPUT_HEAD = (
    "contender",
    "events/s (min to max)",
    "of the ceiling",
    "by CPU time",
    "CPU s per million",
    "peak MB",
    "broker cores",
)


def throughput_rows(contenders: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    """One row per contender; a ratio of CPU times holds on a busy machine, too."""
    ceiling = contenders.get("ceiling")

    def share(figure: float, of: float) -> str:
        return f"{figure / of:.3f}"

    return [
        (
            c["label"],
            f"{c['rate']['median']:,.0f} ({c['rate']['min']:,.0f} to {c['rate']['max']:,.0f})",
            share(c["rate"]["median"], ceiling["rate"]["median"]) if ceiling else "",
            share(ceiling["cpu_s_per_million"]["median"], c["cpu_s_per_million"]["median"]) if ceiling else "",
            f"{c['cpu_s_per_million']['median']:.1f}",
            f"{c['peak_mb']['median']:,.0f}",
            f"{c['broker_cores']['median']:.2f}",
        )
        for c in contenders.values()
    ]


LATENCIES = {"burnfuse": ("latency", "with any key"), "burnfuse-keyed": ("latency_keyed", "keyed by agent")}
"""Contender -> the part of the figures that holds its latency, and what its input is like."""

LATENCY_HEAD = ("from Kafka to", "n", "p50 ms", "p99 ms", "most ms")


def latency_rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row per way."""
    rows = []
    for way, label in (("finding", "finding, at a consumer"), ("slack", "Slack call")):
        found = figures[way]
        cells = [f"{found[name]:,.0f}" if name in found else "" for name in ("p50", "p99", "max")]
        rows.append((label, f"{found['n']:.0f}", *cells))
    return rows


SCALING_HEAD = ("what", "events/s", "CPU s per million", "peak MB", "broker cores")


def scaling_rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row per number of agents and of workers."""
    named = [(f"{int(count):,} agents", run) for count, run in figures.get("agents", {}).items()]
    workers = figures.get("workers", {})
    named += [(f"{count} worker{'s' if count != '1' else ''}", run) for count, run in workers.items()]
    rows: list[tuple[str, ...]] = [
        (
            what,
            f"{run['rate']:,.0f}",
            f"{run['cpu_s_per_million']:.1f}",
            f"{run['peak_mb']:,.0f}",
            f"{run['broker_cores']:.2f}",
        )
        for what, run in named
    ]
    if "two_processes_ratio" in figures:
        ratio = f"{figures['two_processes_ratio']:.2f} times one"
        rows.append(("2 processes that share nothing, without Kafka", ratio, "", "", ""))
    return rows


RESTORE_HEAD = ("what", "figure")


def restore_rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row per thing that was measured."""
    rows: list[tuple[str, ...]] = []
    for load, cost in figures.get("cost", {}).items():
        rows += [
            (f"checkpoints, share of CPU time, {load}", f"{cost['share']:.1%}"),
            (
                "... CPU s per million events with checkpoints, and with next to none",
                ", ".join(_least_to_most(cost, how) for how in ("default", "rare")),
            ),
            ("... time of making pages, of CPU time", f"{cost['making_share']:.1%}"),
            ("... the event loop stood still for at most", f"{cost['longest_piece_s'] * 1000:,.0f} ms"),
            ("... bytes written per event", f"{cost['bytes_per_event']:,.0f}"),
        ]
    if "restores" not in figures:
        return rows
    before, restores, kills = figures["before"], figures["restores"], figures["kills"]
    rows += [
        ("agents, each with a run", f"{figures['agents']:,}"),
        ("memory of the worker that took them in, and the most of it", _both(before)),
    ]
    for one in restores:
        rows += [
            (
                f"restored after kill -9, {one['after']}: from the start of the worker, from the assignment",
                f"{one['from_start_s']:.1f} s, {one['from_assignment_s']:.1f} s",
            ),
            ("... CPU time by then", f"{one['cpu_s']:.1f} s"),
            ("... memory, and the most of it", _both(one)),
            ("... state topics on the broker's disk", f"{one['disk_mb']:,.0f} MB"),
        ]
    for one in kills:
        rows += [
            (
                f"killed with -9 at {figures['rate']:,.0f} events/s: events to be judged again, the oldest",
                f"{one['inner_events']:,}, {one['inner_age_s']:.1f} s",
            ),
            ("... input events read again, the oldest", f"{one['input_events']:,}, {one['input_age_s']:.1f} s"),
            ("... pages that count", f"{one['state_mb']:,.0f} MB"),
        ]
    return rows


def _least_to_most(cost: Figures, how: str) -> str:
    found = spread(run["cpu_s"] / cost["events"] * 1e6 for run in cost["runs"][how])
    return f"{found['median']:.1f} ({found['min']:.1f} to {found['max']:.1f})"


def _both(figures: Figures) -> str:
    return f"{figures['memory_mb']:,.0f} MB, {figures['peak_mb']:,.0f} MB"


SOAK_HEAD = ("what", "figure")


def soak_rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row per thing that must hold."""

    def ms(name: str) -> str:
        return "" if figures[name] is None else f"{figures[name]:,.0f} ms"

    memory = figures["memory_mb"]
    return [
        ("time", f"{figures['seconds']:,.0f} s"),
        ("events per second, sent", f"{figures['rate_sent']:,.0f}"),
        ("events sent", f"{figures['events']:,}"),
        ("events handled", f"{figures['handled']:,}"),
        ("events turned away", f"{figures['rejected']:,}"),
        ("loops planted", f"{figures['loops']:,}"),
        ("loops missed", f"{figures['loops_missed']:,}"),
        ("loops told more than once", f"{figures['findings_twice']:,}"),
        ("most memory, MB: first, second, third, last quarter", _quarters(memory)),
        ("most memory of the last quarter / of the second", f"{figures['memory_ratio']:.2f}"),
        ("most events behind", f"{max(figures['lag'], default=0):,}"),
        ("Kafka to finding, p99, all the time", ms("p99_ms")),
        ("... second quarter", ms("p99_second_quarter_ms")),
        ("... last quarter", ms("p99_last_quarter_ms")),
    ]


def _quarters(values: Sequence[float]) -> str:
    size = max(1, -(-len(values) // 4))
    return ", ".join(f"{max(values[low : low + size]):,.0f}" for low in range(0, len(values), size))


DETECTORS_HEAD = ("detector", "µs/event, agents in turn", "events/s", "µs/event, Zipf", "events/s")


def detectors_rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row per detector, and one for all together."""
    return [
        (
            name,
            *(
                cell
                for skew in ("even", "zipf")
                for cell in (f"{figures[skew][name]['us_per_event']:.3f}", f"{figures[skew][name]['rate']:,.0f}")
            ),
        )
        for name in figures["even"]
    ]


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)
