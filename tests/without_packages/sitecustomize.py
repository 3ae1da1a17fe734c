"""A Python that lacks the packages which WITHOUT_PACKAGES names, separated by commas.

Python imports this file at its start where this folder is in PYTHONPATH; started processes inherit
that. The packages cannot be found on any path, as if they had never been installed.
"""

import importlib.machinery
import os

_NAMES = frozenset(os.environ.get("WITHOUT_PACKAGES", "").split(","))
_find_spec = importlib.machinery.PathFinder.find_spec


class _Others:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in _NAMES else _find_spec(name, path, target)


importlib.machinery.PathFinder.find_spec = _Others.find_spec
