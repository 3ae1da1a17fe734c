"""YAML that a stranger may have written, read in bounded time and memory.

A few lines can stand for more values than a computer holds, by aliases of aliases or by brackets in
brackets. So there are no anchors, no tags, and at most 1 MiB. A date is a text, `1e-5` a number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from engine.errors import RecipeError
from loaders.files import read_small

DEEPEST = 16  # lists and mappings inside each other; recipes need 5
LONGEST_KEY = 200  # characters
PLAIN = {  # values that are no text, by YAML's tag
    "null": r"(~|null|Null|NULL|)",
    "bool": r"([Yy]es|YES|[Nn]o|NO|[Tt]rue|TRUE|[Ff]alse|FALSE|[Oo]n|ON|[Oo]ff|OFF)",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        before: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refused(f"the key {key.value!r:.100} is no text; put it in quotes", key)
            if len(key.value) > LONGEST_KEY:
                raise _refused(f"a key of {len(key.value):,} characters", key)
            if key.value in before:
                raise _refused(f"the key {key.value!r:.100} stands twice", key)
            before.add(key.value)
        return values


class _Dumper(yaml.SafeDumper):
    """Writes a text in quotes where the loader would take it for another value."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}


for _tag, _pattern in PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), [None]
        )


def read(path: Path) -> Any:
    """The values of a file; RecipeError, naming it, as of `parse` and for what is no small file."""
    try:
        text = read_small(path).decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Any:
    """The values of a text, plain ones; RecipeError, naming `source`, where that is impossible."""
    try:
        _check(text)
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: thousands of digits
        why = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise RecipeError(f"{source} is not valid YAML: {why}") from error


def dump(values: Any) -> str:
    """Plain values as YAML, of which `parse` makes the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def line(value: Any) -> str:
    """A plain value as YAML on one line, as a word of the command line holds it."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
    return text.removesuffix("...\n").strip()


def _check(text: str) -> None:
    """Raise YAMLError for what recipes do not need, before any value is made of it."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        value = getattr(event, "value", "")
        if depth > DEEPEST:
            raise _refused(f"more than {DEEPEST} lists and mappings inside each other", event)
        if getattr(event, "anchor", None):
            raise _refused("anchors and aliases are not read; write the value itself", event)
        if getattr(event, "tag", None):
            raise _refused(f"the tag {event.tag} is not read", event)
        if "${" in value:
            raise _refused("`${...}` is not resolved; write the value itself", event)
        if re.search("[\0\ud800-\udfff]", value):
            raise _refused("a character that stands in no text", event)


def _refused(why: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=where.start_mark)
