"""A table is a dataset. Each fault of a table is named with its row, before an image is read."""

import csv
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loaders import folders, tables
from loaders.tables import Columns
from loaders.trees import Place

PLAIN = Columns("path", "label")
ROWS = [["b/2.png", "b", "east"], ["a/1.png", "a", "west"], ["a/0.png", "a", "east"]]


def tree(root: Path) -> Path:
    for path, *_ in ROWS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def written(file: Path, *rows: list[str], header: tuple[str, ...] = ("path", "label", "region")):
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return {"": file}


def test_a_table_lists_what_folders_list(tmp_path):
    of_folders = folders.list_folders(tree(tmp_path / "images"))
    table = written(tmp_path / "t.csv", *ROWS, [])  # a blank last line
    columns = Columns("path", "label", kept=("region",))
    listing = tables.listing(tmp_path / "images", table, columns)
    plain = [(item.label, item.key, item.payload) for item in listing.items]
    assert plain == [(item.label, item.key, item.payload) for item in of_folders.items]
    assert listing.classes == of_folders.classes and listing.columns == ("region",)
    assert [item.values for item in listing.items] == [("east",), ("west",), ("east",)]
    named = dict(zip(("path", "label", "region"), map(list, zip(*ROWS, strict=True)), strict=True))
    pq.write_table(pa.table(named), tmp_path / "t.parquet")
    of_parquet = tables.listing(tmp_path / "images", {"": tmp_path / "t.parquet"}, columns)
    assert of_parquet == listing
    changed = written(tmp_path / "u.csv", *ROWS[:2], ["a/0.png", "a", "west"])
    other = tables.listing(tmp_path / "images", changed, columns)
    assert other.fingerprint != listing.fingerprint
    east = Columns("path", "label", where={"region": {"east"}})
    assert len(tables.listing(tmp_path / "images", table, east).items) == 2


def test_text_files_by_split_are_one_table(tmp_path):
    tree(tmp_path)
    (tmp_path / "train.txt").write_text("a/1.png 7\nb/2.png 30\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("a/0.png 7\n", encoding="utf-8")
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "test")}
    listing = tables.listing(tmp_path, files, Columns("path", "label", kept=("split",)), "split")
    assert listing.classes == ["30", "7"]
    shown = [(item.key, item.label, item.values) for item in listing.items]
    assert shown == [
        ("a/0.png", 1, ("test",)),
        ("a/1.png", 1, ("train",)),
        ("b/2.png", 0, ("train",)),
    ]


ALLOWED = Columns(
    "path", "label", kept=("region",), allowed={"label": {"a", "b"}, "region": {"east", "west"}}
)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a/9.png", "a", "east"], "line 4: there is no image .*/a/9.png: correct the path or"),
        (["c/1.png", "a", "east"], "line 4: there is no image .*/c/1.png: "),
        (["a/0.png/x", "a", "east"], "line 4: there is no image "),
        (["a/1.png", "a", "east"], "line 4: a/1.png is also in .*t.csv, line 2: keep one row"),
        (
            ["b/2.png", "z", "east"],
            "line 4: label is 'z', but must be one of a, b: correct it, or leave",
        ),
        (["b/2.png", "b", "north"], "line 4: region is 'north', but must be one of east, west: "),
        (["b/2.png", "b", ""], "line 4: region is empty: write a value, or leave the row out"),
        (["", "b", "east"], "line 4: path is empty"),
        (["../x.png", "b", "east"], "line 4: '../x.png' is not a plain path below "),
        (["a/../b/2.png", "b", "east"], "line 4: .* is not a plain path below "),
        (["/etc/passwd", "b", "east"], "line 4: '/etc/passwd' is not a plain path below "),
        (["link/2.png", "b", "east"], "line 4: .*/link leads through a link"),
        (["a/link.png", "b", "east"], "line 4: .*/a/link.png is a link, which is not followed"),
        (["b", "b", "east"], "line 4: .*/b is a link, which is not followed, or no file"),
        (["b/2.png", "b"], "line 4: 2 values for 3 columns: quote values"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    root = tree(tmp_path / "images")
    os.symlink(root / "b", root / "link")
    os.symlink(root / "b" / "2.png", root / "a" / "link.png")
    table = written(tmp_path / "t.csv", *ROWS[1:], row)
    with pytest.raises(ValueError, match=rf"t\.csv, {message}"):
        tables.listing(root, table, ALLOWED)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt", "parquet"])
def test_a_table_that_might_never_end_is_refused(tmp_path, suffix):
    """Nobody writes to the pipe; /dev/zero would fill the memory with one line."""
    table, device = tmp_path / f"pipe.{suffix}", tmp_path / f"device.{suffix}"
    os.mkfifo(table)
    device.symlink_to("/dev/zero")
    for each in (table, device):
        with pytest.raises(ValueError, match=f"{each.name} is a pipe, a socket or a device"):
            tables.listing(tmp_path, {"": each}, PLAIN)
        with pytest.raises(ValueError, match=f"{each.name} is a pipe, a socket or a device"):
            tables.listed({"train": each}, "split", ["train"], [], "few")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path,class\na,b\n", "has no column 'label' among path, class: correct the column's"),
        (b"path,path,label\n", "has two columns 'path'"),
        (b"", "has no column 'path'"),
        (b"path,label\n", "has no rows: is it the right file?"),
        (b"path,label\n\xff,a\n", "is not a table that can be read"),
    ],
)
def test_a_table_of_another_form_is_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ValueError, match=rf"t\.csv {message}"):
        tables.listing(tmp_path, {"": tmp_path / "t.csv"}, PLAIN)
    (tmp_path / "t.parquet").write_bytes(text or b"x")
    with pytest.raises(ValueError, match=r"t\.parquet is not a table that can be read"):
        tables.listing(tmp_path, {"": tmp_path / "t.parquet"}, PLAIN)


@pytest.mark.parametrize(
    ("label", "rows", "message"),
    [
        ("a" * 1_000_000, 3000, "label has texts of 3,000,000,000 bytes in 3,000 rows"),
        ("a" * 5000, 60_000, "label has texts of 300,000,000 bytes in 60,000 rows"),
        ("a", 2_000_000, "has 2,000,000 rows in "),
    ],
)
def test_a_parquet_table_that_repeats_a_value_is_refused(tmp_path, label, rows, message):
    def repeated(text: str) -> pa.Array:
        return pa.array([text]).dictionary_encode().take(pa.array([0] * rows))

    path = repeated("a") if rows > 10**6 else pa.array([f"{k}.png" for k in range(rows)])
    table = pa.table({"path": path, "label": repeated(label)})
    pq.write_table(table, tmp_path / "t.parquet", store_schema=False)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match=rf"t\.parquet.*{message}"):
        tables.listing(tmp_path, {"": tmp_path / "t.parquet"}, PLAIN)
    assert pa.default_memory_pool().max_memory() - before < 100_000_000
    pq.write_table(pa.table({"path": [["a.png"]], "label": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: path is list.*: write texts or numbers"):
        tables.listing(tmp_path, {"": tmp_path / "t.parquet"}, PLAIN)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"path": "a/0.png", "label": 7, "region": null}', "line 1: region is empty: write a"),
        ('{"path": "a/0.png", "label": 7, "region": "x"}\n{"path": "b/2.png"}', "line 2: label is"),
        ('{"path": "a/0.png", "label": 7}', "has no column 'region' among path, label: "),
        ('["a/0.png", 7]', "line 1 is not a JSON object: "),
        ('{"path": "a/0.png", "label": NaN}', "line 1 is not a JSON object: "),
        ('{"path": ' + "[" * 100_000, "line 1 is not a JSON object: "),
        (
            '{"path": "a/0.png", "label": [1, 2], "region": "x"}',
            "line 1: label is a list or an object: write a text or a number",
        ),
        ('{"path": "a/0.png", "label": 7, "region": "y"}', "has no rows with region: x: correct"),
    ],
)
def test_lines_of_json_are_rows(tmp_path, lines, message):
    root = tree(tmp_path / "images")
    file = tmp_path / "t.jsonl"
    file.write_text('{"path": "a/0.png", "label": 7, "region": "x"}\n', encoding="utf-8")
    columns = Columns("path", "label", kept=("region",))
    (item,) = tables.listing(root, {"": file}, columns).items
    assert (item.key, item.values) == ("a/0.png", ("x",))
    file.write_text("\n" + file.read_text("utf-8") + "\n", encoding="utf-8-sig")
    assert tables.listing(root, {"": file}, columns).items == [item], "a mark and blank lines"
    file.write_text(lines, encoding="utf-8")
    wanted = Columns("path", "label", where={"region": {"x"}}) if '"y"' in lines else columns
    with pytest.raises(ValueError, match=rf"t\.jsonl,? {message}"):
        tables.listing(root, {"": file}, wanted)


def test_a_photos_file_name_counts_without_its_suffix(tmp_path, monkeypatch):
    table = written(tmp_path / "t.csv", *[[*row[:2], f"{row[1]}.JPG"] for row in ROWS])
    columns = Columns("path", "label", source="region")
    listing = tables.listing(tree(tmp_path / "images"), table, columns)
    assert [item.source for item in listing.items] == ["a", "a", "b"]
    monkeypatch.setattr(tables, "_photo", str)
    other = tables.listing(tmp_path / "images", table, columns)
    assert other.fingerprint != listing.fingerprint, "packs of other sources are not reused"


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds(tmp_path, monkeypatch):
    """The images' folders are read once each; here one image stands for all."""
    (tmp_path / "0.png").write_bytes(b"")
    found = Place(str(tmp_path / "0.png")), ""
    monkeypatch.setattr(tables._Images, "find", lambda *_: found)
    rows = "".join(f"{i % 1000}/{i}.png,{i % 1000},x\n" for i in range(100_000))
    (tmp_path / "t.csv").write_text("path,label,region\n" + rows, encoding="utf-8")
    began = time.process_time()
    columns = Columns("path", "label", kept=("region",), allowed={"region": {"x"}})
    listing = tables.listing(tmp_path, {"": tmp_path / "t.csv"}, columns)
    assert len(listing.items) == 100_000 and time.process_time() - began < 3.5
