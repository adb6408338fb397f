"""Runs the configured actions for every change of an incident."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from stream.actions.base import Action, Failed, Outcome, Remembering, Retry, Tools, registered
from stream.incidents import Incident
from stream.settings import Settings

log = logging.getLogger(__name__)

_TRIES = 5


class Runner:
    """All enabled actions, isolated from each other: one that fails does not hold up the others."""

    def __init__(
        self, settings: Settings, tools: Tools, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._sleep = sleep
        self._actions: list[Action] = []
        for name, cls in registered().items():
            config = getattr(settings.actions, name)
            if config.enabled:
                self._actions.append(cls(config, tools))

    def __bool__(self) -> bool:
        """Whether there is any action."""
        return bool(self._actions)

    def remembered(self, incident_id: str) -> dict[str, bytes]:
        """What each action that must remember knows of an incident, to be saved."""
        return {action.name: action.remembered(incident_id) for action in self._remembering()}

    def remember(self, name: str, incident_id: str, saved: bytes) -> None:
        """Takes what was saved of an action; one that is not enabled has no use for it."""
        for action in self._remembering():
            if action.name == name:
                action.remember(incident_id, saved)

    def _remembering(self) -> Iterator[Any]:
        return (action for action in self._actions if isinstance(action, Remembering))

    async def act(self, incident: Incident, *, again: bool = False) -> list[Outcome]:
        """Takes every action on an incident; what fails for good is logged.

        Args:
            again: It may have been done before, by a process that is gone.
        """
        if not self._actions:
            return []
        if again:
            for action in self._remembering():
                action.doubt(incident.id)
        return await asyncio.gather(*(self._take(action, incident) for action in self._actions))

    async def _take(self, action: Action, incident: Incident) -> Outcome:
        outcome: Outcome = Failed("not tried")
        for attempt in range(1, _TRIES + 1):
            try:
                outcome = await action.execute(incident)
            except Exception as error:
                log.exception("action %s failed on incident %s", action.name, incident.id)
                return Failed(f"{type(error).__name__}")
            if not isinstance(outcome, Retry) or attempt == _TRIES:
                break
            log.warning("action %s on incident %s: %s; trying again", action.name, incident.id, outcome.reason)
            await self._sleep(outcome.after_s)
        if isinstance(outcome, Retry | Failed):
            log.error("action %s gave up on incident %s: %s", action.name, incident.id, outcome.reason)
        return outcome

    async def close(self) -> None:
        """Closes all actions."""
        await asyncio.gather(*(action.close() for action in self._actions))
