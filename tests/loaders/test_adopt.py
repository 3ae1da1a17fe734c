"""A .beton of FFCV's writer as a pack: its samples as they are, and what does not fit."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.adopt import adopt
from loaders.beton import JPEG, RAW, BetonWriter
from loaders.pack import Pack

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def blobs(mode: int) -> list[bytes]:
    if mode == RAW:
        return [pixels.tobytes() for pixels in IMAGES]
    files = [io.BytesIO() for _ in IMAGES]
    for pixels, file in zip(IMAGES, files, strict=True):
        Image.fromarray(pixels).save(file, "JPEG")
    return [file.getvalue() for file in files]


def written(path: Path, mode: int, side: int = 8) -> Path:
    writer = BetonWriter(path.open("w+b"), len(IMAGES), mode, side, side)
    for number, blob in enumerate(blobs(mode)):
        writer.add(blob, number % 3)
    writer.finish()
    writer.close()
    return path


def adopted(file: Path, classes: Sequence[str] = "abc", size: int = 8) -> Pack:
    return adopt(
        file, file.with_name("pack"), name="mine", classes=list(classes), size=size,
        transform_spec={"size": size}, extra={"adopted": file.name},
    )  # fmt: skip


@pytest.mark.parametrize("mode", [RAW, JPEG])
def test_the_samples_are_copied_as_they_are(tmp_path, mode):
    file = written(tmp_path / "a.beton", mode)
    before = file.read_bytes()
    pack = adopted(file)
    assert list(pack.shard.blobs(range(5))) == blobs(mode) and file.read_bytes() == before
    assert pack.labels.tolist() == [0, 1, 2, 0, 1] and pack.classes == ("a", "b", "c")
    assert len(set(pack.keys)) == 5 and pack.manifest["extra"] == {"adopted": "a.beton"}
    if mode == RAW:
        assert np.array_equal(pack.pixels(range(5)), IMAGES)
    assert adopted(file).fingerprint == pack.fingerprint, "the second call finds it"


def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path):
    file = written(tmp_path / "a.beton", JPEG)
    with pytest.raises(ValueError, match=r"sample 2 has label 2, but --classes names 2"):
        adopted(file, classes="ab")
    for classes, name in (("aba", "'a'"), (["a", "", "b"], "''")):
        with pytest.raises(ValueError, match=f"--classes has empty or repeated names: {name}"):
            adopted(file, classes)
    with pytest.raises(
        ValueError, match=r"of 8 x 8 pixels, not 9 x 9; .*model.image_size.*--images FOLDER"
    ):
        adopted(file, size=9)
    # FFCV's decoder would leave a part of the pixels as they were.
    odd = written(tmp_path / "odd.beton", JPEG, side=16)
    with pytest.raises(ValueError, match=r"odd/00000000 is a JPEG of \(8, 8\), not \(16, 16\)"):
        adopted(odd, size=16)
    assert not (tmp_path / "pack").exists()
