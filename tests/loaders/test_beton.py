"""Our writer against our reader, each against FFCV's own other half, and packs of FFCV's files."""

import io
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders.adopt import adopt
from loaders.beton import JPEG, PAGE_SIZE, RAW, Beton, BetonWriter
from loaders.decoding import decode_jpeg
from loaders.pack import Pack


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    coarse = noise(count, height // 8 + 1, width // 8 + 1)
    scaled = [Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(image) for image in scaled])


def blob_of(pixels: np.ndarray, mode: int) -> bytes:
    blob = io.BytesIO(pixels.tobytes())
    if mode == JPEG:
        Image.fromarray(pixels).save(blob, "JPEG", quality=90)
    return blob.getvalue()


def write(
    path: Path,
    images: np.ndarray,
    mode: int = RAW,
    spare: int = 0,
    *,
    labels: Sequence[int] = range(-1, 1000),
    side: int = 0,
) -> Path:
    """labels: of the samples. side: that samples say they have, if not their own."""
    shape = (side, side) if side else images.shape[1:3]
    writer = BetonWriter(path.open("w+b"), len(images) + spare, mode, *shape)
    for label, pixels in zip(labels, images, strict=False):
        writer.add(blob_of(pixels, mode), label)
    writer.finish(b"tag")
    writer.close()
    return path


def read_all(beton: Beton) -> np.ndarray:
    images = []
    for row, blob in zip(beton.rows, beton.blobs(range(len(beton))), strict=True):
        pixels = np.empty((row["height"], row["width"], 3), np.uint8)
        if row["mode"] == JPEG:
            decode_jpeg(blob, pixels)
        else:
            pixels[:] = np.frombuffer(blob, np.uint8).reshape(pixels.shape)
        images.append(pixels)
    return np.stack(images)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 6), height=st.integers(1, 70), width=st.integers(1, 70))
def test_raw_round_trip(count, height, width):
    images = noise(count, height, width)
    with tempfile.TemporaryDirectory() as folder:
        beton = Beton.open(write(Path(folder) / "a.beton", images, spare=count % 3))
        assert np.array_equal(read_all(beton), images)
    assert beton.rows["label"].tolist() == list(range(-1, count - 1))
    assert beton.tag == b"tag"


def test_no_blob_crosses_a_page(tmp_path):
    images = noise(6, 1024, 1000)  # two fit a page of 8 MiB, with room to spare
    beton = Beton.open(write(tmp_path / "a.beton", images))
    first, last = beton.rows["pointer"], beton.rows["pointer"] + beton.sizes - np.uint64(1)
    assert (first // PAGE_SIZE).tolist() == (last // PAGE_SIZE).tolist() == [1, 1, 2, 2, 3, 3]
    assert np.array_equal(read_all(beton), images)


ROW_1 = 24 + 2 * 1041 + 24
TABLE = 2 * PAGE_SIZE  # after the one page of three small images
U2, U4, U8 = struct.Struct("<H").pack, struct.Struct("<I").pack, struct.Struct("<Q").pack


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ({16: U8(0)}, "no samples, or its writer did not finish"),
        ({8: U8(1 << 60)}, "truncated or altered"),
        ({0: U2(3)}, "format 3 is not supported, only 2"),
        ({2: U2(3)}, "holds 3 fields"),
        ({4: U4(3 << 20)}, "page size"),
        ({24: b"\3"}, "its fields are not one RGB image"),
        ({ROW_1: b"\7"}, "sample 1 has an impossible mode, size or shape"),
        ({ROW_1: b"\0" + U2(0)}, "sample 1 has an impossible mode, size or shape"),
        ({ROW_1 + 5: U8(1 << 40)}, "sample 1 has two addresses"),
        ({ROW_1 + 5: U8(2**64 - 8), TABLE + 32: U8(2**64 - 8)}, "sample 1 lies outside"),
        ({ROW_1 + 5: U8(TABLE - 8), TABLE + 32: U8(TABLE - 8)}, "sample 1 lies outside"),
        ({ROW_1 + 5: U8(PAGE_SIZE + 1), TABLE + 32: U8(PAGE_SIZE + 1)}, "overlaps"),
        ({TABLE + 24: U8(0)}, "sample 1 is missing from the allocation table"),
    ],
)
def test_structural_fault_is_named(tmp_path, patches, message):
    path = write(tmp_path / "a.beton", noise(3, 4, 6))
    Beton.open(path)
    data = bytearray(path.read_bytes())
    for offset, patch in patches.items():
        data[offset : offset + len(patch)] = patch
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        Beton.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [0, PAGE_SIZE + 5, TABLE + 71, TABLE + 96])
def test_file_of_another_length_is_refused(tmp_path, size):
    path = write(tmp_path / "a.beton", noise(3, 4, 6))
    beton = Beton.open(path)
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match="truncated"):
        Beton.open(path)
    with pytest.raises(ValueError, match="changed after it was opened"):
        list(beton.blobs([0]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [RAW, JPEG])
def test_ffcv_loader_reads_what_is_written_here(tmp_path, mode):
    pytest.importorskip("ffcv", exc_type=ImportError)
    from ffcv.loader import Loader, OrderOption

    images = smooth(70, 224, 224)  # 55 raw images fill a page
    path = write(tmp_path / "a.beton", images, mode, spare=1)
    loader = Loader(str(path), 32, 1, order=OrderOption.SEQUENTIAL, drop_last=False)
    batches = [(image.numpy().copy(), label.numpy().copy()) for image, label in loader]
    pixels = np.concatenate([image for image, _ in batches])
    labels = np.concatenate([label[:, 0] for _, label in batches])
    assert labels.tolist() == list(range(-1, 69))
    difference = np.abs(pixels.astype(int) - read_all(Beton.open(path)))
    if mode == RAW:
        assert difference.max() == 0
    else:  # FFCV decodes with the fast DCT
        assert difference.mean() < 2 and difference.max() <= 16


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["raw", "jpg", "proportion"])
def test_files_of_ffcvs_writer_are_read_here(tmp_path, mode):
    pytest.importorskip("ffcv", exc_type=ImportError)
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = smooth(9, 1000, 1200)  # raw, two fit a page
    path = tmp_path / "a.beton"
    fields = {"picture": RGBImageField(write_mode=mode, jpeg_quality=95), "number": IntField()}
    samples = [(pixels, number * 3) for number, pixels in enumerate(images)]
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(samples, [*range(9)], 2)
    beton = Beton.open(path)
    assert beton.rows["label"].tolist() == list(range(0, 27, 3))
    raw = beton.rows["mode"] == RAW
    if mode != "proportion":  # whose images are drawn
        assert (raw == (mode == "raw")).all()
    difference = np.abs(read_all(beton).astype(int) - images).mean(axis=(1, 2, 3))
    assert (difference[raw] == 0).all() and (difference < 8).all()


def adopted(file: Path, classes: Sequence[str] = "abc", size: int = 8) -> Pack:
    return adopt(
        file, file.with_name("pack"), name="mine", classes=list(classes), size=size,
        transform_spec={"size": size}, extra={"adopted": file.name},
    )  # fmt: skip


@pytest.mark.parametrize("mode", [RAW, JPEG])
def test_a_pack_has_the_samples_of_a_file_as_they_are(tmp_path, mode):
    images, labels = noise(5, 8, 8), [0, 1, 2, 0, 1]
    file = write(tmp_path / "a.beton", images, mode, labels=labels)
    before = file.read_bytes()
    pack = adopted(file)
    assert list(pack.shard.blobs(range(5))) == [blob_of(pixels, mode) for pixels in images]
    assert pack.labels.tolist() == labels and pack.classes == ("a", "b", "c")
    assert len(set(pack.keys)) == 5 and pack.manifest["extra"] == {"adopted": "a.beton"}
    if mode == RAW:
        assert np.array_equal(pack.pixels(range(5)), images)
    assert adopted(file).fingerprint == pack.fingerprint, "the second call finds it"
    assert file.read_bytes() == before


def test_a_file_that_does_not_fit_is_named_before_anything_is_written(tmp_path):
    images = noise(3, 8, 8)
    file = write(tmp_path / "a.beton", images, JPEG, labels=range(3))
    for classes, message in (
        ("ab", "sample 2 has label 2, but --classes names 2"),
        ("aba", "--classes has empty or repeated names: 'a'"),
        (["a", "", "b"], "--classes has empty or repeated names: ''"),
    ):
        with pytest.raises(ValueError, match=message):
            adopted(file, classes)
    message = r"of 8 x 8 pixels, not 9 x 9; .*model.image_size.*--images FOLDER"
    with pytest.raises(ValueError, match=message):
        adopted(file, size=9)
    # FFCV's decoder would leave a part of the pixels as they were.
    odd = write(tmp_path / "odd.beton", images, JPEG, labels=range(3), side=16)
    with pytest.raises(ValueError, match=r"odd/00000000 is a JPEG of \(8, 8\), not \(16, 16\)"):
        adopted(odd, size=16)
    assert not (tmp_path / "pack").exists()
