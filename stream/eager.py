"""Coroutines begun at once, without a task: most of those that hand something over never have to wait."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """A coroutine that has been run until it ended or had to wait; whoever awaits this goes on with it.

    Like a task begun eagerly, which Python has from 3.12 on, but for the task: where the coroutine ends at once, the
    event loop did not turn.

    Attributes:
        done: It has ended; to await it takes no turn of the loop.

    Raises:
        Exception: what the coroutine raised.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine, self._result, self.done = coroutine, None, False
        self._waits_for = self._step(coroutine.send, None)

    def _step(self, go_on: Any, given: Any) -> Any:
        try:
            return go_on(given)
        except StopIteration as ended:
            self.done, self._result = True, ended.value

    def __await__(self) -> Generator[Any, Any, T]:
        while not self.done:
            try:
                given = yield self._waits_for
            except BaseException as error:  # the coroutine's to handle, be it a cancellation
                self._waits_for = self._step(self._coroutine.throw, error)
            else:
                self._waits_for = self._step(self._coroutine.send, given)
        return self._result  # type: ignore[return-value]
