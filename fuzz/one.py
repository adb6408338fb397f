"""Fuzzes one target until its time is up or something is found: `python -m fuzz.one TARGET SECONDS`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

from fuzz.mutate import mutated

# What is imported here is watched: the fuzzer learns which inputs reach new code.
with atheris.instrument_imports(include=["burnfuse", "detectors", "stream", "fuzz.targets"]):
    from fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
WORK = Path(".cache/fuzz")
_LIMITS = ["-timeout=10", "-rss_limit_mb=1500", "-max_len=65536"]
"""An input that takes longer (s), or more memory (MB), is a finding."""


def main(name: str, seconds: str) -> None:
    """Does not return: the fuzzer ends the process."""
    target, folder = TARGETS[name], WORK / name
    for place in ("corpus", "found", "seeds"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.seeds()):
        (folder / "seeds" / f"{i}").write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311  the fuzzer's seed makes it repeatable
        changed = None if target.shape == "text" or rng.random() < 0.3 else mutated(data, target.shape, rng)
        if changed is None or len(changed) > most:
            return bytes(atheris.Mutate(data, most))
        return changed

    kept = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
    options = [*_LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={folder / 'found'}/", "-print_final_stats=1"]
    places = [str(folder / "corpus"), str(folder / "seeds"), *kept]
    atheris.Setup([sys.argv[0], *options, *places], target.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
