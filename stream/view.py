"""The terminal view: incidents, spend, progress."""

from __future__ import annotations

from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from detectors.base import READINESS
from detectors.types import Finding
from stream.clock import Clock
from stream.incidents import Change, Incident
from stream.ingest.reject import Reject
from stream.pipeline import Totals
from stream.report import Rejections, summary_line
from stream.text import clean, moment

_COLOUR = {"warning": "yellow", "critical": "bold red"}
_REFRESH_S = 0.1


class LiveReporter:
    """Shows open incidents, what happened last, who burns how much, and how far the input is read.

    Agents are ranked by spend because that is where a fault shows; people never are.
    """

    def __init__(self, console: Console, clock: Clock, title: str) -> None:
        self._console, self._clock, self._title = console, clock, title
        self._rejections = Rejections()
        self._open: dict[str, Incident] = {}
        self._log: deque[tuple[Text, Text, Text]] = deque(maxlen=8)
        self._totals, self._done, self._stream_clock = Totals(), 0.0, float("-inf")
        self._drawn = 0.0
        self._rejected: list[Reject] = []
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def happened(self, item: Finding | Change) -> None:
        if isinstance(item, Finding):
            return
        incident = item.incident
        if item.kind == "resolved":
            self._open.pop(incident.id, None)
        else:
            self._open[incident.id] = incident
        if item.kind != "updated":
            word = "merged" if incident.merged_into else item.kind
            style = "green" if item.kind == "resolved" else _COLOUR[incident.severity]
            self._log.append((Text(moment(incident.ts), "dim"), Text(word, style), Text(clean(incident.title))))
            self._draw(force=True)

    def rejected(self, reject: Reject) -> None:
        self._rejected.append(reject)  # printed at the end: lines between two frames would tear the view

    def progress(self, done: float, clock: float, totals: Totals) -> None:
        self._done, self._stream_clock, self._totals = done, clock, totals
        self._draw()

    def finish(self, totals: Totals, wall_s: float) -> None:
        self._totals = totals
        self._live.stop()
        self._console.print(self.frame(finished=True))
        for reject in self._rejected:
            self._rejections.add(reject)
        self._rejections.finish()
        self._console.print(Text(summary_line(totals, wall_s)))

    def _draw(self, force: bool = False) -> None:
        now = self._clock.monotonic()
        if force or now - self._drawn >= _REFRESH_S:
            self._drawn = now
            self._live.update(self.frame(), refresh=True)

    def frame(self, finished: bool = False) -> Group:
        """What the terminal shows now."""
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(
            Text(self._title, style="bold"),
            Text(f"{moment(self._stream_clock)}   {self._totals.events:,} events   ${self._totals.cost_usd:,.2f}"),
        )
        parts: list[object] = [head]
        if not finished and self._done >= 0:
            bar = Table.grid(expand=True)  # a bare bar does not end its line
            bar.add_row(ProgressBar(total=1.0, completed=self._done))
            parts.append(bar)
        parts += [
            Panel(self._incidents(), title="open incidents", title_align="left", border_style="red"),
            Panel(
                self._happenings(),
                title="what happened",
                title_align="left",
                border_style="blue",
            ),
            Panel(self._spenders(), title="who burns how much", title_align="left", border_style="cyan"),
        ]
        return Group(*parts)  # type: ignore[arg-type]

    def _incidents(self) -> Table | Text:
        if not self._open:
            return Text("none", style="green")
        table = Table(box=None, expand=True, pad_edge=False)
        for name in ("severity", "since", "spent", "what"):
            table.add_column(name, no_wrap=name != "what", ratio=1 if name == "what" else None)
        for incident in list(self._open.values())[-6:]:
            table.add_row(
                Text(incident.severity, style=_COLOUR[incident.severity]),
                moment(incident.opened_ts)[11:],
                f"${incident.cost_usd:,.2f}",
                Text(clean(incident.title)),
            )
        return table

    def _happenings(self) -> Table | Text:
        if not self._log:
            return Text("nothing yet", style="dim")
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for line in self._log:
            table.add_row(*line)
        return table

    def _spenders(self) -> Table:
        table = Table(box=None, expand=True, pad_edge=False)
        for name in ("agent", "dollars", "effective tokens", "", "baseline"):
            numeric = name in ("dollars", "effective tokens")
            table.add_column(name, justify="right" if numeric else "left", ratio=1 if not name else None)
        top = sorted(self._totals.spend.items(), key=lambda entry: entry[1], reverse=True)[:6]
        most = max((spend[1][1] for spend in top), default=1.0) or 1.0
        for agent, (dollars, tokens) in top:
            bar = ProgressBar(total=1.0, completed=tokens / most, width=30, finished_style="bar.complete")
            state = self._totals.baselines.get(agent, "")
            known = Text(state, style="" if state == READINESS[-1] else "yellow")
            table.add_row(Text(clean(agent)), f"{dollars:,.2f}", f"{tokens:,.0f}", bar, known)
        return table
