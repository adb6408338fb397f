"""Hashes: equal for what is equal, told apart by everything else, never zero, never an error."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.ingest.hashing import Hasher, join

HASHER = Hasher()


def content(text: str | bytes, ready_made: str | None = None, hasher: Hasher = HASHER) -> str | None:
    return hasher.content(msgspec.Raw(text if isinstance(text, bytes) else text.encode()), ready_made)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ('{"a": {"x": 1, "y": 2}}', '{"a": {"y": 2, "x": 1}}', True),
        ('{"a": 1}', r'"{\"a\": 1}"', True),
        ("[1, 2]", '" [1,2] "', True),
        ('"é"', r'"\u00e9"', True),
        ('"text"', '" text\\n"', True),
        ("1", "1.0", False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": 1}', '{"a": 2}', False),
        ("[1, 2]", "[2, 1]", False),
        ('""', "[]", False),
        ("true", '"true"', False),
        ("1e999", "1e998", False),
        (b'"caf\xe9"', b'"caf\xe8"', False),
        ("1" + "0" * 5000, "1" + "0" * 5001, False),
        ('"{not JSON"', '"{no JSON"', False),
    ],
)
def test_what_is_the_same_content(one: str | bytes, other: str | bytes, equal: bool) -> None:
    assert (content(one) == content(other)) is equal


@pytest.mark.parametrize("nothing", ["", "null"])
def test_what_was_not_observed_has_no_hash_but_the_producers_own(nothing: str) -> None:
    assert content(nothing) is None
    assert content(nothing, "") is None
    assert content(nothing, "abc") == "abc"
    assert content('"seen"', "abc") == content('"seen"')


def test_a_key_changes_every_hash() -> None:
    keyed = Hasher(b"key")
    assert content("1", hasher=keyed) != content("1")
    assert keyed.texts("agent", ["a"])[0] != HASHER.texts("agent", ["a"])[0]
    assert Hasher(b"k" * 64).texts("", ["a"])[0]


def test_ids_are_told_apart_by_what_they_name() -> None:
    names = [("agent", "a"), ("round", "a"), ("agent", "b"), ("agent", "ab"), ("agenta", "b"), ("", "a")]
    assert len({int(HASHER.texts(kind, [name])[0]) for kind, name in names}) == len(names)
    assert HASHER.texts("agent", [""])[0] == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_the_order_of_keys_and_white_space_do_not_count(value: object) -> None:
    def backwards(node: object) -> object:
        if isinstance(node, dict):
            return {key: backwards(node[key]) for key in reversed(node)}
        return [backwards(item) for item in node] if isinstance(node, list) else node

    assert content(json.dumps(value)) == content(json.dumps(backwards(value), indent=3))


@given(st.binary(min_size=1, max_size=50))
def test_any_bytes_have_a_hash(data: bytes) -> None:
    assert (content(data) is None) == (data == b"null")


# --------------------------------------------------------------------------------------- many at once


@given(st.lists(st.text(max_size=40)))
def test_a_texts_hash_does_not_depend_on_its_company(texts: list[str]) -> None:
    alone = [Hasher(b"key").texts("agent", [text])[0] for text in texts]
    assert Hasher(b"key").texts("agent", texts).tolist() == alone
    assert [value == 0 for value in alone] == [text == "" for text in texts]


@given(st.sets(st.text(max_size=20), min_size=1))
def test_different_texts_have_different_hashes(texts: set[str]) -> None:
    assert len(set(Hasher().texts("agent", list(texts)).tolist())) == len(texts)


def test_names_that_differ_in_a_digit_are_well_spread() -> None:
    hashes = Hasher(b"key").texts("agent", [f"agent-{i:07d}" for i in range(200_000)])
    assert len(np.unique(hashes)) == 200_000
    share = np.unpackbits(hashes.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert abs(share - 0.5).max() < 0.01


def test_kind_and_key_change_a_hash_and_long_names_have_one() -> None:
    texts = ["a", "a\0", "ä" * 512, "x" * 10_000]
    one, other, keyed = (
        Hasher().texts("agent", texts),
        Hasher().texts("run", texts),
        Hasher(b"k").texts("agent", texts),
    )
    assert len({*one.tolist(), *other.tolist(), *keyed.tolist()}) == 12


def test_pairs_are_told_apart_by_either_part_and_by_their_order() -> None:
    a, b = Hasher().texts("run", ["a", "b"])
    pairs = join(np.array([a, a, b, b, a]), np.array([a, b, a, b, 0], np.uint64))
    assert len(set(pairs[:4].tolist())) == 4
    assert pairs[4] == 0
