"""A process that has imported what jobs and ranks need: a program that it forks starts at once.

Most of the time of a small job is that of imports. A test passes the variables of the fixture
`forked` to the processes it starts; `forked_programs/sitecustomize.py` is the other side. Programs
whose start or end is what a test is about are not forked.
"""

import contextlib
import gc
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.machine import parent
from helpers.processes import ROOT, until
from helpers.shared import of_all, once

SOCKET = "fork.socket"
FORKED = ("engine.commands.job", "engine.cli", str(ROOT / "tests/helpers/rank_worker.py"))


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process whose programs, and those of its children, are forked."""
    path = once(of_all(tmp_path_factory) / "fork server", _start) / SOCKET
    folders = (ROOT / "tests/forked_programs", ROOT, ROOT / "tests")
    return {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "FORK_SERVER": str(path),
        "FORKED": ",".join(FORKED),
    }


def _start(folder: Path) -> None:
    """Start the server of a test run, which ends with the run."""
    folder.mkdir()
    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    command = [sys.executable, __file__, str(run)]
    variables = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "DS_ACCELERATOR": "cpu"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | variables, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    until((folder / SOCKET).exists, "the fork server listens", at_work=server)


def main() -> None:
    """Serve until the process on the command line ends."""
    with socket.socket(socket.AF_UNIX) as server:
        _import_all()
        gc.freeze()  # a collection in a fork would copy the memory of all that was imported
        parent._when_ended(int(sys.argv[1]), lambda: os._exit(0))
        server.bind(f"{SOCKET}.made")
        server.listen(64)
        os.rename(f"{SOCKET}.made", SOCKET)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for forks
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _serve(connection)
            connection.close()


def _import_all() -> None:
    """Modules of jobs, ranks and commands. Nothing is computed: threads would not be forked."""
    import torch

    from engine.machine.terminal import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()
    import deepspeed  # noqa: F401

    from engine.campaigns import column_job, distances_job, prepare_job  # noqa: F401
    from engine.commands import campaign, outcome  # noqa: F401
    from engine.cost import work  # noqa: F401
    from engine.report import finish  # noqa: F401
    from helpers import rank_worker  # noqa: F401


def _serve(connection: socket.socket) -> None:
    """Fork the program that a connection describes, and answer its process number and exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        described = json.loads(stream.read(int.from_bytes(length, "big")))
    fork = os.fork()
    if fork == 0:
        connection.close()
        os._exit(_code_of(lambda: _become(described, files)))
    with contextlib.suppress(BrokenPipeError):  # who started it was killed
        connection.sendall(f"{fork}\n".encode())
        _, status, usage = os.wait4(fork, 0)
        code = os.waitstatus_to_exitcode(status)
        print(f"{usage.ru_utime + usage.ru_stime:.1f} CPU-s", *described["words"][:3], flush=True)
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _become(described: dict[str, Any], files: list[int]) -> None:
    """Be the program: with its files, folder, variables and words."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (  # the server's have a position, which pipes have not
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", line_buffering=True)
        for number in (1, 2)
    )
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(described["cwd"])
    os.environ.clear()
    os.environ.update(described["environment"])
    parent._when_ended(described["starter"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    kind, *words = described["words"]
    if kind == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(words[0], {"__name__": "__main__"})
    else:
        sys.argv = [kind, *words]
        runpy.run_path(kind, run_name="__main__")


def _code_of(work: Callable[[], object]) -> int:
    """The exit code of a program, as Python gives it."""
    code: object = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    main()
