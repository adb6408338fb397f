"""Fuzzes one target after the other: `make fuzz SECONDS=600`.

What is found lies in `.cache/fuzz/TARGET/found`. It goes into `fuzz/corpus/TARGET`, under a name that says what
is wrong with it: then `tests/fuzz` fails until the cause is mended.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence

from fuzz.targets import TARGETS

ROUND_S = 60
"""A process's time. Atheris 3.0 keeps the result of each comparison in watched code for ever: arrays, in numpy's case,
which are hundreds of megabytes after a minute. The next process goes on with the inputs that this one kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if something was found."""
    epilog = "example: python -m fuzz native packed --seconds 60"
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__, epilog=epilog)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}; known: {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is missing: pip install -e '.[fuzz]' (there are wheels for Linux)")
    failed = []
    for name in options.targets or list(TARGETS):
        for left in range(options.seconds, 0, -ROUND_S):
            print(f"== {name}, {left} s left", flush=True)
            # A process each: the fuzzer ends its own.
            command = [sys.executable, "-m", "fuzz.one", name, str(min(left, ROUND_S))]
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
                break
    print(f"found something: {', '.join(failed)}" if failed else "found nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
