"""The detectors alone, measured by pytest-benchmark; see `benchmarks/test_detectors.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.screen import command_line, parser, say

HERE = Path(__file__).with_name("test_detectors.py")


def figures_of(report: dict[str, Any]) -> results.Figures:
    """Skew -> detector -> its figures, from the report of pytest-benchmark."""
    found: results.Figures = {}
    for line in report["benchmarks"]:
        info, seconds = line["extra_info"], line["stats"]["mean"]
        found.setdefault(info["skew"], {})[info["detector"]] = {
            "rate": info["events"] / seconds,
            "us_per_event": seconds * 1e6 / info["events"],
        }
    return found


def run(events: int) -> results.Figures:
    """Runs the benchmark as a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "report.json")
        command = [sys.executable, "-m", "pytest", str(HERE), "--quiet", "-p", "no:cacheprovider"]
        environment = os.environ | {"BENCHMARK_EVENTS": str(events)}
        subprocess.run([*command, f"--benchmark-json={out}"], check=True, stdout=subprocess.DEVNULL, env=environment)
        return figures_of(json.loads(out.read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options_of = parser("detectors_alone", __doc__.splitlines()[0], "--events 100000", events=400_000)
    options = options_of.parse_args(arguments)
    figures = run(options.events)
    results.save(options.json, "detectors", figures)
    sys.stdout.write(results.text_table(results.DETECTORS_HEAD, results.detectors_rows(figures)) + "\n")
    say(f"figures: {options.json}")


if __name__ == "__main__":
    command_line(main)
