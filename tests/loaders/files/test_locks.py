"""A lock holds among processes, on file systems with flock and without."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event

import pytest

from loaders.files import locks
from loaders.files.new_folder import new_folder
from loaders.files.root import Root


@pytest.fixture(params=["flock", "lease"])
def path(request, monkeypatch, tmp_path) -> Path:
    """A lock file; `lease`: its file system has no flock."""
    if request.param == "lease":
        without_flock(monkeypatch)
    return tmp_path / "lock"


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", absent)
    for name, seconds in (("BEAT_S", 0.1), ("LOOK_S", 0.05), ("LAPSE_S", 0.6)):
        monkeypatch.setattr(locks, name, seconds)


def unexpected() -> None:
    raise AssertionError("nobody holds it")


class Refused(Exception):
    """Somebody holds it."""


def refuse() -> None:
    raise Refused


def test_a_lock_is_held_by_one_at_a_time_and_names_it(path):
    began = time.monotonic()
    with locks.held(path, unexpected):
        assert time.monotonic() - began < locks.LAPSE_S, "nobody had it"
        assert locks.holder(path) == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(Refused), locks.held(path, refuse):
            pass
    with locks.held(path, unexpected):
        pass
    assert not list(path.parent.iterdir()) and locks.holder(path) == "unknown"


def test_who_looks_keeps_nobody_from_taking_it(tmp_path):
    """However often: the look shares the lock for a moment, and a process that takes it knows."""
    path, is_over = tmp_path / "lock", Event()

    def look() -> None:
        while not is_over.is_set():
            locks.is_held(path)

    with ThreadPool(2) as pool:
        looks = [pool.apply_async(look) for _ in range(2)]
        for _ in range(500):
            with locks.held(path, unexpected):
                assert locks.is_held(path)
        is_over.set()
        for each in looks:
            each.get(60)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".out.part" / "weights"
    left.mkdir(parents=True)
    with new_folder(tmp_path / "out") as folder:
        assert not left.exists() and folder.is_dir()
        other = new_folder(tmp_path / "out")
        with pytest.raises(FileExistsError, match=r"another command is writing .*out: wait"):
            other.__enter__()
        folder.rename(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(KeyError), new_folder(tmp_path / "other"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_who_waits_gets_it_once_it_is_free(path):
    """The holder holds it for longer than a lease lapses without a change."""
    inside, turns, is_held = [], [], Event()

    def work(name: str) -> None:
        with locks.held(path, lambda: turns.append(f"{name} waits")):
            inside.append(name)
            assert len(inside) == 1
            is_held.set()
            time.sleep(0.9)
            turns.append(name)
            inside.remove(name)

    with ThreadPool(2) as pool:
        first = pool.apply_async(work, "a")
        assert is_held.wait(60)
        work("b")
        first.get()
    assert turns == ["b waits", "a", "b"]


HOLDER = """
import errno, fcntl, sys, time
from pathlib import Path
from loaders.files import locks
from loaders.files.new_folder import new_folder
def absent(*_): raise OSError(errno.EOPNOTSUPP, "")
if sys.argv[2] == "lease": fcntl.flock, locks.BEAT_S, locks.LAPSE_S = absent, 0.1, 0.6
with locks.held(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_of_a_killed_process_is_free(path, request):
    """A lease of another machine after a while, whatever the clocks: its time stamp is an hour
    ahead of ours."""
    kind = request.node.callspec.params["path"]
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    root = Path(locks.__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Refused), locks.held(path, refuse):
            pass
        holder.kill()
    ahead = time.time() + 3600
    for file in path.parent.iterdir():
        file.write_text(file.read_text().replace(os.uname().nodename, "elsewhere"))
        os.utime(file, (ahead, ahead))
    began = time.monotonic()
    with locks.held(path, unexpected):
        assert (time.monotonic() - began > locks.LAPSE_S) == (kind == "lease")


def test_a_lease_that_was_lost_is_not_touched(monkeypatch, tmp_path, caplog):
    """As after a pause of the machine, during which another process has taken it."""
    without_flock(monkeypatch)
    path = tmp_path / "lock.lease"
    with locks.held(tmp_path / "lock", unexpected):
        path.unlink()
        path.write_text("of another process")
        before = path.stat().st_mtime_ns
        time.sleep(0.4)
        assert "lost the lease" in caplog.text
    assert path.read_text() == "of another process" and path.stat().st_mtime_ns == before


def test_many_hold_a_shared_lock_and_who_wants_it_alone_waits(tmp_path):
    path, root, turns = tmp_path / "lock", Root(tmp_path), list[str]()

    def alone() -> None:
        with locks.shared(path, lambda: turns.append("waits"), root, alone=True):
            turns.append("alone")
            with pytest.raises(Refused), locks.shared(path, refuse, root):
                pass

    with ThreadPool(1) as pool:
        with locks.shared(path, unexpected, root), locks.shared(path, unexpected, root):
            waiting = pool.apply_async(alone)
            while not turns:
                time.sleep(0.01)
            turns.append("shared")
        waiting.get()
    assert turns == ["waits", "shared", "alone"]


def test_without_flock_nobody_is_known_to_be_alone(monkeypatch, tmp_path):
    without_flock(monkeypatch)
    with locks.shared(tmp_path / "lock", unexpected, Root(tmp_path)):
        pass
    alone = locks.shared(tmp_path / "lock", unexpected, Root(tmp_path), alone=True)
    with pytest.raises(OSError, match="No locks available"), alone:
        pass
