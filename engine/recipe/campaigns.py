"""Read a campaign's file, merged with the campaigns that it extends.

    methods:
      ewc: {method: {lam: 1.0}}
      ewc_released: {base: ewc, method: {variant: released}}

A row of `methods` is named after its method, or has another name and a `base`. It then inherits its
base's settings in this campaign. A row given as a path is named after the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.measures.rows import PRE
from engine.recipe import catalogue
from engine.recipe.catalogue import EXTENDS, beside, is_path, lines, path_of, with_absolute_module
from engine.recipe.checks import check_name
from engine.recipe.overrides import Override, Word, by_key, over
from engine.recipe.typed import Layer

SELECTION = "methods"  # key that selects methods of a campaign on the command line
DOWNSTREAMS, VARY = "downstreams", "param_grid"  # keys of a grid
REPLICATES, TRIALS = "replicates", "trials"
LEAVE_ONE_OUT = "leave_one_out"  # value of `downstreams`
OF_GRID = (SELECTION, DOWNSTREAMS, VARY, REPLICATES, TRIALS)
KEYS = {  # of a campaign's file, with their meaning, beside the keys of a cell
    EXTENDS: "campaign whose settings and rows this file changes",
    "models": "names of models, for `rib campaign NAME model=all`",
    SELECTION: "rows of the table: `NAME: {SETTINGS}` lines, or a list of names and paths; a row "
    "with another name than its method's has a `base`",
    DOWNSTREAMS: "datasets to fine-tune on; a list in the list is a union; `leave_one_out`: the "
    "union of all but one, for each (default: each dataset alone)",
    VARY: "values by key, as in `{method.lam: [0.1, 1]}`: every combination is trained",
    REPLICATES: "number of downstream datasets to train a second time, with the next seed "
    "(default: 0)",
    TRIALS: "number of settings per method: the recipe's, and draws from the search ranges "
    "(default: 0, the recipe's alone)",
}
MOST_ROWS = 100  # per table; each row is resolved from all files of the campaign
BASE, TITLE = "base", "title"


@dataclass(frozen=True)
class Campaign:
    """A campaign's files.

    name: name or path. file: its own file. layers: its files' values, the extended file's first.
    rows: layers by row, also of rows that a list leaves out, which others may need. table: the
    names of its rows, in order.
    """

    name: str
    file: Path
    layers: tuple[Layer, ...] = ()
    rows: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)
    table: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The merged values of its files, without the rows."""
        return over(layer for _, layer in self.layers)

    def base(self, row: str) -> str:
        """The method (a name of `recipes/methods` or a path) that a row trains.

        Raises RecipeError if the base is not a method.
        """
        base = self._of_row(row).get(BASE)
        if base is None:
            return row
        if BASE in self._of_row(base):
            raise RecipeError(
                f"{self.file} (methods.{row}): {base} has a base itself; use that base"
            )
        try:
            path_of("methods", str(base))
        except RecipeError as error:
            raise RecipeError(f"{self.file} (methods.{row}): base: {error}") from error
        return str(base)

    def settings(self, row: str) -> list[Layer]:
        """The layers of a row: its base's, its own, and its title."""
        base = self.base(row)
        rows = [base, row] if base != row else [row]
        layers: list[Layer] = [
            (source, _settings(layer)) for name in rows for source, layer in self.rows.get(name, ())
        ]
        title = self._of_row(row).get(TITLE)
        if title is None and base != row:
            title = (
                self._of_row(base).get(TITLE)
                or catalogue.read_recipe(path_of("methods", base))[TITLE]
            )
            title = _title_with_settings(str(title), _settings(self._of_row(row)))
        if title is not None:
            layers.append((f"{self.file} (methods.{row})", {"method": {TITLE: title}}))
        return layers

    def title(self, row: str) -> str:
        """A row's name in tables."""
        title = over(layer for _, layer in self.settings(row)).get("method", {}).get(TITLE)
        return str(title or catalogue.read_recipe(path_of("methods", self.base(row)))[TITLE])

    def select(
        self, entries: Any, source: str, *, adds: bool = False
    ) -> tuple[Campaign, list[str]]:
        """Apply a list `methods: [A, {B: SETTINGS}, path.yaml]`.

        Returns the changed campaign, and the names of the listed rows in table order. adds: whether
        methods without a row become new rows. Raises RecipeError for an invalid list.
        """
        if not isinstance(entries, list) or not entries:
            raise RecipeError(
                f"{source}: {SELECTION} names no methods of {self.name}: give a list, as in "
                f"{SELECTION}=[{','.join(self.table[:2])}]"
            )
        rows, table, names = dict(self.rows), dict.fromkeys(self.table), set()
        for entry in entries:
            for key, settings in (entry if isinstance(entry, dict) else {entry: None}).items():
                name, layer = _row(str(key), settings, source)
                if not (adds or name in table or BASE in layer):
                    hint = nearest(name, self.table)
                    if name in catalogue.names("methods"):
                        hint = (
                            f"; a file adds it: `extends: {self.name}` and, below `methods:`, "
                            f"`{name}: {{}}`"
                        )
                    raise RecipeError(
                        f"{source}: {SELECTION}: {self.name} has no method {name!r}{hint}"
                    )
                if name in names:
                    raise RecipeError(f"{source}: {SELECTION} names {name} twice")
                # A row with a base of its own starts anew.
                before = () if BASE in layer else rows.get(name, ())
                rows[name] = (*before, (f"{source} (methods.{name})", layer))
                table[name] = None
                names.add(name)
        if len(table) > MOST_ROWS:
            raise RecipeError(
                f"{source}: {SELECTION} has {len(table):,} rows; the maximum is {MOST_ROWS}"
            )
        changed = replace(self, rows=rows, table=tuple(table))
        return changed, [name for name in table if name in names]

    def _of_row(self, name: str) -> dict[str, Any]:
        return over(layer for _, layer in self.rows.get(name, ()))


def read_campaign(name: str, extending: tuple[Path, ...] = ()) -> Campaign:
    """Read a campaign by its name or path. extending: the campaigns that extend it.

    Raises RecipeError if it extends itself, for malformed rows, and if a list names a method that
    the extended campaign does not have.
    """
    path = path_of("campaigns", name)
    if path.resolve() in extending:
        raise RecipeError(f"{path}: a campaign cannot extend itself")
    values = catalogue.read_recipe(path)
    base, methods = values.pop(EXTENDS, None), values.pop(SELECTION, None)
    campaign = (
        read_campaign(str(base), (*extending, path.resolve())) if base else Campaign(name, path)
    )
    if isinstance(methods, list) and base:
        campaign, names = campaign.select(methods, str(path))
        campaign = replace(campaign, table=tuple(names))
    elif isinstance(methods, dict):
        campaign, _ = campaign.select([methods], str(path), adds=True)
    elif methods is not None:
        raise RecipeError(f"{path}: {SELECTION} must contain `NAME: {{}}` lines")
    layers = (*campaign.layers, (str(path), values))
    return replace(campaign, name=name, file=path, layers=layers)


def selected(name: str, overrides: Sequence[Override]) -> tuple[Campaign, list[str]]:
    """A campaign and its rows in table order: all, or those in `methods=[A,B]`.

    Raises RecipeError for an unknown campaign or method.
    """
    campaign = read_campaign(name)
    selection = by_key(overrides).get(SELECTION)
    if selection is None:
        return campaign, list(campaign.table)
    return campaign.select(selection.plain(), selection.source)


def methods_of(campaign: str, overrides: Sequence[Override] = ()) -> list[str]:
    """The names of the rows of `selected`. Raises RecipeError also for a file without methods."""
    grid, names = selected(campaign, overrides)
    if not grid.table:
        raise RecipeError(
            f"{grid.file} is not a campaign: add `methods:` with `NAME: {{}}` lines below"
        )
    return names


def recipe_names(group: str = "") -> list[str]:
    """Names of the files of a group (`models`, `methods`...), or of all recipes.

    A campaign defines the recipe CAMPAIGN/METHOD for each of its methods.
    """
    made = [] if group else catalogue.names("campaigns")
    rows = {f"{campaign}/{row}" for campaign in made for row in read_campaign(campaign).table}
    return sorted(rows.union(catalogue.names(group)))


def model_of(campaign: str) -> str | None:
    """The name of a campaign's model, or None."""
    model = read_campaign(campaign).values.get("model")
    return model.get("name") if isinstance(model, dict) else model


def each_model(campaign: str, overrides: Sequence[Override]) -> list[list[Override]]:
    """The overrides of each grid: one grid per model of `model=[A,B]`, or of the campaign's list
    for `model=all`.

    Raises RecipeError if the campaign lists no models, if a list is empty or repeats a model, and
    if `model=` is given twice.
    """
    of_model = [override for override in overrides if override.key == "model"]
    several = next(filter(_is_of_several, of_model), None)
    if several is None:
        return [list(overrides)]
    if len(of_model) > 1:
        raise RecipeError(f"{several.text}: model= is given twice: name all models in one list")
    if several.value == "all":
        models = read_campaign(campaign).values.get("models")
        if not isinstance(models, list) or not models:
            raise RecipeError(
                f"{several.text}: {campaign} has no list `models:`: name the models, as in "
                "model=[A,B]"
            )
    else:
        models = several.plain()
        if not models or len(set(map(str, models))) < len(models):
            raise RecipeError(
                f"{several.text}: name one or more models, each once, as in model=[A,B]"
            )
    return [
        [
            Override("model", Word(model), f"model={model}") if override is several else override
            for override in overrides
        ]
        for model in models
    ]


def _is_of_several(model: Override) -> bool:
    """Whether `model=` names several models."""
    value = model.value
    return isinstance(value, list) or str(value).startswith("[") or value == "all"


def _row(key: str, settings: Any, source: str) -> tuple[str, Mapping[str, Any]]:
    """The name of a row, and its layer."""
    name = Path(key).stem if is_path(key) else key
    check_name(f"{source}: {SELECTION}", name)
    if name == PRE:
        raise RecipeError(
            f"{source}: {SELECTION}: {name!r} is the pretrained model's name in tables; rename "
            "the row"
        )
    layer = lines(settings or {}, f"{source} (methods.{name})")
    layer = {BASE: key, **layer} if is_path(key) else layer
    folder = Path(source).parent  # for the command line, the working directory
    if BASE in layer:
        layer = {**layer, BASE: beside(folder, layer[BASE])}
    return name, with_absolute_module(layer, folder)


def _settings(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key not in (BASE, TITLE)}


def _title_with_settings(title: str, settings: Mapping[str, Any]) -> str:
    """A base's title followed by a row's settings: `EWC (released), lam 10`."""
    values = dict(settings.get("method") or {})
    if variant := values.pop("variant", None):
        title += f" ({variant})"
    for section, keys in settings.items():
        if section != "method":
            values |= {f"{section}.{key}": value for key, value in lines(keys, section).items()}
    return ", ".join([title, *(f"{key} {value}" for key, value in values.items())])
