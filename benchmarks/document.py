"""Puts measured figures into docs/performance.md: `python -m benchmarks.document`.

A part between `<!-- measured: NAME -->` and `<!-- end -->` says what the JSON of the benchmarks says. Figures
are never typed by hand.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import chart, results
from benchmarks.results import Figures
from stream.docs import table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "img" / "throughput.png"

_PART = re.compile(r"(<!-- measured: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOT_YET = "Not measured yet.\n"


def _machine(figures: Figures) -> str:
    return table(("machine", ""), figures["machine"].items())


def _throughput(figures: Figures) -> str:
    found = figures["throughput"]
    left = "".join(f"\nLeft out: `{name}`: {why}\n" for name, why in found["left_out"].items())
    load = found["load"]
    head = f"{load['events']:,} events of {load['agents']:,} agents on {found['partitions']} partitions.\n\n"
    picture = f"\n![Events per second of each contender]({PICTURE.relative_to(DOCUMENT.parent).as_posix()})\n"
    return head + table(results.THROUGHPUT_HEAD, results.throughput_rows(found["contenders"])) + left + picture


def _latency(figures: Figures) -> str:
    parts = []
    for part, label in results.LATENCIES.values():
        if part not in figures:
            continue
        found = figures[part]
        rate, seconds, loops = f"{found['rate_sent']:,.0f}", f"{found['seconds']:.0f}", found["loops"]
        parts.append(
            f"Input {label}: {rate} events per second for {seconds} s, {loops} loops:\n\n"
            + table(results.LATENCY_HEAD, results.latency_rows(found))
        )
    if not parts:
        raise KeyError("latency")
    return "\n".join(parts)


def _stages(figures: Figures) -> str:
    found = figures["stages"]
    total = found["total_us"]
    rows = [(name, f"{took:.3f}", f"{took / total:.1%}") for name, took in found["stages_us"].items()]
    rows.append(("all stages", f"{total:.3f}", ""))
    steps = [(name, f"{took:.3f}") for name, took in found["alone_us"].items()]
    return (
        table(("stage", "µs per event", "share"), rows)
        + '\nInside "records to columns", each step alone:\n\n'
        + table(("step", "µs per event"), steps)
    )


PARTS: Mapping[str, Callable[[Figures], str]] = {
    "machine": _machine,
    "bars": lambda figures: table(results.BARS_HEAD, results.bars(figures)),
    "throughput": _throughput,
    "latency": _latency,
    "scaling": lambda figures: table(results.SCALING_HEAD, results.scaling_rows(figures["scaling"])),
    "restore": lambda figures: table(results.RESTORE_HEAD, results.restore_rows(figures["restore"])),
    "soak": lambda figures: table(results.SOAK_HEAD, results.soak_rows(figures["soak"])),
    "detectors": lambda figures: table(results.DETECTORS_HEAD, results.detectors_rows(figures["detectors"])),
    "stages": _stages,
}


def rewritten(text: str, figures: Figures) -> str:
    """The document with these figures; parts that were not measured say so.

    Raises:
        KeyError: the document asks for a part that does not exist.
    """

    def part(found: re.Match[str]) -> str:
        make = PARTS[found[2]]
        try:
            body = make(figures)
        except KeyError:
            body = _NOT_YET
        return f"{found[1]}\n{body}\n{found[3]}"

    return _PART.sub(part, text)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=results.DEFAULT, metavar="PATH", help="default: %(default)s")
    options = parser.parse_args(arguments)
    figures = results.load(options.json)
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8"), figures), encoding="utf-8")
    if "throughput" in figures:
        chart.draw(figures["throughput"]["contenders"], PICTURE)


if __name__ == "__main__":
    main()
