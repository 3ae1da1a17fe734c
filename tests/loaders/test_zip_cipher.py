"""Decryption of zip members against Python's own, slow one, and against damage."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from zip_crypto import encrypted

from loaders import zip_cipher
from loaders.zip_cipher import PasswordError

RANDOM = np.random.default_rng(0)
MEMBERS = {
    f"folder/{size}.png": RANDOM.integers(0, 256, size, np.uint8).tobytes()
    for size in (0, 1, 255, 4096)
}


def opened(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


@pytest.mark.parametrize("password", ["a", "objects in the wild", "schlüssel"])
@pytest.mark.parametrize("deflated", [False, True])
def test_members_are_those_that_python_decrypts(password: str, deflated: bool) -> None:
    archive = opened(encrypted(MEMBERS, password, deflated))
    for member in archive.infolist():
        expected = archive.read(member, password.encode())
        assert zip_cipher.read(archive, member, password) == expected == MEMBERS[member.filename]


def test_other_passwords_never_give_content() -> None:
    """A byte checks the password, so one in 256 wrong ones shows only in the checksum."""
    archive = opened(encrypted(MEMBERS, "right"))
    member = archive.getinfo("folder/255.png")
    errors = []
    for i in range(600):
        with pytest.raises((PasswordError, zipfile.BadZipFile)) as caught:
            zip_cipher.read(archive, member, f"wrong {i}")
        errors.append(caught.type)
    assert {*errors} == {PasswordError, zipfile.BadZipFile}


@pytest.mark.parametrize("deflated", [False, True])
def test_damage_is_seen(deflated: bool) -> None:
    data = bytearray(encrypted(MEMBERS, "right", deflated))
    place = opened(bytes(data)).getinfo("folder/255.png").header_offset
    data[place + 100] ^= 1
    archive = opened(bytes(data))
    with pytest.raises(zipfile.BadZipFile, match=r"folder/255\.png"):
        zip_cipher.read(archive, archive.getinfo("folder/255.png"), "right")
    data[place] ^= 1
    archive = opened(bytes(data))
    with pytest.raises(zipfile.BadZipFile, match="is cut or has no header"):
        zip_cipher.read(archive, archive.getinfo("folder/255.png"), "right")
