"""Cluster schedulers for `rib campaign --executor`: each module but `base` defines `Scheduler`."""

from importlib import import_module
from pkgutil import iter_modules

from engine.campaigns.schedulers.base import RunOptions, Scheduler

__all__ = ["SCHEDULERS", "RunOptions", "Scheduler"]
SCHEDULERS: dict[str, type[Scheduler]] = {
    module.name: import_module(f"{__name__}.{module.name}").Scheduler
    for module in iter_modules(__path__)
    if module.name != "base"
}
