"""Says what the runs in .cache/chaos/runs.jsonl came to: `python tests/chaos/chaos_figures.py`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

RUNS = Path(".cache/chaos/runs.jsonl")


def main() -> None:
    latest = {}
    for line in RUNS.read_text().splitlines():
        run = json.loads(line)
        latest[run["seed"]] = run
    faults = Counter(fault for run in latest.values() for fault in run["faults"])
    differing = sorted(seed for seed, run in latest.items() if run["differences"])
    print(f"{len(latest)} seeds, {sum(faults.values())} faults, {len(differing)} seeds with differences")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))
    if differing:
        print(f"smallest: SEED={differing[0]}; all: {', '.join(map(str, differing))}")


if __name__ == "__main__":
    main()
