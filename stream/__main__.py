"""Entry point: `burnfuse`, or `python -m stream`."""

from __future__ import annotations

import os
import sys

from stream.errors import BurnfuseError


def run() -> None:
    """Runs the command line; errors of ours become one clear line and an exit code."""
    try:
        from stream.cli import app
    except ModuleNotFoundError as error:
        # An agent's process installs the light base only, and gets the command all the same.
        sys.stderr.write(f"burnfuse: {error.name} is not installed: pip install 'burnfuse[server]'\n")
        sys.exit(2)
    try:
        try:
            app(prog_name="burnfuse")
        finally:
            sys.stdout.flush()
    except BurnfuseError as error:
        sys.stderr.write(f"burnfuse: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone, e.g. `burnfuse watch ... | head`. Python would complain again
        # when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer calls that a failure
            sys.exit(0)
        raise


def end_at_once() -> None:
    """Ends a process that could not end by itself; what it had not acknowledged comes again."""
    os._exit(1)


if __name__ == "__main__":
    run()
