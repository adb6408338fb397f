"""Online anomaly models of river, named in the configuration."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from river import base, compose


class Farthest(base.AnomalyDetector):
    """The largest distance of any feature: what a model must beat to earn its place.

    It learns nothing; for features that are distances from the usual already.
    """

    def learn_one(self, x: dict[Any, Any]) -> None:
        """Nothing to learn."""

    def score_one(self, x: dict[Any, Any]) -> float:
        """The largest absolute value."""
        return max(map(abs, x.values()), default=0.0)


_PLACES = ("river.", f"{__name__}.")


def resolve(path: str) -> type[Any]:
    """The class that a dotted path names, of river or of this module.

    Raises:
        ValueError: it names none.
    """
    module, _, name = path.rpartition(".")
    if not path.startswith(_PLACES):
        raise ValueError(f"{path!r} is no dotted path into river, such as river.anomaly.HalfSpaceTrees")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no {path!r}") from error
    if not inspect.isclass(found):
        raise ValueError(f"{path!r} is not a class")
    made: type[Any] = found
    return made


class Model:
    """A pipeline of river over vectors; an estimator that scores one value has a copy per feature.

    Args:
        steps: Dotted paths of transformers.
        estimator: Dotted path of an estimator of `river.anomaly`.

    Raises:
        ValueError: these do not make a model.
    """

    def __init__(
        self, steps: Sequence[str], estimator: str, parameters: Mapping[str, Any], features: Sequence[str]
    ) -> None:
        self._features = tuple(features)
        make = resolve(estimator)
        if not all(callable(getattr(make, name, None)) for name in ("learn_one", "score_one")):
            raise ValueError(f"{estimator!r} is no anomaly estimator: it has no learn_one and score_one")
        # River's scorers of one value ask for it beside the features.
        single = "y" in inspect.signature(make.score_one).parameters
        if single and steps:
            raise ValueError(f"{estimator!r} scores single values and takes no steps before it")
        given = dict(parameters)
        if "seed" in inspect.signature(make).parameters:
            given.setdefault("seed", 1)  # river draws without one, and a restart would score differently
        try:
            estimators = [make(**given) for _ in self._features if single] or [make(**given)]
            before = [resolve(step)() for step in steps]
        except TypeError as error:
            raise ValueError(f"{estimator!r} cannot be made: {error}") from error
        self._singles = estimators if single else []
        self._pipeline = compose.Pipeline(*before, *estimators) if not single else None

    def score(self, values: Sequence[float]) -> float | None:
        """How odd a vector is, on the estimator's own scale; None if it cannot tell.

        NaN is unknown. A scorer of one value leaves it out; the others want every feature every time
        and get 0, which must stand for "as usual".
        """
        if self._pipeline is not None:
            scores = [float(self._pipeline.score_one(self._named(values)))]
        else:
            scores = [
                float(model.score_one({}, value))
                for model, value in zip(self._singles, values, strict=True)
                if not math.isnan(value)
            ]
        scores = [score for score in scores if math.isfinite(score)]
        return max(scores, default=None)

    def learn(self, values: Sequence[float]) -> None:
        """Takes a vector for normal."""
        if self._pipeline is not None:
            self._pipeline.learn_one(self._named(values))
            return
        for model, value in zip(self._singles, values, strict=True):
            if not math.isnan(value):
                model.learn_one({}, value)

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return {name: 0.0 if math.isnan(value) else value for name, value in zip(self._features, values, strict=True)}
