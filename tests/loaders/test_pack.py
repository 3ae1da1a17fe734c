"""A pack is whole or absent, and says what is wrong with it."""

import json
import logging
import os
import shutil
import time
from dataclasses import replace
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from PIL import Image

from helpers.damage import cut, flip
from helpers.tiny_packs import SHAPE, draw, items, make
from loaders.copies import part
from loaders.encode import ordered_map, request_digests
from loaders.files.durable import digest
from loaders.files.typed_json import DamagedFile
from loaders.pack import Pack

SPEC = {"size": [9, 14], "crop": 0.875}


def test_pack_holds_what_was_encoded(tmp_path):
    options = {"seeds": [4, 1, 9, 7], "transform_spec": SPEC}
    pack = make(tmp_path / "p", extra={"split": "all"}, **options)
    assert np.array_equal(
        pack.pixels([2, 0]), np.stack([np.asarray(draw(seed)) for seed in (9, 4)])
    )
    assert (len(pack), pack.shape, pack.format, pack.classes) == (4, SHAPE, "raw", tuple("abcdefg"))
    assert pack.labels.dtype == np.int64 and pack.labels.tolist() == [4, 1, 2, 0]
    assert pack.sources.tolist() == ["s4", "s1", "s9", "s7"]
    assert pack.keys.tolist() == ["image-4", "image-1", "image-9", "image-7"]
    assert pack.manifest["per_class"] == [1, 1, 1, 0, 1, 0, 0]
    assert pack.manifest["extra"] == {"split": "all"} and os.listdir(tmp_path) == ["p"]
    assert Pack.open(tmp_path / "p", transform_spec=SPEC).fingerprint == pack.fingerprint
    jpeg = make(tmp_path / "j", "jpeg", **options)
    assert 0 < np.abs(pack.pixels([0, 3]).astype(int) - jpeg.pixels([0, 3])).mean() < 40
    assert jpeg.fingerprint != pack.fingerprint


def test_further_columns_are_stored_beside_the_pixels(tmp_path):
    plain = make(tmp_path / "plain", seeds=range(8))
    images = [replace(item, values=("ab"[item.label % 2], "x")) for item in items(range(8))]
    options = {"columns": ("region", "place"), "items": images}
    pack = make(tmp_path / "p", **options)
    assert pack.fingerprint == plain.fingerprint and not plain.columns
    assert {name: column.tolist() for name, column in pack.columns.items()} == {
        "region": ["ab"[label % 2] for label in pack.labels],
        "place": ["x"] * 8,
    }
    few = part(pack, [1, 6], tmp_path / "few", extra={})
    assert few.columns["region"].tolist() == pack.columns["region"][[1, 6]].tolist()
    assert make(tmp_path / "p", **options).folder == pack.folder
    with pytest.raises(FileExistsError, match="another pack"):
        make(tmp_path / "p", columns=("place", "region"), items=options["items"])
    file = pack.folder / "columns.npy"
    np.save(file, np.load(file)[::-1])
    with pytest.raises(ValueError, match=r"columns.npy: .*altered.* run again"):
        Pack.open(pack.folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"columns.npy: missing"):
        Pack.open(pack.folder)


def test_fingerprint_follows_pixels_labels_classes_and_transform(tmp_path):
    first = {"seeds": [0, 1, 2]}
    changes = [{}, {"seeds": [0, 1, 9]}, {"seeds": [2, 1, 0]}]
    changes += [{"classes": list("abcdefx")}, {"transform_spec": SPEC}]
    packs = [make(tmp_path / str(i), **first | more) for i, more in enumerate(changes)]
    assert len({pack.fingerprint for pack in packs}) == len(packs)
    again = make(tmp_path / "again", seeds=[0, 1, 2], name="other")
    assert again.fingerprint == packs[0].fingerprint


def test_a_request_is_the_digest_of_the_manifest_and_all_items():
    manifest = {"name": "é", "extra": {"b": 1, "a": None}}
    for count in (0, 1, 3):
        listed = [[item.label, item.source, item.key] for item in items(range(count))]
        expected = digest([manifest, listed]), digest([manifest, listed, "skip"])
        assert request_digests(manifest, items(range(count)), "skip") == expected


def test_same_request_is_reused_and_another_refused(tmp_path):
    def never(seed: int) -> Image.Image:
        raise AssertionError("encoded twice")

    pack = make(tmp_path / "p")
    assert make(tmp_path / "p", open_image=never).fingerprint == pack.fingerprint
    with pytest.raises(FileExistsError, match="another pack"):
        make(tmp_path / "p", seeds=[1, 2])
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists and is not a pack; move it away or choose"):
        make(tmp_path / "mine")
    with pytest.raises(
        FileNotFoundError, match=r"manifest.json: missing or not a file.*; encode it$"
    ):
        Pack.open(tmp_path / "mine")


def test_two_encoders_at_once_do_the_work_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    opened = []

    def slow(seed: int) -> Image.Image:
        opened.append(seed)
        time.sleep(0.05)
        return draw(seed)

    with ThreadPool(3) as pool:
        pool.map(lambda _: make(tmp_path / "p", seeds=range(8), open_image=slow), range(3))
    assert opened == list(range(8)) and "waiting for another process" in caplog.text
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize("missing", ["manifest.json", "samples.npy", "images.beton"])
def test_missing_file_is_named(tmp_path, missing):
    path = make(tmp_path / "p").folder / missing
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        Pack.open(tmp_path / "p")


LABEL_OF_SAMPLE_0 = 24 + 2 * 1041 + 16


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", flip),
        ("samples.npy", flip),
        ("images.beton", cut),
        ("images.beton", lambda path: flip(path, LABEL_OF_SAMPLE_0)),
    ],
)
def test_damaged_file_is_named(tmp_path, name, damage):
    pack = make(tmp_path / "p", seeds=range(8))
    damage(pack.folder / name)
    with pytest.raises(ValueError, match=rf"{name}.*(truncated|altered|damaged).* run again"):
        Pack.open(pack.folder)


def test_swapped_files_are_refused_though_shapes_and_labels_agree(tmp_path):
    first, second = make(tmp_path / "1", seeds=[0, 1]), make(tmp_path / "2", seeds=[7, 8])
    assert first.labels.tolist() == second.labels.tolist()
    shutil.copy(second.beton, first.beton)
    with pytest.raises(ValueError, match=r"images.beton: belongs to another pack"):
        Pack.open(first.folder)
    shutil.copy(first.folder / "samples.npy", second.folder / "samples.npy")
    with pytest.raises(ValueError, match=r"samples.npy: .*another pack"):
        Pack.open(second.folder)


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_altered_pixels_are_refused_at_the_first_read(tmp_path, format):
    pack = make(tmp_path / "p", format)
    flip(pack.beton, int(pack.shard.rows["pointer"][2]) + 20)
    damaged = Pack.open(pack.folder)
    damaged.pixels([0, 1, 3])
    with pytest.raises(ValueError, match=r"sample 2 \(image-2\) were altered.*run again"):
        damaged.pixels([1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2 is newer than 1"),
        ({"format_version": "x"}, "was altered; delete"),
        ({"more": 1}, "was altered; delete"),
        ({"extra": {"split": float("nan")}}, "is damaged .*; delete"),
    ],
)
def test_altered_manifest_is_refused(tmp_path, changes, message):
    path = make(tmp_path / "p", seeds=[0]).folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"manifest.json:? {message}") as caught:
        Pack.open(tmp_path / "p")
    assert isinstance(caught.value, DamagedFile) == ("newer" not in message)


def test_another_transform_is_named(tmp_path):
    folder = make(tmp_path / "p", seeds=[0], transform_spec=SPEC).folder
    with pytest.raises(ValueError, match=r"crop: 0.875, not 0.9\); .*model.crop=0.875$"):
        Pack.open(folder, transform_spec=SPEC | {"crop": 0.9})
    Pack.open(folder, transform_spec=SPEC | {"size": (9, 14)})
    with pytest.raises(ValueError, match=r"mean: None, not 0\); .* into another folder$"):
        Pack.open(folder, transform_spec=SPEC | {"mean": 0})


def square(number: int) -> int:
    if number == 30:
        raise KeyError(number)
    return number * number


def die(number: int) -> int:
    os._exit(3)


def test_ordered_map_keeps_order_raises_and_tells_of_a_dead_process():
    results = ordered_map(square, iter(range(40)), workers=2)
    assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
    with pytest.raises(KeyError):
        list(results)
    with pytest.raises(RuntimeError, match="died"):
        list(ordered_map(die, [1, 2], workers=2))
