"""YAML that a stranger may have written, read in bounded time and memory.

A few lines of YAML can stand for more values than a computer holds, by aliases of aliases or by
brackets in brackets. So a text is measured while it is read, and OmegaConf, which would resolve
`${...}` (also to variables of the environment), sees plain values only.
"""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from engine.errors import RecipeError
from loaders.files import read_small

DEEPEST = 16  # lists and mappings inside each other; recipes need 5
MOST_VALUES = 100_000  # aliases count as what they stand for
LONGEST = 10_000  # characters of a value: some texts take quadratic time to become a number
_LARGEST = 1 << 64
_SCALARS = (str, int, float, type(None))  # bool is an int


class _Loader(yaml.SafeLoader):
    """Stops at a text that is too deep, too long or refers to itself."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.values = 0
        self.values_of: dict[str, int] = {}  # below each anchor that has ended

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        anchor, before = event.anchor, self.values
        self.values += 1
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self.values_of:
                self._refuse(f"*{anchor} stands inside &{anchor} itself", event)
            self.values += self.values_of.get(anchor, 0)
        if self.depth >= DEEPEST:
            self._refuse(f"more than {DEEPEST} lists and mappings inside each other", event)
        if self.values > MOST_VALUES:
            self._refuse(f"more than {MOST_VALUES:,} values", event)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
            self._refuse(f"a value of more than {LONGEST:,} characters", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            keys = Counter(str(key.value) for key, _ in node.value)
            if twice := [key for key, count in keys.items() if count > 1]:
                self._refuse(f"the key {twice[0]!r:.100} stands twice", event)
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self.values_of[anchor] = self.values - before
        return node

    def _refuse(self, what: str, event: Any) -> None:
        raise ComposerError(None, None, what, event.start_mark)


_Loader.yaml_implicit_resolvers = {  # a date is a text, as OmegaConf takes it
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str, source: str) -> Any:
    """The values of a text, plain ones; RecipeError, naming `source`, where that is impossible."""
    return copy.deepcopy(_parsed(text, source))


@functools.lru_cache(maxsize=256)  # the cells of a campaign are made of the same few texts
def _parsed(text: str, source: str) -> Any:
    try:
        values = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: thousands of digits
        raise RecipeError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    _check_plain(values, source, "")
    return values


def read(path: Path) -> Any:
    """The values of a file; RecipeError, naming it, as of `parse` and for what is no small file."""
    try:
        text = read_small(path).decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return parse(text, str(path))


def _check_plain(values: Any, source: str, key: str) -> None:
    """Raise RecipeError for keys that are no text, values of other types, and `${...}`."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if not isinstance(name, str):
                raise RecipeError(f"{source}: the key {name!r} of {key or 'the file'} is no text")
            _check_plain(value, source, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for value in values:
            _check_plain(value, source, key)
    elif not isinstance(values, _SCALARS):
        raise RecipeError(
            f"{source}: {key}: {values!r} is neither text nor a number; put it in quotes"
        )
    elif fault := _fault(values):
        raise RecipeError(f"{source}: {key}: {fault}" if key else f"{source}: {fault}")


def _fault(value: Any) -> str:
    """Why a text or a number cannot be the value of any key; empty where it can."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "a number of more than 64 bits"
    if isinstance(value, str) and "${" in value:
        return "`${...}` is not resolved; write the value itself"
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return "a character that stands in no text"
    return ""
