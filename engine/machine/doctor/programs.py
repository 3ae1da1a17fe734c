"""Programs of this machine, and what they answer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from engine.machine.doctor.diagnosis import MISSING, OK, WRONG, Diagnosis

ANSWER_S = 10
PROGRAM = "#include <cmath>\nint main() { return 0; }\n"


class NoAnswer(Exception):
    """A program failed, or did not answer in time; the message says which and how."""


def answer(
    *command: str,
    seconds: float = ANSWER_S,
    given: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """What a program writes to its standard output. given: its standard input.

    Raises NoAnswer where it fails or takes longer; it is then killed with all that it started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # a group of its own, to be killed
        )
    except OSError as error:
        raise NoAnswer(f"{command[0]} does not start: {error.strerror}") from error
    name = Path(command[0]).name
    try:
        output, errors = process.communicate(given, timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise NoAnswer(f"{name} does not answer within {seconds:g} s") from None
    if process.returncode:
        last = (errors.strip() or output.strip() or "it says nothing").splitlines()[-1]
        raise NoAnswer(f"{name} ends with exit code {process.returncode}: {last}")
    return output


def compiler() -> Diagnosis:
    """The C++ compiler that DeepSpeed and torch take, tried on a line."""
    cure = "apt-get install g++"
    program = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))), None)
    if program is None:
        return Diagnosis(MISSING, "neither $CXX nor c++ nor g++ is in PATH", cure)
    try:
        answer(program, "-x", "c++", "-fsyntax-only", "-", given=PROGRAM)
        version = answer(program, "-dumpfullversion", "-dumpversion").strip()
    except NoAnswer as error:
        return Diagnosis(WRONG, str(error), cure)
    return Diagnosis(OK, f"{program} {version}")


def headers() -> Diagnosis:
    """Python's own headers."""
    file = Path(sysconfig.get_path("include"), "Python.h")
    if not file.is_file():
        return Diagnosis(MISSING, f"there is no {file}", "apt-get install python3-dev")
    return Diagnosis(OK, str(file.parent))


def chromium() -> Diagnosis:
    """The browser of the report's tests, and its driver."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        detail = f"{' and '.join(missing)} not in PATH"
        return Diagnosis(MISSING, detail, "apt-get install chromium chromium-driver", needed=False)
    try:
        return Diagnosis(OK, answer("chromium", "--version").partition(" built")[0].strip())
    except NoAnswer as error:
        return Diagnosis(WRONG, str(error), "apt-get install --reinstall chromium", needed=False)
