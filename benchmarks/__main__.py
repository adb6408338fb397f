"""All benchmarks, one after the other: `make bench`, or `python -m benchmarks`.

Each is a process of its own: what one leaves behind, or breaks, is not the next one's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks import results
from benchmarks.contenders import CONTENDERS
from benchmarks.screen import add_seconds, command_line, parser, say

PARTS = {
    "stages": "benchmarks.stages",
    "detectors": "benchmarks.detectors_alone",
    "throughput": "benchmarks.throughput",
    "latency": "benchmarks.latency",
    "scaling": "benchmarks.scaling",
    "restore": "benchmarks.restore",
    "soak": "benchmarks.soak",
}
"""Part -> the module that measures it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options_of = parser("", __doc__.splitlines()[0], "--events 300000 --repeats 1 --seconds 10 --parts throughput")
    options_of.prog = "python -m benchmarks"
    add_seconds(options_of)
    options_of.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="of throughput and stages; pairs of checkpoints: twice as many (default: %(default)s)",
    )
    options_of.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    options_of.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=[part for part in PARTS if part != "soak"],
        help="default: all but soak",
    )
    options = options_of.parse_args(arguments)

    common = ["--json", str(options.json)]
    repeats = ["--repeats", str(options.repeats)]
    events = ["--events", str(options.events)]
    seconds = ["--seconds", str(options.seconds)]
    given = {
        "stages": repeats,
        "detectors": [],
        "throughput": [*events, *seconds, *repeats, *(["--only", *options.only] if options.only else [])],
        "latency": [],
        "scaling": [*events, *seconds],
        "restore": ["--repeats", str(2 * options.repeats)],
        "soak": [],
    }
    failed = []
    for part in options.parts:
        say(f"== {part}")
        # Should a client's own code crash, the error says where.
        command = [sys.executable, "-X", "faulthandler", "-m", PARTS[part], *common, *given[part]]
        code = subprocess.run(command, check=False).returncode
        if code:  # the others are worth having
            say(f"{part} failed: it ended with {code}")
            failed.append(part)
    rows = results.bars(results.load(options.json))
    sys.stdout.write("\n" + results.text_table(results.BARS_HEAD, rows) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    command_line(main)
