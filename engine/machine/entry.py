"""How a command begins and ends: nothing hides our packages, and an error is one line."""

from __future__ import annotations

import importlib.util
import json
import os
import select
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
    FirstRankError,
    RecipeError,
    ShadowedError,
)

ROOT = Path(__file__).resolve().parents[2]
OURS = ("engine", "kernels", "loaders")
OUR_ERRORS = (RecipeError, ShadowedError, DivergedError, CampaignError, FirstRankError)
USER_ERRORS = (ValueError, OSError, *OUR_ERRORS)
DEBUG = "RIB_DEBUG"  # in the environment, so that a campaign's jobs have it too


def check_shadowing() -> None:
    """Raise ShadowedError when another installed package hides one of ours."""
    for name in OURS:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
        found = Path(places[0] or "").resolve() if places else None
        if found != ROOT / name:
            raise ShadowedError(
                f"`{name}` is imported from {found}, not from {ROOT / name}; another package of "
                f"that name hides it: uninstall it, or use a fresh virtual environment"
            )


def guarded(work: Callable[[], int | None]) -> int:
    """Run `work`; users' errors become one line and exit code 2, Ctrl-C exit code 130.

    An error inside a user's own method keeps its traceback above that line, and `--debug` shows it
    of every error. Where the reader of our output leaves, as `head` does, the command ends without
    a word, with exit code 141.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log file is no place for a moving bar
    # Idle threads that spin cost a busy machine up to ten times the work they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        check_shadowing()
        code = work() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        if not _reader_left():
            return _explain(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        return 128 + signal.SIGPIPE
    except USER_ERRORS as error:
        return _explain(error)
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, the same command goes on", file=sys.stderr)
        return 130


def _explain(error: Exception) -> int:
    """Print an error; its exit code."""
    if DEBUG in os.environ or _in_users_method(error):
        traceback.print_exception(error)
    line = f"error: {error}"
    print(line, file=sys.stderr)
    # torchrun ends by printing what its ranks left in their files.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not isinstance(error, FirstRankError):
        message = {"message": line, "extraInfo": {"timestamp": int(time.time())}}
        Path(file).write_text(json.dumps({"message": message}))
    return 2


def _in_users_method(error: BaseException | None) -> bool:
    """Whether a user's method, or what it called, raised an error that is not one of ours."""
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = [frame.f_globals.get("__name__", "") for frame in frames]
        if not isinstance(error, OUR_ERRORS) and any(n.startswith(USERS_METHOD) for n in names):
            return True
        error = error.__cause__
    return False


def _reader_left() -> bool:
    """Whether nobody reads our standard output any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # of errors it tells in any case
    return any(state & select.POLLERR for _, state in poll.poll(0))
