"""Columns, and the packed records that carry them between the stages."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import encode, good

from stream.clock import ManualClock
from stream.columns import TEXTS, Columns, Packed, Words
from stream.errors import PackedRecordError
from stream.ingest.ingest import Record
from stream.numeric import BOUNDS, MAX_PARTITIONS, NUMBERS
from stream.pipeline import make_ingest
from stream.settings import default_settings


def numbers(n: int, seed: int) -> dict[str, Any]:
    """n values per column, any within its bounds, and the bounds themselves."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for name, dtype in NUMBERS.items():
        if dtype.kind == "b":
            made[name] = rng.random(n) < 0.5
        elif dtype.kind == "f":
            made[name] = rng.uniform(*BOUNDS[name], n).astype(dtype)
        else:
            low, high = BOUNDS.get(name, (np.iinfo(dtype).min, np.iinfo(dtype).max))
            made[name] = rng.integers(int(low), int(high), n, dtype, endpoint=True)
        if n and name in BOUNDS:
            made[name][rng.integers(n)] = BOUNDS[name][int(rng.integers(2))]
    return made


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    n = draw(st.integers(0, 8))
    texts = {name: draw(st.lists(st.text(max_size=9), min_size=n, max_size=n)) for name in TEXTS}
    return Columns(texts, numbers(n, draw(st.integers(0, 2**32))))


PACKED = st.builds(
    Packed,
    columns(),
    st.dictionaries(st.integers(0, MAX_PARTITIONS - 1), st.integers(-1, 2**63 - 1)),
    st.integers(0, MAX_PARTITIONS),
)


def same(one: Columns, other: Columns) -> bool:
    return one.texts == other.texts and all(
        one.numbers[name].dtype == dtype == other.numbers[name].dtype
        and one.numbers[name].tobytes() == other.numbers[name].tobytes()
        for name, dtype in NUMBERS.items()
    )


SAMPLE = Packed(
    make_ingest(default_settings(), lambda _, line: str(line), ManualClock(2e9), None).columns(
        [Record(line, 0, i) for i, line in enumerate(encode(good()))]
    )[0],
    {0: 17, 3: -1},
    4,
)
ENCODED = SAMPLE.encode()


@given(PACKED)
def test_a_packed_record_comes_back_as_it_was(packed: Packed) -> None:
    back = Packed.decode(packed.encode())
    assert same(back.columns, packed.columns)
    assert (back.progress, back.partitions) == (packed.progress, packed.partitions)
    assert back.encode() == packed.encode()


def test_the_real_thing_comes_back_and_may_be_written_to() -> None:
    back = Packed.decode(ENCODED)
    assert same(back.columns, SAMPLE.columns)
    assert len(back.columns) == 82
    back.columns.numbers["ts"].sort()


def test_no_events_are_a_record_too() -> None:
    back = Packed.decode(Packed(Columns.empty(), {1: 5}, 2).encode())
    assert len(back.columns) == 0
    assert back.progress == {1: 5}


def fields() -> list[Any]:
    """The parts of the record: version, progress, partitions, texts, numbers."""
    parts: list[Any] = msgspec.msgpack.decode(ENCODED)
    return parts


def changed(at: int, value: Any) -> bytes:
    parts = fields()
    parts[at] = value
    return msgspec.msgpack.encode(parts)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "damaged"),
        (b"{}", "damaged"),
        (b"\xc1", "damaged"),
        (ENCODED[:-1], "damaged"),
        (ENCODED + b"\0", "damaged"),
        (msgspec.msgpack.encode(fields()[:-1]), "damaged"),
        (changed(0, 5), "format 5, this worker reads 6; run the same version of burnfuse on all workers"),
        (changed(0, "1"), "damaged"),
        (changed(1, {"a": 1}), "damaged"),
        (changed(3, fields()[3][:-1]), "damaged"),
        (changed(3, [b"", b""]), "differ in length"),
        (changed(3, [fields()[3][0] + bytes(4), fields()[3][1]]), "differ in length"),
        (changed(3, [fields()[3][0], b"one word" + fields()[3][1]]), "cut short"),
        (changed(3, [fields()[3][0], b"one too many" + fields()[3][1]]), "cut short"),
        (changed(3, [fields()[3][0][:-1], fields()[3][1]]), "cut short"),
        (changed(4, fields()[4][:-1]), "columns are missing"),
        (changed(4, [fields()[4][0][:-1], *fields()[4][1:]]), "columns are missing"),
        (changed(4, [fields()[4][0][:-8], *fields()[4][1:]]), "cut short"),
        (changed(4, [*fields()[4][:-1], fields()[4][-1][:-3]]), "differ in length"),
        (changed(4, [None, *fields()[4][1:]]), "damaged"),
    ],
)
def test_damage_is_told(value: bytes, says: str) -> None:
    with pytest.raises(PackedRecordError, match=says):
        Packed.decode(value)


@given(st.binary(min_size=1, max_size=300))
@settings(max_examples=200)
def test_noise_is_damage_and_nothing_else(noise: bytes) -> None:
    for value in (noise, ENCODED[:7] + noise, noise + ENCODED):
        with pytest.raises(PackedRecordError):
            Packed.decode(value)


@pytest.mark.parametrize("seed", range(10))
def test_flipped_bits_are_damage_or_other_values_but_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        value = bytearray(ENCODED)
        for _ in range(rng.randint(1, 4)):
            value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        try:
            back = Packed.decode(bytes(value))
        except PackedRecordError:
            continue
        assert {len(column) for column in back.columns.texts.values()} == {len(back.columns)}
        assert {len(column) for column in back.columns.numbers.values()} == {len(back.columns)}


@given(columns(), st.data())
def test_pieces_joined_are_the_whole(whole: Columns, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole)))
    assert same(Columns.join([whole.cut(0, at), whole.cut(at, len(whole))]), whole)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole))), bool)
    assert same(whole.take(chosen), whole.take(np.flatnonzero(chosen)))
    assert len(whole.take(chosen)) == chosen.sum()
    assert same(Columns.join([]), Columns.empty())


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_number_out_of_bounds_is_a_damaged_record(name: str, side: int) -> None:
    beyond = BOUNDS[name][side] + (-1, 1)[side]
    dtype = NUMBERS[name]
    if dtype.kind != "f" and not np.iinfo(dtype).min <= beyond <= np.iinfo(dtype).max:
        return  # its type cannot hold it
    packed = Packed.decode(ENCODED)
    packed.columns.numbers[name][7] = beyond
    with pytest.raises(PackedRecordError, match=f"{name} is out of bounds"):
        Packed.decode(packed.encode())


def test_a_time_that_is_no_number_is_a_damaged_record() -> None:
    packed = Packed.decode(ENCODED)
    packed.columns.numbers["ts"][7] = np.nan
    with pytest.raises(PackedRecordError, match="ts is out of bounds"):
        Packed.decode(packed.encode())


def test_more_partitions_than_a_topic_can_have_are_a_damaged_record() -> None:
    # Whoever merges asks for the progress of each of them.
    with pytest.raises(PackedRecordError, match="damaged"):
        Packed.decode(Packed(Columns.empty(), {}, 10**12).encode())


ODD = st.text(st.sampled_from("ab\0é日😀\udc80"), max_size=20)


@given(st.lists(st.text(max_size=20) | ODD), st.data())
def test_texts_in_one_piece_are_the_texts(texts: list[str], data: st.DataObject) -> None:
    words = Words.of(texts)
    assert words.tolist() == list(words) == texts
    at = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9) if texts else st.just([])), np.int64)
    assert words.take(at).tolist() == [texts[i] for i in at]
    assert Words.join([words, words.take(at)]).tolist() == [*texts, *(texts[i] for i in at)]
    assert Words.decode(*words.encode()).tolist() == texts
    assert words[1:].tolist() == texts[1:]


@given(columns(), columns(), st.randoms())
def test_events_of_several_pieces_can_be_sent(one: Columns, other: Columns, rng: random.Random) -> None:
    index = np.array(rng.sample(range(len(one) + len(other)), len(one) + len(other)), np.int64)
    mixed = Columns.join([one, other]).take(index)
    texts = [a + b for a, b in zip(one.texts.values(), other.texts.values(), strict=True)]
    assert list(mixed.texts.values()) == [[column[i] for i in index] for column in texts]
    assert same(Packed.decode(Packed(mixed, {}, 1).encode()).columns, mixed)


@given(st.lists(st.text(max_size=9) | ODD, min_size=1, max_size=20), st.data())
def test_a_text_is_found_where_it_first_stands(texts: list[str], data: st.DataObject) -> None:
    n = len(texts)
    whole = Columns(dict.fromkeys(TEXTS, texts), numbers(n, 1))
    order = np.array(data.draw(st.permutations(range(n))), np.int64)
    taken = Columns.join([whole.take(order[: n // 2]), whole.take(order[n // 2 :])])
    column = taken.text("tool")
    held = list(column)
    assert [column.place(text) for text in held] == [held.index(text) for text in held]
    with pytest.raises(ValueError, match="not in list"):
        column.place("nobody says as much as this")
