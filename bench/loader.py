"""Epochs of a set from packs, against the loaders that users have, on the same photos.

All end in the same batches: 64 images of 224 x 224 on the device, normalised, float32. torchvision
and timm decode and resize a JPEG file of 500 x 375 for each image, on as many worker processes as
there are cores, which live on from epoch to epoch and read in order. Ours read, in random order,
what was resized once: raw pixels in memory, raw pixels from the file, or small JPEGs. FFCV's own
Loader, where it is built, reads our packs; SPDL, where it and FFmpeg are installed, decodes and
resizes the files by FFmpeg on threads. An epoch is timed by the clock: a count of processor time
would miss the peers' processes. Files are in the page cache for all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from bench import photos
from bench.contest import Contest, Entrant, Scale, tried
from engine import models
from engine.exchange import user_models
from engine.machine.devices import keep_pages
from engine.recipe import image_transform
from engine.recipe.overrides import parsed
from engine.recipe.schema import ModelRecipe
from loaders.augment import Augment
from loaders.batches import Resident, Source, Stream
from loaders.pack import Pack

BATCH = 64
Epoch = Callable[[], Iterator[Tensor]]


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    count, size, workers = (8, 32, 1) if scale.quick else (512, 224, os.cpu_count() or 1)
    keep_pages()  # as in the engine; the peers' processes inherit it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder / "files", count, scale.draws)
        model = user_models.resolve(
            "vit_base_patch16_224", parsed([f"model.image_size={size}"])
        ).model
        raw, jpeg = (
            photos.encode(folder / kind, folder / "files", model, kind) for kind in ("raw", "jpeg")
        )
        sources: dict[str, Source] = {
            "raw resident": Resident(raw, device),
            "raw stream": Stream(raw, device, workers=workers),
            "JPEG stream": Stream(jpeg, device, workers=workers),
        }
        normalize = models.Normalize(model, device)
        files: dict[str, Epoch] = {
            "torchvision": _on(device, torchvision(folder / "files", model, BATCH, workers)),
            "timm": _on(device, timm(folder / "files", model, BATCH, workers, device)),
        }
        for name, source in sources.items():
            ours = lambda s=source: map(normalize, _pixels(s))  # noqa: E731
            peers = [_entrant(peer, epoch, count) for peer, epoch in files.items()]
            if not scale.quick:  # it compiles for seconds
                peers += tried("FFCV", lambda s=source: _ffcv(s.pack, workers, device, normalize))
            peers += tried(
                "SPDL", lambda o=ours: _spdl(folder / "files", model, workers, device, o)
            )
            loose = 1.0 if "JPEG" in name else 1e-4  # a JPEG of a JPEG, by another decoder
            check = partial(_check, ours, files, loose)
            subject = _entrant(name, ours, count)
            yield Contest(f"{name} x {count}", subject, tuple(peers), check, rounds=3)
        larger = image_transform.crop_from(model)
        whole = photos.encode(folder / "to crop", folder / "files", larger, "raw")
        yield _augmented(folder / "files", model, Resident(whole, device), workers)


def _augmented(folder: Path, model: ModelRecipe, source: Resident, workers: int) -> Contest:
    """Random crops and flips: ours on the device, from images of 8/7 the size; the peers' from JPEG
    files, on their workers. Draws differ, so the check compares means over an epoch."""
    device, count = source.device, len(source.pack)
    normalize = models.Normalize(model, device)
    augment = Augment(model.image_size, ["crop", "hflip"])
    batch = min(BATCH, count)  # timm's training loader leaves out a part of a batch

    def ours() -> Iterator[Tensor]:
        order = np.random.default_rng(0).permutation(count)
        read = source.batches(order[i : i + batch] for i in range(0, count, batch))
        return (normalize(augment(each.images, each.index, 0)) for each in read)

    peers: dict[str, Epoch] = {
        "torchvision": _on(device, torchvision(folder, model, batch, workers, augmented=True)),
        "timm": _on(device, timm(folder, model, batch, workers, device, augmented=True)),
    }

    def check() -> None:
        for name, epoch in peers.items():
            means = [
                torch.cat([b.mean((1, 2, 3)) for b in each()]).mean() for each in (ours, epoch)
            ]
            assert abs(means[0] - means[1]) < 0.1, f"other images than {name}'s"

    entrants = (_entrant(name, epoch, count) for name, epoch in peers.items())
    subject = _entrant("raw resident, crops", ours, count)
    return Contest(f"raw resident, crops x {count}", subject, tuple(entrants), check, rounds=3)


def _entrant(name: str, epoch: Epoch, images: int) -> Entrant:
    def run() -> None:
        for batch in epoch():
            last = batch
        if last.is_cuda:
            torch.cuda.synchronize()

    return Entrant(name, run, images)


def _check(ours: Epoch, peers: dict[str, Epoch], loose: float) -> None:
    """Photos come by turns, so sorted means of images tell whether they are the same."""
    expected, *others = (
        torch.cat([batch.mean((1, 2, 3)) for batch in epoch()]).sort().values
        for epoch in (ours, *peers.values())
    )
    for name, means in zip(peers, others, strict=True):
        assert (means - expected).abs().max() <= loose, f"other images than {name}'s"


def _pixels(source: Source) -> Iterator[Tensor]:
    """uint8 batches of a pack in random order."""
    order = np.random.default_rng(0).permutation(len(source.pack))
    starts = range(0, len(order), BATCH)
    return (batch.images for batch in source.batches(order[i : i + BATCH] for i in starts))


def _on(device: torch.device, batches: Iterable[tuple[Tensor, Tensor]]) -> Epoch:
    return lambda: (images.to(device, non_blocking=True) for images, _ in batches)


def torchvision(
    folder: Path, model: ModelRecipe, batch: int, workers: int, augmented: bool = False
) -> DataLoader:
    """Normalised images and their labels, on the host, as torchvision's users write it."""
    config = image_transform.data_config(model)
    mode = transforms.InterpolationMode(config["interpolation"])
    plain = [
        transforms.Resize(int(model.image_size / config["crop_pct"]), mode),
        transforms.CenterCrop(model.image_size),
    ]
    crop = transforms.RandomResizedCrop(model.image_size, interpolation=mode)
    transform = transforms.Compose(
        [
            *([crop, transforms.RandomHorizontalFlip()] if augmented else plain),
            transforms.ToTensor(),
            transforms.Normalize(config["mean"], config["std"]),
        ]
    )
    data, pin = datasets.ImageFolder(folder, transform), torch.cuda.is_available()
    return DataLoader(data, batch, num_workers=workers, persistent_workers=True, pin_memory=pin)


def timm(
    folder: Path,
    model: ModelRecipe,
    batch: int,
    workers: int,
    device: torch.device,
    augmented: bool = False,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Normalised images and their labels, on the device."""
    config = image_transform.data_config(model)
    names = ("interpolation", "mean", "std", "crop_pct")
    return create_loader(
        ImageDataset(str(folder)),
        input_size=model.image_size,
        batch_size=batch,
        num_workers=workers,
        device=device,
        pin_memory=device.type == "cuda",
        is_training=augmented,
        color_jitter=0.0,
        **{name: config[name] for name in names},
    )


def _ffcv(
    pack: Pack, workers: int, device: torch.device, normalize: Callable[[Tensor], Tensor]
) -> Entrant:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage

    images = [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()]
    pipelines = {"image": images, "label": [IntDecoder(), ToTensor()]}
    options = {"num_workers": workers, "order": OrderOption.RANDOM, "os_cache": True}
    loader = Loader(str(pack.beton), batch_size=BATCH, pipelines=pipelines, **options)
    batches = _on(device, loader)
    return _entrant("FFCV", lambda: map(normalize, batches()), len(pack))


def _spdl(
    folder: Path, model: ModelRecipe, workers: int, device: torch.device, ours: Epoch
) -> Entrant:
    """Raises AssertionError unless the images are ours, but for another decoder and resizing."""
    from spdl import io
    from spdl.pipeline import PipelineBuilder

    files = [path for path, _ in datasets.ImageFolder(folder).samples]
    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    config = image_transform.data_config(model)
    size, whole = model.image_size, int(model.image_size / config["crop_pct"])
    resize = f"scale={whole}:{whole}:force_original_aspect_ratio=increase"
    scaled = f"{resize}:flags={config['interpolation']},crop={size}:{size},format=rgb24"
    decode = partial(io.load_image_batch, width=None, height=None, filter_desc=scaled)
    normalize = models.Normalize(model, device)

    def epoch() -> Iterator[Tensor]:
        source = PipelineBuilder().add_source(batches).pipe(decode, concurrency=workers)
        pipeline = source.add_sink(workers).build(num_threads=workers)
        with pipeline.auto_stop():
            for batch in pipeline:
                yield normalize(io.to_torch(batch).to(device).permute(0, 3, 1, 2))

    _check(ours, {"SPDL": epoch}, 0.05)
    return _entrant("SPDL", epoch, len(files))
