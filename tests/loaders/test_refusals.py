"""A host gets few connections, and one that refuses is asked again as late as it says."""

import hashlib
import threading
from collections.abc import Iterator

import pytest

from helpers.web import Web, serve
from loaders.fetch import download
from loaders.fetch.download import DownloadProgress, Remote

CONTENT = b"0123456789" * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Waits(threading.Event):
    """Waits pass at once, and are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0)
        return False


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


def remote(name: str, *addresses: str) -> Remote:
    return Remote(name, addresses, len(CONTENT), "sha256", SHA256)


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
def test_a_refusal_is_waited_out(web, tmp_path, status, retry_after, expected):
    address = web("a", content=CONTENT, statuses=[status] * 2, retry_after=retry_after)
    waits = Waits()
    download.fetch(remote("a.tar", address), tmp_path, DownloadProgress(stop=waits))
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and len(web.requests) == 3
    assert waits.seconds == expected


def test_a_host_that_asks_for_hours_or_never_gives_in_is_left_for_the_next(web, tmp_path):
    good, progress = web("good", content=CONTENT), DownloadProgress(stop=Waits())
    for name, values in (
        ("hours", {"statuses": [429] * 9, "retry_after": "7200"}),
        ("never", {"statuses": [403] * 9}),
    ):
        bad = web(name, content=CONTENT, **values)
        download.fetch(remote(f"{name}.tar", bad, good), tmp_path, progress)
        assert (tmp_path / f"{name}.tar").read_bytes() == CONTENT
        web(name, content=CONTENT, **values)
        with pytest.raises(ValueError, match=r"asks to wait 120 minutes|5 attempts failed.*403"):
            download.fetch(remote("alone.tar", bad), tmp_path, progress)
    assert sum(path == "hours" for path, _ in web.requests) == 2, "it is not asked again"


def test_a_host_has_two_connections_and_hosts_do_not_wait_for_each_other(web, tmp_path):
    with serve() as other:
        addresses = [web(f"{k}", content=CONTENT, drip=0.002) for k in range(5)]
        addresses += [other(f"{k}", content=CONTENT, drip=0.002) for k in range(3)]
        threads = [
            threading.Thread(target=download.fetch, args=(remote(f"{k}.tar", address), tmp_path))
            for k, address in enumerate(addresses)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (web.most, other.most) == (2, 2)
    assert len(list(tmp_path.glob("*.tar"))) == 8
