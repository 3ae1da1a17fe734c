"""Find methods, kinds of datasets and extras by name, or in a user's file.

The rule is the same for all: NAME is the module NAME of a package. `names_in` lists a package's
modules and imports none of them. Every module that planning imports does without torch.

A user's file is a program. It runs only in a context that allows it (`allow_users_files`), which a
command enters once: a plan may come from somebody else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import keyword
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import USERS_METHOD, RecipeError
from engine.recipe import typed
from engine.recipe.schema import MISSING
from engine.recipe.source_code import digest_of_method
from engine.recipe.typed import Layer, Options
from loaders.files.durable import file_hash

INTERFACE = "base"  # the module of a package that says what the package's other modules define
OPTIONS = "options"  # the package, in a package, of modules without torch that define `Recipe`
_allowed: ContextVar[bool] = ContextVar("users' files may run", default=False)
methods_run: set[str] = set()  # digests of the users' method files that ran in this process


@contextmanager
def allow_users_files(allowed: bool = True) -> Iterator[None]:
    """Let users' files run in this context. Commands that train or encode do, and `rib merge` for
    the method that the user names. allowed: False changes nothing."""
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def users_files_allowed() -> bool:
    """Whether users' files may run here (`allow_users_files`)."""
    return _allowed.get()


def is_users(name: str) -> bool:
    """Whether a name is the path of a user's file."""
    return name.endswith(".py")


@functools.cache
def names_in(*packages: str) -> Mapping[str, str]:
    """The full name of each module of some packages but `base`, by its last name, in order."""
    modules = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None, package
        for module in pkgutil.iter_modules(spec.submodule_search_locations):
            modules[module.name] = f"{package}.{module.name}"
    return {name: modules[name] for name in sorted(modules) if name != INTERFACE}


@dataclass(frozen=True)
class Modules:
    """The modules, and users' files, that a section of a recipe names by one of its keys.

    section, key: as in `method.module`. packages: where the modules are. base: what their `Recipe`
    extends. made: the class that they define besides, built with the options. noun: what one is
    called in errors.
    """

    section: str
    key: str
    packages: tuple[str, ...]
    base: type
    made: str
    noun: str

    def names(self) -> Mapping[str, str]:
        """The full name of each module that defines options, by its name in recipes."""
        return names_in(*self.packages)

    def module(self, name: str) -> str:
        """The full name of a module, which defines `made`. Raises KeyError for an unknown one."""
        return self.names()[name].replace(f".{OPTIONS}.", ".")

    def options(self, layers: Sequence[Layer]) -> type[Any]:
        """The options class of what the layers name. Runs no user's file: the options of one are
        the keys of the layers.

        Raises RecipeError, naming the layer, if the module is missing or unknown.
        """
        sections = [
            (source, layer[self.section])
            for source, layer in layers
            if isinstance(layer.get(self.section), Mapping)
        ]
        naming = [(source, str(s[self.key])) for source, s in sections if s.get(self.key)]
        source, name = naming[-1] if naming else ((sections or layers)[0][0], "")
        name = name or getattr(self.base, self.key)
        if name == MISSING:
            raise RecipeError(
                f"{source}: {self.section}.{self.key} has no value: name a {self.noun}, or a .py "
                "file"
            )
        if is_users(name):
            check_file(f"{source}: {self.section}.{self.key}", name)
        return self.class_of(name, [str(key) for _, section in sections for key in section], source)

    def class_of(self, name: str, given: Iterable[str], source: str) -> type[Any]:
        """The options class of a module, or for a user's file a class with the given keys.

        source: the beginning of errors. Raises RecipeError for an unknown module.
        """
        if not is_users(name) and name not in self.names():
            raise RecipeError(
                f"{source}: unknown {self.noun} {name!r}{nearest(name, self.names())}"
            )
        return self.planned({**dict.fromkeys(given), self.key: name})

    def planned(self, options: Mapping[str, Any]) -> type[Any]:
        """The options class of values in a plan, readable even if a user's file is gone.

        Raises KeyError for an unknown module.
        """
        name = options[self.key]
        if is_users(name):
            return _extended(self.base, tuple(sorted(options)))
        return importlib.import_module(self.names()[name]).Recipe

    def find(self, name: str) -> ModuleType:
        """Import a module, or run a user's file, once per content.

        Raises KeyError for an unknown module, PermissionError for a user's file that may not run,
        RecipeError for invalid Python, and ValueError if a file lacks `Recipe` or `made`.
        """
        if not is_users(name):
            return importlib.import_module(self.module(name))
        module = run(name)
        if self.section == "method":
            methods_run.add(digest_of_method(Path(name)))
        for defined in ("Recipe", self.made):
            if not hasattr(module, defined):
                raise ValueError(f"{name} does not define {defined}; see docs/extend.md")
        if not issubclass(module.Recipe, self.base):
            extended = f"{self.base.__module__}.{self.base.__name__}"
            raise ValueError(f"{name}: Recipe does not extend {extended}")
        return module

    def complete(self, options: Any) -> Any:
        """Options as their module defines them. Runs a user's file.

        Raises RecipeError for options that the module does not allow, and errors as `find`.
        """
        if not is_users(name := getattr(options, self.key)):
            return options
        kind, values = self.find(name).Recipe, {}
        typed.add(values, kind, Options(), asdict(options), name, f"{self.section}.")
        return typed.build(values, kind, Options(), name)

    def with_option(self, option: str) -> list[str]:
        """The names of the modules that have an option of this name."""
        kinds = {name: self.planned({self.key: name}) for name in self.names()}
        return [name for name, kind in kinds.items() if option in kind.__dataclass_fields__]


def check_file(key: str, path: str) -> None:
    """Raise RecipeError if a key names no file."""
    if not Path(path).is_file():
        raise RecipeError(
            f"{key}={path!r} is not a Python file. A relative path starts at the folder of its "
            "YAML file or, on the command line, at the working directory"
        )


def run(file: str) -> ModuleType:
    """Run a user's file as a module, once per content.

    Raises PermissionError where users' files may not run, and RecipeError for invalid Python.
    """
    if not _allowed.get():
        raise PermissionError(f"{file} is a program: only commands that train or encode run it")
    return _run(Path(file), file_hash(Path(file)))


@functools.cache
def _run(path: Path, content: str) -> ModuleType:
    """content: the file's hash, so that a changed file runs again."""
    spec = importlib.util.spec_from_file_location(USERS_METHOD + path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module that defines them
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        if error.filename != str(path):
            raise
        raise RecipeError(f"{path}, line {error.lineno}: {error.msg}") from error
    return module


@functools.cache  # equal options share a class, so recipes compare equal
def _extended(base: type, names: tuple[str, ...]) -> type[Any]:
    """A class of options that extends `base` by these names, for a file that did not run."""
    shared = {field.name for field in dataclasses.fields(base)}
    possible = [name for name in names if name.isidentifier() and not keyword.iskeyword(name)]
    fields = [(name, Any, None) for name in possible if name not in shared]
    return dataclasses.make_dataclass("Recipe", fields, bases=(base,), frozen=True)
