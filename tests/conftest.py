"""What all tests start from."""

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs beside it
    signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):  # a machine with a GPU may have pytest alone
    from hypothesis import HealthCheck, settings

    # How long an example takes says more of other work on the machine than of the code.
    settings.register_profile("rib", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("rib")

with contextlib.suppress(ImportError):
    import vl_convert

    # The same script for every page that has figures; it takes over a second.
    vl_convert.javascript_bundle = functools.cache(vl_convert.javascript_bundle)

    # And the same drawing of the same figure.
    _draw, _drawn = vl_convert.vegalite_to_svg, {}

    def _svg(spec: dict[str, Any]) -> str:
        key = json.dumps(spec)
        if key not in _drawn:
            _drawn[key] = _draw(spec)
        return _drawn[key]

    vl_convert.vegalite_to_svg = _svg

# Files of tests need not outlive a loss of power: a test run writes thousands.
os.fsync = lambda _: None

# Modules that take minutes come first, so that workers end together: those that mostly wait at the
# very beginning, since others then have the cores.
LONGEST = (
    *("test_slurm.py", "test_campaign_runs.py", "test_launch.py", "test_launches.py"),
    "test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def users_files() -> Iterator[None]:
    """Users' files may run in the test, as in a command that trains."""
    from engine.recipe.finder import allow_users_files  # a machine with a GPU may lack msgspec

    with allow_users_files():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test's users' methods do not move what later tests of the process, or fixtures, store."""
    if finder := sys.modules.get("engine.recipe.finder"):
        finder.methods_run.clear()
