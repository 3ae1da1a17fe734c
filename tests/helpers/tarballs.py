"""Archives as servers send them."""

import hashlib
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

_ENCRYPTED = 1  # bit of a member's flags


def tarball(path: Path, files: Mapping[str, bytes], mode: Literal["w:gz", "w"] = "w:gz") -> Path:
    """A .tar.gz, or with "w" a .tar, of these files, by their names in it."""
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip file of these files, by their names in it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def encrypted(members: Mapping[str, bytes], password: str, deflated: bool = False) -> bytes:
    """A zip file of these members with a password, which Python reads and does not write: the
    traditional cipher of PKWARE's APPNOTE, section 6.1."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            crc, packer = zlib.crc32(content), zlib.compressobj(wbits=-zlib.MAX_WBITS)
            header = hashlib.sha256(name.encode()).digest()[:11]  # random, where secrecy matters
            plain = packer.compress(content) + packer.flush() if deflated else content
            archive.writestr(name, _cipher(header + bytes([crc >> 24]) + plain, password))
            entry = archive.getinfo(name)
            entry.flag_bits |= _ENCRYPTED
            entry.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            entry.CRC, entry.file_size = crc, len(content)
        entries = archive.infolist()
    data = bytearray(packed.getvalue())
    for entry in entries:  # zipfile wrote the local headers of members without a password
        at, sizes = entry.header_offset, (entry.compress_size, entry.file_size)
        struct.pack_into("<HH", data, at + 6, _ENCRYPTED, entry.compress_type)
        struct.pack_into("<III", data, at + 14, entry.CRC, *sizes)
    return bytes(data)


def _cipher(plain: bytes, password: str) -> bytes:
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte: int) -> None:
        keys[0] = _crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = _crc(keys[2], keys[1] >> 24)

    for byte in password.encode():
        update(byte)
    result = bytearray()
    for byte in plain:
        mixed = (keys[2] & 0xFFFF) | 2
        result.append(byte ^ (((mixed * (mixed ^ 1)) >> 8) & 0xFF))
        update(byte)
    return bytes(result)


def _crc(crc: int, byte: int) -> int:
    return zlib.crc32(bytes([byte]), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
