"""Downloads from a server on this machine that fails in every way that servers fail."""

import dataclasses
import errno
import hashlib
import threading
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.web import Web, serve
from loaders.fetch import download
from loaders.fetch.download import DownloadProgress, Remote, Stopped

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


@pytest.fixture
def patient() -> Iterator[Web]:
    """A server, to which downloads give the time that they give every server."""
    with serve() as web:
        yield web


@pytest.fixture
def web(patient, monkeypatch) -> Web:
    monkeypatch.setattr(download, "TRIES", 3)
    monkeypatch.setattr(download, "SLOW_S", 1)
    monkeypatch.setattr(download, "WAIT_S", 0.001)
    monkeypatch.setattr(download, "REFUSED_WAIT_S", 0.001)
    return patient


def remote(*addresses: str, content: bytes = CONTENT, **changes: Any) -> Remote:
    sha256 = hashlib.sha256(content).hexdigest()
    file = Remote("a.tar", addresses, len(content), "sha256", sha256)
    return dataclasses.replace(file, **changes)


def fetch(remote: Remote, folder: Path, **progress) -> None:
    download.fetch(remote, folder, DownloadProgress(**progress))


def arrived(folder: Path) -> bytes:
    """The file's bytes; nothing else may be left beside it."""
    assert [path.name for path in folder.iterdir()] == ["a.tar"]
    return (folder / "a.tar").read_bytes()


def test_a_file_comes_whole_and_once(web, tmp_path):
    address = web("a", content=CONTENT)
    progress = []
    fetch(remote(address), tmp_path / "new", seen=progress.append)
    fetch(remote(address), tmp_path / "new")
    assert arrived(tmp_path / "new") == CONTENT
    assert progress[-1] == len(CONTENT) and progress == sorted(progress)
    assert web.requests == [("a", "")], "the second call asks nobody"


NO_SIZE: dict = {"size": 0}


@pytest.mark.parametrize(
    ("file", "part", "options", "ranges"),
    [
        ({"cuts": [100_000, 50_000]}, b"", {}, ["", "bytes=100000-", "bytes=150000-"]),
        ({"cuts": [100_000]}, b"", NO_SIZE, ["", "bytes=100000-"]),
        ({"cuts": [100_000], "ranges": False}, b"", {}, ["", "bytes=100000-", ""]),
        ({"statuses": [503, 429]}, b"", {}, ["", "", ""]),
        ({}, CONTENT[:1000], {}, ["bytes=1000-"]),
        ({}, CONTENT, NO_SIZE, ["bytes=300000-"]),  # the server answers that nothing is left
        ({}, b"x" * 1000, {}, ["bytes=1000-", ""]),  # of another version
        ({}, CONTENT + b"more", NO_SIZE, ["bytes=300004-", ""]),
    ],
)
def test_a_download_goes_on_from_what_is_there_and_fits(web, tmp_path, file, part, options, ranges):
    if part:
        (tmp_path / "a.tar.part").write_bytes(part)
    web("b", content=CONTENT, **file)
    fetch(remote(web("a", redirect="/b"), **options), tmp_path)
    assert arrived(tmp_path) == CONTENT
    assert [range_ for path, range_ in web.requests if path == "b"] == ranges


def test_an_address_is_given_up_after_attempts_without_progress(web, tmp_path):
    stuck = web("stuck", content=CONTENT, cuts=[500] * 9, ranges=False)
    with pytest.raises(ValueError, match=r"3 attempts failed.*\(18\)"):
        fetch(remote(stuck), tmp_path)
    assert len(web.requests) == 5, "bytes that come again are no progress"
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:500]


def test_a_larger_part_of_another_version_is_forgotten_where_connections_drop(web, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(b"x" * 250_000)
    fetch(remote(web("a", content=CONTENT, cuts=[len(CONTENT), *[50_000] * 6])), tmp_path)
    assert arrived(tmp_path) == CONTENT


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"kind": "text/html; charset=utf-8"}, "the server sends a web page instead of the file"),
        ({"statuses": [404]}, "the server answers 404"),
        ({"statuses": [503] * 3}, "3 attempts failed, the last with: the server answers 503"),
        ({"content": CONTENT[:-1]}, "299,999 bytes, not 300,000"),
        ({"content": CONTENT[:-1], "length": False}, "299,999 bytes, not 300,000"),
        ({"content": CONTENT * 9, "length": False}, "more than 300,000 bytes"),
        ({"content": CONTENT[:-1], "length": "abc"}, "3 attempts failed.*Content-Length"),
        ({"content": CONTENT * 9}, "more than 300,000 bytes"),
        ({"statuses": [416]}, "the server answers 416"),
        ({"content": CONTENT, "drip": 0.01}, r"3 attempts failed.*\(28\)"),
        ({"content": b"x" + CONTENT[1:]}, f"its sha256 is [0-9a-f]*, not {remote().checksum}"),
    ],
)
def test_the_next_mirror_gives_what_one_does_not(web, tmp_path, file, message):
    bad, good = web("bad", **file), web("good", content=CONTENT)
    with pytest.raises(ValueError, match=f"(?s)a.tar could not .*{bad}: {message}.*--from"):
        fetch(remote(bad), tmp_path / "alone")
    assert not (tmp_path / "alone" / "a.tar").exists(), "what is not checked has not its name"
    web("bad", **file)  # once more
    fetch(remote(bad, good), tmp_path / "both")
    assert arrived(tmp_path / "both") == CONTENT


@pytest.mark.parametrize("bad", ["http://[::1/a", "http://127.0.0.1:9/é", "http://a b/", "http:"])
def test_the_next_mirror_stands_in_for_what_is_no_address(bad, web, tmp_path):
    fetch(remote(bad, web("good", content=CONTENT)), tmp_path)
    assert arrived(tmp_path) == CONTENT
    with pytest.raises(ValueError, match=r"\(3\)|attempts failed|not an http or https address"):
        fetch(remote(bad), tmp_path / "alone")


def test_nobody_listens_and_other_schemes(web, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    closed, file = "http://127.0.0.1:9/a", (tmp_path / "secret").as_uri()
    with pytest.raises(ValueError, match=r"connect.*file:.*: it is not an http or https address"):
        fetch(remote(closed, file), tmp_path)
    for other in (file, "ftp://127.0.0.1:9/a"):
        with pytest.raises(ValueError, match=r"curl: \(1\) Protocol"):
            fetch(remote(web("a", redirect=other)), tmp_path)


@pytest.mark.parametrize("trick", ["--output=x", "@/etc/passwd", "-K/etc/passwd", "http://-o@x y"])
def test_an_address_is_never_an_option(trick, web, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"not an http or https address|curl: \(3\)"):
        fetch(remote(trick), tmp_path / "alone")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["alone"])


def test_a_user_without_curl_is_told_how_to_install_it(web, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"curl was not found; install it: apt-get install curl"):
        fetch(remote(web("a", content=CONTENT)), tmp_path)


def test_a_full_disk_is_named_and_the_next_call_goes_on(web, tmp_path):
    def full(done: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    address = web("a", content=CONTENT)
    with pytest.raises(ValueError, match=r"No space left.*make room.*resumes from there"):
        fetch(remote(address), tmp_path, seen=full)
    fetch(remote(address), tmp_path)
    assert arrived(tmp_path) == CONTENT


def test_a_stop_leaves_what_arrived(web, tmp_path, monkeypatch):
    address, stop = web("a", content=CONTENT), threading.Event()
    monkeypatch.setattr(download, "_CHUNK", 1000)
    with pytest.raises(Stopped):
        fetch(remote(address), tmp_path, seen=lambda done: stop.set(), stop=stop)
    part = (tmp_path / "a.tar.part").read_bytes()
    assert 0 < len(part) <= 1000 and CONTENT.startswith(part)
    fetch(remote(address), tmp_path)
    assert arrived(tmp_path) == CONTENT


class Waits(threading.Event):
    """Waits pass at once, and are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0)
        return False


@pytest.mark.parametrize(
    ("status", "retry_after", "expected"),
    [
        (403, "", [15, 30]),
        (429, "40", [40, 40]),
        (503, "7", [15, 30]),
        (429, "soon", [15, 30]),
        (503, "Fri, 31 Dec 1999 23:59:59 GMT", [15, 30]),
    ],
)
def test_a_refusal_is_waited_out(patient, tmp_path, status, retry_after, expected):
    address = patient("a", content=CONTENT, statuses=[status] * 2, retry_after=retry_after)
    waits = Waits()
    fetch(remote(address), tmp_path, stop=waits)
    assert arrived(tmp_path) == CONTENT and len(patient.requests) == 3
    assert waits.seconds == expected


def test_a_host_that_asks_for_hours_or_never_gives_in_is_left_for_the_next(patient, tmp_path):
    good, stop = patient("good", content=CONTENT), Waits()
    for name, values in (
        ("hours", {"statuses": [429] * 9, "retry_after": "7200"}),
        ("never", {"statuses": [403] * 9}),
    ):
        bad = patient(name, content=CONTENT, **values)
        fetch(remote(bad, good), tmp_path / name, stop=stop)
        assert arrived(tmp_path / name) == CONTENT
        patient(name, content=CONTENT, **values)
        with pytest.raises(ValueError, match=r"asks to wait 120 minutes|5 attempts failed.*403"):
            fetch(remote(bad), tmp_path / "alone", stop=stop)
    asked = [path for path, _ in patient.requests]
    assert asked.count("hours") == 2, "it is not asked again"


def test_a_host_has_two_connections_and_hosts_do_not_wait_for_each_other(patient, tmp_path):
    small = b"0123456789" * 20
    with serve() as other:
        addresses = [patient(f"{k}", content=small, drip=0.002) for k in range(5)]
        addresses += [other(f"{k}", content=small, drip=0.002) for k in range(3)]
        files = [remote(a, content=small, name=f"{k}.tar") for k, a in enumerate(addresses)]
        with ThreadPool(len(files)) as pool:
            pool.map(lambda file: fetch(file, tmp_path), files)
        assert (patient.most, other.most) == (2, 2)
    assert len(list(tmp_path.glob("*.tar"))) == 8
