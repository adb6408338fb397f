"""One contender as a process: `python -m benchmarks.contenders NAME JOB`, with the job as JSON."""

from __future__ import annotations

import importlib
import sys

import msgspec

from benchmarks.contenders import CONTENDERS, Job
from benchmarks.processes import settle

if __name__ == "__main__":
    name, text = sys.argv[1:]
    job = msgspec.json.decode(text, type=Job)
    settle(job.core, job.parent)
    importlib.import_module(f"benchmarks.contenders.{CONTENDERS[name].module}").run(job)
