"""Hashes: equal for what is equal, told apart by everything else, never zero, never an error."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.ingest.hashing import Hasher

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
    assert keyed.id("agent", "a") != HASHER.id("agent", "a")
    assert Hasher(b"k" * 64).id("a")


def test_ids_are_told_apart_by_what_they_name() -> None:
    names = [("agent", "a"), ("round", "a"), ("agent", "b"), ("agent", "a", "b"), ("agenta",), (None, "a")]
    assert len({HASHER.id(*name) for name in names}) == len(names)
    assert HASHER.id("agent", "") == HASHER.id("agent", None) == 0


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
