"""Archives become plain .tar files and folders, whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from damage import cut, flip, full_disk
from zip_crypto import encrypted

from loaders import archives, trees
from loaders.archives import ArchiveError
from loaders.files import NotWritten
from loaders.zip_cipher import PasswordError

MEMBERS = {f"top/n{i % 3}/{i}.png": bytes([i % 256]) * (i % 70) for i in range(300)}


def tar(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def files(root: Path) -> dict[str, bytes]:
    return {file.path: trees.read(file.place) for file in trees.files(root)}


@pytest.mark.parametrize("packed", [gzip.compress(tar(MEMBERS)), tar(MEMBERS)])
def test_a_tar_loses_its_compression_if_it_has_one(tmp_path: Path, packed: bytes) -> None:
    """ImageNetV2's archive has been published under `.tar.gz` without being compressed."""
    archive, path = tmp_path / "v2.tar.gz", tmp_path / "imagenet_v2" / "v2.tar"
    archive.write_bytes(packed)
    archives.to_tar(archive, path)
    assert files(path) == MEMBERS
    assert [file.name for file in tmp_path.iterdir()] == ["imagenet_v2"]


@pytest.mark.parametrize("damage", [flip, cut, lambda path: os.truncate(path, 40)])
def test_a_cut_or_changed_gzip_file_is_refused(tmp_path: Path, damage) -> None:
    archive, path = tmp_path / "a.tar.gz", tmp_path / "a" / "a.tar"
    archive.write_bytes(gzip.compress(tar(MEMBERS)))
    damage(archive)
    with pytest.raises(ArchiveError, match=r"a\.tar\.gz is damaged .*remove it"):
        archives.to_tar(archive, path)
    assert not list(path.parent.iterdir()) and archive.exists()


def test_a_zip_file_becomes_a_folder_and_a_stopped_unpacking_goes_on(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.zip", tmp_path / "set"
    archive.write_bytes(zipped(MEMBERS))
    assert not archives.needs_password(archive)
    unpacking = archives.unzip(archive, folder)
    next(unpacking)
    unpacking.close()
    assert archive.exists() and not folder.exists()
    first = tmp_path / "a.zip.unpacked" / "top" / "n0" / "0.png"
    before = first.stat().st_mtime_ns
    assert list(archives.unzip(archive, folder)) == [(i, 300) for i in range(1, 301)]
    assert files(folder) == MEMBERS
    assert (folder / "top" / "n0" / "0.png").stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_a_password_opens_a_zip_file(tmp_path: Path) -> None:
    archive, folder = tmp_path / "o.zip", tmp_path / "objectnet"
    archive.write_bytes(encrypted(MEMBERS, "a test set"))
    assert archives.needs_password(archive)
    with pytest.raises(PasswordError, match=r"this is not the password of .*o\.zip"):
        list(archives.unzip(archive, folder, "another"))
    list(archives.unzip(archive, folder, "a test set"))
    assert files(folder) == MEMBERS


def test_damaged_zip_files_and_names_that_leave_them(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.zip", tmp_path / "set"
    whole = bytearray(zipped({"a/b.png": bytes(range(256)) * 9, "a/c.png": b"c"}))
    archive.write_bytes(whole[:-30])
    with pytest.raises(ArchiveError, match=r"a\.zip is damaged"):
        list(archives.unzip(archive, folder))
    whole[60] ^= 1
    archive.write_bytes(whole)
    with pytest.raises(ArchiveError, match=r"a\.zip: a/b\.png cannot be read"):
        list(archives.unzip(archive, folder))
    archive.write_bytes(zipped({}))
    with pytest.raises(ArchiveError, match="holds no files"):
        list(archives.unzip(archive, folder))
    for name in ("../b.png", "/tmp/rib-absolute.png", "a/../../b.png"):
        archive.write_bytes(zipped({name: b"b"}))
        with pytest.raises(ArchiveError, match="leaves the archive; refused"):
            list(archives.unzip(archive, folder))
    assert not folder.exists() and not (tmp_path.parent / "b.png").exists()
    assert not Path("/tmp/rib-absolute.png").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_every_flipped_byte_of_a_zip_file_is_harmless_or_named(tmp_path: Path, method: int) -> None:
    archive, packed = tmp_path / "a.zip", io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as opened:
        opened.writestr("a/b.png", b"pixels" * 9)
    whole = packed.getvalue()
    for place in range(len(whole)):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(ArchiveError):
            archives.needs_password(archive)
            list(archives.unzip(archive, tmp_path / str(place)))
        shutil.rmtree(tmp_path / "a.zip.unpacked", ignore_errors=True)


def test_a_compression_that_python_cannot_read_is_named_with_a_way_out(tmp_path: Path) -> None:
    """Deflate64, which Windows uses for large files, has the number 9."""
    archive = tmp_path / "a.zip"
    whole = bytearray(zipped({"a/b.png": bytes(99)}))
    whole[8] = whole[whole.index(b"PK\x01\x02") + 10] = 9
    archive.write_bytes(whole)
    with pytest.raises(
        ArchiveError, match=r"a/b\.png cannot be .*not supported.*unpack it with 7z"
    ):
        list(archives.unzip(archive, tmp_path / "set"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path: Path, name: str) -> None:
    archive, target = tmp_path / name, tmp_path / "set" / "content"
    big = {"a/b.png": bytes(9000)}
    archive.write_bytes(zipped(big) if name == "a.zip" else gzip.compress(tar(big)))
    before = files_below(tmp_path)
    with full_disk(), pytest.raises(NotWritten, match=r"could not be written .*make room in"):
        if name == "a.zip":
            list(archives.unzip(archive, target))
        else:
            archives.to_tar(archive, target)
    assert files_below(tmp_path) == before


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
