"""A worker whose ingest stage raises at once: python crashing_worker.py CONFIG."""

from __future__ import annotations

import sys

from stream import app, logs, settings
from stream.stages import IngestStage


def explode(*_: object) -> list[object]:
    raise RuntimeError("planted failure")


IngestStage.process = explode  # type: ignore[assignment]
logs.set_up(False)
app.run(settings.load(sys.argv[1]))
