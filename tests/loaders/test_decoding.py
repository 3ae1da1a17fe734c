"""Images of every kind become RGB pixels and are named; JPEGs of packs by FFCV and by Pillow."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from helpers.tiny_packs import SHAPE, draw, make
from loaders import decoding
from loaders.decoding import colour, decode_jpeg, jpeg_decoder, open_image, to_rgb
from loaders.pack import Pack

LEVELS = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
RED = (200, 40, 40)


def stored(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """The image as it comes back from a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return open_image(buffer)


def rows(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels of the first row."""
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def test_transparency_is_composited_on_the_background():
    pixels = np.array([[(*RED, alpha) for alpha in (255, 0, 51)]], np.uint8)
    image = stored(Image.fromarray(pixels), "PNG")
    on_white, unusual = to_rgb(image)
    assert rows(on_white)[:2] == [RED, (255, 255, 255)]
    assert rows(on_white)[2] == pytest.approx([0.2 * c + 0.8 * 255 for c in RED], abs=1)
    assert unusual == "RGBA converted to RGB, composited on white"
    on_grey, unusual = to_rgb(image, "rgb(90,100,110)")
    assert rows(on_grey)[:2] == [RED, (90, 100, 110)]
    assert unusual == "RGBA converted to RGB, composited on rgb(90,100,110)"


def test_every_kind_of_transparency_counts():
    black = Image.new("RGB", (2, 1))
    black.putpixel((0, 0), RED)
    palette = black.quantize(2)
    clear = palette.getpixel((1, 0))
    for image, remark in (
        (stored(black, "PNG", transparency=(0, 0, 0)), "composited on white"),
        (stored(palette, "PNG", transparency=clear), "P converted to RGB, composited on white"),
    ):
        converted, unusual = to_rgb(image)
        assert rows(converted) == [RED, (255, 255, 255)] and unusual == remark
    grey = Image.fromarray(np.array([[[70, 255], [70, 0]]], np.uint8), "LA")
    assert rows(to_rgb(stored(grey, "PNG"))[0]) == [(70,) * 3, (255,) * 3]


def test_opaque_images_keep_their_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    plain = Image.fromarray(noise)
    turned = Image.Exif()
    turned[0x0112] = 6
    opaque = plain.convert("RGBA")
    for image, named in (
        (stored(plain, "PNG"), ""),
        (stored(opaque, "PNG"), "RGBA converted to RGB"),
        (stored(plain, "PNG", transparency=(1, 2, 3)), ""),
        (stored(plain.convert("L"), "PNG"), "L converted to RGB"),
        (stored(plain.quantize(9), "PNG"), "P converted to RGB"),
        (stored(plain.convert("CMYK"), "JPEG"), "CMYK converted to RGB"),
        (stored(plain, "JPEG", exif=turned), "orientation tag not applied"),
    ):
        converted, unusual = to_rgb(image, "black")
        assert np.array_equal(np.asarray(converted), np.asarray(image.convert("RGB")))
        assert unusual == named


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_16_bits_are_scaled(kind):
    converted, unusual = to_rgb(stored(Image.fromarray(LEVELS), kind))
    assert rows(converted) == [(level,) * 3 for level in (0, 0, 1, 128, 255)]
    assert unusual == "16 bits scaled to 8"


def test_a_transparent_level_of_16_bits_counts():
    image = stored(Image.fromarray(LEVELS), "PNG", transparency=32768)
    converted, unusual = to_rgb(image)
    assert [level for level, *_ in rows(converted)] == [0, 0, 1, 255, 255]
    assert unusual == "16 bits scaled to 8, composited on white"


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_an_unknown_range_are_refused(dtype):
    image = stored(Image.fromarray(LEVELS.astype(dtype)), "TIFF")
    with pytest.raises(ValueError, match=r"range of pixels of mode [IF] is unknown"):
        to_rgb(image)


def grey_tiff(bits: int, black: int, content: bytes) -> bytes:
    """Two pixels of so many bits. black: 1 where 0 is black, 0 where 0 is white."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: black, 273: 122, 277: 1, 278: 1}
    tags[279] = len(content)
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + content


def test_grey_whose_levels_pillow_takes_for_others_is_refused():
    """12 bits would be 16 times too dark, levels from white inverted, and floats all black."""
    levels = b"\0\x80\0\xff"
    plain = open_image(io.BytesIO(grey_tiff(16, 1, levels)))
    assert rows(to_rgb(plain)[0]) == [(128,) * 3, (255,) * 3]
    for content, message in (
        (grey_tiff(12, 1, b"\x80\x0f\xff"), "a TIFF of 12 bits"),
        (grey_tiff(16, 0, levels), "or of 16 with 0 as white"),
        (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "mode F is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            to_rgb(open_image(io.BytesIO(content)))


def png(bits: int, colours: int, content: bytes, clear: bytes) -> bytes:
    """A row of two pixels. colours: 0 grey, 2 RGB. clear: the transparent level."""
    size = struct.pack(">IIBBBBB", 2, 1, bits, colours, 0, 0, 0)
    parts = {b"IHDR": size, b"tRNS": clear, b"IDAT": zlib.compress(b"\0" + content), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts.items()
    )


@pytest.mark.parametrize(
    ("bits", "colours", "content", "clear", "left"),
    [
        (2, 0, b"\x60", b"\0\1", (170, 170, 170)),
        (4, 0, b"\x1a", b"\0\1", (170, 170, 170)),
        (16, 2, b"\1\0\2\0\3\0\4\0\5\0\6\0", b"\1\0\2\0\3\0", (4, 5, 6)),
    ],
)
def test_a_transparent_level_of_other_than_8_bits_counts(bits, colours, content, clear, left):
    converted, unusual = to_rgb(open_image(io.BytesIO(png(bits, colours, content, clear))))
    assert rows(converted) == [(255, 255, 255), left] and "composited on white" in unusual


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    image = stored(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    converted, unusual = to_rgb(image)
    assert rows(converted)[0] == (255, 0, 0) and unusual == "animated, first frame taken"


def test_content_that_is_no_raster_image_starts_no_program(monkeypatch):
    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *arguments, **_: started.append(arguments)
    )
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    Image.init()
    assert Image.open(io.BytesIO(content)).format == "EPS", "Pillow alone would open it"
    with pytest.raises(UnidentifiedImageError):
        open_image(io.BytesIO(content))
    assert not started


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns of it, and refuses it
def test_an_image_of_too_many_pixels_is_refused_unread(side):
    header = b"P5 %d %d 255\n" % (side, side)
    with pytest.raises(ValueError, match=r"more than 89,478,485 pixels; shrink it"):
        open_image(io.BytesIO(header))


def test_colours():
    assert colour("white") == colour("#fff") == (255, 255, 255)
    assert colour("rgb(1,2,3)") == (1, 2, 3)
    for wrong in ("", "whitish", "rgb(300,0,0)", "#ffffff80"):
        with pytest.raises(ValueError, match=r"colou?r"):
            colour(wrong)


def blob_of(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "JPEG", quality=90)
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
    monkeypatch.setattr(decoding, "_imdecode", decoding._imdecode.__wrapped__)
    assert jpeg_decoder() == "pillow" and "FFCV's library cannot be used" in caplog.text
