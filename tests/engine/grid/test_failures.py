"""Why a campaign stopped, from Snakemake's log and the jobs' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.grid import failures

# As Snakemake 9.27 writes it, with its Slurm plugin 2.8; paths shortened.
HEAD = "[Thu Nov 26 03:21:26 2026]\nError in rule column:\n    message: {message}\n    jobid: 3\n"
TAIL = """\
    output: {place}/done/column-few
    log: {place}/logs/column-few.log (check log file(s) for error details)
    shell:
        (cd '/my runs' && python -P -m engine.commands.job column) > log 2>&1 || (exit $code)
        (command exited with non-zero exit code)
Trying to restart job 3.
[Thu Nov 26 03:21:27 2026]
Finished jobid: 4 (Rule: column)
"""
NO_MESSAGE = "None"
REFUSED = """\
SLURM sbatch failed. The error message was 'sbatch: error: CPU count per node can not be satisfied
sbatch: error: Batch job submission failed: Requested node configuration is not available'.
    sbatch call:
        sbatch --parsable --wrap="python -m snakemake"
For further error details see the cluster/cloud log and the log files of the involved rule(s)."""
ENDED = "SLURM-job '12' failed, SLURM status is: '{state}'. Detailed failure reason unavailable."


def reported(
    place: Path, message: str, log: str | None, *, out_of_memory: bool = False
) -> list[str]:
    (place / "logs").mkdir()
    if log is not None:
        (place / "logs" / "column-few.log").write_text(log)
    text = "noise\n" + (HEAD + TAIL).replace("{message}", message).replace("{place}/", "")
    commands = {"column-few": "cd /my && python -m job"}
    (report,) = failures.report(text, place, commands, place, out_of_memory=out_of_memory)
    *lines, alone = report.splitlines()
    assert alone == "  alone: cd /my && python -m job"
    if log:
        assert lines.pop() == f"  its log: {place / 'logs' / 'column-few.log'}"
    return lines


@pytest.mark.parametrize(
    ("message", "log", "how", "words"),
    [
        (NO_MESSAGE, "error: 1\nerror: second\nend\nexit code 2\n", "exit code 2", "error: second"),
        (NO_MESSAGE, "[rank1]: KeyError: 'x'\nend\nexit code 1\n", "exit code 1", "[rank1]: Key"),
        (NO_MESSAGE, "torch.OutOfMemoryError: x\nz\nexit code 1\n", "exit code 1", "torch.OutOf"),
        (NO_MESSAGE, "step 7\nexit code 137\n", "was killed (SIGKILL)", "step 7"),
        (NO_MESSAGE, "step 7\nexit code 143\n", "was killed (SIGTERM)", "step 7"),
        (NO_MESSAGE, "saved\nexit code 75\n", "by a signal in its training, and goes on", "saved"),
        (ENDED.format(state="TIMEOUT"), "step 7\n", "by Slurm: TIMEOUT (give more", "step 7"),
        (ENDED.format(state="OUT_OF_MEMORY"), "step 7\n", "by Slurm: OUT_OF_MEMORY", "step 7"),
        (ENDED.format(state="CANCELLED"), "step 7\n", "by Slurm: CANCELLED (somebody", "step 7"),
        (ENDED.format(state="NODE_FAIL"), "step 7\n", "ended by Slurm: NODE_FAIL", "step 7"),
        (ENDED.format(state="FAILED"), "error: x\nexit code 2\n", "(exit code 2)", "error: x"),
        (REFUSED, None, "did not start", "Requested node configuration is not available"),
        (NO_MESSAGE, None, "did not start", ""),
    ],
)  # fmt: skip
def test_a_failed_job_says_how_it_ended(
    tmp_path: Path, message: str, log: str | None, how: str, words: str
) -> None:
    first, *rest = reported(tmp_path, message, log)
    assert first.startswith("column-few ") and how in first
    assert len(rest) == bool(words) and (not words or words in rest[0])


def test_the_kernel_says_that_memory_ran_out(tmp_path: Path) -> None:
    first, _ = reported(tmp_path, NO_MESSAGE, "step 7\nexit code 137\n", out_of_memory=True)
    assert first == "column-few was killed (SIGKILL), because the machine ran out of memory"


def test_a_job_that_a_later_attempt_finished_did_not_fail(tmp_path: Path) -> None:
    text = (HEAD + TAIL).replace("{place}/", "")
    assert len(failures.failures(text * 3, tmp_path, tmp_path)) == 1  # attempts of one job
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "column-few").touch()
    assert failures.failures(text, tmp_path, tmp_path) == []


def test_a_workflow_that_fails_by_itself_says_its_last_words() -> None:
    text = "WorkflowError:\nThe plugin is missing.\n"
    assert failures.of_snakemake(text, 1) == (
        "the workflow ended with code 1; last words: The plugin is missing."
    )
    assert failures.of_snakemake("", -9) == "the workflow was killed (SIGKILL); last words: nothing"


def test_only_this_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier run\nof this one")
    assert failures.tail(tmp_path / "log", len("of an earlier run\n")) == "of this one"


def test_a_job_of_another_grid_is_that_grids(tmp_path: Path) -> None:
    text, neighbour = (HEAD + TAIL).replace("{place}", "../other"), tmp_path.with_name("other")
    assert failures.failures(text, tmp_path, tmp_path) == []
    (failure,) = failures.failures(text, neighbour, tmp_path)
    assert failure.job == "column-few"


def test_a_log_says_whether_its_job_failed(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    for content, code in (("", None), ("exit code 2\n", 2), ("x\nexit code 137\n", 137)):
        log.write_text(content)
        assert failures.exit_code(log) == code
    log.write_text("exit code 2\nand on\n")
    assert failures.exit_code(log) is None
