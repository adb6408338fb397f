"""What agents and workers cost: the same worker with 1,000 to a million agents, and one against two workers.

With the number of agents varying, every agent has its turn once before anything is measured, so that new
agents do not count. Two workers have a core each, and the broker is where there is room: on one of two cores it would
hold up one worker, for which the other one waits. What two processes could do at most is measured as well: the stages
without Kafka, alone and on both cores at once. Cores that share caches, or are two threads of one, give less than
twice as much.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path

import msgspec

from benchmarks import broker as kafka_broker
from benchmarks import results
from benchmarks.broker import Broker
from benchmarks.contenders import CONTENDERS
from benchmarks.load import Load
from benchmarks.measure import measure
from benchmarks.processes import CORES
from benchmarks.results import Run
from benchmarks.screen import FOLDER, add_seconds, command_line, parser, progress, say

AGENTS = (1_000, 100_000, 1_000_000)
_NAME = "burnfuse"
_PARTS = ("agents", "workers", "processes")


def by_agents(broker: Broker, events: int, agents: Sequence[int], seconds: float) -> results.Figures:
    """The worker with each number of agents."""
    runs: dict[int, Run] = {}
    for count in agents:
        load = Load(events=events + count, agents=count, zipf=0.0)
        runs[count] = _one(broker, load, seconds, f"{count:,} agents", skip=count)
    few, many = min(agents), max(agents)
    return {
        "agents": {str(count): msgspec.to_builtins(done) for count, done in runs.items()},
        "rate_ratio": runs[many].rate / runs[few].rate,
        "bytes_per_agent": (runs[many].peak_mb - runs[few].peak_mb) * 1e6 / max(1, many - few),
    }


def by_workers(broker: Broker, events: int, seconds: float, repeats: int) -> results.Figures:
    """One worker and two, in turn; of each the run of median rate."""
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, done in runs.items():
            with kafka_broker.on_all_cores(broker) if workers > 1 else nullcontext():
                done.append(_one(broker, Load(events=events), seconds, f"workers: {workers}", workers=workers))
    median = {workers: sorted(done, key=attrgetter("rate"))[len(done) // 2] for workers, done in runs.items()}
    return {
        "workers": {str(workers): msgspec.to_builtins(done) for workers, done in median.items()},
        "two_workers_ratio": median[2].rate / median[1].rate,
    }


def _one(broker: Broker, load: Load, seconds: float, title: str, *, skip: int = 0, workers: int = 1) -> Run:
    with progress(f"preloading, {title}", load.events) as tell:
        topic = broker.preload(load, False, tell)
    with progress(title, load.events) as tell:
        done = measure(
            broker,
            _NAME,
            CONTENDERS[_NAME],
            topic,
            load.events,
            limit_s=seconds,
            tell=tell,
            skip=skip,
            workers=workers,
        )
    say(f"{title}: {done.rate:,.0f} events/s, {done.peak_mb:,.0f} MB, the broker takes {done.broker_cores:.2f} cores")
    return done


def two_processes(events: int = 50_000, repeats: int = 5) -> float:
    """How much more two processes that share nothing do per second than one, by CPU time per event.

    Medians of runs in turn: a machine's speed changes within minutes.
    """

    def stages(*cores: int) -> float:
        with tempfile.TemporaryDirectory(prefix="burnfuse-bench-") as folder:
            files = [Path(folder) / str(core) for core in cores]
            command = [sys.executable, "-m", "benchmarks.stages", "--events", str(events)]
            started = [
                subprocess.Popen([*command, "--core", str(core), "--json", str(file)], stdout=subprocess.DEVNULL)
                for core, file in zip(cores, files, strict=True)
            ]
            for process in started:
                process.wait()
            return max(float(results.load(file)["stages"]["total_us"]) for file in files)

    one, other = CORES[0], CORES[-1]
    runs = [(stages(one), stages(other), stages(one, other)) for _ in range(repeats)]
    first, second, together = (float(statistics.median(took)) for took in zip(*runs, strict=True))
    return (first + second) / together


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options_of = parser("scaling", __doc__.splitlines()[0], "--events 300000 --agents 1000 100000")
    add_seconds(options_of)
    options_of.add_argument("--agents", type=int, nargs="+", default=AGENTS, metavar="N", help="default: %(default)s")
    options_of.add_argument("--repeats", type=int, default=3, help="of one and two workers (default: %(default)s)")
    options_of.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    options = options_of.parse_args(arguments)
    figures = results.load(options.json).get("scaling", {})
    with kafka_broker.running(FOLDER) as broker:
        if "agents" in options.parts:
            figures |= by_agents(broker, options.events, options.agents, options.seconds)
        if "workers" in options.parts:
            figures |= by_workers(broker, options.events, options.seconds, options.repeats)
    if "processes" in options.parts:
        figures["two_processes_ratio"] = two_processes()
    results.save(options.json, "scaling", figures)
    sys.stdout.write(results.text_table(results.SCALING_HEAD, results.scaling_rows(figures)) + "\n")
    say(f"figures: {options.json}")


if __name__ == "__main__":
    command_line(main)
