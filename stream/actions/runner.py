"""Runs the configured actions for every change of an incident, in turn: for `watch`. The worker has outboxes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from stream.actions.base import Action, Failed, Outcome, Retry, Tools, configured
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
        self._actions: list[Action] = [action for action, _ in configured(settings, tools)]

    async def act(self, incident: Incident) -> list[Outcome]:
        """Takes every action on an incident; what fails for good is logged."""
        if not self._actions:
            return []
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
