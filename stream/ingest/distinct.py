"""Columns of which few values are different: what is asked of a value is asked once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detectors.types import Ints

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Distinct(Generic[T]):
    """n values.

    Attributes:
        values: The different ones.
        number: (n,) which of them each is.
    """

    values: Sequence[T]
    number: Ints

    @classmethod
    def of(cls, values: Sequence[T]) -> Distinct[T]:
        """Values that can be keys of a dictionary."""
        numbers: defaultdict[T, int] = defaultdict(count().__next__)
        number = np.fromiter([numbers[value] for value in values], np.int64, len(values))
        return cls(list(numbers), number)

    @classmethod
    def together(cls, *columns: Distinct[Any]) -> Distinct[tuple[Any, ...]]:
        """Tuples of the columns' values, row by row."""
        key = columns[0].number
        for column in columns[1:]:
            key = key * len(column.values) + column.number
        keys = Distinct.of(key.tolist())
        values = []
        for code in keys.values:
            parts: list[Any] = []
            for column in reversed(columns):
                code, part = divmod(code, len(column.values))
                parts.append(column.values[part])
            values.append(tuple(reversed(parts)))
        return Distinct(values, keys.number)

    def take(self, index: Ints) -> Distinct[T]:
        """The chosen rows; some values may not come any more."""
        return Distinct(self.values, self.number[index])

    def each(self, ask: Callable[[T], Any], dtype: DTypeLike) -> NDArray[Any]:
        """(n,) answers to a question about each value."""
        return self.all(np.array([ask(value) for value in self.values], dtype))

    def all(self, answers: NDArray[Any]) -> NDArray[Any]:
        """(n, ...) answers by row, from answers by value."""
        return answers[self.number]
