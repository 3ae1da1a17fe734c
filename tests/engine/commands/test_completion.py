"""`rib completion`: what a shell makes of the script."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from engine import cli
from engine.commands import NAMES

ASK = """
source /dev/stdin
function=$(complete -p rib | sed 's/.*-F \\([^ ]*\\).*/\\1/')
for words in "rib cam" "rib campaign --sh"; do
  COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  $function rib "${COMP_WORDS[-1]}"
  echo "${COMPREPLY[@]}"
done
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_every_command(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert not [name for name in NAMES if name not in script]
    if shell != "bash" and shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    done = subprocess.run(
        ["bash", "-c", ASK], input=script, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["campaign", "--shape"]
