"""A set as webdataset's tars and as Hugging Face's parquet files is the set of its folders."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.damage import cut
from helpers.tarballs import tarball
from helpers.tiny_packs import SHAPE, draw, make
from loaders import folders, shards, trees
from loaders import parquet as parquet_files
from loaders.pack import Pack

NAMES = ["dog", "cat", "bird"]  # of the labels 0, 1, 2: not in the order of folders
HUGGING_FACE = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": NAMES},
}
Sample = tuple[str, int, bytes]  # file name, label, image


def samples() -> list[Sample]:
    """Seven images, in an order that is not that of names."""
    images = []
    for seed in (3, 1, 2, 0, 6, 5, 4):
        draw(seed).save(file := io.BytesIO(), "PNG")
        images.append((f"{seed}.png", seed % 3, file.getvalue()))
    return images


def in_folders(root: Path, images: Sequence[Sample]) -> Path:
    for name, label, data in images:
        path = root / NAMES[label] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def webdataset(root: Path, images: Sequence[Sample]) -> Path:
    root.mkdir()
    for number, part in enumerate((images[:4], images[4:])):
        members = {}
        for name, label, data in part:
            stem = name.removesuffix(".png")
            members |= {name: data, f"{stem}.cls": b"%d\n" % label, f"{stem}.json": b"{}"}
        tarball(root / f"test-{number:05}.tar", members, "w")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def parquet(root: Path, images: Sequence[Sample], features: Any = HUGGING_FACE) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate((images[:4], images[4:])):
        table = pa.table(
            {
                "image": pa.array(
                    [{"bytes": data, "path": name} for name, _, data in part],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "label": pa.array([label for _, label, _ in part], pa.int64()),
            },
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        pq.write_table(table, root / f"test-{number:05}-of-00002.parquet", row_group_size=3)
    return root


def pack(root: Path, out: Path) -> Pack:
    listing = folders.list_folders(root)
    return make(
        out,
        items=listing.items,
        open_image=trees.open_image,
        transform=lambda image: np.asarray(image.resize(SHAPE[::-1])),
        classes=listing.classes,
        source_fingerprint=listing.fingerprint,
    )


def test_the_pack_is_that_of_the_folders(tmp_path):
    expected = pack(in_folders(tmp_path / "f", samples()), tmp_path / "pack-f")
    sets = [
        webdataset(tmp_path / "w", samples()),
        parquet(tmp_path / "p", samples()),
        tmp_path / "w" / "*.tar",
        tmp_path / "p" / "test-*.parquet",
    ]
    for number, root in enumerate(sets):
        assert shards.exists(root)
        assert pack(root, tmp_path / f"pack-{number}").fingerprint == expected.fingerprint
    assert len(expected) == 7 and expected.classes == ("bird", "cat", "dog")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.json", NAMES),
        ("classes.json", {name: number for number, name in enumerate(NAMES)}),
        ("classes.json", {"0": "dog", "1": "cat", "2": "bird"}),
        ("dataset_info.json", {"features": HUGGING_FACE}),
        ("../classnames.txt", "dog\ncat\nbird\n"),
    ],
)
def test_names_of_classes_come_from_a_file_beside_the_shards(tmp_path, file, content):
    root = webdataset(tmp_path / "w", samples())
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"00000.tar: row 0 has the label 0, but no file names"):
        folders.list_folders(root)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / file).write_text(text)
    before = folders.list_folders(root)
    assert before.classes == ["bird", "cat", "dog"]
    assert [item.key for item in before.items[:2]] == ["bird/2.png", "bird/5.png"]
    (root / file).write_text(text + "\n")
    assert folders.list_folders(root).fingerprint != before.fingerprint, (
        "names of classes may change"
    )


def test_images_without_a_name_of_their_own_have_the_rows(tmp_path):
    images = [("image.png", label, data) for _, label, data in samples()]
    keys = [item.key for item in folders.list_folders(parquet(tmp_path / "p", images)).items]
    assert keys[0] == "bird/test-00000-of-00002-000002.image" and len(set(keys)) == 7


def fault(root: Path) -> str:
    with pytest.raises(ValueError) as error:
        folders.list_folders(root)
    (message,) = str(error.value).splitlines()
    return message


PNG = samples()[0][2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", PNG), ("b.cls", b"1")], r"row 0 \(a\) has 1 images and 0 labels"),
        ([("a.png", PNG), ("a.cls", b"1"), ("b.cls", b"1")], r"row 1 \(b\) has 0 images and 1 lab"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"1")], r"row 0 \(a\) has 2 images"),
        ([("a.png", PNG), ("a.cls", b"7")], r"row 0 has the label 7, but there are 3 classes"),
        ([("a.png", PNG), ("a.cls", b"-1")], r"row 0 has the label -1, but there are 3 classes"),
        ([("a.png", PNG), ("a.cls", b"../up")], r"row 0 has the class '../up', not a valid"),
        ([("a.png", PNG), ("a.cls", b"\xff")], r"row 0 \(a\) has a label that is not UTF-8 text"),
        ([("a.png", PNG), ("a.cls", b"1" * 2000)], r"row 0 \(a\) has a label of 2,000 bytes"),
    ],
)
def test_a_hostile_webdataset_ends_in_a_line_that_names_shard_and_row(tmp_path, members, message):
    root = webdataset(tmp_path / "w", samples())
    number = int(members[1] == ("b.cls", b"1"))  # the first sample tells which kind of tar it is
    tarball(root / f"test-0000{number}.tar", dict(members), "w")
    assert re.search(rf"test-0000{number}\.tar: {message}", fault(root))


def test_a_cut_shard_is_named_with_the_row(tmp_path):
    root = webdataset(tmp_path / "w", samples())
    cut(root / "test-00001.tar")
    message = fault(root)
    assert "test-00001.tar is damaged or no .tar" in message and "at row 1" in message
    root = parquet(tmp_path / "p", samples())
    cut(root / "test-00001-of-00002.parquet")
    assert "test-00001-of-00002.parquet is truncated or not a parquet file" in fault(root)


def test_a_damaged_image_is_named_with_the_row(tmp_path):
    images = samples()
    images[5] = (*images[5][:2], b"not a picture")
    with pytest.raises(ValueError, match=r"cannot be decoded: cat/4|in row 1 of test-00001") as e:
        pack(parquet(tmp_path / "p", images), tmp_path / "pack-p")
    assert "bird/5.png (not an image in row 1 of test-00001-of-00002.parquet)" in str(e.value)
    with pytest.raises(ValueError, match=r"bird/5.png \(not an image in test-00001.tar\)"):
        pack(webdataset(tmp_path / "w", images), tmp_path / "pack-w")


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        ({"label": [0]}, {}, "has 0 columns of image bytes among label"),
        ({"image": [PNG], "thumb": [PNG], "label": [0]}, {}, "has 2 columns of image bytes"),
        ({"image": [PNG], "kind": [0]}, {}, "has 0 label columns among image, kind"),
        ({"image": [PNG], "label": [None]}, HUGGING_FACE, "row 0 has the invalid label None"),
        ({"image": [PNG], "label": [0]}, {}, "row 0 has the label 0, but no file names"),
        (
            {"image": [PNG], "label": [-1]},
            HUGGING_FACE,
            "row 0 has the label -1, but there are 3 classes",
        ),
        (
            {"image": [PNG], "label": [0]},
            {"label": {"_type": "ClassLabel", "names": ["a", "a"]}},
            "gives two classes the same name: a",
        ),
    ],
)
def test_columns_that_do_not_tell_are_refused(tmp_path, columns, features, message):
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns, metadata=metadata), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=rf"0\.parquet:? .*{message}"):
        folders.list_folders(tmp_path / "0.parquet")


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["image", "label", "label"], [[PNG], ["a"], ["b"]], "has two columns named label"),
        (["image", "label"], [[b""] * 10**6, [0] * 10**6], r"has 1,000,000 rows in .* no images"),
        (
            ["image", "label"],
            [[bytes(65 << 20)], ["a"]],
            r"row group 0 .*68,157,\d+ bytes, too",
        ),
        (
            ["image", "label"],
            [[PNG], ["a" * 300]],
            r"row 0 has the class 'a{100,200}.{,9}, not a v",
        ),
    ],
)
def test_a_hostile_parquet_file_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, names, columns, message
):
    table = pa.Table.from_arrays([pa.array(column) for column in columns], names)
    pq.write_table(table, tmp_path / "0.parquet", compression="zstd")
    if "class" not in message:  # which is known only once it is read
        monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match=rf"0\.parquet:? {message}"):
        folders.list_folders(tmp_path / "0.parquet")


@pytest.mark.parametrize("of", ["label", "path", "bytes"])
def test_a_value_that_a_small_file_repeats_is_refused(tmp_path, of):
    rows, memory = 3000, pa.default_memory_pool()
    big = pa.array(["a" * 1_000_000]).dictionary_encode().take(pa.array([0] * rows))
    if of == "bytes":
        big = pa.DictionaryArray.from_arrays(big.indices, big.dictionary.cast(pa.binary()))
    parts = {"bytes": pa.array([PNG] * rows), "path": pa.array(["a"] * rows), of: big}
    image = pa.StructArray.from_arrays([parts["bytes"], parts["path"]], ["bytes", "path"])
    columns = pa.table({"image": image, "label": parts.get("label", pa.array(["a"] * rows))})
    file = tmp_path / "0.parquet"
    pq.write_table(columns, file, store_schema=False)
    assert file.stat().st_size < 1_000_000
    before = memory.max_memory()
    with pytest.raises(ValueError, match=r"0\.parquet.*(3,000,000,000 bytes in 3,|images rep)"):
        trees.read_image(folders.list_folders(file).items[0].payload)
    assert memory.max_memory() - before < 300_000_000


@pytest.mark.parametrize("of", ["label", "path"])
def test_texts_that_are_short_and_many_are_refused(tmp_path, of):
    rows, memory = 100_000, pa.default_memory_pool()
    text = pa.array(["a" * 4000]).dictionary_encode().take(pa.array([0] * rows))
    data = pa.array([b"%05d" % k for k in range(rows)])  # a file has more bytes than rows
    parts = {"path": pa.array(["a"] * rows), "label": pa.array(["a"] * rows), of: text}
    image = pa.StructArray.from_arrays([data, parts["path"]], ["bytes", "path"])
    columns = pa.table({"image": image, "label": parts["label"]})
    pq.write_table(columns, tmp_path / "0.parquet", store_schema=False)
    before = memory.max_memory()
    with pytest.raises(ValueError, match=rf"{of} has texts of 400,000,000 bytes in 100,000 rows"):
        folders.list_folders(tmp_path / "0.parquet")
    assert memory.max_memory() - before < 100_000_000


def test_what_could_be_two_sets_is_refused(tmp_path):
    root = parquet(tmp_path / "p", samples())
    (root / "test-00001-of-00002.parquet").rename(root / "train-00001.parquet")
    with pytest.raises(
        ValueError, match=r"splits test, train: give one, for example '.*/test\*\.p"
    ):
        folders.list_folders(root)
    with pytest.raises(ValueError, match=r"no .tar or .parquet file matches .*none-\*\.tar"):
        folders.list_folders(root / "none-*.tar")
    assert not shards.exists(root / "none-*.tar")


def test_an_image_that_a_file_stores_once_for_many_rows_is_bounded(tmp_path, monkeypatch):
    """By what its row group may have in memory, and not by the file's size alone."""
    file, image = tmp_path / "a.parquet", np.random.default_rng(0).bytes(1 << 20)
    table = pa.table({"image": pa.array([image] * 50), "label": list(range(50))})
    pq.write_table(table, file, use_dictionary=["image"], dictionary_pagesize_limit=1 << 22)
    assert file.stat().st_size < 2 << 20
    monkeypatch.setattr(parquet_files, "MOST_BYTES", 10 << 20)
    places = [place for place, _, _ in parquet_files.rows(file)]
    with pytest.raises(ValueError, match="images repeat far more bytes"):
        places[0].read(1 << 21)
