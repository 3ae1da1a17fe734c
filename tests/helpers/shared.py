"""What all workers of a test run share, or later runs too: the first that needs it makes it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loaders.files import locks


def of_all(factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of a test run share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def kept(config: pytest.Config, name: str, otherwise: Path) -> Path:
    """A folder that later test runs find again, in pytest's cache, or `otherwise` without it."""
    cache = getattr(config, "cache", None)
    return cache.mkdir(name) if cache else otherwise


def once(place: Path, make: Callable[[Path], None]) -> Path:
    """What `make` leaves in a folder: the first that asks makes it, and others wait."""
    making = place.with_suffix(".making")
    with locks.held(place.with_suffix(".lock"), lambda: None):
        if not place.exists():
            shutil.rmtree(making, ignore_errors=True)  # of one that failed
            make(making)
            making.rename(place)
    return place
