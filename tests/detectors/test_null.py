"""The detector that never fires."""

from __future__ import annotations

import numpy as np
from batches import batch_of

from detectors.base import DetectorConfig
from detectors.checks import mixed
from detectors.null import Null


def test_it_finds_nothing_where_much_goes_wrong() -> None:
    assert list(Null(DetectorConfig()).update(batch_of(mixed(1)))) == []


def test_it_keeps_nothing() -> None:
    null = Null(DetectorConfig())
    blank = null.dump(np.arange(10))
    null.update(batch_of(mixed(1)))
    assert null.dump(np.arange(10)) == blank
