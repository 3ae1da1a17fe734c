"""Runs a program and writes the beginning and end of its output to a file of limited size.

python -P -m engine.machine.limited_log FILE PROGRAM [WORDS ...]

The exit code is the program's, as a shell reports it: 137 if SIGKILL ended it. The kernel's limit
(RLIMIT_FSIZE) would also apply to the program's weights, so the output goes through a pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from typing import BinaryIO

from engine.machine import preemption
from engine.machine.follower import following

MOST = 8 << 20  # maximum bytes of the file
KEPT = 1 << 20  # bytes kept at each end of a longer output
CHUNK = 1 << 16  # bytes
POLL_S = 0.2  # between checks whether the program has ended


def main(words: Sequence[str]) -> int:
    file, *command = words
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    reading, writing = os.pipe()
    with os.fdopen(os.open(file, flags, 0o666), "r+b", buffering=0) as log:
        program = subprocess.Popen(
            following(command), stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
        )
        os.close(writing)
        for heard in preemption.SCHEDULERS:
            signal.signal(heard, lambda number, _: program.send_signal(number))
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal also sends it to the program
        code = _copy(reading, log, program)
    return 128 - code if code < 0 else code


def _copy(reading: int, log: BinaryIO, program: subprocess.Popen) -> int:
    """Copies output until the program ends, without waiting for children that it leaves behind."""
    count = 0
    while True:
        has_ended = program.poll() is not None
        if has_ended or select.select([reading], [], [], POLL_S)[0]:
            chunk = os.read(reading, _waiting(reading) if has_ended else CHUNK)
            count += len(chunk)
            with contextlib.suppress(OSError):  # full disk: the program may not need it
                log.write(chunk)
                if log.tell() > MOST:
                    _shorten(log, count)
            if has_ended or not chunk:
                return program.wait()


def _waiting(reading: int) -> int:
    """Number of bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(reading, termios.FIONREAD, bytes(4)))[0]


def _shorten(log: BinaryIO, count: int) -> None:
    """Keeps both ends of an output of `count` bytes."""
    log.seek(-KEPT, os.SEEK_END)
    end = log.read(KEPT)
    log.truncate(KEPT)
    log.seek(KEPT)
    log.write(f"\n[{count - 2 * KEPT:,} bytes are left out here]\n".encode() + end)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
