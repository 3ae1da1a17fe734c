"""The module that a method's recipe names: a module of `engine.methods`, or a user's file.

It is imported by name, so that recipes depend on no method. It defines `Recipe` (its options) and
`Method` (built as `Method(recipe)`), which follows `engine.methods.base`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from engine.errors import USERS_METHOD, nearest

METHODS = "engine.methods"
SHARED = ("base", "context", "objectives", "task_vectors")


def available() -> list[str]:
    """Names of the methods that come with the engine."""
    methods = importlib.import_module(METHODS)
    return sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if m.name not in SHARED)


def find(module: str) -> ModuleType:
    """The module of a method: a name of `available()`, or a path to a .py file.

    Raises ValueError when there is no such method or the file lacks `Recipe` or `Method`.
    """
    if module.endswith(".py"):
        method = _from_file(Path(module))
    elif module in available():
        method = importlib.import_module(f"{METHODS}.{module}")
    else:
        raise ValueError(f"there is no method module {module!r}{nearest(module, available())}")
    for name in ("Recipe", "Method"):
        if not hasattr(method, name):
            raise ValueError(f"{module} does not define {name}; see CONTRIBUTING.md")
    return method


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(USERS_METHOD + path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(
            f"method.module={str(path)!r} is not a Python file; a relative path begins at the "
            "folder of its YAML file, or on the command line at the working directory"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module that defines them
    spec.loader.exec_module(module)
    return module
