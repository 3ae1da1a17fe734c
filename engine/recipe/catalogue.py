"""Find and read the files of `recipes/`.

Only this module reads `recipes/`. `typed` checks the values.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.recipe import yaml_text
from engine.recipe.overrides import over
from engine.recipe.schema import DatasetRecipe

ROOT = Path(__file__).resolve().parents[2] / "recipes"
EXTENDS = "extends"
TIMM_MODELS = ROOT / "timm_models.csv"  # published accuracies, one row per model
GROUPS = {"model": "models", "dataset": "datasets", "method": "methods"}
CITATIONS = ROOT / "methods.bib"
BENCHMARK = "benchmark"  # whose paper is always cited
_ENTRY = re.compile(r"^@\w+\{.*?^\}", re.DOTALL | re.MULTILINE)
_METHODS = re.compile(r"^  methods = \{(.*)\},\n", re.MULTILINE)  # a field of ours

_read: ContextVar[dict[Path, dict[str, Any]] | None] = ContextVar("read", default=None)


@contextlib.contextmanager
def each_file_once() -> Iterator[Mapping[Path, Mapping[str, Any]]]:
    """Read each file once in this context, so that all cells of a plan use the same values.

    Yields a mapping of each file's values, filled as files are read.
    """
    known = _read.get()
    files = {} if known is None else known
    token = _read.set(files)
    try:
        yield files
    finally:
        _read.reset(token)


def names(group: str = "") -> list[str]:
    """Names of the files of a group (`models`, `methods`...), or of all recipe files that belong to
    no group."""
    files = _names_below(ROOT / group)
    groups = (*GROUPS.values(), "campaigns", "sets", "published", "sources")
    return sorted(name for name in files if group or name.split("/")[0] not in groups)


@functools.cache  # planning asks for each row's files; recipes are part of the package
def _names_below(base: Path) -> frozenset[str]:
    files = base.rglob("*.yaml")
    return frozenset(path.relative_to(base).with_suffix("").as_posix() for path in files)


def path_of(group: str, name: str) -> Path:
    """The file of a recipe, by name or path. Raises RecipeError if there is none."""
    if is_path(name):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {path.absolute()}")
        return path
    if name not in names(group):
        what = group.removesuffix("s") or "recipe"
        raise RecipeError(f"there is no {what} {name!r}{nearest(name, names(group))}")
    return ROOT / group / f"{name}.yaml"


def is_path(name: str) -> bool:
    """Whether a name is the path of a YAML file."""
    return name.endswith(".yaml")


def read_recipe(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file. Paths of YAML files in it are relative to its folder.

    extending: files whose datasets extend it. Raises RecipeError if it is not YAML with
    `key: value` lines, or extends itself.
    """
    if any(map(path.samefile, extending)):
        raise RecipeError(f"{path} extends itself: name another dataset in {EXTENDS}")
    known = _read.get()
    files = {} if known is None else known
    if path not in files:
        values = lines(yaml_text.read_yaml(path), str(path))
        named = {key: values[key] for key in (*GROUPS, EXTENDS, "models") if key in values}
        values |= {key: beside(path.parent, value) for key, value in named.items()}
        files[path] = _with_paths(values, (*extending, path))
    return dict(files[path])


def _with_paths(values: Any, files: tuple[Path, ...]) -> Any:
    """The values of the last file, with every path of datasets made relative to its folder."""
    if not isinstance(values, Mapping):
        return values
    if isinstance(dataset := values.get("dataset"), Mapping):
        values = {**values, "dataset": _with_paths(dict(dataset), files)}
    if isinstance(own := values.get("per_dataset"), Mapping):
        sets = {name: _of_set(each, files) for name, each in own.items()}
        values = {**values, "per_dataset": sets}
    paths = {key: values[key] for key in ("root", "class_map", "class_names") if values.get(key)}
    folder = files[-1].parent
    return {**values, **{key: str(folder / str(path)) for key, path in paths.items()}}


def _of_set(values: Any, files: tuple[Path, ...]) -> Any:
    """A dataset's own keys, with those of the dataset's recipe that they extend."""
    if not isinstance(values, Mapping) or EXTENDS not in values:
        return _with_paths(values, files)
    base = path_of("sets", str(beside(files[-1].parent, values[EXTENDS])))
    own = {name: value for name, value in values.items() if name != EXTENDS}
    return over((read_recipe(base, files), _with_paths(own, files)))


def beside(folder: Path, value: Any) -> Any:
    """A value of a file in this folder, with paths of YAML files made relative to the folder."""
    if isinstance(value, list):
        return [beside(folder, each) for each in value]
    if isinstance(value, Mapping) and EXTENDS in value:
        return {**value, EXTENDS: beside(folder, value[EXTENDS])}
    return str(folder / value) if isinstance(value, str) and is_path(value) else value


def lines(values: Any, source: str) -> dict[str, Any]:
    """Returns the values as a dict. Raises RecipeError, naming the source, for anything else."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{source} must contain `key: value` lines, not {values!r:.100}")
    return dict(values)


def published_masks() -> dict[str, str]:
    """The possible predictions of published accuracies (`mask`), by dataset of `recipes/`."""
    masks: dict[str, str] = {}
    for name in names("datasets"):
        benchmark = read_recipe(path_of("datasets", name))
        own = benchmark.get("per_dataset", {})
        for each in (*filter(None, [benchmark.get("upstream")]), *benchmark.get("sets", ())):
            masks[each] = {**benchmark, **own.get(each, {})}.get("mask", DatasetRecipe.mask)
    for name in names("sets"):
        of_set = read_recipe(path_of("sets", name))
        masks[name] = of_set.get("mask", DatasetRecipe.mask)
    return masks


def bibtex(methods: Iterable[str]) -> str:
    """BibTeX entries of the benchmark and of these method recipes' papers, if known."""
    wanted = {BENCHMARK, *methods}
    entries = _ENTRY.findall(CITATIONS.read_text("utf-8"))
    return "\n\n".join(_METHODS.sub("", each) for each in entries if wanted & cited_for(each))


def cited_for(entry: str) -> set[str]:
    """The method recipes that an entry is the paper of."""
    named = _METHODS.search(entry)
    assert named is not None, entry
    return set(named[1].split(", "))


def with_absolute_module(values: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A layer with the absolute paths of its method's module, its datasets' kinds, its extras'
    modules and its trackers, if these are files.

    folder: of the layer's file, or the working directory.
    """
    values = {**values}
    if isinstance(method := values.get("method"), Mapping):
        values["method"] = _with_absolute(method, "module", folder)
    if isinstance(dataset := values.get("dataset"), Mapping):
        values["dataset"] = dataset = _with_absolute(dataset, "kind", folder)
        if isinstance(own := dataset.get("per_dataset"), Mapping):
            absolute = {name: _with_absolute(each, "kind", folder) for name, each in own.items()}
            values["dataset"] = {**dataset, "per_dataset": absolute}
    if isinstance(extras := values.get("extras"), Mapping):
        absolute = {name: _with_absolute(each, "module", folder) for name, each in extras.items()}
        values["extras"] = absolute
    if isinstance(trackers := values.get("trackers"), list):
        values["trackers"] = [absolute_tracker(each, folder) for each in trackers]
    return values


def _with_absolute(section: Any, key: str, folder: Path) -> Any:
    if not isinstance(section, Mapping) or not str(section.get(key)).endswith(".py"):
        return section
    return {**section, key: os.path.abspath(folder / section[key])}  # a link keeps its name


def absolute_tracker(name: Any, folder: Path) -> Any:
    """`FILE.py:CLASS` with the absolute path of the file."""
    file, _, kind = str(name).rpartition(":")
    return f"{os.path.abspath(folder / file)}:{kind}" if file.endswith(".py") else name
