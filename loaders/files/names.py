"""Types for names that become parts of paths, checked when a file or command is read.

msgspec rejects other texts when it decodes JSON or YAML. Names never reach a shell: schedulers of
jobs know them by `identifier`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from msgspec import Meta

# A leading dot marks unfinished files, Snakemake uses braces, and UTF-8 has no surrogates.
_NAME = r"(?!\.)[^/\\{}\x00-\x1f\x7f-\x9f\ud800-\udfff]+"

Name = Annotated[str, Meta(pattern=rf"\A{_NAME}\Z")]
InnerPath = Annotated[str, Meta(pattern=rf"\A{_NAME}(/{_NAME})*\Z")]  # relative, without `..`

# With the ends of lines, marks that reorder text, and bytes of names that are not UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Names and versions that pip and npm cannot mistake for an address or an option.
_PACKAGE = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+!_-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*")  # has no special meaning in a shell


def is_name(text: str) -> bool:
    """Whether a text can be part of a path."""
    return re.fullmatch(_NAME, text) is not None


def one_line(value: Any) -> Any:
    """Returns a text, or a JSON value with all its texts, with control characters and line ends
    escaped, so that it can neither forge a line of a file nor steer a terminal."""
    if isinstance(value, str):
        return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], value)
    if isinstance(value, list):
        return [one_line(item) for item in value]
    if isinstance(value, dict):
        return {one_line(key): one_line(item) for key, item in value.items()}
    return value


def check_package(name: str, version: str) -> None:
    """Raises ValueError unless these are a package's name and its exact version."""
    if not _PACKAGE.fullmatch(name) or not _VERSION.fullmatch(version):
        raise ValueError(
            f"package {name!r:.100}, version {version!r:.100}: give a plain name and an exact "
            "version, such as timm and 1.0.20"
        )


def identifier(name: str) -> str:
    """Returns a name for files and jobs that is safe for a shell, Snakemake and Slurm.

    A plain name stays as it is. Other names keep their plain characters and get a hash, so
    different names stay different.
    """
    if _PLAIN.fullmatch(name):
        return name
    plain = re.sub("[^A-Za-z0-9_]+", "_", name)[:40]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
