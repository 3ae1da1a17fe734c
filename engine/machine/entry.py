"""Wraps commands: no other package shadows ours, and an error is a single line."""

from __future__ import annotations

import codecs
import errno
import getpass
import importlib.util
import io
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from engine.errors import (
    USERS_METHOD,
    CampaignError,
    DivergedError,
    OtherRankError,
    PreemptedError,
    RecipeError,
    ShadowedError,
    printable,
)
from engine.machine.terminal import quiet_libraries

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "kernels", "loaders")
OUR_ERRORS = (RecipeError, ShadowedError, DivergedError, CampaignError, OtherRankError)
USER_ERRORS = (ValueError, OSError, *OUR_ERRORS)
TRANSIENT = (OSError, OtherRankError)  # may pass if retried; a rank cannot see another's error
LONGEST = 10_000  # characters of a message, which a user's method may write
FULL = 1 << 20  # bytes left on a disk that is full
DEBUG = "RIB_DEBUG"  # environment variable that the jobs of a campaign inherit


def hiding(name: str) -> str:
    """Returns where `import NAME` finds another package than ours; empty if it finds ours."""
    spec = importlib.util.find_spec(name)
    place = next(iter(spec.submodule_search_locations or [spec.origin]), None) if spec else None
    return "" if place and Path(place).resolve() == ROOT / name else place or "nothing"


def check_shadowing() -> None:
    """Raises ShadowedError if another installed package has the name of one of ours."""
    for name in PACKAGES:
        if place := hiding(name):
            raise ShadowedError(
                f"`{name}` is imported from {place}, not from {ROOT / name}: another package has "
                "that name; uninstall it, or use a fresh virtual environment"
            )


def guarded(
    work: Callable[[], int | None], *, may_be_hidden: bool = False, transient_code: int = 2
) -> int:
    """Runs `work` and returns the exit code of the command.

    may_be_hidden: skip `check_shadowing`. transient_code: exit code of errors worth a retry, such
    as those of the disk or the network.

    - A user's error (`USER_ERRORS`) prints a line and gives 2.
    - Ctrl-C gives 130.
    - A training stopped by a signal, after a last checkpoint, prints a line on the first rank and
      gives 75 (EX_TEMPFAIL).
    - An error inside a user's method also prints its traceback, and gives 1 if it is of another
      type. An exit inside one is an error that gives 2. With `--debug` all errors print their
      traceback.
    - If the reader of our output closes it, as `head` does, the command ends silently with 141.
    """
    _open_streams()
    quiet_libraries()
    _name_user()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # bars would fill a log file
    # On a busy machine, spinning idle threads cost up to ten times the work that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not may_be_hidden:
            check_shadowing()
        code = work() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        if not _reader_left():
            return _explain(error, transient_code)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        return 128 + signal.SIGPIPE
    except PreemptedError as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks stop together
            print(error, file=sys.stderr)
        return os.EX_TEMPFAIL  # schedulers can be configured to requeue it
    except USER_ERRORS as error:
        return _explain(error, transient_code)
    except KeyboardInterrupt:
        print("interrupted; finished work is safe, the same command resumes it", file=sys.stderr)
        return 130
    except BaseException as error:
        if not _users_frame(error):
            raise
        code = _explain(error, transient_code)
        return code if isinstance(error, SystemExit) else 1  # a retry may succeed


def words(error: BaseException) -> str:
    """Returns an error's message as one line for users, of at most `LONGEST` characters."""
    try:
        text = str(error) or type(error).__name__
    except Exception:  # a class of a user's method may define it
        text = f"{type(error).__name__}, whose text raises an error"
    if not isinstance(error, Exception | KeyboardInterrupt):
        place = _users_frame(error)
        where = f"{place.filename}, line {place.lineno}, " if place else "something "
        text = f"{where}ended the command before its result ({type(error).__name__}: {text})"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _open_streams() -> None:
    """Opens closed standard streams on /dev/null, writes UTF-8 in ASCII-only locales, and `?` for
    signs that another locale's encoding lacks.

    Otherwise the next opened files would get the streams' numbers, and prints of libraries would go
    into them. ASCII-only is LC_ALL=C without Python's UTF-8 mode.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            if codecs.lookup(stream.encoding).name == "ascii":
                stream.reconfigure(encoding="utf-8")
            elif stream.writable():  # as in Latin-1: a table must not fail for one of its signs
                stream.reconfigure(errors="replace")


def _name_user() -> None:
    """Names a user who is in no /etc/passwd, as in containers: libraries ask for a name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"


def _explain(error: BaseException, transient_code: int) -> int:
    """Prints an error and returns its exit code."""
    if DEBUG in os.environ or _users_frame(error):
        for frame in traceback.format_exception(error):
            print(printable(frame[:LONGEST].rstrip("\n")), file=sys.stderr)
    line = printable(f"error: {_of_folder(error) or words(error)}{_full_disks(error)}")
    print(line, file=sys.stderr)
    # torchrun prints these files of its ranks at its end.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not isinstance(error, OtherRankError):
        message = {"message": line, "extraInfo": {"timestamp": int(time.time())}}
        Path(file).write_text(json.dumps({"message": message}), "utf-8")
    return transient_code if isinstance(error, TRANSIENT) else 2


def _of_folder(error: BaseException) -> str:
    """Describes why a folder cannot be made if something else has its name; otherwise ""."""
    if not isinstance(error, FileExistsError | NotADirectoryError) or not error.filename:
        return ""
    place = Path(error.filename)
    while not os.path.lexists(place):
        place = place.parent
    if place.is_symlink() and not place.exists():
        to = place.readlink()
        return (
            f"{place} is a link to {to}, which does not exist; make that folder or remove the link"
        )
    if place.is_file():
        return f"{place} is a file, but a folder of that name is needed; move it away"
    return ""


def _full_disks(error: BaseException) -> str:
    """Names the full disks of an error that names none, such as a library's in a temporary file."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC or error.filename:
        return ""
    places = (os.environ.get("TMPDIR", "/tmp"), "/dev/shm", str(Path.cwd()))
    full = [place for place in places if os.path.isdir(place) and _is_full(place)]
    return f"; full: {', '.join(full)}" if full else f"; look at {', '.join(places)}"


def _is_full(folder: str) -> bool:
    return shutil.disk_usage(folder).free < FULL


def _users_frame(error: BaseException | None) -> traceback.FrameSummary | None:
    """The last frame in a user's method that the error passed through; None for our own errors."""
    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        of_user = [
            place for place in frames
            if place[0].f_globals.get("__name__", "").startswith(USERS_METHOD)
        ]  # fmt: skip
        if of_user and not isinstance(error, OUR_ERRORS):
            return traceback.StackSummary.extract(of_user[-1:])[0]
        error = error.__cause__
    return None


def _reader_left() -> bool:
    """Whether the reader of our standard output has closed it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR is always reported
    return any(state & select.POLLERR for _, state in poll.poll(0))
