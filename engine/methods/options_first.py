"""Load a method's file in two steps, so that a campaign is planned without importing torch."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import FileFinder, SourceFileLoader
from types import ModuleType
from typing import Any


class OptionsFirst(SourceFileLoader):
    """Runs a file up to the end of its class `Recipe`, and the rest when a name of it is asked for.

    A file without a class `Recipe` runs at once.
    """

    def exec_module(self, module: ModuleType) -> None:
        body = ast.parse(self.get_data(self.path), self.path).body
        names = [each.name if isinstance(each, ast.ClassDef) else "" for each in body]
        if "Recipe" not in names:
            super().exec_module(module)
            return
        end = names.index("Recipe") + 1

        def run(part: list[ast.stmt]) -> None:
            exec(compile(ast.Module(part, []), self.path, "exec"), vars(module))

        def rest(name: str) -> Any:
            if not name.startswith("__"):  # which tools look up in every module
                del vars(module)["__getattr__"]  # first: the rest may ask for its own names
                run(body[end:])
            return object.__getattribute__(module, name)

        run(body[:end])
        vars(module)["__getattr__"] = rest


def load_from(folder: str) -> None:
    """Load the modules of a package's folder by `OptionsFirst`."""
    sys.path_importer_cache[folder] = FileFinder(folder, (OptionsFirst, [".py"]))
