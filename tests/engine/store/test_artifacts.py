"""The store: an artefact with a marker is whole, and one without a marker does not count."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import full_disk
from hypothesis import given
from hypothesis import strategies as st

from engine.machine import files
from engine.machine.files import digest
from engine.store import artifacts, tensors
from engine.store.artifacts import MARKER, Store
from loaders.schema import DamagedFile

KEY = {"lr": 1e-3, "sets": ["a", "b"], "seed": 0, "none": None}
SLOW_BUILDER = """
import sys, time
from pathlib import Path
from engine.store.artifacts import Store

def build(folder):
    (folder / "half.bin").write_bytes(b"x" * 1000)
    print("building", flush=True)
    time.sleep(60)

Store(Path(sys.argv[1])).make("cells", "slow", {"seed": 0}, build)
"""


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "values.npy").write_bytes(bytes(range(256)))
    (folder / "note.txt").write_text("seventeen bytes..")


def test_made_once_and_found_again(tmp_path: Path) -> None:
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


def test_marker_holds_key_and_checksums_and_comes_last(tmp_path: Path) -> None:
    artifact = Store(tmp_path).make("cells", "ft", KEY, fill)
    marker = json.loads(artifact.file(MARKER).read_text())
    assert marker["key"] == KEY and set(marker["files"]) == {"deep/values.npy", "note.txt"}
    assert marker["files"]["note.txt"]["bytes"] == 17
    newest = max((p for p in artifact.folder.rglob("*") if p.is_file()), key=os.path.getmtime)
    assert os.path.getmtime(newest) == os.path.getmtime(artifact.folder / MARKER)


def test_marker_is_written_after_everything_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real_sync, real_write = artifacts.sync, files.write_atomic
    monkeypatch.setattr(
        artifacts, "sync", lambda path: (events.append(path.name), real_sync(path))[1]
    )
    monkeypatch.setattr(
        artifacts,
        "write_atomic",
        lambda path, data: (events.append(f"write {path.name}"), real_write(path, data))[1],
    )
    Store(tmp_path).make("cells", "ft", KEY, fill)
    written = events.index(f"write {MARKER}")
    assert {"values.npy", "note.txt"} <= set(events[:written])
    assert events[-1] == "cells"  # the rename itself is on disk


def test_failed_builder_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("out of luck")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        store.make("cells", "ft", KEY, fail)
    assert list((tmp_path / "cells").iterdir()) == []
    assert store.make("cells", "ft", KEY, fill).file("note.txt").is_file()


def test_killed_builder_leaves_nothing_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_BUILDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store(tmp_path)
    folders = [path.name for path in (tmp_path / "cells").iterdir()]
    assert len(folders) == 1 and folders[0].startswith(".slow-")
    assert store.find("cells", "slow", {"seed": 0}) is None
    artifact = store.make("cells", "slow", {"seed": 0}, fill)
    assert not (artifact.folder / "half.bin").exists()


def test_folder_without_marker_counts_for_nothing_and_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = store.place("cells", "ft", KEY)
    place.mkdir(parents=True)
    (place / "stale.bin").write_bytes(b"old")
    assert store.find("cells", "ft", KEY) is None
    artifact = store.make("cells", "ft", KEY, fill)
    assert artifact.folder == place and not (place / "stale.bin").exists()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    path = store.make("cells", "ft", KEY, fill).folder / "deep" / "values.npy"
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    for use in (
        lambda: store.find("cells", "ft", KEY),
        lambda: store.make("cells", "ft", KEY, fill),
    ):
        with pytest.raises(ValueError, match=r"deep/values\.npy is damaged; delete .*ft-"):
            use()


def test_altered_file_of_the_same_size_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.make("cells", "ft", KEY, fill)
    artifact.file("note.txt").write_text("eighteen bytes...")
    assert store.find("cells", "ft", KEY) is not None  # its size is the same
    with pytest.raises(ValueError, match=r"note\.txt was altered; delete"):
        artifact.checked("note.txt")


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{}", '{"format": 1, "key": {}}', '{"format": 1, "key": 3}'),
        '{"format": 1, "key": {}, "files": {"note.txt": {"bytes": "17", "sha256": ""}}}',
        '{"format": 1, "key": {}, "files": {}, "more": 0}',
    ],
)
def test_a_damaged_marker_is_named(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.make("cells", "ft", KEY, fill).file(MARKER).write_text(text)
    with pytest.raises(ValueError, match=r"done\.json is damaged \(.+\); delete .*ft-"):
        store.find("cells", "ft", KEY)


def test_a_file_that_a_marker_does_not_name_is_refused(tmp_path: Path) -> None:
    artifact = Store(tmp_path).make("cells", "ft", KEY, fill)
    (artifact.folder / "weights.safetensors").write_bytes(b"of another cell")
    with pytest.raises(DamagedFile, match=r"weights\.safetensors was altered; delete"):
        artifact.checked("weights.safetensors")


def test_a_file_that_is_altered_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    artifact = Store(tmp_path).make("cells", "ft", KEY, fill)
    path = artifact.checked("note.txt")
    path.write_text("eighteen bytes...")
    os.utime(path, ns=(0, 0))
    with pytest.raises(DamagedFile, match=r"note\.txt was altered; delete"):
        artifact.checked("note.txt")


def test_missing_file_of_a_finished_artefact(tmp_path: Path) -> None:
    artifact = Store(tmp_path).make("cells", "ft", KEY, fill)
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is missing; delete"):
        artifact.file("weights.safetensors")


def _builder(root: Path, number: int, barrier) -> None:
    def build(folder: Path) -> None:
        barrier.wait(30)  # all of them build at once
        (folder / "who.txt").write_text("the same")
        (folder / f"extra-{number}.txt").write_text("x" * number)

    Store(root).make("cells", "race", {"seed": 0}, build)


def test_concurrent_builders_leave_one_whole_artefact(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    builders = [context.Process(target=_builder, args=(tmp_path, i, barrier)) for i in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0] * 4
    (folder,) = (tmp_path / "cells").iterdir()
    assert len(list(folder.glob("extra-*"))) == 1  # of one builder, not of several
    artifact = Store(tmp_path).find("cells", "race", {"seed": 0})
    assert artifact is not None
    assert all(artifact.checked(path.name) for path in folder.glob("*.txt"))


def test_write_atomic_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "table.csv"
    files.write_atomic(path, b"old")
    monkeypatch.setattr(files, "sync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_write_atomic_names_a_folder_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=f"{path} is a folder.* move it away"):
        files.write_atomic(path, b"new")
    assert [*tmp_path.iterdir()] == [path]


def test_digest_is_the_same_in_every_process() -> None:
    code = f"from engine.store.artifacts import digest; print(digest({KEY!r}))"
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        process = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.strip() == digest(KEY) == "8a7888f297424ebb"


def test_digest_refuses_what_has_no_canonical_text() -> None:
    with pytest.raises(ValueError):
        digest({"lr": float("nan")})
    with pytest.raises(TypeError):
        digest({"values": np.float32(1)})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_digest_does_not_depend_on_the_order_of_keys(key: dict) -> None:
    assert digest(key) == digest(dict(reversed(key.items())))
    assert digest(key) == digest(json.loads(json.dumps(key)))


@given(json_values, json_values)
def test_digest_tells_values_apart(a: object, b: object) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (digest(a) == digest(b)) == same


def test_a_marker_without_room_is_named_and_leaves_nothing(tmp_path):
    """The artefact's file of one byte fits on the disk, its marker does not."""
    store, key = Store(tmp_path), {"long": "x" * 2000}
    failure = pytest.raises(OSError, match=r"done\.json cannot be written .*make room and run the")
    with full_disk(), failure:
        store.make("cells", "a", key, lambda folder: (folder / "f").write_bytes(b"1"))
    assert not list((tmp_path / "cells").iterdir())
    store.make("cells", "a", key, lambda folder: (folder / "f").write_bytes(b"1"))


def test_an_artefact_without_its_files_is_none(tmp_path: Path) -> None:
    """A clean-up of another machine, whose clock is ahead, took the temporary folder's content."""
    store = Store(tmp_path)
    with pytest.raises(FileNotFoundError, match="run the same command again"):
        store.make("cells", "ft", KEY, lambda folder: None)
    assert store.find("cells", "ft", KEY) is None
    folder = store.make("cells", "ft", KEY, fill).folder
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(marker | {"files": {}}))
    with pytest.raises(DamagedFile, match="holds nothing but its marker; delete"):
        store.find("cells", "ft", KEY)


def test_the_umask_decides_who_may_read_tensors(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tensors.save({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o640
