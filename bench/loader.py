"""Images a second from packs, against the loaders that users have, on the same photos.

All end in the same batches: 64 images of 224 x 224 on the device, normalised, float32. The peers
decode and resize a JPEG file of 500 x 375 for each image, on as many worker processes as there are
cores, which live on from epoch to epoch and read in order. Ours read, in random order, what was
resized once: raw pixels in memory, raw pixels from the file, or small JPEGs. An epoch is timed by
the clock, on equal cores: a count of processor time would miss the peers' processes. Files are in
the page cache for all.

How near that is to the machine's limits is measured on the pixels, before they are normalised:
against a copy of the same bytes, and against Pillow decoding the same JPEGs on as many threads.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from bench import photos
from bench.contest import Contest, Entrant, Load, Scale
from engine import models
from engine.evaluation import user_models
from engine.machine import memory
from engine.recipe.schema import ModelRecipe
from loaders import folders, jpeg
from loaders.batch import Source
from loaders.pack import Pack
from loaders.resident import Resident
from loaders.stream import Stream

KERNELS = ()
BATCH = 64
FFCV_TOLERANCE = 4.0  # grey levels of 255 on average, of its fast DCT


def gate(device: torch.device) -> None:
    """All loaders give the same images: raw ones to rounding, JPEGs nearly Pillow's."""
    with _bench(device, 40, 64, drawn=True, workers=1) as bench:
        expected = torch.cat(list(bench.packed(Resident(bench.raw, device), bench.in_order)))
        streamed = bench.packed(Stream(bench.raw, device), bench.in_order)
        assert torch.equal(torch.cat(list(streamed)), expected), "stream"
        for name, batches in bench.peers().items():
            torch.testing.assert_close(torch.cat(list(batches())), expected, rtol=0, atol=1e-5,
                                       msg=lambda text, name=name: f"{name}: {text}")  # fmt: skip
        (batch,) = Stream(bench.jpeg, device).batches([np.arange(40)])
        most = 0 if jpeg.decoder() == "pillow" else FFCV_TOLERANCE
        for pixels, blob in zip(batch.images, bench.blobs, strict=True):
            off = np.abs(pixels.permute(1, 2, 0).cpu().numpy().astype(int) - _decoded(blob)).mean()
            assert off <= most, f"a JPEG is {off:.1f} grey levels off Pillow's"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    count, size, workers = (8, 32, 1) if scale.quick else (512, 224, os.cpu_count() or 1)
    with _bench(device, count, size, drawn=scale.draws, workers=workers) as bench:
        sources: dict[str, Source] = {
            "raw resident": Resident(bench.raw, device),
            "raw stream": Stream(bench.raw, device, workers=workers),
            "JPEG stream": Stream(bench.jpeg, device, workers=workers),
        }
        load = Load(count)
        peers = tuple(
            Entrant(name, lambda b=batches: bench.epoch(b()), load=load)
            for name, batches in bench.peers().items()
        )
        for name, source in sources.items():
            run = lambda s=source: bench.epoch(bench.packed(s))  # noqa: E731
            yield Contest(f"{name} x {count}", Entrant(name, run, load=load), peers, rounds=3)
        for name, source in sources.items():
            limit = ("Pillow", bench.decode_blobs) if "JPEG" in name else ("a copy", bench.copy)
            run = lambda s=source: bench.epoch(bench.pixels(s))  # noqa: E731
            peer = Entrant(*limit, load=load)
            yield Contest(f"{name}, pixels", Entrant(name, run, load=load), (peer,))


def resident_bytes(pack: Pack) -> int:
    """Bytes of all pixels of a pack."""
    return len(pack) * pack.shape[0] * pack.shape[1] * 3


@dataclass
class Bench:
    """The same photos as JPEG files, as packs and as shards of a tar."""

    folder: Path
    model: ModelRecipe
    device: torch.device
    workers: int
    batch: int = BATCH

    @cached_property
    def raw(self) -> Pack:
        return photos.encode(self.folder / "raw", self.folder / "files", self.model, "raw")

    @cached_property
    def jpeg(self) -> Pack:
        return photos.encode(self.folder / "jpeg", self.folder / "files", self.model, "jpeg")

    @cached_property
    def blobs(self) -> list[bytes]:
        return list(self.jpeg.shard.blobs(range(len(self.jpeg))))

    @cached_property
    def in_order(self) -> np.ndarray:
        return np.arange(len(self.raw))

    @cached_property
    def shuffled(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(len(self.raw))

    @cached_property
    def normalize(self) -> models.Normalize:
        return models.Normalize(self.model, self.device)

    def epoch(self, batches: Iterable[Tensor]) -> None:
        for _ in batches:
            pass
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def pixels(self, source: Source, order: np.ndarray | None = None) -> Iterator[Tensor]:
        """uint8 batches of a pack."""
        order = self.shuffled if order is None else order
        for batch in source.batches(
            order[i : i + self.batch] for i in range(0, len(order), self.batch)
        ):
            yield batch.images

    def packed(self, source: Source, order: np.ndarray | None = None) -> Iterator[Tensor]:
        return map(self.normalize, self.pixels(source, order))

    def peers(self) -> dict[str, Callable[[], Iterator[Tensor]]]:
        """Epochs of the loaders that are installed, by name; each is made once."""
        loaders = {"torchvision": self.torchvision(), "timm": self.timm()}
        try:
            loaders["webdataset"] = self.webdataset()
        except ImportError as error:
            print(f"peer skipped: webdataset ({error})")

        def epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
            return (images.to(self.device, non_blocking=True) for images, _ in batches)

        return {name: lambda b=batches: epoch(b) for name, batches in loaders.items()}

    def torchvision(self) -> DataLoader:
        """Normalised images and their labels, on the host."""
        return DataLoader(
            datasets.ImageFolder(self.folder / "files", self._whole_transform()),
            self.batch,
            num_workers=self.workers,
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
        )

    def timm(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Normalised images and their labels, on the device."""
        config = models.data_config(self.model)
        return create_loader(
            ImageDataset(str(self.folder / "files")),
            input_size=self.model.image_size,
            batch_size=self.batch,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            num_workers=self.workers,
            device=self.device,
            pin_memory=self.device.type == "cuda",
        )

    def webdataset(self) -> Any:
        """Normalised images and their labels, on the host; ImportError without webdataset."""
        library: Any = importlib.import_module("webdataset")
        shards = [str(self.folder / f"{number}.tar") for number in range(self.workers)]
        for shard, items in zip(shards, np.array_split(self.items, self.workers), strict=True):
            with library.TarWriter(shard) as tar:
                for number, item in enumerate(items):
                    jpeg = Path(item.payload).read_bytes()
                    tar.write({"__key__": f"{number:06}", "jpg": jpeg, "cls": item.label})
        data = library.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
        data = data.map_tuple(self._whole_transform(), int).batched(self.batch)
        return library.WebLoader(
            data, batch_size=None, num_workers=self.workers, persistent_workers=True
        )

    def _whole_transform(self) -> transforms.Compose:
        """The model's evaluation transform, normalisation included, as torchvision writes it."""
        config, size = models.data_config(self.model), self.model.image_size
        return transforms.Compose(
            [
                transforms.Resize(
                    int(size / config["crop_pct"]),
                    transforms.InterpolationMode(config["interpolation"]),
                ),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )

    @cached_property
    def items(self) -> list[Any]:
        return folders.read(self.folder / "files").items

    def decode_blobs(self) -> None:
        with ThreadPool(self.workers) as pool:
            pool.map(_decoded, self.blobs)

    def copy(self) -> None:
        """The bytes of a set copied to where they have been copied before."""
        self._halves[1].copy_(self._halves[0])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def _halves(self) -> Tensor:
        nbytes = resident_bytes(self.raw)
        return torch.ones((2, nbytes), dtype=torch.uint8, device=self.device)


def _decoded(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))


@contextlib.contextmanager
def _bench(
    device: torch.device, count: int, size: int, *, drawn: bool, workers: int
) -> Iterator[Bench]:
    if device.type == "cpu":
        memory.keep_pages()  # as in the engine; the peers' processes inherit it
    with tempfile.TemporaryDirectory() as name:
        photos.write(Path(name) / "files", count, drawn)
        model = user_models.resolve("vit_base_patch16_224", [f"model.image_size={size}"]).model
        yield Bench(Path(name), model, device, workers)
