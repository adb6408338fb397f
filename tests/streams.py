"""Small streams that set off every detector, and ways to send them through the pipeline and the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from detectors.types import Finding
from stream.__main__ import run
from stream.clock import ManualClock
from stream.incidents import Change
from stream.ingest.ingest import Record
from stream.ingest.reject import Reject
from stream.pipeline import Pipeline, Totals
from stream.settings import Settings, default_settings

Event = dict[str, Any]

START = 1_750_000_000.0
"""2025-06-15T15:06:40Z"""
DEFAULTS = default_settings()
BURNFUSE = str(Path(sys.executable).with_name("burnfuse"))


def event(at: float = 0.0, **fields: Any) -> Event:
    """A healthy event `at` seconds after START."""
    return {"agent_id": "calm", "ts": START + at, "kind": "llm", "input_tokens": 10} | fields


def loop(n: int = 12, at: float = 0.0, agent: str = "looper") -> list[Event]:
    """The same call with the same result, every 2 s: a warning at the 3rd, critical at the 6th."""
    call = {"agent_id": agent, "kind": "tool", "tool": "read", "args": {"path": "a"}, "result": "no such file"}
    return [event(at + 2.0 * i, event_id=f"{agent}-{at:.0f}-{i}", **call) for i in range(n)]


def good() -> list[Event]:
    """A loop, a chain of agents that start agents, and a runaway; then quiet until all incidents are resolved."""
    events = loop()
    for level in range(10):
        run = "task" if not level else f"task-{level}"
        spawn = {"agent_id": f"boss-{level}", "kind": "spawn", "root_run_id": "task", "run_id": run}
        events.append(event(30.0 + level, event_id=f"s{level}", to_run_id=f"task-{level + 1}", **spawn))
    for i in range(30):
        events.append(event(60.0 + 5 * i, event_id=f"b{i}", agent_id="burner", input_tokens=2_000_000))
    for i in range(30):
        events.append(event(60.0 * i, event_id=f"q{i}"))
    return sorted(events, key=lambda e: float(e["ts"]))


def encode(events: Iterable[Event]) -> list[bytes]:
    """One JSON text per event."""
    return [json.dumps(e).encode() for e in events]


def text(events: Iterable[Event]) -> bytes:
    """JSON lines."""
    return b"".join(line + b"\n" for line in encode(events))


class Seen(NamedTuple):
    """What a stream came to."""

    happened: list[Finding | Change]
    rejects: list[Reject]
    totals: Totals

    @property
    def reasons(self) -> list[str]:
        return [str(reject.reason) for reject in self.rejects]


def process(values: Iterable[bytes | None], settings: Settings | None = None, batch: int = 50) -> Seen:
    """Records through the whole pipeline, in batches; the wall clock stands a day after the stream."""
    pipeline = Pipeline(settings or DEFAULTS, clock=ManualClock(START + 86400), name_of=lambda _, line: f"test:{line}")
    records = [Record(value, 0, i + 1) for i, value in enumerate(values)]
    happened: list[Finding | Change] = []
    rejects: list[Reject] = []
    for low in range(0, len(records), batch):
        step = pipeline.process(records[low : low + batch])
        happened += step.happened
        rejects += step.rejects
    return Seen(happened, rejects, pipeline.totals)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output, which must be JSON lines and nothing else."""
        return [json.loads(line) for line in self.out.splitlines()]

    def only(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind]

    @property
    def summary(self) -> dict[str, Any]:
        """The last line, without what differs from run to run."""
        assert [line["type"] for line in self.lines].count("summary") == 1
        last = self.lines[-1]
        assert last["type"] == "summary"
        return {name: value for name, value in last.items() if name != "wall_s"}


def command(*arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> Done:
    """`burnfuse ARGUMENTS` within this process, which is quick; nothing of its environment is ours."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BURNFUSE_")}
    with (
        mock.patch.object(sys, "argv", ["burnfuse", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        mock.patch.dict(os.environ, clean | {"COLUMNS": "200", "TERM": "dumb"} | dict(environment or {}), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run()
        except SystemExit as leaving:
            code = leaving.code
    return Done(int(code or 0), out.getvalue(), err.getvalue())


def process_of(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """`burnfuse ARGUMENTS` as a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BURNFUSE_", "PYTHON"))}
    # A shell that runs the tests in the background ignores Ctrl-C for all of them; our process should not.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([BURNFUSE, *map(str, arguments)], env=environment, preexec_fn=heed, **options)


def finished(*arguments: str | Path, stdin: bytes = b"") -> Done:
    """`burnfuse ARGUMENTS` as a process of its own, until it ends."""
    pipe = subprocess.PIPE
    with process_of(*arguments, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        out, err = process.communicate(stdin, timeout=60)
    return Done(process.returncode, out.decode(), err.decode())
