"""How many events per second one process on one core handles: burnfuse, its ceiling, and others.

Every contender runs on a core of its own and reads the same preloaded events from a real Kafka, which runs on
another core. Repeats are interleaved, so that a change of the machine's mood hits all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import broker, chart, results
from benchmarks.contenders import CONTENDERS
from benchmarks.load import Load
from benchmarks.measure import measure
from benchmarks.observe import TooShortError
from benchmarks.processes import CORES, EndedError
from benchmarks.results import Run
from benchmarks.screen import FOLDER, add_seconds, command_line, parser, progress, say


def run(names: Sequence[str], load: Load, repeats: int, seconds: float) -> results.Figures:
    """Measures contenders, in turn, several times."""
    left_out = {name: why for name in names if (why := CONTENDERS[name].missing())}
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    chosen = {name: CONTENDERS[name] for name in names if name not in left_out}
    runs: dict[str, list[Run]] = {name: [] for name in chosen}
    with broker.running(FOLDER) as kafka:
        topics = {}
        for keyed in sorted({contender.keyed for contender in chosen.values()}):
            with progress(f"preloading, {'keyed by agent' if keyed else 'any key'}", load.events) as tell:
                topics[keyed] = kafka.preload(load, keyed, tell)
        for number in range(repeats):
            for name, contender in chosen.items():
                title = f"[{number + 1}/{repeats}] {name}"
                try:
                    with progress(title, load.events) as tell:
                        done = measure(
                            kafka, name, contender, topics[contender.keyed], load.events, limit_s=seconds, tell=tell
                        )
                except (EndedError, TooShortError) as error:
                    say(f"{title}: {error}")
                    left_out[name] = str(error)
                else:
                    say(f"{title}: {done.rate:,.0f} events/s over {done.events:,} events")
                    runs[name].append(done)
    return {
        "load": asdict(load),
        "partitions": broker.PARTITIONS,
        "cores": {"contender": CORES[0], "broker": CORES[-1]},
        "contenders": {name: results.summary(chosen[name].label, done) for name, done in runs.items() if done},
        "left_out": left_out,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options_of = parser("throughput", __doc__.splitlines()[0], "--events 500000 --repeats 1 --only ceiling burnfuse")
    add_seconds(options_of)
    options_of.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    options_of.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    options_of.add_argument("--png", type=Path, metavar="PATH", help="default: beside the JSON")
    options = options_of.parse_args(arguments)
    figures = run(options.only or list(CONTENDERS), Load(events=options.events), options.repeats, options.seconds)
    results.save(options.json, "throughput", figures)
    table = results.text_table(results.THROUGHPUT_HEAD, results.throughput_rows(figures["contenders"]))
    sys.stdout.write(table + "\n")
    png = options.png or options.json.with_name("throughput.png")
    chart.draw(figures["contenders"], png)
    say(f"figures: {options.json}, chart: {png}")


if __name__ == "__main__":
    command_line(main)
