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
        print(f"== {name}", flush=True)
        # A process each: the fuzzer ends its own.
        if subprocess.run([sys.executable, "-m", "fuzz.one", name, str(options.seconds)], check=False).returncode:
            failed.append(name)
    print(f"found something: {', '.join(failed)}" if failed else "found nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
