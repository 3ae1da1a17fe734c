"""What campaigns need of a Slurm, and `rib doctor` looks for."""

from __future__ import annotations

LONGEST_CHECK_S = 180  # between two looks at the queue: a constant of Snakemake's plugin
ANSWER_S = 30  # of Slurm's programs
# Without slurmdbd only `squeue` tells how a job ended, so it must be asked before Slurm forgets it.
MIN_JOB_AGE_S = LONGEST_CHECK_S + ANSWER_S
