"""Zip files with a password, which Python reads and does not write.

The traditional cipher of PKWARE's APPNOTE, section 6.1, for members that are stored or deflated.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

_HEADER = bytes(range(11))  # random, where secrecy matters
_ENCRYPTED = 1  # bit of a member's flags


def encrypted(members: Mapping[str, bytes], password: str, deflated: bool = False) -> bytes:
    """A zip file of these members, each encrypted."""
    packed = {name: _deflated(m) if deflated else m for name, m in members.items()}
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        for name, content in packed.items():
            # As many bytes more as the cipher's header has.
            archive.writestr(name, bytes(12) + content)
        infos = archive.infolist()
    data = bytearray(plain.getvalue())
    for info in infos:
        content, unpacked = packed[info.filename], members[info.filename]
        crc, method = zlib.crc32(unpacked), zipfile.ZIP_DEFLATED if deflated else 0
        start = info.header_offset + 30 + len(info.filename.encode())
        size = 12 + len(content)
        data[start : start + size] = _cipher(_HEADER + bytes([crc >> 24]) + content, password)
        struct.pack_into("<HH", data, info.header_offset + 6, _ENCRYPTED, method)
        struct.pack_into("<III", data, info.header_offset + 14, crc, size, len(unpacked))
        entry = data.rindex(b"PK\x01\x02", 0, data.rindex(info.filename.encode()))
        struct.pack_into("<HH", data, entry + 8, _ENCRYPTED, method)
        struct.pack_into("<III", data, entry + 16, crc, size, len(unpacked))
    return bytes(data)


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


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
