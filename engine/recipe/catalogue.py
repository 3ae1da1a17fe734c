"""The files of `recipes/`: which there are, and what they say.

The only module that reads `recipes/`. It does not know what a recipe may say; see `merge`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.errors import RecipeError, nearest
from engine.recipe import yaml_text

ROOT = Path(__file__).resolve().parents[2] / "recipes"
GROUPS = {"model": "models", "dataset": "datasets", "method": "methods"}
ALL_MODELS = "model=all"
OTHER_FORM = "a list stands for `key: value` lines, or such lines for a list"
_LIST = re.compile(r"model=\[")
SELECTION = "methods"  # key that selects methods of a campaign on the command line
DOWNSTREAMS, VARY = "downstreams", "vary"  # keys of a grid: see `grid_keys`
OF_GRID = (SELECTION, DOWNSTREAMS, VARY)
VARIANT = "method.variant"
COMMAND_LINE = "the command line"


def names(group: str = "") -> list[str]:
    """Names of the files of a group (`models`, `methods`...); without a group, of all recipes.

    A campaign makes the recipe CAMPAIGN/METHOD for each of its methods.
    """
    base = ROOT / group
    files = {path.relative_to(base).with_suffix("").as_posix() for path in base.rglob("*.yaml")}
    if group:
        return sorted(files)
    groups = (*GROUPS.values(), "campaigns", "published", "sources")
    recipes = {name for name in files if name.split("/")[0] not in groups}
    for campaign in names("campaigns"):
        recipes |= {f"{campaign}/{method}" for method in methods_of(campaign)}
    return sorted(recipes)


def describe(name: str) -> str:
    """What a recipe does: the first comment line of its file, or its method and campaign."""
    path = ROOT / f"{name}.yaml"
    if not path.is_file():
        campaign, _, method = name.rpartition("/")
        row = read_campaign(path_of("campaigns", campaign))["methods"].get(method) or {}
        title = row.get("title") or read(path_of("methods", row.get("base", method)))["title"]
        return f"{title} as in the campaign {campaign}"
    first = path.read_text().splitlines()[0]
    return first.removeprefix("#").strip()


def published() -> dict[str, Any]:
    """The numbers published on the ImageNet-RIB slides, as `recipes/published.yaml` holds them."""
    return read(ROOT / "published.yaml")


def path_of(group: str, name: str) -> Path:
    """The file of a name, or the path that is its name. RecipeError where there is none."""
    if name.endswith(".yaml"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name}")
        return path
    if name not in names(group):
        what = group.removesuffix("s") or "recipe"
        raise RecipeError(f"there is no {what} {name!r}{nearest(name, names(group))}")
    return ROOT / group / f"{name}.yaml"


def read(path: Path) -> dict[str, Any]:
    """What a file says. RecipeError where it is no YAML of `key: value` lines."""
    values = yaml_text.read(path)
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold `key: value` lines")
    return values


def read_campaign(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a campaign's file says, merged over the campaign that it extends, of whose methods
    `methods: [A, B]` leaves these; an entry `{A: SETTINGS}` leaves A with these settings over its.

    extending: the campaigns that extend it. Raises RecipeError where it is among them, and for a
    list that names no method of the extended campaign.
    """
    if path.resolve() in extending:
        raise RecipeError(f"{path}: a campaign cannot extend itself")
    extending = (*extending, path.resolve())
    values = read(path)
    base = values.pop("extends", None)
    if isinstance(values.get("methods"), dict):
        values["methods"] = {
            name: with_absolute_module(settings, path.parent)
            for name, settings in values["methods"].items()
        }
    if base is None:
        return values
    extended = read_campaign(path_of("campaigns", str(base)), extending)
    if isinstance(values.get("methods"), list):
        methods, chosen = extended["methods"], values.pop("methods")
        if not chosen:
            raise RecipeError(f"{path}: methods: [] leaves none of {', '.join(methods)}")
        changes = {k: v for entry in chosen if isinstance(entry, dict) for k, v in entry.items()}
        chosen = [n for entry in chosen for n in (entry if isinstance(entry, dict) else [entry])]
        names = _of_campaign(chosen, methods, str(base))
        extended["methods"] = {
            name: merged(str(path), methods[name] or {}, changes.get(name) or {}) for name in names
        }
    return merged(str(path), extended, values)


def merged(source: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers over each other; RecipeError where a list stands for `key: value` lines."""
    try:
        return OmegaConf.to_container(OmegaConf.merge(*layers))  # type: ignore[return-value]
    except TypeError as error:
        raise RecipeError(f"{source}: {OTHER_FORM}") from error


def with_absolute_module(values: Any, folder: Path) -> Any:
    """A layer with the absolute path of its method's module, where the module is a file.

    folder: of the file that the layer comes from, or the working directory.
    """
    section = values.get("method") if isinstance(values, Mapping) else None
    if not isinstance(section, Mapping) or not str(section.get("module")).endswith(".py"):
        return values
    module = os.path.abspath(folder / section["module"])  # a link keeps its name
    return {**values, "method": {**section, "module": module}}


def methods_of(campaign: str, overrides: Sequence[str] = ()) -> list[str]:
    """The methods of a campaign, in table order: all, or those that `methods=[A,B]` selects.

    Raises RecipeError for an unknown campaign or method, or a file without methods.
    """
    path = path_of("campaigns", campaign)
    methods = read_campaign(path).get("methods")
    if not isinstance(methods, dict) or not methods:
        raise RecipeError(
            f"{path} is no campaign; it needs `methods:` with `NAME: {{}}` lines below"
        )
    return select(dict(map(key_and_value, overrides)).get(SELECTION), list(methods), campaign)


def select(selection: str | None, methods: list[str], campaign: str) -> list[str]:
    """The methods of a campaign that the value of `methods=` names; all without a selection."""
    if selection is None:
        return methods
    selected = parsed(f"{SELECTION}={selection}")[SELECTION]
    if not isinstance(selected, list) or not selected:
        raise RecipeError(
            f"{SELECTION}={selection} names no methods; write {SELECTION}=[{','.join(methods[:2])}]"
        )
    return _of_campaign(selected, methods, campaign)


def _of_campaign(selected: Sequence[str], methods: Iterable[str], campaign: str) -> list[str]:
    """The selected methods in the campaign's order; RecipeError for another campaign's method."""
    for name in selected:
        if name not in methods:
            raise RecipeError(
                f"{SELECTION}: {name!r} is no method of {campaign}{nearest(str(name), methods)}"
            )
    return [name for name in methods if name in selected]


def each_model(campaign: str, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of each grid: `model=[A,B]` stands for these models, `model=all` for every
    model that the campaign lists.

    Raises RecipeError where the campaign lists none, and for a list that is empty or names a model
    twice.
    """
    word = next((word for word in overrides if word == ALL_MODELS or _LIST.match(word)), None)
    if word is None:
        return [tuple(overrides)]
    if word == ALL_MODELS:
        models = read_campaign(path_of("campaigns", campaign)).get("models")
        if not isinstance(models, list) or not models:
            raise RecipeError(
                f"{ALL_MODELS}: {campaign} has no list `models:`; name models, as in model=[A,B]"
            )
    else:
        models = parsed(word)["model"]
        if not models or len(set(models)) < len(models):
            raise RecipeError(f"{word}: name one or more models, each once, as in model=[A,B]")
    return [
        tuple(f"model={model}" if each == word else each for each in overrides) for model in models
    ]


def without_options(words: Iterable[str]) -> list[str]:
    """The words but those of a method's own options, which no other method has; `method.variant`
    is every method's."""
    keys = {word: word.partition("=")[0] for word in words}
    return [w for w, key in keys.items() if key.partition(".")[0] != "method" or key == VARIANT]


def model_of(campaign: str) -> str | None:
    """The model that a campaign names."""
    model = read_campaign(path_of("campaigns", campaign)).get("model")
    return model.get("name") if isinstance(model, dict) else model


def key_and_value(word: str) -> tuple[str, str]:
    """The two sides of an override. RecipeError where it is no `key=value`."""
    key, equals, value = word.partition("=")
    if not equals or not key or key.count(".") >= yaml_text.DEEPEST:
        raise RecipeError(
            f"{word!r:.200} is not an override; write key=value, such as train.epochs=1"
        )
    return key, value


def parsed(word: str) -> dict[str, Any]:
    """The nested sections that an override such as `train.epochs=1` stands for."""
    yaml_text.parse(key_and_value(word)[1], f"override {word!r:.200}")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([word]))  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(f"override {word!r} cannot be read: {why}") from error
