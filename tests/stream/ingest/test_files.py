"""Reading files: folders, order by time, pipes, what is still being written. Damage is in `test_bad_input`."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import UsageError
from stream.ingest.files import Source, find, following, merged
from stream.ingest.ingest import Record
from stream.ingest.reject import Reject

LIMIT = 1 << 20


def values(records: Iterator[Record | Reject | None]) -> list[bytes | None]:
    return [record.value for record in records if isinstance(record, Record)]


def time_of(record: Record) -> float | None:
    """Times are the records themselves."""
    try:
        return float(record.value or b"")
    except ValueError:
        return None


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.ndjson", "sub/c.json", "d.jsonl.gz", "readme.md", "e.log", "sub/.hidden.jsonl"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    return tmp_path


def test_a_folder_stands_for_the_event_files_in_it(folder: Path) -> None:
    names = ["a.ndjson", "b.jsonl", "d.jsonl.gz", "sub/.hidden.jsonl", "sub/c.json"]
    assert [source.path for source in find([str(folder)], LIMIT)] == [str(folder / name) for name in names]


def test_a_file_is_read_whatever_it_is_called_and_in_the_order_given(folder: Path) -> None:
    paths = [str(folder / "e.log"), str(folder / "a.ndjson")]
    assert [source.path for source in find(paths, LIMIT)] == paths
    assert [source.number for source in find(paths, LIMIT)] == [0, 1]


def test_standard_input_stands_alone() -> None:
    assert [source.path for source in find(["-"], LIMIT)] == ["-"]
    with pytest.raises(UsageError, match="cannot be combined"):
        find(["-", "a.jsonl"], LIMIT)


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\n1\n\n \n2\r\n3")
    records = list(Source(4, str(tmp_path / "f"), LIMIT).records())
    assert [(r.source, r.position, r.value) for r in records if isinstance(r, Record)] == [
        (4, 2, b"1"),
        (4, 5, b"2\r"),
        (4, 6, b"3"),
    ]


@pytest.mark.parametrize("size", [9, 10, 11, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_long_line_is_passed_over_without_being_held(tmp_path: Path, size: int) -> None:
    limit = 1 << 20
    (tmp_path / "f").write_bytes(b"1\n" + b"x" * size + b"\n2\n" + b"y" * size)
    records = [r for r in Source(0, str(tmp_path / "f"), limit).records() if isinstance(r, Record)]
    assert [r.position for r in records] == [1, 2, 3, 4]
    for record in records[1::2]:
        assert len(record.value or b"") == size or (record.value is None and record.size == size > limit)


def test_progress_reaches_the_size_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f.gz"
    file.write_bytes(gzip.compress(b"1\n" * 1000))
    source = Source(0, str(file), LIMIT)
    assert source.bytes_read == 0
    assert len(values(source.records())) == 1000
    assert source.bytes_read == source.size() == file.stat().st_size


@given(st.lists(st.lists(st.integers(0, 50) | st.just("no time"), max_size=6), min_size=1, max_size=5), st.booleans())
def test_files_are_interleaved_by_time_and_keep_their_own_order(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[int | str]], squeeze: bool
) -> None:
    folder = tmp_path_factory.mktemp("merged")
    for number, content in enumerate(contents):
        data = "".join(f"{value}\n" for value in content).encode()
        (folder / f"{number}.jsonl").write_bytes(gzip.compress(data) if squeeze else data)
    sources = find([str(folder)], LIMIT)
    records = [r for r in merged(sources, time_of) if isinstance(r, Record)]
    for number, content in enumerate(contents):
        assert [(r.value or b"").decode() for r in records if r.source == number] == [str(v) for v in content]
    if all(content == sorted(v for v in content if isinstance(v, int)) for content in contents if content):
        times = [time_of(r) for r in records]
        assert times == sorted(t for t in times if t is not None)


def test_of_equal_times_the_first_file_comes_first(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(b"1\n2\n")
    records = [r for r in merged(find([str(tmp_path)], LIMIT), time_of) if isinstance(r, Record)]
    assert [(r.value, r.source) for r in records] == [(b"1", 0), (b"1", 1), (b"2", 0), (b"2", 1)]


def test_a_thousand_files_are_not_open_at_once(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:04}.jsonl").write_text(f"{number}\n{number}\n")
    descriptors = Path("/proc/self/fd")
    before, most = len(list(descriptors.iterdir())), 0
    for _ in merged(find([str(tmp_path)], LIMIT), time_of):
        most = max(most, len(list(descriptors.iterdir())) - before)
    assert most < 10


def test_pipes_are_read_to_their_end(tmp_path: Path) -> None:
    # A pipe can be read only once: nothing of it may be used up by looking when it begins.
    lines = b"".join(b"%d\n" % i for i in range(20_000))
    for name in "ab":
        os.mkfifo(tmp_path / name)
        threading.Thread(target=(tmp_path / name).write_bytes, args=[lines], daemon=True).start()
    records = list(merged(find([str(tmp_path / "a"), str(tmp_path / "b")], LIMIT), time_of))
    assert not [r for r in records if isinstance(r, Reject)]
    assert len(records) == 40_000


def test_what_is_added_to_a_followed_file_is_read(tmp_path: Path) -> None:
    file, empty = tmp_path / "f", tmp_path / "empty"
    file.write_bytes(b"1\n2\nhal")
    empty.write_bytes(b"")
    records = following(find([str(file), str(empty)], LIMIT))

    def until_idle() -> list[bytes | None]:
        return [r.value if isinstance(r, Record) else None for r in iter(lambda: next(records), None)]

    assert until_idle() == [b"1", b"2"]
    with file.open("ab") as more, empty.open("ab") as other:
        more.write(b"f\n3\n")
        more.flush()
        other.write(b"[4]\n")
        other.flush()
        assert until_idle() == [b"half", b"3", b"[4]"]
    assert until_idle() == []
    records.close()


def test_a_followed_file_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1\n")
    records = following(find([str(tmp_path / "gone"), str(tmp_path / "f")], LIMIT))
    first, second, third = islice(records, 3)
    assert isinstance(first, Reject)
    assert isinstance(second, Record)
    assert third is None


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), min_size=1), min_size=1), st.integers(0, 4))
def test_an_array_is_read_like_lines(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, object]], indent: int
) -> None:
    file = tmp_path_factory.mktemp("array") / "f.json"
    file.write_text(json.dumps(items, indent=indent or None))
    read = values(Source(0, str(file), LIMIT).records())
    decoded = [json.loads(value or b"") for value in read]
    assert decoded == (items if indent else [items])
