"""Recipes: YAML files and `key=value` words become one checked, frozen `Recipe`.

The only module that reads `recipes/`. A recipe names its campaign, model, data set and method by
file, or holds such a section itself; the layers are merged in that order, then the campaign's
settings for the method, the recipe file itself and the command line. Every layer is checked by
itself, so an error can say which file is wrong and what was probably meant. What `dump` writes is
a recipe again.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from engine.errors import RecipeError, nearest
from engine.recipe import checks, modules
from engine.recipe.schema import MethodRecipe, Recipe

ROOT = Path(__file__).resolve().parents[2] / "recipes"
GROUPS = {"model": "models", "dataset": "datasets", "method": "methods"}
COMMAND_LINE = "the command line"
ALL_MODELS = "model=all"
SELECTION = "methods"  # of a campaign's methods, on the command line


def names(group: str = "") -> list[str]:
    """Names of the ready-made files of one group (`models`, `methods`...), or of the recipes."""
    base = ROOT / group
    files = {path.relative_to(base).with_suffix("").as_posix() for path in base.rglob("*.yaml")}
    if group:
        return sorted(files)
    groups = (*GROUPS.values(), "campaigns", "published")
    alone = {name for name in files if name.split("/")[0] not in groups}
    return sorted(alone.union(*map(_cells_of, names("campaigns"))))


def _cells_of(campaign: str) -> list[str]:
    """The recipes that a campaign makes by rule: CAMPAIGN/METHOD for each of its methods."""
    return [f"{campaign}/{method}" for method in methods_of(campaign)]


def describe(name: str) -> str:
    """What a recipe does: the first comment line of its file, or its method and campaign."""
    path = ROOT / f"{name}.yaml"
    if not path.is_file():
        campaign, _, method = name.rpartition("/")
        return f"{_read(_path('methods', method))['title']} as in the campaign {campaign}"
    first = path.read_text().splitlines()[0]
    return first.removeprefix("#").strip()


def published() -> dict[str, Any]:
    """The numbers published on the ImageNet-RIB slides, as `recipes/published.yaml` holds them."""
    return _read(ROOT / "published.yaml")


def methods_of(name: str, overrides: Sequence[str] = ()) -> list[str]:
    """The methods of a campaign, in table order: all, or those that `methods=[A,B]` selects.

    Raises RecipeError for an unknown campaign or method, or a file without methods.
    """
    path = _path("campaigns", name)
    methods = _extended(path).get("methods")
    if not isinstance(methods, dict) or not methods:
        raise RecipeError(
            f"{path} is no campaign; it needs `methods:` with `NAME: {{}}` lines below"
        )
    return _selected(dict(map(_split, overrides)).get(SELECTION), list(methods), name)


def _selected(selection: str | None, methods: list[str], campaign: str) -> list[str]:
    """Those of a campaign's methods that the value of `methods=` names; all where there is none."""
    if selection is None:
        return methods
    names = _dotted(f"{SELECTION}={selection}")[SELECTION]
    if not isinstance(names, list) or not names:
        raise RecipeError(
            f"{SELECTION}={selection} names no methods; write {SELECTION}=[{','.join(methods[:2])}]"
        )
    for name in names:
        if name not in methods:
            raise RecipeError(
                f"{SELECTION}: {name!r} is no method of {campaign}{nearest(str(name), methods)}"
            )
    return [name for name in methods if name in names]


def each_model(name: str, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every grid asked for: `model=all` stands for each of a campaign's `models`.

    Raises RecipeError where the campaign lists none.
    """
    if ALL_MODELS not in overrides:
        return [tuple(overrides)]
    found = _extended(_path("campaigns", name)).get("models")
    if not isinstance(found, list) or not found:
        raise RecipeError(f"{ALL_MODELS}: {name} has no list `models:`; name one model")
    return [
        tuple(f"model={one}" if word == ALL_MODELS else word for word in overrides) for one in found
    ]


def model_of(name: str) -> str | None:
    """The model that a campaign itself names."""
    found = _extended(_path("campaigns", name)).get("model")
    return found.get("name") if isinstance(found, dict) else found


def load(
    name: str,
    overrides: Sequence[str] = (),
    *,
    method: str | None = None,
    downstream: str | None = None,
) -> Recipe:
    """Resolve a recipe (`emoji/ewc`, a campaign's name, or a path) with `key=value` overrides.

    `method` and `downstream` ask for another cell of the same campaign: overrides that begin with
    `method` then belong to the recipe that was asked for first, and are left out, except
    `method.variant`, which every method has.

    Raises RecipeError for an unknown recipe, key or name, a wrong type or a missing value.
    """
    layers = _layers(name, overrides, method, downstream)
    return _build(name, layers, _method_options(layers))


def outline(name: str, overrides: Sequence[str], method: str) -> tuple[Recipe, dict[str, Any]]:
    """A cell of a campaign without its method's own options, and its method section as it stands.

    What can be told where no method's module is imported, and torch with it. Raises RecipeError as
    `load` does, but for a method's own options.
    """
    layers = _layers(name, overrides, method, None)
    section = OmegaConf.merge(*(values.get("method", {}) for _, values in layers))
    shared = {field.name for field in dataclasses.fields(MethodRecipe)}
    known = [
        (source, {k: _only(v, shared) if k == "method" else v for k, v in values.items()})
        for source, values in layers
    ]
    own = typing.cast(dict, OmegaConf.to_container(section))
    return _build(name, known, MethodRecipe()), own


def _only(section: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key in names}


def _layers(
    name: str, overrides: Sequence[str], method: str | None, downstream: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """What a recipe is merged of: where each layer comes from, and what it says."""
    file, top = _top(name)
    words = [_split(word) for word in overrides]
    if method is not None:
        words = [w for w in words if w[0].split(".")[0] != "method" or w[0] == "method.variant"]
        top = _without_other_method(top, method)
    choices = dict(words)
    campaign_name = choices.get("campaign", top.get("campaign"))
    campaign_file = _path("campaigns", str(campaign_name)) if campaign_name else None
    campaign = _extended(campaign_file) if campaign_file else {}
    campaign.pop("models", None)
    per_method = campaign.pop("methods", None) or {}
    if not isinstance(per_method, dict):
        raise RecipeError(f"{campaign_file}: methods must hold `NAME: {{}}` lines")
    selected = _selected(choices.get(SELECTION), list(per_method), str(campaign_name))

    layers: list[tuple[str, dict[str, Any]]] = []
    for key, group in GROUPS.items():
        chosen = choices.get(key, top.get(key, campaign.get(key)))
        if key == "method":
            own = isinstance(chosen, Mapping) and chosen.get("name") == method
            chosen = chosen if own else method or chosen or next(iter(selected), None)
        if chosen is None:
            raise RecipeError(f"recipe {name!r} names no {key}; add `{key}=NAME`")
        if isinstance(chosen, Mapping):
            path, section = (file if file and key in top else campaign_file), dict(chosen)
            assert path is not None, "a section stands in a file"
            if base := section.pop("extends", None):
                base_path = _path(group, str(base))
                layers.append((str(base_path), _placed({key: _read(base_path)}, base_path.parent)))
        else:
            path = _path(group, str(chosen))
            section = _read(path)
        layers.append((str(path), _placed({key: section}, path.parent)))
    if campaign_file:
        layers.append((str(campaign_file), _sections(campaign)))
    if campaign_file and not isinstance(chosen, Mapping) and per_method.get(chosen):
        layers.append((f"{campaign_file} (methods.{chosen})", per_method[chosen]))
    if file is not None:
        layers.append((str(file), _sections(top)))
    rest = [f"{key}={value}" for key, value in words if key not in (*GROUPS, SELECTION)]
    layers += [(COMMAND_LINE, _placed(_dotted(word), Path())) for word in rest]
    layers.append((COMMAND_LINE, {"campaign": str(campaign_name or "")}))
    layers = _checked(layers)
    as_a_whole = file is None and "method" not in top
    if downstream is None and as_a_whole and "downstream" not in choices:
        downstream = _first_column(layers)
    if downstream is not None:
        layers.append((COMMAND_LINE, {"downstream": downstream}))
    return layers


def _placed(values: Any, folder: Path) -> Any:
    """A layer whose method's module, where it is a file, is named by its absolute path.

    folder: of the file that the layer comes from, or the working directory.
    """
    section = values.get("method") if isinstance(values, Mapping) else None
    if not isinstance(section, Mapping) or not str(section.get("module")).endswith(".py"):
        return values
    module = (folder / section["module"]).resolve()
    return {**values, "method": {**section, "module": str(module)}}


def _first_column(layers: Sequence[tuple[str, dict[str, Any]]]) -> str | None:
    """A campaign as a whole begins where its file says, or with the first of the sets that the
    command line leaves; None where no layer names sets."""
    whole = typing.cast(Any, OmegaConf.merge(*(values for _, values in layers)))
    sets = OmegaConf.select(whole, "dataset.sets")
    if not OmegaConf.is_list(sets) or not sets or whole.get("downstream") in sets:
        return None
    return str(sets[0])


def of_sections(model: str, dataset: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of a model and a data set alone, for work that comes before any method.

    Raises RecipeError as `load` does.
    """
    chosen = {"model": model, "dataset": dataset, "method": "fine_tune"}
    paths = {key: _path(GROUPS[key], name) for key, name in chosen.items()}
    layers = [(str(path), {key: _read(path)}) for key, path in paths.items()]
    layers += [(COMMAND_LINE, _dotted("=".join(_split(word)))) for word in overrides]
    places = dict(layers[1][1]["dataset"])
    layers.append((COMMAND_LINE, {"downstream": places.get("upstream", "upstream")}))
    return _build(dataset, _checked(layers), _method_options(layers))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)


def _top(name: str) -> tuple[Path | None, dict[str, Any]]:
    """The recipe file and what it says; no file where a campaign is asked for as a whole."""
    if name in names("campaigns"):
        return None, {"campaign": name}
    campaign, _, method = name.rpartition("/")
    by_rule = campaign in names("campaigns") and not (ROOT / f"{name}.yaml").is_file()
    if by_rule and method in methods_of(campaign):
        return None, {"campaign": campaign, "method": method}
    file = _path("", name)
    top = _read(file)
    return (None, {"campaign": name}) if "methods" in top else (file, top)


def _without_other_method(top: dict[str, Any], method: str) -> dict[str, Any]:
    """A file that holds the section of one method trains that one; others are the campaign's."""
    held = top.get("method")
    if not isinstance(held, Mapping) or held.get("name") == method:
        return top
    return {k: v for k, v in top.items() if k not in ("method", "optimizer", "train")}


def _extended(path: Path) -> dict[str, Any]:
    """What a campaign's file says, over what the campaign says that it extends."""
    values = _read(path)
    base = values.pop("extends", None)
    if isinstance(values.get("methods"), dict):
        placed = {
            name: _placed(settings, path.parent) for name, settings in values["methods"].items()
        }
        values["methods"] = placed
    if base is None:
        return values
    whole = OmegaConf.merge(_extended(_path("campaigns", str(base))), values)
    return typing.cast(dict, OmegaConf.to_container(whole))


def _sections(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in layer.items() if k != "campaign" and k not in GROUPS}


def _split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise RecipeError(f"{word!r} is not an override; write key=value, such as train.epochs=1")
    return key, value


def _dotted(word: str) -> dict[str, Any]:
    try:
        return typing.cast(dict, OmegaConf.to_container(OmegaConf.from_dotlist([word])))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(f"override {word!r} cannot be read: {why}") from error


def _path(group: str, name: str) -> Path:
    if name.endswith(".yaml"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name}")
        return path
    if name not in names(group):
        what = group.removesuffix("s") or "recipe"
        raise RecipeError(f"there is no {what} {name!r}{nearest(name, names(group))}")
    return ROOT / group / f"{name}.yaml"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold `key: value` lines")
    return values


def _build(name: str, layers: Sequence[tuple[str, dict[str, Any]]], method: MethodRecipe) -> Recipe:
    merged = OmegaConf.structured(Recipe(method=method))
    for source, values in layers:
        try:
            merged = OmegaConf.unsafe_merge(merged, values)  # which copies nothing
        except ConfigKeyError as error:
            key = str(error.full_key)
            hint = checks.REMOVED.get(key) or _meant(key, merged)
            raise RecipeError(f"{source}: unknown key {key!r}{hint}") from error
        except OmegaConfBaseException as error:
            where = f"{source}: {error.full_key}" if error.full_key else source
            raise RecipeError(f"{where}: {_line(error)}") from error
    try:
        recipe = typing.cast(Recipe, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        key = error.full_key
        raise RecipeError(f"recipe {name!r}: {key} has no value; add `{key}=VALUE`") from error
    except OmegaConfBaseException as error:
        raise RecipeError(f"recipe {name!r}: {error.full_key}: {_line(error)}") from error
    checks.check(recipe, merged)
    return recipe


def _method_options(layers: Sequence[tuple[str, dict[str, Any]]]) -> MethodRecipe:
    """The options of the module that the last of the layers gives to the method."""
    source = next(name for name, values in layers if "method" in values)
    module = ""
    for name, values in layers:
        section = values.get("method")
        if isinstance(section, Mapping) and section.get("module"):
            source, module = name, str(section["module"])
    if not module:
        raise RecipeError(f"{source}: method.module has no value; set it")
    try:
        return modules.find(module).Recipe()
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error


def _checked(layers: list[tuple[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    for source, values in layers:
        _check_sections(source, values)
    return layers


def _check_sections(source: str, values: Any) -> None:
    """Whether each section, and the whole, holds `key: value` lines."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{source} must hold `key: value` lines, not {values!r}")
    sections = {f.name for f in dataclasses.fields(Recipe) if f.default is dataclasses.MISSING}
    for key in sections & values.keys():
        if not isinstance(values[key], Mapping):
            raise RecipeError(f"{source}: {key} must hold `key: value` lines, not {values[key]!r}")


def _meant(key: str, merged: Any) -> str:
    """`; did you mean 'train.epochs'?`: known keys whose last word is the nearest to this key's.

    Keys of the same section come before those of others; where no word is near, the keys that the
    section has.
    """
    section, _, word = key.rpartition(".")
    known: dict[str, list[str]] = {}
    for name in _keys(typing.cast(dict, OmegaConf.to_container(merged))):
        known.setdefault(name.rpartition(".")[2], []).append(name)
    siblings = [last for last in known if _in_section(known[last], section)]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(word, siblings, n=1)
    if not close:
        return f"; valid: {', '.join(sorted(siblings))}"
    near = _in_section(known[close[0]], section) or sorted(
        known[close[0]], key=lambda n: n.count(".")
    )
    return f"; did you mean {' or '.join(map(repr, near))}?"


def _in_section(names: Sequence[str], section: str) -> list[str]:
    return [name for name in names if name.rpartition(".")[0] == section]


def _keys(values: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Every key of a recipe, with the names of its sections."""
    for key, value in values.items():
        yield f"{section}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{section}{key}.")


def _line(error: OmegaConfBaseException) -> str:
    return str(error.msg or error).splitlines()[0]
