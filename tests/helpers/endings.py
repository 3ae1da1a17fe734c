"""How a command must end, whatever it is given: soon, and with a single clear line or none."""

import io
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import timm  # noqa: F401  # with torch: an alarm inside their import would leave half of them

from engine import cli

LIMIT_S = 10
ATTEMPTS = 4  # to do what error lines say, before it is a dead end


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail what takes longer."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(
    command: Callable[[list[str]], int], words: Sequence[str], limit_s: int = LIMIT_S
) -> tuple[int, str]:
    """Exit code and error line of a command; fails unless it ends as every command should."""
    out, err = io.StringIO(), io.StringIO()
    with at_most(limit_s), redirect_stdout(out), redirect_stderr(err):
        try:
            code = command([*words])
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
    lines = [line for line in err.getvalue().splitlines() if "error: " in line]
    assert code in (0, 2) and len(lines) == (code == 2), (words, code, err.getvalue())
    assert "Traceback" not in err.getvalue()
    return code, "".join(lines)


def refused(*words: str) -> str:
    """The error line of `rib` with words that it refuses."""
    code, line = ended(cli.main, words, limit_s=60)
    assert code == 2, words
    return line


def follow(line: str, damaged: Path) -> None:
    """Do what an error line says: delete a file or a folder, or move a folder away."""
    if line.endswith("exists and is not a pack; move it away or choose another folder"):
        damaged.parent.rename(damaged.parent.with_name("away"))
        return
    if in_the_way := re.search("error: (/.+) is a folder, not a file; move it away", line):
        Path(in_the_way[1]).rmdir()
        return
    named = re.search(r"delete (.+?)(?: and run|, and run|$)", line)
    if named is None:
        assert re.search("run (the campaign|`rib campaign.*`) again", line), line
        return
    target = Path(named[1]) if named[1].startswith("/") else damaged
    target = target.parent if named[1] == "the folder" else target
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def heal(give: Callable[[str], str], command: str, damaged: Path) -> None:
    """Give a command, whose error line it returns, and do what that says until there is none."""
    for _ in range(ATTEMPTS):
        if not (line := give(command)):
            return
        assert line.startswith("error: ") and "\n" not in line, line
        assert damaged.name in line or damaged.parent.name in line, line
        follow(line, damaged)
        if command != "campaign" and "rib campaign" in line:
            heal(give, "campaign", damaged)
    raise AssertionError(f"a dead end: {line}")
