"""Decryption of zip members against Python's own, slow one, and against damage."""

import io
import zipfile

import numpy as np
import pytest

from helpers.zip_crypto import encrypted
from loaders.fetch import zip_cipher
from loaders.fetch.zip_cipher import PasswordError

RANDOM = np.random.default_rng(0)
MEMBERS = {
    f"folder/{size}.png": RANDOM.integers(0, 256, size, np.uint8).tobytes()
    for size in (0, 1, 255, 4096)
}


def opened(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


@pytest.mark.parametrize("deflated", [False, True])
def test_members_are_those_that_python_decrypts(deflated):
    archive = opened(encrypted(MEMBERS, "schlüssel", deflated))
    for member in archive.infolist():
        expected = archive.read(member, "schlüssel".encode())
        assert zip_cipher.read(archive, member, "schlüssel") == expected == MEMBERS[member.filename]


def test_other_passwords_never_give_content():
    """A byte checks the password, so one in 256 wrong ones shows only in the checksum."""
    archive = opened(encrypted(MEMBERS, "right"))
    errors = set()
    for i in range(600):
        with pytest.raises((PasswordError, zipfile.BadZipFile)) as caught:
            zip_cipher.read(archive, archive.getinfo("folder/255.png"), f"wrong {i}")
        errors.add(caught.type)
    assert errors == {PasswordError, zipfile.BadZipFile}


@pytest.mark.parametrize("deflated", [False, True])
def test_damage_is_seen(deflated):
    data = bytearray(encrypted(MEMBERS, "right", deflated))
    place = opened(bytes(data)).getinfo("folder/255.png").header_offset
    data[place + 100] ^= 1
    for message in (r"folder/255\.png", "is truncated or has no header"):
        archive = opened(bytes(data))
        with pytest.raises(zipfile.BadZipFile, match=message):
            zip_cipher.read(archive, archive.getinfo("folder/255.png"), "right")
        data[place] ^= 1
