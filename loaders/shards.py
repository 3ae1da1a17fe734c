"""Datasets in the formats of hubs: webdataset tars, and Hugging Face's parquet files.

A dataset is one file, a folder of files, or a pattern such as `data/test-*.parquet`. Its labels are
numbers; the class names come from the file's own metadata or from a file next to it, and are never
guessed. Keys and order of images equal those of folders `<class>/<image>`, so both layouts give the
same pack.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from loaders import parquet, trees
from loaders.files.durable import read_json, read_small
from loaders.pack import Item
from loaders.trees import File, Listing, first_names

TAR, PARQUET = ".tar", ".parquet"
CLASS_FILES = ("classes.txt", "classnames.txt", "classes.json", "dataset_info.json")
LABEL = "cls"  # the extension of webdataset's labels
_LABEL_BYTES = 1000
_CLASS_BYTES = 255  # file systems allow no longer names
_NUMBER = re.compile(r"-?[0-9]+")
_PATTERN = re.compile(r"[*?\[]")
_SPLIT = re.compile(r"(train|test|val|validation)(?![a-z])")


class Sample(NamedTuple):
    """An image of a shard, and the shard and row for errors."""

    label: int | str  # a number, or a class name
    name: str  # of its file, or ""
    place: Any  # picklable: a StoredImage
    shard: Path
    row: int


class Image(File):
    """A file of a tree that is an image whatever its name."""

    @property
    def is_image(self) -> bool:
        return True


def exists(place: Path) -> bool:
    """Whether a file or folder exists at `place`, or shards match it as a pattern."""
    return place.exists() or bool(_matching(place))


def find_shards(place: Path) -> list[Path]:
    """Returns the shards that a place names, in order; empty for another kind of dataset.

    Raises ValueError for a pattern without matches, for both kinds of shards at once, and for a
    folder with several splits.
    """
    if _PATTERN.search(place.name) and not place.exists():
        found = _matching(place)
        if not found:
            raise ValueError(f"no .tar or .parquet file matches {place}")
    elif place.is_dir():
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
        found = [entry for entry in entries if entry.suffix in (TAR, PARQUET) and entry.is_file()]
        if any(entry.is_dir() for entry in entries):
            found = []
        splits = {m[1] for entry in found if (m := _SPLIT.match(entry.name))}
        if len(splits) > 1:
            raise ValueError(
                f"{place} has the splits {', '.join(sorted(splits))}: give one, for example "
                f"'{place}/{min(splits)}*{found[0].suffix}'"
            )
    else:
        found = [place] if place.is_file() and place.suffix in (TAR, PARQUET) else []
    if len({shard.suffix for shard in found}) > 1:
        raise ValueError(f"{place} has .tar and .parquet files: give one kind by a pattern")
    if found and found[0].suffix == TAR and not _is_webdataset(found[0]):
        return []
    return found


def files(root: Path) -> Iterator[File]:
    """Yields each file of a tree as `trees.files` does, or shards' images as `<class>/<image>`."""
    shards = find_shards(root)
    if not shards:
        yield from trees.files(root)
        return
    for name, key, sample in _found(root, shards):
        yield Image(key, sample.place, f"{name} {fingerprint_of(sample.shard)}")


def listing(root: Path, shards: Sequence[Path]) -> Listing:
    """Lists the images of shards, ordered by class and name, and the classes that have images.

    An image's key is its class and its stored name. If a name is missing or repeated in a class,
    all keys are made of the shard and the row instead.

    Raises ValueError, naming the shard and row, for damaged shards, samples without an image or a
    label, and labels without a name.
    """
    found = _found(root, shards)
    classes = sorted({name for name, _, _ in found})
    number = {name: i for i, name in enumerate(classes)}
    items = [
        Item(number[name], key.rpartition(".")[0], key, sample.place) for name, key, sample in found
    ]
    items.sort(key=lambda item: (item.label, item.key))
    return Listing(items, classes, fingerprint(root, shards))


def fingerprint(root: Path, shards: Sequence[Path]) -> str:
    """Returns the SHA-256 over name, size and modification time of shards and class file."""
    files = [*shards, *filter(None, [_class_file(root, shards[0])])]
    stamps = "\n".join(f"{file.name} {fingerprint_of(file)}" for file in files)
    return hashlib.sha256(stamps.encode()).hexdigest()


def fingerprint_of(file: Path) -> str:
    """Returns the size and modification time of a file."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _matching(place: Path) -> list[Path]:
    if not _PATTERN.search(place.name):
        return []
    return sorted(p for p in place.parent.glob(place.name) if p.suffix in (TAR, PARQUET))


def _found(root: Path, shards: Sequence[Path]) -> list[tuple[str, str, Sample]]:
    """The class name and the key of each sample, and the sample."""
    read = _of_parquet if shards[0].suffix == PARQUET else _of_tar
    samples = [sample for shard in shards for sample in read(shard)]
    if not samples:
        raise ValueError(f"{root} has no images")
    known = _class_names(root, shards[0])
    names = [_name(sample, known) for sample in samples]
    keys = [f"{name}/{sample.name}" for name, sample in zip(names, samples, strict=True)]
    if not all(sample.name for sample in samples) or len(set(keys)) < len(keys):
        keys = [
            f"{name}/{sample.shard.stem}-{sample.row:06}.image"
            for name, sample in zip(names, samples, strict=True)
        ]
    return list(zip(names, keys, samples, strict=True))


def _name(sample: Sample, known: Sequence[str] | None) -> str:
    if isinstance(sample.label, str):
        name = sample.label
    elif known is None:
        raise ValueError(
            f"{sample.shard}: row {sample.row} has the label {sample.label}, but no file names the "
            f"classes: write {CLASS_FILES[0]} next to it, one name per line in the order of the "
            "labels"
        )
    elif not 0 <= sample.label < len(known):
        raise ValueError(
            f"{sample.shard}: row {sample.row} has the label {sample.label}, but there are "
            f"{len(known)} classes"
        )
    else:
        name = known[sample.label]
    is_folder = name.isprintable() and "/" not in name and not name.startswith(".")
    if not is_folder or not 0 < len(name.encode()) <= _CLASS_BYTES:
        raise ValueError(
            f"{sample.shard}: row {sample.row} has the class {name!r:.150}, not a valid folder name"
        )
    return name


def _class_file(root: Path, shard: Path) -> Path | None:
    """Returns the file that names the classes, next to the shards or one folder above."""
    folders = dict.fromkeys((root, shard.parent, shard.parent.parent))
    places = itertools.product(folders, CLASS_FILES)
    return next((f / n for f, n in places if (f / n).is_file()), None)


def _class_names(root: Path, shard: Path) -> Sequence[str] | None:
    """Returns class names in the order of labels."""
    if shard.suffix == PARQUET and (names := parquet.class_names(parquet.features(shard))):
        return checked_names(shard, names)
    file = _class_file(root, shard)
    if file is None:
        return None
    if file.suffix == ".txt":
        lines = [line.strip() for line in read_small(file).decode("utf-8-sig").splitlines()]
        return checked_names(file, [line for line in lines if line])
    values = read_json(file)
    if file.name == CLASS_FILES[-1] and isinstance(values, dict):
        values = parquet.class_names(values.get("features") or {})
    elif isinstance(values, dict):
        values = _of_mapping(values)
    return checked_names(file, values)


def _of_mapping(values: Mapping[str, Any]) -> list[Any] | None:
    """Names in order of {number: name} or {name: number}; None if numbers are missing."""
    is_by_number = all(key.isdecimal() for key in values)
    number = {int(k): v for k, v in values.items()} if is_by_number else {}
    if not is_by_number and all(isinstance(v, int) for v in values.values()):
        number = {v: k for k, v in values.items()}
    order = range(len(values))
    return [number[i] for i in order] if sorted(number) == list(order) else None


def checked_names(file: Path, names: Any) -> Sequence[str]:
    """Returns the names of classes. Raises ValueError unless they are texts that differ."""
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{file} does not list the names of classes in the order of their labels")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{file} gives two classes the same name: {first_names(twice)}")
    return names


def _of_parquet(shard: Path) -> Iterator[Sample]:
    for place, label, path in parquet.rows(shard):
        name = PurePosixPath(path).name
        is_plain = name.isprintable() and not name.startswith(".")
        yield Sample(label, name if is_plain else "", place, shard, place.number)


def _is_webdataset(shard: Path) -> bool:
    """Whether the first sample of a tar has a label."""
    key = None
    try:
        for file in trees.archive(shard):
            of_file, extension = _split(file.path)
            if key is not None and of_file != key:
                return False
            if extension == LABEL:
                return True
            key = of_file
    except ValueError:
        return True  # reading it raises the error
    return False


def _of_tar(shard: Path) -> Iterator[Sample]:
    row = 0
    try:
        with shard.open("rb") as opened:
            visible = (f for f in trees.archive(shard) if not _base(f.path).startswith("."))
            for key, group in itertools.groupby(visible, lambda file: _split(file.path)[0]):
                members = list(group)
                images = [file for file in members if file.is_image]
                labels = [f for f in members if _split(f.path)[1] == LABEL]
                where = f"{shard}: row {row} ({key})"
                if len(images) != 1 or len(labels) != 1:
                    raise _Faulty(
                        f"{where} has {len(images)} images and {len(labels)} labels (.{LABEL}); "
                        "one of each is needed"
                    )
                label = _label(opened, labels[0], where)
                yield Sample(label, _base(images[0].path), images[0].place, shard, row)
                row += 1
    except _Faulty as error:
        raise ValueError(str(error)) from error
    except (ValueError, tarfile.TarError) as error:
        raise ValueError(f"{error}; at row {row}") from error


class _Faulty(Exception):
    """An error whose message already names shard and row."""


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _split(path: str) -> tuple[str, str]:
    """Returns a sample's key and a file's extension, which starts at the first dot of its name."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _label(opened: Any, file: File, where: str) -> int | str:
    place: Any = file.place  # in a tar
    if place.size > _LABEL_BYTES:
        raise _Faulty(f"{where} has a label of {place.size:,} bytes, which is too long")
    opened.seek(place.offset)
    try:
        text = opened.read(place.size).decode().strip()
    except UnicodeDecodeError as error:
        raise _Faulty(f"{where} has a label that is not UTF-8 text") from error
    return int(text) if _NUMBER.fullmatch(text) else text
