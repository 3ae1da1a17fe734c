"""Runs a Python program in a fork of a process that has imported what the program needs.

Python imports this file at its start where this folder is in PYTHONPATH. FORK_SERVER is the socket
of `helpers.fork_server`. FORKED has the programs, separated by commas: modules, files, or `-c`.
The process that was started passes signals on to the fork and ends as the fork does.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def program() -> list[str]:
    """The words after Python's own options; those of a module or of code begin with -m or -c."""
    words = sys.orig_argv[1:]
    while words and words[0].startswith("-") and words[0] not in ("-m", "-c"):
        del words[0]
    return words


def is_forked(words: list[str]) -> bool:
    name = words[1] if words[:1] == ["-m"] else words[0] if words else ""
    return name in os.environ.get("FORKED", "").split(",")


def in_fork(words: list[str]) -> None:
    """Let the server run the program, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["FORK_SERVER"])
        ours = {"words": words, "cwd": os.getcwd(), "environment": {**os.environ}}
        content = json.dumps(ours | {"starter": os.getpid()}).encode()
        socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(content)
        with connection.makefile() as answers:
            fork = int(answers.readline())
            for number in PASSED_ON:
                signal.signal(number, lambda number, _: os.kill(fork, number))
            code = int(answers.readline() or -signal.SIGKILL)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if is_forked(words := program()):
    in_fork(words)
