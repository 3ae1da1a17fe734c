"""A program's output in a file of limited size."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.machine import limited_log
from helpers.processes import ROOT, lives, until

LOGGED = [sys.executable, "-P", "-m", "engine.machine.limited_log"]
TALK = "import os; [os.write(1, (b'%09d' % n) * 7281) for n in range({})]; os.write(2, b'the end')"


def run(file: Path, *command: str) -> int:
    return subprocess.run([*LOGGED, str(file), *command], cwd=ROOT, timeout=60).returncode


def test_the_ends_of_a_long_output_stay(tmp_path):
    """And a short one stays whole."""
    file = tmp_path / "log"
    assert run(file, sys.executable, "-c", TALK.format(2)) == 0
    assert file.read_bytes() == b"000000000" * 7281 + b"000000001" * 7281 + b"the end"
    assert run(file, sys.executable, "-c", TALK.format(400)) == 0
    text = file.read_bytes()
    assert len(text) <= limited_log.MOST
    assert text.startswith(b"000000000" * 7281 + b"000000001") and text.endswith(b"399the end")
    left_out = text[limited_log.KEPT :].splitlines()[1].decode()
    assert left_out.endswith("bytes are left out here]")
    said = 400 * 7281 * 9 + 7
    assert said - len(text) <= int(left_out[1:].split()[0].replace(",", "")) <= said


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_its_exit_code_is_the_programs(end, code, tmp_path):
    assert run(tmp_path / "log", sys.executable, "-c", f"import os, sys; {end}") == code


def test_a_child_that_is_left_behind_is_not_waited_for(tmp_path):
    child = "import subprocess; print(subprocess.Popen(['sleep', '300']).pid)"
    assert run(tmp_path / "log", sys.executable, "-c", child) == 0
    os.kill(int((tmp_path / "log").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_program_ends_with_it(number, tmp_path):
    file = tmp_path / "log"
    work = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    with subprocess.Popen([*LOGGED, str(file), sys.executable, "-c", work], cwd=ROOT) as process:
        program = int(until(lambda: file.is_file() and file.read_text(), "it works"))
        process.send_signal(number)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    until(lambda: not lives(program), "the program ends", 5)
