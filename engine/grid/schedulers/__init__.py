"""The schedulers that `rib campaign --executor` can hand jobs to, one file each."""

from engine.grid.schedulers.base import Options, Scheduler
from engine.grid.schedulers.slurm import Slurm

__all__ = ["SCHEDULERS", "Options", "Scheduler"]
SCHEDULERS: dict[str, type[Scheduler]] = {"slurm": Slurm}
