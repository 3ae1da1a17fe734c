"""Where the files of ImageNet-RIB's sets are, as `recipes/sources.yaml` or a file like it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.data import imagenet
from engine.errors import RecipeError, nearest
from engine.recipe import catalogue
from loaders.download import Remote

FILE = catalogue.ROOT / "sources.yaml"


class SetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a set; `bytes` is 0 where no size is published, and one of the checksums is set."""

    name: str
    unpack: Literal["tar", "zip", "labels"] = "tar"  # labels: ImageNet's development kit
    addresses: list[str] = []  # tried in turn; none: behind a form
    bytes: int = 0
    sha256: str = ""
    md5: str = ""

    @property
    def remote(self) -> Remote:
        """The file for `loaders.download`."""
        algorithm, checksum = ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)
        return Remote(self.name, tuple(self.addresses), self.bytes, algorithm, checksum)

    def place(self, folder: Path) -> Path:
        """Where what the file holds is to be in the folder of its set."""
        if self.unpack == "zip":
            return folder
        if self.unpack == "labels":
            return folder / imagenet.VAL_LABELS
        return folder / f"{self.name.removesuffix('.gz').removesuffix('.tar')}.tar"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A set: its authors' page, its terms in a line, and its files.

    form: how its files are got where the user must get them. password: who tells the password of
    its zip file. folders: further names of a folder that holds the set. hub: the name of a copy
    among the Hugging Face Hub's data sets.
    """

    page: str
    terms: str
    files: list[SetFile]
    form: str = ""
    password: str = ""
    folders: list[str] = []
    hub: str = ""


def read(path: Path = FILE) -> dict[str, Source]:
    """The sources by the set's name. Raises RecipeError naming the file and what is wrong in it."""
    return {name: _source(path, name, values) for name, values in catalogue.read(path).items()}


def locate(folder: Path, name: str, source: Source | None) -> Path | None:
    """The folder or .tar of a set in `folder`, under a usual name of it; None if there is none."""
    for stem in (name, *(source.folders if source else ())):
        for path in (folder / stem, folder / f"{stem}.tar"):
            if path.exists():
                return path
    return None


def _source(path: Path, name: str, values: Any) -> Source:
    if name not in imagenet.SIZES:
        raise RecipeError(
            f"{path}: {name!r} is no set of ImageNet-RIB{nearest(name, imagenet.SIZES)}"
        )
    try:
        source = msgspec.convert(values, Source)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {name}: {error}") from error
    for file in source.files:
        where = f"{path}: {name}: {file.name}"
        if Path(file.name).name != file.name or file.name.startswith("."):
            raise RecipeError(f"{where} is no plain file name")
        if not (file.sha256 or file.md5):
            raise RecipeError(f"{where} has neither sha256 nor md5; `sha256sum FILE` gives one")
        if not file.addresses and not source.form:
            raise RecipeError(f"{where} has neither addresses nor, in `form`, how to get it")
    if len(source.files) > 1 and any(file.unpack == "zip" for file in source.files):
        raise RecipeError(f"{path}: {name}: a set in a zip file has no other files")
    return source
