"""What every action is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from stream.clock import Clock
from stream.incidents import Incident


class ActionConfig(BaseModel):
    """Settings of one action; off unless switched on."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    enabled: bool = Field(default=False, description="Whether the action is taken.")

    @property
    def least_pause_s(self) -> float:
        """Least time between two calls, s."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Sent:
    """Done."""

    reference: str = ""
    """What the other side calls it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing to do for this incident."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Not done; worth another try."""

    after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Not done, and another try would fail too."""

    reason: str


Outcome = Sent | Skipped | Retry | Failed

Publish = Callable[[str, bytes, bytes], Awaitable[None]]
"""Puts (topic, key, value) on Kafka, or wherever the process that runs the actions says."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What an action may use."""

    publish: Publish
    clock: Clock
    secret: Callable[[str], str | None]
    """Name of a secret -> its value, if it is set."""
    proposals_topic: str = "bf.kill.proposals"
    """Where kill proposals go."""


@runtime_checkable
class Remembering(Protocol):
    """An action that must know later what it has done about an incident, in whichever process."""

    def remembered(self, incident_id: str) -> bytes:
        """What it knows of an incident, to be saved; nothing if empty."""

    def remember(self, incident_id: str, saved: bytes) -> None:
        """Takes what `remembered` gave in another process; what cannot be read is left out."""

    def doubt(self, incident_id: str) -> None:
        """A process that is gone may have acted on the incident, and what it did may not have been saved."""


class Action(Protocol):
    """Something done when an incident opens, escalates, gains findings or is resolved."""

    name: ClassVar[str]
    Config: ClassVar[type[ActionConfig]]

    def __init__(self, config: Any, tools: Tools) -> None: ...

    async def execute(self, incident: Incident) -> Outcome:
        """Acts on the incident as it is now; called again for every change of it."""

    async def close(self) -> None:
        """Releases connections."""


def configured(settings: Any, tools: Tools) -> list[tuple[Action, ActionConfig]]:
    """The actions that are switched on, with their settings.

    Raises:
        ConfigError: one of them lacks what it needs.
    """
    chosen = ((cls, getattr(settings.actions, name)) for name, cls in registered().items())
    return [(cls(config, tools), config) for cls, config in chosen if config.enabled]


_actions: dict[str, type[Action]] = {}
A = TypeVar("A", bound=type[Action])


def register(cls: A) -> A:
    """Class decorator: makes an action known."""
    _actions[cls.name] = cls
    return cls


def registered() -> dict[str, type[Action]]:
    """All actions by name."""
    import stream.actions as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_actions.items()))
