"""Convert layers of plain values to the typed sections of a recipe.

`msgspec` converts and checks each value by its key's type; `words` describes the type in errors.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from engine.did_you_mean import closest, nearest
from engine.errors import RecipeError
from engine.recipe import yaml_text
from engine.recipe.overrides import Word, nested, over
from engine.recipe.schema import MISSING, DatasetRecipe, MethodRecipe, Recipe

Layer = tuple[str, Mapping[str, Any]]  # source and values
OF_METHOD = ("method", "optimizer", "train")  # sections that rows can set separately
NEEDS = "needs"  # key in a dump with these sections of the needed methods


class Options(NamedTuple):
    """The classes of the sections that differ between methods and between kinds of datasets."""

    method: type[MethodRecipe] = MethodRecipe
    dataset: type[DatasetRecipe] = DatasetRecipe

    @classmethod
    def of(cls, recipe: Recipe) -> Options:
        """The classes of a resolved recipe."""
        return cls(type(recipe.method), type(recipe.dataset))


class UnknownKeyError(RecipeError):
    """A key that no section has."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def add(
    values: dict[str, Any],
    kind: type,
    options: Options,
    layer: Any,
    source: str,
    prefix: str = "",
) -> None:
    """Set the keys of a layer in `values`, the nested values of a section of this kind.

    Raises RecipeError, naming the layer's source, for an unknown key or an invalid value.
    """
    types_of = hints(kind, options)
    if isinstance(layer, Word):
        layer = yaml_text.parse_yaml(str(layer), source)
    if not isinstance(layer, Mapping):
        raise _error(source, f"{prefix[:-1]} must contain `key: value` lines, not {layer!r:.100}")
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in types_of:
            section, dot, rest = str(name).partition(".")
            if dot:
                raise _error(source, f"write {key!r:.150} as `{section}: {{{rest}: VALUE}}`")
            hint = _nearest_key(key, options, types_of)
            raise UnknownKeyError(str(_error(source, f"unknown key {key!r:.150}{hint}")), key)
        if dataclasses.is_dataclass(types_of[name]):
            add(values.setdefault(name, {}), types_of[name], options, value, source, f"{key}.")
            continue
        value = converted(types_of[name], value, key, source)
        is_lines = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = over((values[name], value)) if is_lines else value


def build(
    values: Mapping[str, Any], kind: type, options: Options, source: str, prefix: str = ""
) -> Any:
    """A section of this kind with these values and defaults.

    Raises RecipeError, naming the source, for a key without a value or default.
    """
    inner = {
        name: build(
            values.get(name, {}), typing.cast(type, hint), options, source, f"{prefix}{name}."
        )
        for name, hint in hints(kind, options).items()
        if dataclasses.is_dataclass(hint)
    }
    made = kind(**{**values, **inner})
    for name, value in vars(made).items():
        if value == MISSING:
            key = f"{prefix}{name}"
            raise RecipeError(f"{source}: {key} has no value: add `{key}=VALUE`")
    return made


def dump_recipe(recipe: Recipe, needs: Mapping[str, Recipe] | None = None) -> str:
    """A resolved recipe as YAML that `load_recipe` reads. needs: those of the methods that its
    method needs."""
    values = dataclasses.asdict(recipe)
    if needs:
        values[NEEDS] = {
            name: {key: dataclasses.asdict(getattr(need, key)) for key in OF_METHOD}
            for name, need in needs.items()
        }
    return yaml_text.dump(values)


def value_of(recipe: Recipe, key: str, value: Any) -> Any:
    """A value, converted to the type of its dotted key."""
    values: Any = {}
    add(values, Recipe, Options.of(recipe), nested(key, value), "")
    while isinstance(values, dict):
        (values,) = values.values()
    return values


def text(value: Any) -> str:
    """A value as written in a recipe."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def hints(kind: type, options: Options) -> dict[str, Any]:
    """The types of a section's keys."""
    of_kind = typing.get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind)]
    chosen = {MethodRecipe: options.method, DatasetRecipe: options.dataset}
    return {name: chosen.get(of_kind[name], of_kind[name]) for name in fields}


def converted(kind: Any, value: Any, key: str, source: str = "") -> Any:
    """A value, converted to the type of its key. Raises RecipeError if that is impossible."""
    if isinstance(value, Word):
        value = _of_word(kind, value, key, source)
    if isinstance(value, Mapping):  # for overrides such as model.published.imagenet_a=80
        value = _parsed(value, source)
    for attempt in (value, _texts(value)):
        try:
            result = msgspec.convert(attempt, kind)
        except msgspec.ValidationError:
            continue
        if _is_of_64_bits(result):
            return result
    raise _unconvertible(kind, value, key, source)


def _of_word(kind: Any, word: Word, key: str, source: str) -> Any:
    """The value of a word of the command line: as YAML, unless the key is a string. A list of one
    needs no brackets."""
    if _plain(kind) is str:
        return str(word)
    value = yaml_text.parse_yaml(str(word), f"override {f'{key}={word}'!r:.200}")
    is_list = any(typing.get_origin(_plain(member)) in (list, tuple) for member in _members(kind))
    if is_list and isinstance(value, str | int | float):
        return yaml_text.parse_yaml(f"[{word}]", source)
    return value


def _unconvertible(kind: Any, value: Any, key: str, source: str) -> RecipeError:
    if value is None:
        return _error(source, f"{key} has no value: it must be {words(kind)}")
    literals = [member for member in _members(kind) if typing.get_origin(member) is Literal]
    choices = [text(choice) for literal in literals for choice in typing.get_args(literal)]
    if choices and isinstance(value, str | int | float):
        return _error(source, f"{key}={value!r} is not valid{nearest(str(value), choices)}")
    return _error(source, f"{key}={value!r:.100} must be {words(kind)}")


def _parsed(lines: Mapping[str, Any], source: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in lines.items():
        is_word = isinstance(value, Word)
        value = yaml_text.parse_yaml(str(value), source) if is_word else value
        values[name] = _parsed(value, source) if isinstance(value, Mapping) else value
    return values


def _error(source: str, what: str) -> RecipeError:
    return RecipeError(f"{source}: {what}" if source else what)


def words(kind: Any) -> str:
    """A description of a type: `a number of at least 0 and below 1`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return words(arguments[0]) + _limits(arguments[1])
    if origin is Literal:
        return " or ".join(map(text, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if kind is type(None) else words(kind) for kind in arguments)
    if origin in (list, tuple):
        count = f", {len(arguments)} of them" if origin is tuple else ""
        return f"a list, each {words(arguments[0])}{count}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    is_lines = origin is dict or dataclasses.is_dataclass(kind)
    return "`key: value` lines" if is_lines else names.get(kind, str(kind))


def _limits(meta: msgspec.Meta) -> str:
    if meta.min_length is not None and meta.min_length == meta.max_length:
        return f", {meta.min_length} of them"
    low = [f"of at least {meta.ge}"] if meta.ge is not None else []
    low += [f"above {meta.gt}"] if meta.gt is not None else []
    high = [f"at most {meta.le}"] if meta.le is not None else []
    high += [f"below {meta.lt}"] if meta.lt is not None else []
    empty = ", not an empty one" if meta.min_length == 1 else ""
    if meta.pattern is not None:  # a name's
        empty = " that can be part of a path: without slashes, braces, line ends or a leading '.'"
    return " ".join(["", " and ".join([*low, *high])]).rstrip() + empty


def _plain(kind: Any) -> Any:
    """A type without its limits."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _members(kind: Any) -> Sequence[Any]:
    """The members of a union without null, or the type itself."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return [kind]
    return [member for member in typing.get_args(kind) if member is not type(None)]


def _texts(value: Any) -> Any:
    """Numbers as strings, for keys that are strings: YAML reads `version: 1.0` as a number."""
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return str(value) if type(value) in (int, float) else value


def _is_of_64_bits(value: Any) -> bool:
    """Whether all numbers of a value are finite and all integers fit into 64 bits."""
    if isinstance(value, list | tuple):
        return all(map(_is_of_64_bits, value))
    if isinstance(value, int):
        return abs(value) < 2**64
    return not isinstance(value, float) or math.isfinite(value)


def _nearest_key(key: str, options: Options, names: Iterable[str]) -> str:
    """`; did you mean 'train.epochs'?`: the keys whose last part is closest to this key's.

    names: the keys of the same section, which come first. If none is close, they are listed.
    """
    section, _, word = key.rpartition(".")
    known: dict[str, list[str]] = {}
    for name in sorted(_keys(Recipe, options), key=lambda name: name.count(".")):
        known.setdefault(name.rpartition(".")[2], []).append(name)
    short = {name: [f"{section}.{name}" if section else name] for name in names}
    if close := closest(word, known, 0.8) or closest(word, short):
        return f"; did you mean {' or '.join(map(repr, {**known, **short}[close]))}?"
    return f"; valid: {', '.join(sorted(short))}"


def _keys(kind: type, options: Options, prefix: str = "") -> Iterator[str]:
    """All keys of a section, including dotted keys of its sections."""
    for name, hint in hints(kind, options).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), options, f"{prefix}{name}.")
