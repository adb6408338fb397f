"""Draws docs/img/demo.svg: what `burnfuse demo` shows on the last afternoon, with incidents open.

    python examples/screenshot.py [OUT.svg]

The whole demo has four days; the picture needs the first three only for what the detectors learn in them.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.terminal_theme import MONOKAI

from stream.clock import SystemClock
from stream.ingest.decode import event_time
from stream.ingest.ingest import Record
from stream.settings import default_settings
from stream.simulate import demo_stream
from stream.view import LiveReporter
from stream.watch import Watcher

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "img" / "demo.svg"
WIDTH = 110
MOMENT_S = 5 * 60.0 + 30.0
"""The picture is taken so long after the last fault began, s of event time."""


def main(path: str | Path = PICTURE, *, days: float = 4.0) -> None:
    """Runs the demo up to the moment, and writes what the terminal shows then."""
    events, faults = demo_stream(days=days)
    until = max(fault.start for fault in faults) + MOMENT_S
    read = 0

    def records() -> Iterator[Record]:
        nonlocal read
        for event in events:
            if event_time(event["ts"]) > until:
                return
            read += 1
            yield Record(msgspec.json.encode(event), 0, read)

    screen = Console(file=io.StringIO(), force_terminal=True, width=WIDTH)
    view = LiveReporter(screen, SystemClock(), "burnfuse demo: a simulated company's agents")
    watcher = Watcher(default_settings(), view, SystemClock(), lambda _, n: f"demo:{n}", act=False)
    watcher.run(records(), lambda: read / len(events))

    picture = Console(record=True, file=io.StringIO(), force_terminal=True, width=WIDTH, color_system="truecolor")
    picture.print(view.frame())
    svg = picture.export_svg(title="burnfuse demo", theme=MONOKAI, unique_id="burnfuse")
    # An image on a web page may not load fonts from elsewhere.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    Path(path).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
