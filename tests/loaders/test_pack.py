"""A pack is whole or absent, and says what is wrong with it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from damage import flip
from PIL import Image

from loaders.encode import Images, encode
from loaders.pack import Item, Pack, digest, digest_of, request_digests
from loaders.workers import ordered_map, read_ahead

CLASSES = ("bee", "cat", "dog")
SPEC = {"size": [5, 7], "crop": 0.875, "interpolation": "bicubic"}


def draw(seed: int) -> Image.Image:
    if seed >= 100:
        raise OSError(f"broken image {seed}")
    noise = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def shrink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((7, 5), Image.Resampling.BICUBIC))


def items(seeds: list[int]) -> list[Item]:
    return [Item(seed % 3, f"source{seed // 2}", f"image-{seed}", seed) for seed in seeds]


def make(
    out: Path,
    seeds: list[int] | None = None,
    *,
    open_image: Callable[[int], Image.Image] = draw,
    transform: Callable[[Image.Image], np.ndarray] = shrink,
    format: Literal["raw", "jpeg"] = "raw",
    **options: Any,
) -> Pack:
    defaults: dict[str, Any] = {
        "name": "tiny",
        "items": items(list(range(8)) if seeds is None else seeds),
        "encoder": Images(open_image, transform, format),
        "transform_spec": SPEC,
        "classes": CLASSES,
        "source_fingerprint": "f00",
        "progress": False,
    }
    return encode(out, **defaults | options)


def edit_manifest(pack: Pack, **changes: Any) -> None:
    path = pack.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pack_holds_what_was_encoded(tmp_path: Path) -> None:
    pack = make(tmp_path / "p", [4, 1, 2, 7], extra={"split": "all"})
    assert np.array_equal(pack.pixels([2, 0]), np.stack([shrink(draw(2)), shrink(draw(4))]))
    assert (len(pack), pack.shape, pack.format, pack.classes) == (4, (5, 7), "raw", CLASSES)
    assert pack.labels.dtype == np.int64 and pack.labels.tolist() == [1, 1, 2, 1]
    assert pack.sources.tolist() == ["source2", "source0", "source1", "source3"]
    assert pack.keys.tolist() == ["image-4", "image-1", "image-2", "image-7"]
    assert pack.manifest["per_class"] == [0, 3, 1] and pack.manifest["extra"] == {"split": "all"}
    assert os.listdir(tmp_path) == ["p"]
    again = Pack.open(tmp_path / "p", transform_spec=SPEC)
    assert again.fingerprint == pack.fingerprint and again.beton == tmp_path / "p" / "images.beton"


def test_jpeg_pack_is_near_the_raw_one_and_is_another(tmp_path: Path) -> None:
    raw, jpeg = make(tmp_path / "r"), make(tmp_path / "j", format="jpeg")
    difference = raw.pixels([0, 7]).astype(int) - jpeg.pixels([0, 7])
    assert 0 < np.abs(difference).mean() < 40  # noise is the worst case for JPEG
    assert raw.fingerprint != jpeg.fingerprint


def test_workers_change_nothing(tmp_path: Path) -> None:
    serial = make(tmp_path / "one")
    parallel = make(tmp_path / "two", workers=2)
    assert serial.fingerprint == parallel.fingerprint
    assert serial.beton.read_bytes() == parallel.beton.read_bytes()


def test_fingerprint_follows_pixels_labels_classes_and_transform(tmp_path: Path) -> None:
    variants = [
        make(tmp_path / "a"),
        make(tmp_path / "b", [0, 1, 2, 3, 4, 5, 6, 8]),
        make(tmp_path / "c", classes=("bee", "cat", "cow")),
        make(tmp_path / "d", transform_spec=SPEC | {"crop": 0.9}),
        make(tmp_path / "e", [7, 6, 5, 4, 3, 2, 1, 0]),
    ]
    assert len({pack.fingerprint for pack in variants}) == len(variants)
    assert make(tmp_path / "f", name="other").fingerprint == variants[0].fingerprint


def test_a_request_is_the_digest_of_all_items_without_their_text_at_once() -> None:
    manifest = {"name": "é", "extra": {"b": 1, "a": None}}
    for count in (0, 1, 20_000):
        listed = items(list(range(count)))
        labelled = [[item.label, item.source, item.key] for item in listed]
        tracemalloc.start()
        try:
            digests = request_digests(manifest, listed, "skip")
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()
        assert digests == (digest([manifest, labelled]), digest([manifest, labelled, "skip"]))


def test_undecodable_images_are_named_counted_and_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"7 of 9 images, which cannot be decoded: image-100 \(OSError: broken"
    ) as caught:
        make(tmp_path / "p", [0, *range(100, 107), 1])
    assert "and 2 more" in str(caught.value) and "dataset.undecodable=skip" in str(caught.value)
    with pytest.raises(ValueError, match="2 of 2 images"):
        make(tmp_path / "p", [100, 101], on_error="skip")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": []}, "no items"),
        ({"items": items([1, 1])}, "image-1.*unique"),
        ({"classes": ["bee"]}, "image-1: label 1 is not one of 1 classes"),
        ({"transform": lambda image: np.zeros((5, 7), np.uint8)}, r"\(5, 7\) for image-0"),
        ({"transform": lambda image: np.zeros((5, 7, 3))}, "float64"),
        ({"transform": lambda image: np.asarray(image)[image.getpixel((0, 0))[0] % 5 :]}, "shape"),
    ],
)
def test_bad_request_leaves_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "p", **options)
    assert os.listdir(tmp_path) == []


def test_same_request_is_reused_and_another_refused(tmp_path: Path) -> None:
    def never(payload: int) -> Image.Image:
        raise AssertionError("encoded twice")

    pack = make(tmp_path / "p")
    assert make(tmp_path / "p", open_image=never).fingerprint == pack.fingerprint
    with pytest.raises(FileExistsError, match="another pack"):
        make(tmp_path / "p", [1, 2])
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists and is no pack; move it away or choose"):
        make(tmp_path / "mine")


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".p.tmp").mkdir()
    (tmp_path / ".p.tmp" / "images.beton").write_bytes(b"half")
    (tmp_path / ".p.lock").touch()
    make(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]


def test_two_encoders_at_once_do_the_work_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened: list[int] = []
    waits = threading.Event()

    def slow(seed: int) -> Image.Image:
        opened.append(seed)
        waits.wait(0.05)
        return draw(seed)

    packs: list[Pack] = []
    threads = [
        threading.Thread(target=lambda: packs.append(make(tmp_path / "p", open_image=slow)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({pack.fingerprint for pack in packs}) == 1 and len(packs) == 3
    assert sorted(opened) == list(range(8))
    assert "waiting for another process" in caplog.text
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize("missing", ["", "manifest.json", "samples.npy", "images.beton"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    pack = make(tmp_path / "p")
    path = pack.folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        Pack.open(pack.folder)


@pytest.mark.parametrize("name", ["manifest.json", "samples.npy", "images.beton"])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    pack = make(tmp_path / "p")
    os.truncate(pack.folder / name, (pack.folder / name).stat().st_size - 3)
    with pytest.raises(ValueError, match=rf"{name}: truncated.*run again"):
        Pack.open(pack.folder)


def test_swapped_files_are_refused_though_shapes_and_labels_agree(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1", [0, 1, 2]), make(tmp_path / "2", [3, 4, 5])
    assert first.labels.tolist() == second.labels.tolist()
    shutil.copy(second.beton, first.beton)
    with pytest.raises(ValueError, match=r"images.beton: belongs to another pack"):
        Pack.open(first.folder)
    shutil.copy(first.folder / "samples.npy", second.folder / "samples.npy")
    with pytest.raises(ValueError, match=r"samples.npy: .*another pack"):
        Pack.open(second.folder)


def test_altered_row_is_refused(tmp_path: Path) -> None:
    pack = make(tmp_path / "p")
    flip(pack.beton, 24 + 2 * 1041 + 16)  # the label of sample 0
    with pytest.raises(ValueError, match="rows do not fit"):
        Pack.open(pack.folder)


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_altered_pixels_are_refused_at_the_first_read(tmp_path: Path, format: Any) -> None:
    pack = make(tmp_path / "p", format=format)
    flip(pack.beton, int(pack.shard.rows["pointer"][2]) + 20)
    damaged = Pack.open(pack.folder)
    damaged.pixels([0, 1, 3])
    with pytest.raises(ValueError, match=r"sample 2 \(image-2\) were altered.*run again"):
        damaged.pixels([1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2 is newer than 1"),
        ({"format_version": "x"}, "not a manifest"),
        ({"classes": ["bee", "dog", "cat"]}, "altered"),
        ({"sha256": {}}, "altered"),
        ({"count": "8"}, r"altered \(Expected `int`, got `str` - at `\$.count`\); delete"),
        ({"skipped": [3]}, r"altered \(.*skipped"),
        ({"more": 1}, r"altered \(.*unknown field `more`"),
        ({"extra": {"split": "val"}}, "altered: its digest does not fit; delete"),
        ({"request": "0" * 64}, "altered: its digest"),
        ({"skipped": [{"key": "image-9"}]}, "altered: its digest"),
        ({"digest": ""}, "altered: its digest"),
        ({"extra": {"split": float("nan")}}, "altered: its digest"),
    ],
)
def test_altered_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pack = make(tmp_path / "p")
    edit_manifest(pack, **changes)
    with pytest.raises(ValueError, match=rf"manifest.json: .*{message}"):
        Pack.open(pack.folder)


def test_count_must_fit(tmp_path: Path) -> None:
    pack = make(tmp_path / "p")
    edit_manifest(pack, count=7, digest=digest_of({**pack.manifest, "count": 7}))
    with pytest.raises(ValueError, match="rows do not fit"):
        Pack.open(pack.folder)


def test_a_folder_of_other_things_is_not_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileNotFoundError, match=r"manifest.json: missing, .*; encode it$"):
        Pack.open(tmp_path)


def test_another_transform_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "p").folder
    with pytest.raises(ValueError, match=r"crop: 0.875, not 0.9\); .*model.crop=0.875$"):
        Pack.open(folder, transform_spec=SPEC | {"crop": 0.9})
    Pack.open(folder, transform_spec=SPEC | {"size": (5, 7)})


def square(number: int) -> int:
    if number == 30:
        raise KeyError(number)
    return number * number


def die(number: int) -> int:
    os._exit(3)


def test_ordered_map_keeps_order_and_raises() -> None:
    results = ordered_map(square, iter(range(40)), workers=2)
    assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
    with pytest.raises(KeyError):
        list(results)


def test_ordered_map_tells_of_a_dead_process() -> None:
    with pytest.raises(RuntimeError, match="died"):
        list(ordered_map(die, [1, 2], workers=2))


def test_read_ahead_raises_times_out_and_stops() -> None:
    def count(stall: threading.Event | None):
        try:
            yield from range(5)
            if stall is None:
                raise KeyError("five")
            stall.wait()
        finally:
            closed.set()

    closed = threading.Event()
    with pytest.raises(KeyError):
        list(read_ahead(count(None), 5, "silent"))
    stall = threading.Event()
    with pytest.raises(TimeoutError, match="silent"):
        list(read_ahead(count(stall), 0.1, "silent"))
    stall.set()
    closed.clear()
    results = read_ahead(count(None), 5, "silent")
    assert next(results) == 0
    results.close()
    assert closed.wait(5)
