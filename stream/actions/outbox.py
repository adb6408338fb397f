"""What an action still has to be told: the newest state of each incident, one call at a time; or every change, in
order, where an action must see them all.

Findings never wait for an action, and nothing grows without bound while one is slow or down: a newer state of an
incident takes the place of the one that waits. When the other side is back, it is told how things are then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from stream.actions.base import Action, Failed, Outcome, Retry, Sent, Skipped
from stream.clock import Clock
from stream.incidents import Change, Incident
from stream.metrics import Metrics

log = logging.getLogger(__name__)

MOST_WAITING = 2000
"""Incidents that may wait for one action; of more, the least urgent one is dropped, counted and logged."""
_FIRST_S, _LONGEST_S = 2.0, 60.0
"""Pauses between tries: each twice the one before, so a Slack that is down for an hour is asked once a minute."""
_REMIND_S = 300.0


class Outbox:
    """Feeds one action.

    Args:
        pause_s: Least time between two calls that did something, s.
        told: Called with an incident's id and the number of its latest change when the action is done with it.
        may: Asked before each call; returns when this process may act.
        sleep: Waits; another one for tests.
    """

    def __init__(
        self,
        action: Action,
        pause_s: float,
        clock: Clock,
        metrics: Metrics,
        told: Callable[[Outbox, str, int], None] | None = None,
        may: Callable[[], Awaitable[None]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        most: int = MOST_WAITING,
    ) -> None:
        self.action, self._action = action, action
        self._pause_s, self._clock, self._metrics, self._on_told = pause_s, clock, metrics, told
        self._numbers: dict[str, int] = {}
        self._every = bool(getattr(action, "every_change", False))
        self._taken = 0
        self._may, self._sleep, self._most = may, sleep, most
        self._waiting: dict[str, Incident] = {}
        """By the incident's id; or by that and a number, where every change counts. What is being told is here too."""
        self._telling: Incident | None = None
        self._turn, self._resting, self._closed = asyncio.Lock(), False, False
        self._urgent: set[str] = set()
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._down_since: float | None = None
        self._told = 0.0

    def put(self, change: Change, number: int = 0) -> None:
        """Takes a change of an incident, and its number; never waits."""
        if self._closed:
            return  # it is told by whoever comes next
        incident = change.incident
        self._numbers[incident.id] = number
        self._taken += 1
        place = f"{incident.id} {self._taken}" if self._every else incident.id
        before = self._waiting.get(place)
        if before is None and incident.state == "resolved" and change.kind != "resolved":
            self._done(incident)
            return  # a late finding of an incident that is over and was told
        if before is not None:
            if before is not self._telling:
                self._count(before, "coalesced")
        elif len(self._waiting) >= self._most:
            self._drop()
        self._waiting[place] = incident
        if change.kind in ("opened", "escalated") and incident.severity == "critical":
            self._urgent.add(incident.id)
        elif incident.state == "resolved":
            self._urgent.discard(incident.id)
        self._changed()
        self._begin()

    def _begin(self) -> None:
        if self._waiting and not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def rest(self, within_s: float) -> None:
        """No more calls until `go_on`: others may be about to act. The call under way may take so long yet; if it
        takes longer, nobody knows what came of it."""
        if self._resting:
            return
        self._resting = True
        try:
            await asyncio.wait_for(self._turn.acquire(), within_s)
        except TimeoutError:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
                self._task = None
            await self._turn.acquire()

    def go_on(self) -> None:
        """This process is to act (again)."""
        if self._resting:
            self._resting = False
            self._turn.release()
        self._begin()

    def clear(self) -> None:
        """Nothing is to be told any more: others do it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._waiting.clear()
        self._urgent.clear()
        self._numbers.clear()
        self._changed()

    def _done(self, incident: Incident) -> None:
        if (
            any(one.id == incident.id for one in self._waiting.values())
            if self._every
            else incident.id in self._waiting
        ):
            return
        number = self._numbers.pop(incident.id, 0)
        if self._on_told is not None and number:
            self._on_told(self, incident.id, number)

    async def close(self, within_s: float) -> None:
        """Waits for what can be told within so long; what is left is logged."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), 0.0 if self._resting else within_s)
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self._waiting:
            log.warning("%d incidents could not be told to %s before the end", len(self._waiting), self._action.name)
        await self._action.close()

    async def _run(self) -> None:
        pause = _FIRST_S
        while True:
            await self._news.wait()
            async with self._turn:
                if self._may is not None:
                    await self._may()
                if not self._waiting:
                    continue
                outcome = await self._next()
            if isinstance(outcome, Retry):
                await self._sleep(max(outcome.after_s, pause))
                pause = min(2 * pause, _LONGEST_S)
                continue
            pause = _FIRST_S
            if isinstance(outcome, Sent) and self._pause_s:
                await self._sleep(self._pause_s)

    async def _next(self) -> Outcome:
        """Tells one incident. What is new and critical goes first, then what has waited longest."""
        chosen = None if self._every else next((name for name in self._waiting if name in self._urgent), None)
        place = chosen or next(iter(self._waiting))
        self._telling = incident = self._waiting[place]
        try:
            outcome = await self._take(incident)
        finally:
            self._telling = None
        newer = self._waiting.get(place) is not incident
        if isinstance(outcome, Retry):
            self._count(incident, "retried")
            if not self._every and not newer:
                self._waiting[place] = self._waiting.pop(place)  # one that never gets through holds up nobody
            self._is_down(outcome.reason)
        else:
            self._ended(incident, outcome)
            if not newer:
                del self._waiting[place]
                self._urgent.discard(incident.id)
                self._done(incident)
        self._changed()
        return outcome

    def _ended(self, incident: Incident, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self._count(incident, "failed")
            log.error("action %s gave up on incident %s: %s", self._action.name, incident.id, outcome.reason)
        else:
            self._count(incident, "sent" if isinstance(outcome, Sent) else "skipped")
        if not isinstance(outcome, Skipped):
            self._is_up()

    async def _take(self, incident: Incident) -> Outcome:
        try:
            return await self._action.execute(incident)
        except Exception as error:
            log.exception("action %s failed on incident %s", self._action.name, incident.id)
            return Failed(type(error).__name__)

    def _drop(self) -> None:
        free = [name for name, incident in self._waiting.items() if incident is not self._telling]
        if not free:
            return
        chosen = next((name for name in free if name not in self._urgent), free[0])
        dropped = self._waiting.pop(chosen)
        self._urgent.discard(chosen)
        self._count(dropped, "dropped")
        self._done(dropped)
        log.error(
            "%d incidents wait for %s: %s is not told (it is on the incidents topic)",
            self._most,
            self._action.name,
            dropped.id,
        )

    def _is_down(self, reason: str) -> None:
        """One line when it begins, and one every few minutes."""
        now, name = self._clock.monotonic(), self._action.name
        if self._down_since is None:
            self._down_since, self._told = now, now
            log.warning("%s: %s; %d incidents wait, trying again", name, reason, len(self._waiting))
        elif now - self._told >= _REMIND_S:
            self._told = now
            for_s = now - self._down_since
            log.warning("%s: %s, for %.0f s now; %d incidents wait", name, reason, for_s, len(self._waiting))

    def _is_up(self) -> None:
        if self._down_since is not None:
            for_s = self._clock.monotonic() - self._down_since
            log.warning(
                "%s answers again after %.0f s; %d incidents wait", self._action.name, for_s, len(self._waiting)
            )
            self._down_since = None

    def _count(self, incident: Incident, outcome: str) -> None:
        self._metrics.action(self._action.name, incident.state, outcome)

    def _changed(self) -> None:
        self._metrics.actions_waiting(self._action.name, len(self._waiting))
        if self._waiting:
            self._idle.clear()
            self._news.set()
        else:
            self._news.clear()
            self._idle.set()
