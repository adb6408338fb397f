"""A worker under a steady load for a long time: is anything lost, does memory grow, does latency rise?

Four fifths of the load that throughput measured, 20 minutes. Runs live for a minute here (`engine.run_ttl_s`), and
what has died is swept as often (`engine.tick_s`), so that memory must reach its plateau early: entities come and go as
fast all the time. Figures are told minute by minute; the first quarter counts as warming up.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks import latency, results
from benchmarks.load import LOOP_CALLS, event_index
from benchmarks.processes import resident_bytes
from benchmarks.screen import add_seconds, command_line, parser, say

_SHARE = 0.8
_TTL_S = 60.0
_ENGINE = {"run_ttl_s": _TTL_S, "root_ttl_s": _TTL_S, "tick_s": _TTL_S}
_FINDINGS = 2
"""Of each planted loop: a warning and a critical one."""


def run(rate: float, seconds: float, name: str = "burnfuse") -> results.Figures:
    """Runs a worker under a steady load and looks at it every minute.

    Args:
        rate: Events per second.
        name: Of the contender; a burnfuse worker.
    """
    held: list[tuple[float, int, int]] = []

    def look(at: latency.Moment) -> None:
        if not held or at.seconds - held[-1][0] >= min(60.0, seconds / 20):
            held.append((at.seconds, resident_bytes(at.worker.pid), at.lag()))

    done = latency.under_load(rate, seconds, name, {"engine": _ENGINE}, look)
    load, answer = done.load, done.answer
    found: Counter[int] = Counter()
    late: dict[int, list[float]] = {}
    for at, record in done.found.records:
        if record["type"] == "finding" and record["detector"] == "retry_loop":
            index = event_index(record["event_id"])
            if index in answer.sent_ms:
                found[index // load.loop_every] += 1
                minute = int((answer.sent_ms[index] / 1000 - done.started) // 60)
                late.setdefault(minute, []).append(at * 1000 - answer.sent_ms[index])
    # A loop whose last call lies beyond the end of the load was not planted whole.
    calls = Counter(index // load.loop_every for index in answer.sent_ms)
    planted = [loop for loop, count in calls.items() if count == LOOP_CALLS]
    minutes: list[dict[str, Any]] = [
        {"minute": minute, "finding": latency.percentiles(values)} for minute, values in sorted(late.items())
    ]
    quarter = len(held) // 4
    early, last = held[quarter : 2 * quarter] or held, held[-quarter:] or held
    return {
        "rate": rate,
        "rate_sent": load.events / answer.seconds,
        "seconds": answer.seconds,
        "events": load.events,
        "handled": done.handled,
        "rejected": done.rejected,
        "loops": len(planted),
        "loops_missed": sum(found[loop] < _FINDINGS for loop in planted),
        "findings_twice": sum(found[loop] > _FINDINGS for loop in planted),
        "memory_mb": [round(size / 1e6, 1) for _, size, _ in held],
        "lag": [lag for *_, lag in held],
        "memory_ratio": max(size for _, size, _ in last) / max(size for _, size, _ in early),
        "minutes": minutes,
        "p99_ms": latency.percentiles([x for values in late.values() for x in values]).get("p99"),
        "p99_last_quarter_ms": latency.percentiles(
            [x for minute, values in late.items() if minute >= 0.75 * seconds / 60 for x in values]
        ).get("p99"),
        "p99_second_quarter_ms": latency.percentiles(
            [x for minute, values in late.items() if 0.25 <= minute * 60 / seconds < 0.5 for x in values]
        ).get("p99"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options_of = parser("soak", __doc__.splitlines()[0], "--seconds 120 --rate 5000", events=None)
    add_seconds(options_of, 1200.0)
    options_of.add_argument("--rate", type=float, help="events/s (default: 0.8 of what throughput measured)")
    options_of.add_argument("--only", choices=("burnfuse", "burnfuse-keyed"), default="burnfuse")
    options = options_of.parse_args(arguments)
    rate = options.rate or _SHARE * latency.measured_rate(options.json, options.only)
    started = time.monotonic()
    figures = run(rate, options.seconds, options.only)
    results.save(options.json, "soak", figures)
    sys.stdout.write(results.text_table(results.SOAK_HEAD, results.soak_rows(figures)) + "\n")
    say(f"{time.monotonic() - started:.0f} s; figures: {options.json}")


if __name__ == "__main__":
    command_line(main)
