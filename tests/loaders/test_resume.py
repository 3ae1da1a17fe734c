"""A stopped encoder goes on where it was, and what it leaves is never taken for a pack."""

import errno
import itertools
import logging
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import tiny_packs
from helpers.damage import flip
from loaders.beton import BetonWriter
from loaders.pack import Pack
from loaders.writer import JOURNAL

COUNT = 40


class Camera:
    """Opens images until it has opened `limit`, and counts; `bad` ones are unreadable."""

    def __init__(self, limit: int = 1000, error: BaseException | None = None, bad: tuple = ()):
        self.limit, self.error, self.bad, self.opened = limit, error, bad, 0

    def __call__(self, seed: int) -> Image.Image:
        if seed in self.bad:
            raise OSError("torn")
        image = Image.fromarray(np.full((6, 5, 3), seed, np.uint8))
        return image.convert("L") if seed in (5, 6) else image

    def shrink(self, image: Image.Image) -> np.ndarray:
        if self.opened == self.limit and self.error:
            raise self.error
        self.opened += 1
        return np.asarray(image)


class Fatal(Camera):
    def shrink(self, image: Image.Image) -> np.ndarray:
        if self.opened == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().shrink(image)


def make(out: Path, camera: Camera, format: str = "raw", **options: Any) -> Pack:
    options |= {"open_image": camera, "transform": camera.shrink}
    return tiny_packs.make(out, format, seeds=range(COUNT), **options)


def require_equal(pack: Pack, whole: Pack) -> None:
    actual, expected = (
        {file.name: file.read_bytes() for file in each.folder.iterdir()} for each in (pack, whole)
    )
    assert actual == expected


@pytest.mark.parametrize(("format", "stop_at"), [("raw", 0), ("raw", 21), ("jpeg", COUNT - 1)])
def test_an_interrupted_pack_is_finished_to_the_same_bytes(tmp_path, format, stop_at):
    whole = make(tmp_path / "whole", Camera(), format)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(stop_at, KeyboardInterrupt()), format)
    assert not (tmp_path / "p").exists()
    second = Camera()
    require_equal(make(tmp_path / "p", second, format), whole)
    assert second.opened == COUNT - stop_at
    assert sorted(os.listdir(tmp_path)) == ["p", "whole"]
    assert whole.manifest["remarks"] == {"L converted to RGB": "2 images, such as image-5, image-6"}


def test_a_killed_encoder_goes_on(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=make, args=(tmp_path / "p", Fatal()))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "p").exists()
    second = Camera()
    pack = make(tmp_path / "p", second)
    assert second.opened <= COUNT - 20  # an image may wait in the process's buffer
    require_equal(pack, make(tmp_path / "whole", Camera()))


def test_other_images_begin_anew(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(20, KeyboardInterrupt()))
    again = Camera()
    assert not caplog.records
    pack = make(tmp_path / "p", again, source_fingerprint="changed")
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{tmp_path / '.p.tmp'} has a partial encoding" in warning.getMessage()
    assert again.opened == COUNT and pack.manifest["source_fingerprint"] == "changed"


def test_a_folder_in_place_of_the_journal_begins_anew(tmp_path):
    (tmp_path / ".p.tmp" / "journal.jsonl").mkdir(parents=True)
    require_equal(make(tmp_path / "p", Camera()), make(tmp_path / "whole", Camera()))


def test_unreadable_images_are_refused_and_then_skipped_without_reading_again(
    tmp_path,
):
    bad = (3, *range(30, 36))
    message = r"lacks 7 of 40 images, .*: image-3 \(OSError: torn.* 2 more.*undecodable=skip"
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "p", Camera(bad=bad))
    assert not (tmp_path / "p").exists()
    second = Camera(bad=bad)
    pack = make(tmp_path / "p", second, on_error="skip")
    assert second.opened == 0 and len(pack) == COUNT - 7
    assert [image["key"] for image in pack.manifest["skipped"]] == [f"image-{i}" for i in bad]
    assert pack.pixels([3])[0, 0, 0, 0] == 4
    with pytest.raises(ValueError, match="40 of 40 images"):
        make(tmp_path / "q", Camera(bad=tuple(range(COUNT))), on_error="skip")


@pytest.mark.parametrize("place", ["add", "finish"])
def test_a_full_disk_is_named_and_leaves_no_pack(tmp_path, monkeypatch, place):
    real = getattr(BetonWriter, place)
    calls = itertools.count()

    def full(self: BetonWriter, *words: Any, **options: Any) -> object:
        if place == "finish" or next(calls) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *words, **options)

    message = r"the disk is full, so tiny is not encoded; make room and run .* resumes from .*p.tmp"
    with monkeypatch.context() as patch:
        patch.setattr(BetonWriter, place, full)
        with pytest.raises(OSError, match=message):
            make(tmp_path / "p", Camera())
    assert os.listdir(tmp_path) == [".p.tmp"]
    second = Camera()
    make(tmp_path / "p", second)
    assert second.opened == (0 if place == "finish" else COUNT - 12)


@pytest.mark.parametrize(
    ("name", "damage", "left"),
    [
        (JOURNAL, lambda path: os.truncate(path, path.stat().st_size - 1), 19),
        (JOURNAL, lambda path: flip(path, 100), 0),
        ("images.beton", lambda path: flip(path, path.stat().st_size - 100), 18),
        ("images.beton", Path.unlink, 0),
    ],
)
def test_what_a_stopped_encoder_left_is_taken_up_to_the_first_damage(tmp_path, name, damage, left):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", Camera(20, KeyboardInterrupt()))
    damage(tmp_path / ".p.tmp" / name)
    second, third = Camera(3, KeyboardInterrupt()), Camera()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "p", second)
    pack = make(tmp_path / "p", third)
    assert COUNT - third.opened - second.opened == left
    require_equal(pack, make(tmp_path / "whole", Camera()))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_may_pass_stops_a_run_and_is_not_taken_for_a_bad_image(tmp_path, error):
    named = "image-20: " if isinstance(error, OSError) else None
    with pytest.raises(type(error), match=named):
        make(tmp_path / "p", Camera(20, error), on_error="skip")
    second = Camera()
    pack = make(tmp_path / "p", second, on_error="skip")
    assert second.opened == COUNT - 20 and len(pack) == COUNT
    assert pack.manifest["skipped"] == []
