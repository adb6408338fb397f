"""What each task of the event loop waits for: for a worker that stands still (`kill -USR1 PID`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MOST_FRAMES = 30


def waiting_for() -> list[str]:
    """A line per task of the running loop: its name, and where it stands, from the outermost call to the innermost."""
    return sorted(f"{task.get_name()}: {' > '.join(_frames(task.get_coro()))}" for task in asyncio.all_tasks())


def _frames(awaited: Any) -> Iterator[str]:
    # A task's own stack ends at its first await; where it waits is what that awaits, and so on.
    for _ in range(_MOST_FRAMES):
        frame = _of(awaited, "frame")
        if frame is None:
            if awaited is not None:
                yield type(awaited).__name__
            return
        path = Path(frame.f_code.co_filename)
        yield f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
        awaited = _of(awaited, "await") or _of(awaited, "yieldfrom")


def _of(awaited: Any, what: str) -> Any:
    """The same of coroutines, generators and asynchronous generators."""
    return next((found for kind in ("cr", "gi", "ag") if (found := getattr(awaited, f"{kind}_{what}", None))), None)
