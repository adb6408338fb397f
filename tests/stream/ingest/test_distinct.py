"""Columns of few different values."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.ingest.distinct import Distinct

VALUES = st.none() | st.sampled_from(["", "a", "b"])


@given(st.lists(st.tuples(VALUES, VALUES, VALUES)), st.data())
def test_rows_have_the_answers_of_their_values(rows: list[tuple[str | None, ...]], data: st.DataObject) -> None:
    columns = [Distinct.of([row[i] for row in rows]) for i in range(3)]
    together = Distinct.together(*columns)
    assert columns[0].each(str, object).tolist() == [str(row[0]) for row in rows]
    assert together.each(str, object).tolist() == [str(row) for row in rows]
    assert sorted(map(str, together.values)) == sorted(map(str, set(rows)))
    at = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else [], np.int64)
    assert columns[0].take(at).each(str, object).tolist() == [str(rows[i][0]) for i in at]
