"""States that earlier versions saved: each is used as it was meant, or refused with a clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import saved_states

from stream.errors import SavedStateError
from stream.state import READ, Saved, origin


def test_the_states_of_these_versions_are_kept() -> None:
    assert saved_states.path_of(saved_states.versions()).exists(), "run python tests/stream/saved_states.py"


def restore(stage: Any, saved: Saved, name: str) -> str:
    """Why the state cannot be used, if so."""
    try:
        for _ in stage.restore(saved, origin(name, 1, None)):
            pass
    except SavedStateError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", sorted(saved_states.FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_state_is_used_as_it_was_meant_or_refused(path: Path) -> None:
    held, stages = saved_states.read(path), saved_states.stages()
    saved_for = {"watch": {"retry_loop", "runaway", "drift"}, "graph": {"spiral"}, "incidents": set()}
    now, refused = saved_states.versions(), False
    for name, stage in stages.items():
        saved = Saved()
        saved.pages = dict(held["states"][name])
        same = held["versions"]["format"] in READ and all(held["versions"][key] == now[key] for key in saved_for[name])
        error = restore(stage, saved, name)
        assert same == (error == ""), f"{name}: raise the version of what has changed ({error})"
        assert same or "run the version" in error
        refused |= not same
    if not refused:
        _, second = saved_states.stream()
        assert saved_states.go_on(stages, second) == held["found"]
        assert held["found"]
