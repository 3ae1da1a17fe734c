"""Cluster schedulers for `rib campaign --executor`, one file each."""

from engine.campaigns.schedulers.base import RunOptions, Scheduler
from engine.campaigns.schedulers.slurm import Slurm

__all__ = ["SCHEDULERS", "RunOptions", "Scheduler"]
SCHEDULERS: dict[str, type[Scheduler]] = {"slurm": Slurm}
