"""A stopped encoder goes on where it was, and what it leaves is never taken for a pack."""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loaders import writer
from loaders.beton import BetonWriter
from loaders.encode import Images, encode
from loaders.pack import Item, Pack
from loaders.rgb import to_rgb
from loaders.writer import JOURNAL

COUNT = 40
ROOT = Path(__file__).resolve().parents[2]


class Camera:
    """Opens images until it has opened `limit`, and counts; `bad` ones are unreadable."""

    def __init__(self, limit: int = 1000, error: BaseException | None = None, bad: tuple = ()):
        self.limit, self.error, self.bad, self.opened = limit, error, bad, 0

    def __call__(self, seed: int) -> Image.Image:
        if seed in self.bad:
            raise OSError("torn")
        return Image.fromarray(np.full((6, 5, 3), seed, np.uint8))

    def shrink(self, image: Image.Image) -> np.ndarray:
        if self.opened == self.limit and self.error:
            raise self.error
        self.opened += 1
        return np.asarray(image)


def make(out: Path, camera: Camera, format: Any = "raw", **options: Any) -> Pack:
    items = [Item(i % 3, f"s{i}", f"image-{i}", i) for i in range(COUNT)]
    defaults: dict[str, Any] = {
        "name": "toy",
        "items": items,
        "encoder": Images(camera, camera.shrink, format),
        "transform_spec": {"size": 6},
        "classes": ["a", "b", "c"],
        "source_fingerprint": "f",
        "resume": True,
        "progress": False,
    }
    return encode(out, **(defaults | options))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "EVERY", 8)


@pytest.mark.parametrize("stop_at", [0, 1, 7, 8, 21, COUNT - 1])
@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_an_interrupted_pack_is_finished_to_the_same_bytes(
    tmp_path: Path, stop_at: int, format: str
) -> None:
    whole = make(tmp_path / "whole", Camera(), format=format)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(stop_at, KeyboardInterrupt()), format=format)
    assert not (tmp_path / "p").exists()
    second = Camera()
    pack = make(tmp_path / "p", second, format=format)
    assert second.opened == COUNT - stop_at
    assert pack.fingerprint == whole.fingerprint
    for file in whole.folder.iterdir():
        assert (pack.folder / file.name).read_bytes() == file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "whole"]
    assert not (pack.folder / JOURNAL).exists()


def test_a_killed_encoder_loses_what_no_line_names(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        import test_resume as t
        t.writer.EVERY = 8
        class Slow(t.Camera):
            def shrink(self, image):
                if self.opened == 21:
                    print("there", flush=True)
                    time.sleep(60)
                return super().shrink(image)
        t.make(Path({str(tmp_path / "p")!r}), Slow())
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "p").exists()
    second = Camera()
    pack = make(tmp_path / "p", second)
    assert second.opened == COUNT - 16
    assert np.array_equal(pack.pixels(range(COUNT))[:, 0, 0, 0], np.arange(COUNT))


def test_other_images_begin_anew_and_without_resume_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(20, KeyboardInterrupt()), resume=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(20, KeyboardInterrupt()))
    again = Camera()
    assert not caplog.records
    pack = make(tmp_path / "p", again, source_fingerprint="changed")
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{tmp_path / '.p.tmp'} holds a part of this set" in warning.getMessage()
    assert again.opened == COUNT and pack.manifest["source_fingerprint"] == "changed"


def test_unreadable_images_are_refused_and_then_skipped_without_reading_again(
    tmp_path: Path,
) -> None:
    bad = (3, 30)
    with pytest.raises(
        ValueError,
        match=r"lacks 2 of 40 images, which cannot be decoded: image-3 \(OSError: torn",
    ):
        make(tmp_path / "p", Camera(bad=bad))
    assert not (tmp_path / "p").exists()
    second = Camera(bad=bad)
    pack = make(tmp_path / "p", second, on_error="skip")
    assert second.opened == 0 and len(pack) == COUNT - 2
    assert [image["key"] for image in pack.manifest["skipped"]] == ["image-3", "image-30"]
    assert pack.pixels([3])[0, 0, 0, 0] == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["add", "finish"])
def test_a_full_disk_is_named_and_leaves_no_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, place: str
) -> None:
    real = getattr(BetonWriter, place)
    calls = 0

    def full(self: BetonWriter, *words: Any, **options: Any) -> object:
        nonlocal calls
        calls += 1
        if place == "finish" or calls > 12:
            raise OSError(code, os.strerror(code))
        return real(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BetonWriter, place, full)
        with pytest.raises(
            OSError, match=r"the disk is full, so toy is not encoded; make room; .*"
        ):
            make(tmp_path / "p", Camera())
        with pytest.raises(OSError, match=r"the disk is full, so toy is not encoded; make room$"):
            make(tmp_path / "q", Camera(), resume=False)
    assert [p.name for p in tmp_path.iterdir()] == [".p.tmp"]
    second = Camera()
    make(tmp_path / "p", second)
    assert second.opened == (0 if place == "finish" else COUNT - 12)


def test_a_stop_during_any_fsync_is_gone_on_with_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tmp_path / "whole", Camera())
    fsync = os.fsync
    for stop_at in itertools.count(1):
        calls = 0

        def stopping(descriptor: int, stop_at: int = stop_at) -> None:
            nonlocal calls
            calls += 1
            fsync(descriptor)
            if calls == stop_at:
                raise KeyboardInterrupt

        out = tmp_path / f"p{stop_at}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stopping)
            try:
                make(out, Camera())
                break
            except KeyboardInterrupt:
                pass
        make(out, Camera())
        for file in whole.folder.iterdir():
            assert (out / file.name).read_bytes() == file.read_bytes(), (stop_at, file.name)
    assert stop_at > 10


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_was_cut_is_left_out_and_never_written_after(
    tmp_path: Path, end: bytes
) -> None:
    whole = make(tmp_path / "whole", Camera(bad=(3,)), on_error="skip")
    stopped = Camera(20, KeyboardInterrupt(), bad=(3,))  # images 0 to 20: lines of 8, 8 and 5
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "p", stopped, on_error="skip")
        path = tmp_path / ".p.tmp" / JOURNAL
        path.write_bytes(path.read_bytes()[:-4] + end)
        stopped = Camera(3, KeyboardInterrupt())  # and then again in the line after
    last = Camera()
    pack = make(tmp_path / "p", last, on_error="skip")
    assert last.opened == COUNT - 16
    assert pack.manifest["skipped"] == whole.manifest["skipped"]
    for file in whole.folder.iterdir():
        assert (pack.folder / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("missing", [False, True])
def test_images_that_end_before_their_journal_begin_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: bool
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(20, KeyboardInterrupt()))
    images = tmp_path / ".p.tmp" / "images.beton"
    os.truncate(images, images.stat().st_size - 1)
    if missing:
        images.unlink()
    again = Camera()
    assert len(make(tmp_path / "p", again)) == again.opened == COUNT
    assert f"{images} is missing or ends before its journal does" in caplog.text


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), FileNotFoundError(2, "gone"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_stops_a_run_and_is_not_taken_for_a_bad_image(
    tmp_path: Path, error: Exception
) -> None:
    named = "image-20: " if isinstance(error, OSError) else None
    with pytest.raises(type(error), match=named):
        make(tmp_path / "p", Camera(20, error), on_error="skip")
    second = Camera()
    pack = make(tmp_path / "p", second, on_error="skip")
    assert second.opened == COUNT - 20 and len(pack) == COUNT
    assert pack.manifest["skipped"] == []


def kinds() -> dict[str, Image.Image]:
    """Images that are not plain RGB, as a decoder gives them."""
    plain = Image.fromarray(np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3))

    def through(kind: str, image: Image.Image = plain, **options: Any) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return Image.open(io.BytesIO(buffer.getvalue()))

    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "": through("JPEG"),
        "L converted to RGB": through("JPEG", plain.convert("L")),
        "CMYK converted to RGB": through("JPEG", plain.convert("CMYK")),
        "RGBA converted to RGB": through("PNG", plain.convert("RGBA")),
        "orientation tag not applied": through("JPEG", exif=turned),
        "animated, first frame taken": through(
            "WEBP", save_all=True, append_images=[plain.rotate(180)], lossless=True
        ),
    }


def test_unusual_images_are_packed_as_timm_sees_them_and_named(tmp_path: Path) -> None:
    opened = list(kinds().values())
    for remark, image in kinds().items():
        assert to_rgb(image)[1] == remark
    items = [Item(0, str(i), f"image-{i}", i) for i in range(len(opened))]
    pack = make(
        tmp_path / "p",
        Camera(),
        items=items,
        encoder=Images(opened.__getitem__, np.asarray),
    )
    again = list(kinds().values())
    for i, image in enumerate(again):
        assert np.array_equal(pack.pixels([i])[0], np.asarray(image.convert("RGB")))
    assert pack.manifest["remarks"] == {
        kind: f"1 images, such as image-{i}" for i, kind in enumerate(kinds()) if kind
    }
    plain = make(tmp_path / "q", Camera())
    assert "remarks" not in plain.manifest
