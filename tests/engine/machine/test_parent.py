"""No rank outlives its launcher and no job its campaign; processes in place of deepspeed's."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from engine.machine import follower, parent
from helpers.processes import ROOT, heed_signals, lives, until

HOST = parent.here()
JOB = """
from engine.machine import parent
parent.follow_campaign()
import time
print("at work", flush=True)
time.sleep(60)
"""
RANK = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
from engine.machine import parent
parent.GRACE_S = 0.5
parent.follow_launcher()
print(os.getpid(), os.getppid(), flush=True)
time.sleep(60)
print("still here", flush=True)
"""
# A word of its command is that of deepspeed's launcher.
START = "import subprocess, sys; sys.exit(subprocess.Popen([sys.executable, *sys.argv[2:]]).wait())"
# As deepspeed's launcher, which waits for each rank in turn.
WAITING = f"import signal; signal.signal(signal.SIGTERM, lambda *_: None); {START}"


@contextmanager
def process(*words: str, **variables: str) -> Iterator[subprocess.Popen]:
    """Python with these words, in a session of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in parent.LAUNCHED}
    started = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=ROOT, env=environment | variables, preexec_fn=heed_signals,
    )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def ended(number: int, seconds: float) -> None:
    until(lambda: not lives(number), f"{number} ends", seconds)


def line(started: subprocess.Popen) -> str:
    return started.stdout.readline().strip()


def test_a_job_ends_with_its_campaign():
    with process("-c", "import time; time.sleep(60)") as campaign:
        leash = f"{HOST} {campaign.pid}"
        with process("-c", JOB, **{parent.CAMPAIGN: leash}) as job:
            assert line(job) == "at work"
            campaign.kill()
            assert job.wait(2) == -signal.SIGKILL


def test_a_job_whose_campaign_is_gone_ends_before_it_imports_what_takes_time():
    with process("-c", "") as campaign:
        campaign.wait()
    words = ["-X", "importtime", "-P", "-m", "engine.commands.job", "report", "--plan", "x"]
    job = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, start_new_session=True,
        env=os.environ | {parent.CAMPAIGN: f"{HOST} {campaign.pid}"},
    )  # fmt: skip
    assert job.returncode == -signal.SIGKILL
    assert "engine.machine.parent" in job.stderr and "engine.campaigns" not in job.stderr


def test_a_child_that_follows_its_parent_ends_with_it():
    """Even if the parent, as a shell's background job, ignores SIGINT."""
    code = (
        "import signal, subprocess, sys, time\nfrom engine.machine.follower import following\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen(following(['sh', '-c', 'echo $$; exec sleep 60']))\n"
        "child.wait()\n"
    )
    with process("-c", code) as started:
        child = int(line(started))
        assert psutil.Process(child).ppid() == started.pid
        started.kill()
        ended(child, 3)


@pytest.mark.parametrize(("above", "code"), [(None, 0), (2**22, -signal.SIGINT)])
def test_a_program_whose_parent_ended_before_it_began_does_not_begin(above, code):
    command = [*follower.following(["echo", "at work"])]
    command[command.index(str(os.getpid()))] = str(above or os.getpid())
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (code, "" if code else "at work\n")


# Of another container, whose process numbers are others, the host may have the same name.
@pytest.mark.parametrize("leash", ["", "elsewhere 1", f"{socket.gethostname()} {2**22}"])
def test_a_job_by_hand_or_elsewhere_follows_nobody(leash):
    with process("-c", JOB, **{parent.CAMPAIGN: leash}) as job:
        assert line(job) == "at work"
        assert job.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_rank_ends_with_the_command_above_its_launcher(number):
    """Which kills the launcher too; the rank has the time for a last checkpoint."""
    words = ("-c", START, "deepspeed", "-c", WAITING, parent.DEEPSPEED, "-c", RANK)
    with process(*words, CROSS_RANK="0") as command:
        rank, launcher = map(int, line(command).split())
        command.send_signal(number)
        ended(launcher, 2)
        assert lives(rank)
        ended(rank, 3)


@pytest.mark.parametrize("launcher", [(), ("-c", START, parent.DEEPSPEED)])
def test_a_rank_whose_launcher_ended_before_it_began_does_not_begin(launcher):
    """It is below another process now, or its launcher is, of another session."""
    with process(*launcher, "-c", RANK, CROSS_RANK="0") as orphan:
        assert line(orphan) == "" and orphan.wait(10) == 1


def test_a_launcher_that_ssh_started_has_no_command_above():
    words = ("-c", START, parent.DEEPSPEED, "-c", RANK, "--node_rank=0")
    with process(*words, CROSS_RANK="0") as launcher:
        rank, above = map(int, line(launcher).split())
        assert above == launcher.pid
        launcher.kill()
        ended(rank, 3)


def test_a_process_without_a_launcher_follows_nobody():
    with process("-c", START, "shell", "-c", RANK, RANK="0") as shell:
        rank, _ = map(int, line(shell).split())
        shell.kill()
        time.sleep(0.3)
        assert lives(rank)
        os.kill(rank, signal.SIGKILL)


MODULE = """
import os, signal, sys, time
from engine.machine import parent
parent.follow_launcher()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(76))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
names += ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
sys.stdout.write(f"{[os.environ[name] for name in names]} {sys.argv[1]}\\n")
sys.stdout.flush()
if sys.argv[1] in ("kill", "exit") and os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "kill" else sys.exit(75)
time.sleep(0 if sys.argv[1] == "end" else 60)
"""


@pytest.mark.parametrize(("how", "code"), [("kill", 137), ("exit", 75), ("end", 0), ("notice", 76)])
def test_our_launcher_ends_as_its_ranks_do(tmp_path, how, code):
    """And passes a scheduler's notice on to them. They divide the job's eight threads."""
    (tmp_path / "work.py").write_text(MODULE)
    words = ("-P", "-m", "engine.machine.launcher", "2", "work", how)
    with process(*words, PYTHONPATH=f"{ROOT}:{tmp_path}", OMP_NUM_THREADS="8") as launcher:
        assert sorted([line(launcher), line(launcher)]) == [
            f"['{rank}', '{rank}', '2', '2', '4', '4'] {how}" for rank in range(2)
        ]
        ranks = psutil.Process(launcher.pid).children()
        if how == "notice":
            launcher.send_signal(signal.SIGUSR1)
        assert launcher.wait(5) == code
        for rank in ranks:
            ended(rank.pid, 4)
