"""Runs other programs with a time limit."""

from __future__ import annotations

import subprocess
from pathlib import Path

ANSWER_S = 30


class NoAnswer(OSError):
    """A program failed or did not answer in time; the message names it and the reason."""


def answer(*command: str, seconds: float = ANSWER_S, given: str = "") -> str:
    """Returns a program's standard output. given: its standard input.

    Raises NoAnswer if the program fails or takes more than `seconds`.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except OSError as error:
        raise NoAnswer(f"{name} did not start: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{name} did not answer within {seconds:g} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise NoAnswer(f"{name} failed with exit code {done.returncode}: {last}")
    return done.stdout
