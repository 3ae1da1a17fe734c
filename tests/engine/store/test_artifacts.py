"""The store: an artefact with a marker is whole, and one without a marker does not count."""

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.machine import files
from engine.recipe import finder
from engine.store import artifacts, pending, tensors, use
from engine.store.artifacts import MARKER, UNFINISHED, Store
from helpers.damage import cut, full_disk
from loaders.files.durable import short_digest
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

KEY = {"lr": 1e-3, "sets": ["a", "b"], "seed": 0, "none": None}


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "values.npy").write_bytes(bytes(range(256)))
    (folder / "note.txt").write_text("seventeen bytes..")


def test_made_once_and_found_again(tmp_path):
    calls = []
    store = Store(tmp_path)
    assert store.find("cells", "ft", KEY) is None
    artifact = store.make("cells", "ft", KEY, lambda folder: (calls.append(1), fill(folder))[1])
    again = Store(tmp_path).make("cells", "ft", dict(reversed(KEY.items())), pytest.fail)
    assert artifact == again and calls == [1]
    assert artifact.folder == tmp_path / "cells" / artifact.name and artifact.name.startswith("ft-")
    assert artifact.file("note.txt").read_text() == "seventeen bytes.."
    assert store.find("cells", "ft", KEY | {"seed": 1}) is None
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == [artifact.name]
    assert artifact.checked("note.txt") == artifact.file("note.txt")


def test_what_a_process_makes_after_a_users_method_is_found_by_none_without_it(
    tmp_path, monkeypatch
):
    store, mine = Store(tmp_path), KEY | {"method": {"source": "5eed"}}
    clean = store.make("cells", "ft", KEY, fill)
    monkeypatch.setattr(finder, "methods_run", {"5eed"})
    assert store.make("cells", "ft", KEY, pytest.fail) == clean
    fisher, cell = (
        store.make(kind, "x", key, fill) for kind, key in (("fisher", KEY), ("cells", mine))
    )
    assert store.find("fisher", "x", KEY) == fisher
    assert {artifact for artifact, _ in store.artifacts()} == {clean, fisher, cell}
    monkeypatch.setattr(finder, "methods_run", set())
    assert store.find("fisher", "x", KEY) is None and store.find("cells", "x", mine) == cell


def test_a_marker_with_key_and_checksums_is_written_after_all_is_synced(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, sync, rename, write = os.fsync, artifacts.sync, os.rename, Root.write

    def note(name: str, do: Callable[[], None]) -> None:
        events.append(name)
        do()

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "sync", lambda path: note(path.name, lambda: sync(path)))
        patch.setattr(Root, "write", lambda *w: note(str(w[1]), lambda: write(*w)))
        patch.setattr(os, "rename", lambda *w, **k: note("rename", lambda: rename(*w, **k)))
        patch.setattr(os, "fsync", lambda number: note("fsync", lambda: fsync(number)))
        artifact = Store(tmp_path).make("cells", "ft", KEY, fill)
    names = [event for event in events if event != "fsync"]
    assert sorted(names[1:3]) == ["note.txt", "values.npy"]
    assert names[3:] == [MARKER, "rename"]
    assert events[-3:] == ["fsync", "rename", "fsync"], "the rename itself is on disk"
    marker = json.loads(artifact.file(MARKER).read_text())
    assert marker["key"] == KEY and set(marker["files"]) == {"deep/values.npy", "note.txt"}
    assert marker["files"]["note.txt"]["bytes"] == 17


def test_only_what_has_a_marker_counts(tmp_path):
    """A builder that fails leaves nothing; a folder without a marker is replaced."""

    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("out of luck")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        store.make("cells", "ft", KEY, fail)
    assert list((tmp_path / "cells").iterdir()) == []
    place = store.place("cells", "ft", KEY)
    place.mkdir(parents=True)
    (place / "stale.bin").write_bytes(b"old")
    assert store.find("cells", "ft", KEY) is None
    artifact = store.make("cells", "ft", KEY, fill)
    assert artifact.folder == place and not (place / "stale.bin").exists()


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_file_is_refused_wherever_its_artefact_is_asked_for(tmp_path, damage):
    store = Store(tmp_path)
    damage(store.make("cells", "ft", KEY, fill).folder / "deep" / "values.npy")
    message = r"deep/values\.npy is damaged; delete .*ft-"
    with pytest.raises(ValueError, match=message):
        store.find("cells", "ft", KEY)
    with pytest.raises(ValueError, match=message):
        store.make("cells", "ft", KEY, fill)


def test_a_file_that_is_not_as_its_marker_says_is_refused_where_it_is_read(tmp_path):
    store = Store(tmp_path)
    artifact = store.make("cells", "ft", KEY, fill)
    path = artifact.checked("note.txt")
    path.write_text("eighteen bytes...")  # as many as before, after it was checked
    os.utime(path, ns=(0, 0))
    assert store.find("cells", "ft", KEY) is not None
    with pytest.raises(DamagedFile, match=r"note\.txt was altered; delete"):
        artifact.checked("note.txt")
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is missing; delete"):
        artifact.file("weights.safetensors")
    (artifact.folder / "weights.safetensors").write_bytes(b"of another cell")
    with pytest.raises(DamagedFile, match=r"weights\.safetensors was altered; delete"):
        artifact.checked("weights.safetensors")


def test_an_artefact_without_its_files_or_its_marker_is_none(tmp_path):
    """A clean-up of another machine, whose clock is ahead, took the temporary folder's content."""
    store = Store(tmp_path)
    with pytest.raises(FileNotFoundError, match="run the same command again"):
        store.make("cells", "ft", KEY, lambda folder: None)
    assert store.find("cells", "ft", KEY) is None
    folder = store.make("cells", "ft", KEY, fill).folder
    marker = json.loads((folder / MARKER).read_text())
    for text, message in (
        (json.dumps(marker | {"files": {}}), "has no files except its marker"),
        (json.dumps(marker | {"key": {"seed": 1}}), "has another key"),
        (json.dumps(marker | {"files": {"x": {"bytes": "17", "sha256": ""}}}), "is damaged"),
        ("", "is damaged"),
    ):
        (folder / MARKER).write_text(text)
        with pytest.raises(DamagedFile, match=rf"{message}.*; delete .*ft-"):
            store.find("cells", "ft", KEY)


def test_concurrent_builders_leave_one_whole_artefact(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)

    def make(number: int) -> None:
        def build(folder: Path) -> None:
            barrier.wait(30)  # all of them build at once
            (folder / "who.txt").write_text("the same")
            (folder / f"extra-{number}.txt").write_text("x" * number)

        Store(tmp_path).make("cells", "race", {"seed": 0}, build)

    builders = [context.Process(target=make, args=(number,)) for number in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0] * 4
    (folder,) = (tmp_path / "cells").iterdir()
    assert len(list(folder.glob("extra-*"))) == 1  # of one builder, not of several
    artifact = Store(tmp_path).find("cells", "race", {"seed": 0})
    assert all(artifact.checked(path.name) for path in folder.glob("*.txt"))


def test_write_atomic_replaces_in_one_step_and_names_a_folder_in_the_way(tmp_path, monkeypatch):
    path, folder = tmp_path / "new" / "table.csv", tmp_path / "new" / "folder"
    files.write_atomic(path, b"old")
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=f"{folder} is a folder.* move it away"):
        files.write_atomic(folder, b"new")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and sorted(path.parent.iterdir()) == [folder, path]


def test_digest_is_the_same_in_every_process_and_of_canonical_text_alone():
    assert short_digest(KEY) == "8a7888f297424ebb"
    with pytest.raises(ValueError):
        short_digest({"lr": float("nan")})
    with pytest.raises(TypeError):
        short_digest({"values": np.float32(1)})


@given(st.integers(0, 100), st.integers(1, 20), st.integers(1, 40))
def test_slices_are_whole_batches_that_hold_each_image_once(images, batch, most):
    positions = np.arange(images)[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending, "SLICE", most)
        cuts = pending.slices(positions, batch)
    np.testing.assert_array_equal(np.concatenate([positions[:0], *cuts]), positions)
    assert all(len(cut) == max(1, most // batch) * batch for cut in cuts[:-1])


def test_a_marker_without_room_is_named_and_leaves_nothing(tmp_path):
    """The artefact's file of one byte fits on the disk, its marker does not."""
    store, key = Store(tmp_path), {"long": "x" * 2000}
    failure = pytest.raises(
        OSError, match=r"done\.json cannot be written .*make room, or make its folder writable"
    )
    with full_disk(), failure:
        store.make("cells", "a", key, lambda folder: (folder / "f").write_bytes(b"1"))
    assert not list((tmp_path / "cells").iterdir())
    store.make("cells", "a", key, lambda folder: (folder / "f").write_bytes(b"1"))


def test_the_umask_decides_who_may_read_tensors(tmp_path):
    before = os.umask(0o027)
    try:
        tensors.save({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o640


def test_left_overs_are_the_engines_alone(tmp_path):
    """Other campaigns may be at work in the same store, and users keep folders of theirs there."""
    store, elsewhere = tmp_path / "runs" / "store", tmp_path / "home"
    name = ".ewc-few-0123456789abcdef.01234567"
    old, young = store / "cells" / name, store / "cells" / name.replace("few", "tinted")
    others = [store / "mine" / ".git", store / "cells" / ".cache", elsewhere / name]
    for path in (old, young, elsewhere / name):
        path.mkdir(parents=True)
        (path / UNFINISHED).touch()
    for path in others[:2]:
        path.mkdir(parents=True)
    (store / "features").symlink_to(elsewhere)
    others.append(store / "cells" / name.replace("few", "link"))
    others[-1].symlink_to(elsewhere / name)
    long_ago = time.time() - 61
    for path in (old, *others):
        os.utime(path, (long_ago, long_ago))
    assert use.left_overs(Store(store), 60) == [old]
    assert {*use.left_overs(Store(store))} == {old, young}


@pytest.mark.parametrize("made_anew", [True, False])
def test_an_artefact_whose_folder_vanishes_while_it_is_made_is_not_finished(made_anew, tmp_path):
    def build(folder: Path) -> None:
        (folder / "first").touch()
        shutil.rmtree(folder)
        folder.mkdir(exist_ok=True) if made_anew else None
        (folder / "second").touch()

    store = Store(tmp_path)
    with pytest.raises(FileNotFoundError, match="are gone; run the same command again"):
        store.make("cells", "ft", KEY, build)
    assert store.find("cells", "ft", KEY) is None
