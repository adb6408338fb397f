"""What fuzzing found once, and good inputs and their neighbours, through every target; without the fuzzer."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.mutate import mutated
from fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parents[2] / "fuzz" / "corpus"
KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_stays_mended(path: Path) -> None:
    TARGETS[path.parent.name].check(path.read_bytes())


def test_the_corpus_stays_small() -> None:
    assert KEPT
    assert sum(path.stat().st_size for path in KEPT) < 200_000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_and_their_neighbours_pass(name: str) -> None:
    target, rng = TARGETS[name], random.Random(name)
    for seed in target.seeds():
        target.check(seed)
        for _ in range(10):
            cut = rng.randrange(len(seed) + 1)
            target.check(seed[:cut] + rng.randbytes(3) + seed[cut + rng.randrange(4) :])
            if target.shape != "text" and (changed := mutated(seed, target.shape, rng)) is not None:
                target.check(changed)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_no_target_grows(name: str) -> None:
    # The fuzzer cannot tell: its own bookkeeping grows.
    target, rng = TARGETS[name], random.Random(name)
    seeds = list(target.seeds())
    inputs = [(target.shape != "text" and mutated(rng.choice(seeds), target.shape, rng)) or b"" for _ in range(50)]
    held = []
    for _ in range(8):
        for data in seeds + inputs:
            target.check(data)
        gc.collect()
        held.append(sys.getallocatedblocks())
    # Caches fill at first, and Python keeps freed objects in hand: what grows keeps something of each input.
    assert held[-1] - held[1] < len(inputs) * len(held[2:])


def test_a_changed_input_is_still_read() -> None:
    rng = random.Random(1)
    changed = [mutated(b'{"a":[1,2,{"b":"c"}]}', "json", rng) for _ in range(100)]
    assert all(changed)
    assert len(set(changed)) > 50
    assert mutated(b"\xff{", "json", rng) is None


def test_an_unknown_target_is_told() -> None:
    command = [sys.executable, "-m", "fuzz", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CORPUS.parents[1], check=False)
    assert done.returncode == 2
    assert "there is no target nothing; known: native" in done.stderr
