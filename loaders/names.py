"""Names from files and commands that become parts of paths: one type, checked where they are read.

The types are for msgspec, which refuses other texts wherever JSON or YAML is decoded. A name never
reaches a shell: what runs jobs knows them by `identifier`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from msgspec import Meta

# A leading dot marks unfinished files; braces are Snakemake's. Surrogates are no UTF-8.
_NAME = r"(?!\.)[^/\\{}\x00-\x1f\x7f-\x9f\ud800-\udfff]+"

Name = Annotated[str, Meta(pattern=rf"\A{_NAME}\Z")]
InnerPath = Annotated[str, Meta(pattern=rf"\A{_NAME}(/{_NAME})*\Z")]  # relative, without `..`

# Names and versions that pip and npm cannot mistake for an address or an option.
_PACKAGE = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+!_-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*")  # means nothing to a shell


def is_name(text: str) -> bool:
    """Whether a text can be part of a path."""
    return re.fullmatch(_NAME, text) is not None


def check_package(name: str, version: str) -> None:
    """Raise ValueError unless these are a package's name and its exact version."""
    if not _PACKAGE.fullmatch(name) or not _VERSION.fullmatch(version):
        raise ValueError(
            f"package {name!r:.100}, version {version!r:.100}: give a plain name and an exact "
            "version, such as timm and 1.0.20"
        )


def identifier(name: str) -> str:
    """A name for files and jobs that a shell, Snakemake and Slurm take for nothing else.

    It is the name where that is plain; else its plain characters and a hash, so that different
    names stay different.
    """
    if _PLAIN.fullmatch(name):
        return name
    plain = re.sub("[^A-Za-z0-9_]+", "_", name)[:40]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
