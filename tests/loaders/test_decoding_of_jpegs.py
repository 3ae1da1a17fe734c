"""JPEG packs by FFCV's decoder and by Pillow: pixels, names of results, damage."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_packs import SHAPE, draw, make
from loaders import decoding
from loaders.decoding import _imdecode, decode_jpeg, jpeg_decoder
from loaders.pack import Pack


def blob_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(params=["ffcv", "pillow"])
def decoder(request, monkeypatch) -> str:
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "_imdecode", lambda: None)
    elif jpeg_decoder() != "ffcv":
        pytest.skip("FFCV is not built here")
    return request.param


def test_pixels_are_those_of_pillow_or_near_them(decoder):
    for seed in range(20):
        blob, out = blob_of(draw(seed)), np.zeros((*SHAPE, 3), np.uint8)
        decode_jpeg(blob, out)
        expected = np.asarray(Image.open(io.BytesIO(blob)))
        difference = np.abs(out.astype(int) - expected)
        assert difference.mean() < 2 and difference.max() <= 16
        assert decoder == "ffcv" or not difference.any()


def test_results_of_another_decoder_have_another_name(tmp_path, monkeypatch):
    if jpeg_decoder() != "ffcv":
        pytest.skip("FFCV is not built here")
    folders = [make(tmp_path / format, format).folder for format in ("raw", "jpeg")]
    first = [Pack.open(folder).fingerprint for folder in folders]
    monkeypatch.setattr(decoding, "_imdecode", lambda: None)
    second = [Pack.open(folder).fingerprint for folder in folders]
    assert first[0] == second[0] and first[1] != second[1]
    assert second[1] == Pack.open(folders[1]).manifest["fingerprint"]


@pytest.mark.parametrize(
    "blob",
    [b"no image", blob_of(draw(0))[:200], blob_of(draw(0).resize((99, 99))),
     blob_of(draw(0).convert("CMYK"))[:-300]],
    ids=["text", "cut", "larger", "CMYK"],
)  # fmt: skip
def test_what_is_no_such_image_is_refused(decoder, blob):
    with pytest.raises(ValueError):
        decode_jpeg(blob, np.zeros((*SHAPE, 3), np.uint8))


def test_a_library_that_cannot_be_opened_is_named_and_pillow_decodes(tmp_path, monkeypatch, caplog):
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv" / "__init__.py").write_text("raise SystemError('it is never imported')")
    (tmp_path / "ffcv" / "_libffcv.cpython.so").write_text("no library")
    monkeypatch.delitem(sys.modules, "ffcv", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(decoding, "_imdecode", _imdecode.__wrapped__)
    assert jpeg_decoder() == "pillow" and "FFCV's library cannot be used" in caplog.text
