"""A pack: an image dataset, resized once and stored as a folder with checksums.

The protocol trains on the evaluation transform, so the pixels of an image never change: they are
resized once and stored. FFCV silently returns black images for damaged samples. Therefore a pack
stores a checksum per sample, its files are tied by hashes, and each sample is checked the
first time a process reads it.

    images.beton    the pixels, in FFCV's format; its tag is the hash of samples.npy
    samples.npy     label, source, key and CRC-32 of each sample
    columns.npy     for images with further columns, such as a domain or a severity: each value's
                    number among the column's values, which the manifest lists
    manifest.json   written last: shape, classes, transform, hashes of the other files
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta

from loaders.beton import JPEG, RAW, Beton
from loaders.decoding import decode_jpeg, jpeg_decoder
from loaders.files import typed_json
from loaders.files.durable import digest, file_hash
from loaders.files.names import Name
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

FORMAT_VERSION = 1
IMAGES, SAMPLES, MANIFEST = "images.beton", "samples.npy", "manifest.json"
COLUMNS = "columns.npy"
MODES = {"raw": RAW, "jpeg": JPEG}
FIELDS = ("label", "source", "key", "crc32")  # of samples.npy
JOIN = "+"  # between the names of the head's outputs that a class joins
_REMEDY = "delete the folder and run again"


def photos(sources: np.ndarray, labels: np.ndarray) -> frozenset[str]:
    """The source images of a dataset; empty if each class is a single source (an emoji's concept),
    because sources then do not identify photos.

    sources: str [N]. labels: int [N].
    """
    names = np.unique(sources)
    return frozenset(names.tolist() if len(names) > len(np.unique(labels)) else ())


@dataclass(frozen=True)
class Item:
    """One image to be packed.

    `source`: the image or concept whose copies form one cluster. `key`: a unique name for errors.
    `payload`: the picklable argument of the open function (a path, or the recipe of a drawing).
    `values`: of the listing's further columns, in their order.
    """

    label: int
    source: str
    key: str
    payload: Any
    values: tuple[str, ...] = ()


class _Extra(msgspec.Struct):
    """The engine's part of a manifest."""

    identity: dict[str, Any] = {}
    faults: list[str] = []


class _Manifest(msgspec.Struct):
    """The required part of a manifest."""

    name: Name
    classes: Annotated[list[str], Meta(min_length=1)]
    format: Literal["raw", "jpeg"]
    transform: dict[str, Any]
    count: int
    height: int
    width: int
    fingerprint: str
    source_fingerprint: str
    request: str
    sha256: dict[str, str]
    skipped: list[dict[str, str]]
    extra: _Extra
    remarks: dict[str, str] = {}
    columns: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Pack:
    """An opened pack of N images of one shape.

    `shape`: (H, W). `classes`: class names, indexed by label. `labels`: int64 [N]. `sources`: str
    [N], the source image that copies share. `keys`: str [N], unique. `fingerprint`: hash of
    everything that determines pixels, labels, classes and transform, including the JPEG decoder.
    `columns`: further columns by name, each str [N]; the fingerprint does not depend on them.
    """

    folder: Path
    name: str
    shape: tuple[int, int]
    format: str
    classes: tuple[str, ...]
    fingerprint: str
    manifest: Mapping[str, Any] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    sources: np.ndarray = field(repr=False)
    keys: np.ndarray = field(repr=False)
    columns: Mapping[str, np.ndarray] = field(repr=False)
    shard: Beton = field(repr=False)
    _crc32: np.ndarray = field(repr=False)
    _verified: np.ndarray = field(repr=False)

    @property
    def proof(self) -> Path:
        """The manifest, whose presence marks a finished pack."""
        return self.folder / MANIFEST

    @classmethod
    def open(cls, folder: Path, *, transform_spec: Mapping[str, Any] | None = None) -> Pack:
        """Opens a pack and checks its structure, which takes milliseconds.

        Raises FileNotFoundError for a missing folder or file, and ValueError for a truncated,
        swapped or altered file, for a transform other than `transform_spec`, and for a format newer
        than this version. The message names the file and a remedy.
        """
        folder = Path(folder)
        root = Root(folder)
        for name in (MANIFEST, SAMPLES, IMAGES):
            if not root.has(name):
                # A folder without a manifest may hold other work: do not advise deleting it.
                remedy = "encode it" if name == MANIFEST else _REMEDY
                raise FileNotFoundError(
                    f"{folder / name}: missing or not a file, so the pack is incomplete; {remedy}"
                )
        manifest = _read_manifest(folder / MANIFEST)
        if transform_spec is not None:
            _require_transform(folder, manifest["transform"], transform_spec)
        samples = _read_array(folder / SAMPLES, manifest)
        if samples.dtype.names != FIELDS or samples.ndim != 1:
            raise ValueError(f"{folder / SAMPLES}: has no samples of a pack; {_REMEDY}")
        columns = _read_columns(folder / COLUMNS, manifest)
        shard = Beton.open(folder / IMAGES)
        _require_tied(shard, samples, manifest)
        return cls(
            folder=folder,
            name=manifest["name"],
            shape=(manifest["height"], manifest["width"]),
            format=manifest["format"],
            classes=tuple(manifest["classes"]),
            fingerprint=_pixels_of(manifest),
            manifest=manifest,
            labels=np.ascontiguousarray(samples["label"]),
            sources=samples["source"],
            keys=samples["key"],
            columns=columns,
            shard=shard,
            _crc32=samples["crc32"],
            _verified=np.zeros(len(samples), bool),
        )

    @property
    def beton(self) -> Path:
        return self.shard.path

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """Writes the pixels of the samples `index` (int [b]) to `out` (uint8 [b, H, W, 3],
        contiguous).

        Safe to call from several threads. Raises ValueError naming the first damaged sample.
        """
        if self.format == "raw":
            for sample, blob in zip(index, self.shard.fill(index, out), strict=True):
                self._check(sample, blob)
            return
        for sample, blob, pixels in zip(index, self.shard.blobs(index), out, strict=True):
            self._check(sample, blob)
            try:
                decode_jpeg(blob, pixels)
            except ValueError as error:
                raise ValueError(f"{self.beton}: sample {sample}: {error}; {_REMEDY}") from error

    def pixels(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the images of the samples `index` as uint8 [b, H, W, 3]; see `read`."""
        positions = np.asarray(index, np.int64)
        out = np.empty((len(positions), *self.shape, 3), np.uint8)
        self.read(positions, out)
        return out

    def blob(self, sample: int) -> bytes:
        """Returns the stored bytes of a sample. Raises ValueError if they are damaged."""
        (blob,) = self.shard.blobs([sample])
        self._check(sample, blob)
        return blob

    def _check(self, sample: int, blob: bytes | memoryview) -> None:
        if not self._verified[sample]:
            if zlib.crc32(blob) != self._crc32[sample]:
                raise ValueError(
                    f"{self.beton}: the bytes of sample {sample} ({self.keys[sample]}) "
                    f"were altered; {_REMEDY}"
                )
            self._verified[sample] = True


def _pixels_of(manifest: Mapping[str, Any]) -> str:
    """The manifest's fingerprint; for JPEGs not decoded by Pillow, hashed with the decoder."""
    fingerprint, decoder = manifest["fingerprint"], jpeg_decoder()
    if manifest["format"] == "raw" or decoder == "pillow":
        return fingerprint
    return digest({"pack": fingerprint, "decoder": decoder})


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = typed_json.read_json(path, dict[str, Any], _REMEDY)
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the latest that "
            "this version reads; update this project, or encode the pack again"
        )
    if manifest.pop("digest", None) != digest(manifest):
        raise DamagedFile(f"{path} was altered; {_REMEDY}")
    typed_json.convert(manifest, _Manifest, path, _REMEDY)
    return manifest


def _read_columns(path: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The further columns, by name."""
    if not (values_of := manifest.get("columns", {})):
        return {}
    if not Root(path.parent).has(path):
        raise FileNotFoundError(f"{path}: missing, so the pack is incomplete; {_REMEDY}")
    codes_KN = _read_array(path, manifest)
    if codes_KN.shape != (len(values_of), manifest["count"]) or codes_KN.dtype != np.uint32:
        raise ValueError(f"{path}: has no columns of this pack; {_REMEDY}")
    columns = {}
    for codes_N, (name, values) in zip(codes_KN, values_of.items(), strict=True):
        if codes_N.max() >= len(values):
            raise ValueError(f"{path}: {name} has numbers without a value; {_REMEDY}")
        columns[name] = np.array(values)[codes_N]
    return columns


def _read_array(path: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    if file_hash(path) != manifest["sha256"].get(path.name):
        raise ValueError(f"{path}: truncated, altered, or of another pack; {_REMEDY}")
    # Memory-map first, so that a header that claims too much fails before it allocates memory.
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False))


def _require_tied(shard: Beton, samples: np.ndarray, manifest: Mapping[str, Any]) -> None:
    """Raises ValueError for images of another pack, or rows that contradict samples or manifest."""
    rows = shard.rows
    if shard.tag != manifest["sha256"][SAMPLES].encode():
        raise ValueError(f"{shard.path}: belongs to another pack than {MANIFEST}; {_REMEDY}")
    sound = len(rows) == len(samples) == manifest["count"] and (
        (rows["label"] == samples["label"]).all()
        and (rows["height"] == manifest["height"]).all()
        and (rows["width"] == manifest["width"]).all()
        and (rows["mode"] == MODES[manifest["format"]]).all()
    )
    if not sound:
        raise ValueError(f"{shard.path}: altered: its rows do not match {SAMPLES}; {_REMEDY}")


def _require_transform(folder: Path, stored: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(spec))
    keys = sorted(k for k in stored | expected if stored.get(k) != expected.get(k))
    if keys:
        difference = ", ".join(f"{k}: {stored.get(k)!r}, not {expected.get(k)!r}" for k in keys)
        as_stored = " ".join(f"model.{k}={stored[k]}" for k in keys if k in stored)
        ask = f", or ask for the pack's with {as_stored}" if as_stored else ""
        raise ValueError(
            f"{folder}: made with another transform ({difference}); encode the images into another "
            f"folder{ask}"
        )


@dataclass(frozen=True)
class JoinedPack:
    """Packs whose images have one shape, with what training reads of a `Pack`. The samples of each
    follow those of the one before; pixels stay in the packs' files."""

    name: str
    packs: tuple[Pack, ...]
    columns: ClassVar[Mapping[str, np.ndarray]] = {}  # which only evaluation reads

    @property
    def shape(self) -> tuple[int, int]:
        return self.packs[0].shape

    @property
    def beton(self) -> Path:
        """The first pack's file; all are in one cache."""
        return self.packs[0].beton

    @cached_property
    def fingerprint(self) -> str:
        return digest({"joined": [pack.fingerprint for pack in self.packs]})

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each pack's first sample, and the number of all samples."""
        return np.cumsum([0, *map(len, self.packs)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """As `Pack.read`."""
        of_pack = np.searchsorted(self.starts, index, "right") - 1
        for number in np.unique(of_pack):
            here = of_pack == number
            out[here] = self.packs[number].pixels(index[here] - self.starts[number])

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """As `Pack.pixels`."""
        out = np.empty((len(index), *self.shape, 3), np.uint8)
        self.read(index, out)
        return out
