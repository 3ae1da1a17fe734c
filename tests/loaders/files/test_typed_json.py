"""JSON files against their types: what does not fit is refused with the file's name."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from engine.report import results_file
from loaders.files import typed_json
from loaders.files.typed_json import DamagedFile


class Strict(msgspec.Struct):
    count: int
    at: float
    place: Path = Path()


class Pair(NamedTuple):
    name: str
    size: int


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "state.json"


def test_values_are_read_as_their_type(path):
    path.write_text('{"at": 2, "count": 1, "place": "a/b"}')
    assert typed_json.read_json(path, Strict, "delete it") == Strict(1, 2.0, Path("a/b"))
    path.write_text('[["x", 3]]')
    assert typed_json.read_json(path, list[Pair], "delete it") == [Pair("x", 3)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'"\xff"',
        b'{"at": 2.5}',
        b'{"at": NaN, "count": 1}',
        b'{"at": 2.5, "count": 1, "place": 3}',
        b"[" * 100_000,
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_named_with_the_remedy(path, content):
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"^{path} is damaged \(.+\); delete it$"):
        typed_json.read_json(path, Strict, "delete it")


def test_a_file_of_more_values_than_memory_holds_is_not_decoded(path):
    content = b'{"at": [' + b"[]," * 2_500_000 + b"0]}"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"\(more than 5,000,000 values\); delete it$"):
        typed_json.read_json(path, dict[str, Any], "delete it")
    with pytest.raises(msgspec.DecodeError, match="more than 5,000,000 values"):
        results_file.read_results(content)


def test_a_folder_is_a_damaged_file_and_a_missing_one_is_not(path):
    with pytest.raises(FileNotFoundError):
        typed_json.read_json(path, Strict, "delete it")
    path.mkdir()
    with pytest.raises(DamagedFile, match=f"{path} is a folder, not a file; move it away"):
        typed_json.read_json(path, Strict, "delete it")


def test_a_file_with_a_digest_is_read_unless_a_value_was_altered(path):
    path.write_bytes(typed_json.with_digest({"name": "a", "place": Path("b"), "at": 0.5}))
    values = {"name": "a", "place": "b", "at": 0.5}
    assert typed_json.read_unaltered(path, "delete it") == values
    path.write_bytes(path.read_bytes().replace(b"0.5", b"1.5"))
    with pytest.raises(DamagedFile, match=r"state\.json was altered; delete it"):
        typed_json.read_unaltered(path, "delete it")
    path.write_text('{"name": "a"}')
    with pytest.raises(DamagedFile, match="was altered"):
        typed_json.read_unaltered(path, "delete it")
