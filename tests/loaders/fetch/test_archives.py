"""Archives become plain .tar files and folders, whole or not at all."""

import contextlib
import io
import os
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from helpers.damage import cut, flip, full_disk
from helpers.tarballs import tarball, zipped
from helpers.zip_crypto import encrypted
from loaders import trees
from loaders.fetch import archives, zip_cipher

BIG = {"a/b.png": bytes(9000)}
MEMBERS = {f"top/n{i % 3}/{i}.png": bytes([i % 256]) * (i % 70) for i in range(300)}


def files(root: Path) -> dict[str, bytes]:
    return {file.path: trees.read(file.place) for file in trees.files(root)}


@pytest.mark.parametrize("damage", [flip, cut, lambda path: os.truncate(path, 40)])
def test_a_cut_or_changed_gzip_file_is_refused(tmp_path, damage):
    archive, path = tarball(tmp_path / "a.tar.gz", MEMBERS), tmp_path / "a" / "a.tar"
    damage(archive)
    with pytest.raises(ValueError, match=r"a\.tar\.gz is damaged .*remove it"):
        archives.to_tar(archive, path)
    assert not list(path.parent.iterdir()) and archive.exists()


def test_a_zip_file_becomes_a_folder_and_a_stopped_unpacking_goes_on(tmp_path):
    archive, folder = zipped(tmp_path / "a.zip", MEMBERS), tmp_path / "set"
    assert not archives.needs_password(archive)
    next(archives.unzip(archive, folder))
    assert archive.exists() and not folder.exists()
    first = tmp_path / "a.zip.unpacked" / "top" / "n0" / "0.png"
    empty = tmp_path / "a.zip.unpacked" / "top" / "n1" / "1.png"  # as a power cut leaves it
    empty.parent.mkdir()
    empty.touch()
    before = first.stat().st_mtime_ns
    assert list(archives.unzip(archive, folder)) == [(i, 300) for i in range(1, 301)]
    assert files(folder) == MEMBERS
    assert (folder / "top" / "n0" / "0.png").stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_another_password_is_no_damage(tmp_path):
    archive = tmp_path / "o.zip"
    archive.write_bytes(encrypted(BIG, "a test set"))
    with pytest.raises(ValueError, match=r"^wrong password for .*o\.zip$"):
        list(archives.unzip(archive, tmp_path / "objectnet", "another"))
    # One of 256 passes the check of a byte, and its content is noise.
    with pytest.raises(ValueError, match=r"cannot be read .*or the password is wrong"):
        for number in range(2000):
            with contextlib.suppress(zip_cipher.PasswordError):
                list(archives.unzip(archive, tmp_path / "objectnet", str(number)))


def test_damaged_zip_files_and_names_that_leave_them(tmp_path):
    archive, folder = tmp_path / "a.zip", tmp_path / "set"
    whole = zipped(archive, {"a/b.png": bytes(range(256)) * 9, "a/c.png": b"c"}).read_bytes()
    deflate64 = bytearray(whole)  # Windows uses it for large files; Python cannot read it
    deflate64[8] = deflate64[whole.index(b"PK\x01\x02") + 10] = 9
    for content, message in (
        (whole[:-30], r"a\.zip is damaged"),
        (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], r"a\.zip: a/b\.png cannot be read"),
        (deflate64, r"a/b\.png cannot be .*not supported.*unpack it with 7z"),
        ({}, "has no files"),
        ({"../b.png": b"b"}, "leads out of the archive"),
        ({"/tmp/rib-absolute.png": b"b"}, "leads out of the archive"),
        ({"a/../../b.png": b"b"}, "leads out of the archive"),
        (_with_an_empty_name(), "leads out of the archive"),
        ({".": b"b"}, "leads out of the archive"),
        ({"a/" * 1500 + "b.png": b"b"}, "is more than 64 folders deep"),
        (_of_size(1 << 30), r"a\.zip: a\.png has 1,073,741,824 bytes, too many for an image"),
    ):
        zipped(archive, content) if isinstance(content, dict) else archive.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(archives.unzip(archive, folder))
    assert not folder.exists() and not (tmp_path.parent / "b.png").exists()
    assert not Path("/tmp/rib-absolute.png").exists()


def _of_size(count: int) -> bytes:
    """A zip file whose member says that it has so many bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"b")
    data = file.getvalue()
    place = data.index(b"PK\x01\x02") + 24
    return data[:place] + struct.pack("<I", count) + data[place + 4 :]


def _with_an_empty_name() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open(zipfile.ZipInfo(""), "w") as member:
        member.write(b"b")
    return file.getvalue()


def test_an_encrypted_bomb_is_named(tmp_path):
    """It holds more than it says."""
    archive = tmp_path / "o.zip"
    data = encrypted({"a.png": bytes(1 << 26)}, "a test set", deflated=True)
    place = data.index(b"PK\x01\x02") + 24
    archive.write_bytes(data[:place] + struct.pack("<I", 9) + data[place + 4 :])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.png cannot be read .*not match its checksum"):
        list(archives.unzip(archive, tmp_path / "objectnet", "a test set"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 25


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}  # and then a list of its parts


@pytest.mark.parametrize("headers", [SPARSE, {"size": "9" * 30}])
def test_a_tar_whose_header_tells_nonsense_is_named(tmp_path, headers):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as made:
        entry = tarfile.TarInfo("a.png")
        entry.pax_headers, entry.size = headers, 5
        made.addfile(entry, io.BytesIO(b"12345"))
    with pytest.raises(ValueError, match=r"a\.tar is damaged or no \.tar archive"):
        list(trees.files(archive))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_every_flipped_byte_of_a_zip_file_is_harmless_or_named(tmp_path, method):
    archive = zipped(tmp_path / "a.zip", {"a/b.png": b"pixels" * 9}, method)
    whole = archive.read_bytes()
    for place in range(len(whole)):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            archives.needs_password(archive)
            list(archives.unzip(archive, tmp_path / str(place)))
        except ValueError as error:
            assert str(archive) in str(error)
        shutil.rmtree(tmp_path / "a.zip.unpacked", ignore_errors=True)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path, name):
    pack, target = tarball if name == "a.tar.gz" else zipped, tmp_path / "set" / "content"
    archive = pack(tmp_path / name, BIG)
    with full_disk(), pytest.raises(OSError, match=r"could not be written .*make room in"):
        if name == "a.zip":
            list(archives.unzip(archive, target))
        else:
            archives.to_tar(archive, target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
