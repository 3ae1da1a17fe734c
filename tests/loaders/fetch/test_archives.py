"""Archives become plain .tar files and folders, whole or not at all."""

import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.damage import cut, flip, full_disk
from helpers.tarballs import encrypted, tarball, zipped
from loaders import trees
from loaders.fetch import archives

BIG = {"a/b.png": bytes(9000)}
MEMBERS = {f"top/n{i % 3}/{i}.png": bytes([i % 256]) * (i % 70) for i in range(300)}


def files(root: Path) -> dict[str, bytes]:
    return {file.path: trees.read_image(file.place) for file in trees.files(root)}


@pytest.mark.parametrize("damage", [flip, cut, lambda path: os.truncate(path, 40)])
def test_a_cut_or_changed_gzip_file_is_refused(tmp_path, damage):
    archive, path = tarball(tmp_path / "a.tar.gz", MEMBERS), tmp_path / "a" / "a.tar"
    damage(archive)
    with pytest.raises(ValueError, match=r"a\.tar\.gz is damaged .*remove it"):
        archives.to_tar(archive, path)
    assert not list(path.parent.iterdir()) and archive.exists()


def test_a_zip_file_becomes_a_folder_also_after_a_stop(tmp_path):
    archive, folder = zipped(tmp_path / "a.zip", MEMBERS), tmp_path / "set"
    assert not archives.needs_password(archive)
    stopped = archives.unzip(archive, folder)
    next(stopped)
    stopped.close()
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
    half = tmp_path / "a.zip.unpacked" / "other.png"  # as a killed process leaves it
    half.parent.mkdir()
    half.touch()
    assert list(archives.unzip(archive, folder))[-1] == (300, 300)
    assert files(folder) == MEMBERS
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("deflated", [False, True])
def test_an_encrypted_zip_file_is_unpacked_with_its_password_alone(tmp_path, deflated):
    archive, folder = tmp_path / "[o] .zip", tmp_path / "objectnet"
    password = "-o secret *"  # for unzip neither an option nor a pattern
    archive.write_bytes(encrypted(MEMBERS, password, deflated))
    assert archives.needs_password(archive)
    for wrong in ("", *map(str, range(300))):  # one of 256 passes the check of a member
        with pytest.raises(ValueError, match=r"^wrong password for .*o\] \.zip$"):
            list(archives.unzip(archive, folder, wrong))
    list(archives.unzip(archive, folder, password))
    assert files(folder) == MEMBERS


def test_unzip_is_named_where_it_is_missing(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", MEMBERS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"unzip was not found; install it: apt-get install unzip"):
        list(archives.unzip(archive, tmp_path / "set"))


def test_damaged_zip_files_and_names_that_leave_them(tmp_path):
    archive, folder = tmp_path / "a.zip", tmp_path / "set"
    whole = zipped(archive, {"a/b.png": bytes(range(256)) * 9, "a/c.png": b"c"}).read_bytes()
    bzip2 = bytearray(whole)
    bzip2[8] = bzip2[whole.index(b"PK\x01\x02") + 10] = zipfile.ZIP_BZIP2
    for content, message in (
        (whole[:-30], r"a\.zip is damaged"),
        (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], r"a\.zip is damaged \(unzip: bad CRC"),
        (bzip2, r"a/b\.png is not compressed by deflate; unpack the archive with 7z"),
        ({}, "has no files"),
        ({"../b.png": b"b"}, "leads out of the archive"),
        ({"/tmp/rib-absolute.png": b"b"}, "leads out of the archive"),
        ({"a/../../b.png": b"b"}, "leads out of the archive"),
        ({"../b/": b"", "a.png": b"a"}, "leads out of the archive"),
        (_with(zipfile.ZipInfo("")), "leads out of the archive"),
        ({".": b"b"}, "leads out of the archive"),
        ({"a/" * 1500 + "b.png": b"b"}, "is more than 64 folders deep"),
        (_of_size(1 << 30), r"a\.zip: a\.png has 1,073,741,824 bytes, too many for an image"),
        (_of_size(2), r"a\.zip is damaged"),
        (_with(_link()), r"a\.zip: a\.png is a link"),
    ):
        zipped(archive, content) if isinstance(content, dict) else archive.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(archives.unzip(archive, folder))
        assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert not (tmp_path.parent / "b.png").exists()
    assert not Path("/tmp/rib-absolute.png").exists()


def _of_size(count: int) -> bytes:
    """A zip file whose member says that it has so many bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"b")
    data = file.getvalue()
    place = data.index(b"PK\x01\x02") + 24
    return data[:place] + struct.pack("<I", count) + data[place + 4 :]


def _link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("a.png")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member


def _with(member: zipfile.ZipInfo) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open(member, "w") as opened:
        opened.write(b"/etc/passwd")
    return file.getvalue()


def test_an_encrypted_bomb_is_named(tmp_path):
    """It holds more than it says."""
    archive = tmp_path / "o.zip"
    data = encrypted({"a.png": bytes(1 << 26)}, "a test set", deflated=True)
    place = data.index(b"PK\x01\x02") + 24
    archive.write_bytes(data[:place] + struct.pack("<I", 9) + data[place + 4 :])
    with pytest.raises(ValueError, match=r"o\.zip is damaged"):
        list(archives.unzip(archive, tmp_path / "objectnet", "a test set"))
    assert [path.name for path in tmp_path.iterdir()] == ["o.zip"]


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


def test_every_flipped_byte_of_a_zip_file_is_harmless_or_named(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"a/b.png": b"pixels" * 9}, zipfile.ZIP_DEFLATED)
    whole = archive.read_bytes()
    for place in range(len(whole)):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            archives.needs_password(archive)
            list(archives.unzip(archive, tmp_path / str(place)))
        except ValueError as error:
            assert str(archive) in str(error)
        assert not (tmp_path / "a.zip.unpacked").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path, name):
    pack, target = tarball if name == "a.tar.gz" else zipped, tmp_path / "set" / "content"
    archive = pack(tmp_path / name, BIG)
    with (
        full_disk(),
        pytest.raises(OSError, match=r"could not be (written|unpacked) .*make room in"),
    ):
        if name == "a.zip":
            list(archives.unzip(archive, target))
        else:
            archives.to_tar(archive, target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
