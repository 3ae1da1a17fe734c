"""Commands in processes that are forked from this one, which has imported all that they need.

A forked command is what a started one is, without the half minute of imports. It can be disturbed
at a moment that repeats: when it is about to change a folder for the n-th time.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
HANGS_S = 300  # on an idle machine; a whole campaign takes a tenth of it


class FellShort(Exception):
    """The engine did not keep a promise; the message says what happened."""


class Skipped(Exception):
    """This machine cannot run trials of a kind; the message says why."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise FellShort(message)


def patience(seconds: float) -> float:
    """Seconds to wait for what takes `seconds` on an idle machine."""
    return seconds * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Ended:
    """A process that ended: exit code (negative for a signal), what it printed, CPU seconds."""

    code: int
    text: str
    cpu_s: float


def run(work: Callable[[], int], log: Path) -> Ended:
    """Do `work`, whose result is the exit code, in a process and session of its own.

    Raises FellShort, and kills the process, where it hangs.
    """
    process, before_s = ForkProcess(target=_become, args=(work, log)), _children_s()
    process.start()
    process.join(patience(HANGS_S))
    if process.exitcode is None:
        end_all()
        raise FellShort(f"it did not end within {patience(HANGS_S):.0f} s")
    return Ended(
        process.exitcode,
        log.read_text(encoding="utf-8", errors="replace"),
        _children_s() - before_s,
    )


def end_all() -> None:
    """Kill the processes that were forked and have not ended."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def _children_s() -> float:
    """CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _become(work: Callable[[], int], log: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = work()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die() -> None:
    """End this process at once: nothing of it runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_change(folder: Path, number: int, act: Callable[[], object]) -> list[int]:
    """Let this process do `act` before it changes `folder` for the n-th time, counted from 1.

    Returns a list whose only element counts the changes. Files that libraries write without Python
    (weights, Parquet) do not count; their folders and markers do.
    """
    count, root = [0], f"{folder}/"

    def notice(event: str, arguments: tuple) -> None:
        is_change = event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITING)
        # A name without a folder is relative to one that `loaders.files.root` has opened.
        name = str(arguments[0]) if is_change else ""
        if is_change and (name.startswith(root) or not os.path.isabs(name)):
            count[0] += 1
            if count[0] == number:
                act()

    sys.addaudithook(notice)
    return count
