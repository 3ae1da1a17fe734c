"""Read untrusted YAML in bounded time and memory.

Nested aliases or brackets can expand a few lines to more values than fit into memory. So anchors
and tags raise an error, and files have at most 1 MiB. Dates are strings, and `1e-5` is a number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from engine.errors import RecipeError
from loaders.files.durable import read_small

DEEPEST = 16  # nested lists and mappings; recipes need 5
PLAIN = {  # values that are not strings, by YAML tag
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
                raise _refused(f"the key {key.value!r:.100} is not a string; put it in quotes", key)
            if key.value in before:
                raise _refused(f"the key {key.value!r:.100} is repeated", key)
            before.add(key.value)
        return values


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the loader would read as another type."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}


for _tag, _pattern in PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), [None]
        )


def read_yaml(path: Path) -> Any:
    """Read a small file. Raises RecipeError, naming the file, as `parse_yaml`."""
    try:
        text = read_small(path).decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML to plain values. Raises RecipeError, naming `source`, if it is invalid."""
    try:
        _check(text)
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: thousands of digits
        why = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise RecipeError(f"{source} is not valid YAML: {why}") from error


def dump(values: Any, **style: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back. style: as of `yaml.dump`."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)


def line(value: Any) -> str:
    """A plain value as one line of YAML, as on the command line."""
    text = dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _check(text: str) -> None:
    """Raise YAMLError for features that recipes do not need, before building values."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        value = getattr(event, "value", "")
        if depth > DEEPEST:
            raise _refused(f"more than {DEEPEST} nested lists and mappings", event)
        if getattr(event, "anchor", None):
            raise _refused("anchors and aliases are not supported: write the value itself", event)
        if getattr(event, "tag", None):
            raise _refused(f"the tag {event.tag} is not supported", event)
        if re.search("[\0\ud800-\udfff]", value):
            raise _refused("a character that is not allowed in text", event)


def _refused(why: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=where.start_mark)
