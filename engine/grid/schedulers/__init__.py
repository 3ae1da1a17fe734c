"""Cluster schedulers for `rib campaign --executor`, one file each."""

from engine.grid.schedulers.base import RunOptions, Scheduler
from engine.grid.schedulers.slurm import Slurm

__all__ = ["SCHEDULERS", "RunOptions", "Scheduler"]
SCHEDULERS: dict[str, type[Scheduler]] = {"slurm": Slurm}
