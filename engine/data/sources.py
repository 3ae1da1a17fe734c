"""Read where datasets' files are, from `recipes/sources.yaml` or a file like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.errors import RecipeError
from engine.recipe import catalogue
from loaders.benchmarks.imagenet import LABEL_FILES
from loaders.fetch.download import Remote

FILE = catalogue.ROOT / "sources.yaml"


class SetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a dataset; `bytes` is 0 if no size is published, and one checksum is set."""

    name: str
    unpack: Literal["tar", "zip", "labels"] = "tar"  # labels: ImageNet's development kit
    addresses: list[str] = []  # tried in turn; empty: requires a form
    bytes: int = 0
    sha256: str = ""
    md5: str = ""

    @property
    def remote(self) -> Remote:
        """The file for `loaders.fetch.download`."""
        algorithm, checksum = ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)
        return Remote(self.name, tuple(self.addresses), self.bytes, algorithm, checksum)

    def place(self, folder: Path) -> Path:
        """Where the file's content belongs in the folder of its dataset."""
        if self.unpack == "zip":
            return folder
        if self.unpack == "labels":
            return folder / LABEL_FILES[1]  # one wnid per line
        return folder / f"{self.name.removesuffix('.gz').removesuffix('.tar')}.tar"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dataset: its authors' page, its terms in one line, and its files.

    form: how to get files that require a form. password: where to get the zip file's password.
    folders: other names of the dataset's folder. hub: name of a copy on the Hugging Face Hub.
    by_name_only: whether `rib download all` leaves it out.
    """

    page: str
    terms: str
    files: list[SetFile]
    form: str = ""
    password: str = ""
    folders: list[str] = []
    hub: str = ""
    by_name_only: bool = False


def read_sources(path: Path = FILE) -> dict[str, Source]:
    """The sources by dataset. Raises RecipeError, naming the file and the problem."""
    return {
        name: _source(path, name, values) for name, values in catalogue.read_recipe(path).items()
    }


def locate(folder: Path, name: str, source: Source | None) -> Path | None:
    """Returns the folder or .tar of a dataset in `folder`, or None."""
    for stem in (name, *(source.folders if source else ())):
        for path in (folder / stem, folder / f"{stem}.tar"):
            if path.exists():
                return path
    return None


def _source(path: Path, name: str, values: Any) -> Source:
    try:
        source = msgspec.convert(values, Source)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {name}: {error}") from error
    for file in source.files:
        where = f"{path}: {name}: {file.name}"
        if Path(file.name).name != file.name or file.name.startswith("."):
            raise RecipeError(f"{where} is not a plain file name")
        if not (file.sha256 or file.md5):
            raise RecipeError(f"{where} has neither sha256 nor md5: `sha256sum FILE` computes one")
        if not file.addresses and not source.form:
            raise RecipeError(f"{where} has neither addresses nor `form`, which says how to get it")
    if len(source.files) > 1 and any(file.unpack == "zip" for file in source.files):
        raise RecipeError(f"{path}: {name}: a dataset in a zip file cannot have other files")
    return source
