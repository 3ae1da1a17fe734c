"""Random crops, flips and RandAugment of a batch, on the device that holds the images.

Random numbers are a function of seed, epoch and sample, so an image is augmented alike on any
number of ranks, in batches of any size, and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from loaders.batches import on_device

RATIO = (3 / 4, 4 / 3)  # width / height of a crop
_TRIES = 10  # draws of a crop until one lies inside the image, as torchvision's RandomResizedCrop
_OPERATIONS = 2  # of RandAugment, per image
_MAGNITUDE = 9 / 30  # of RandAugment's range, torchvision's default
_STREAMS = {"crop": 0, "hflip": 100, "randaugment": 200}  # first column of an operation's numbers


@dataclass(frozen=True)
class Augment:
    """Augments images of square packs: crop, then flip, then RandAugment.

    size: pixels of the result. operations: `crop` (torchvision's RandomResizedCrop), `hflip`
    (probability 1/2), `randaugment` (Cubuk et al. 2020, with torchvision's operations: two per
    image, magnitude 9 of 30). scale: range of a crop's share of the image's area. A crop is resized
    by bicubic or bilinear interpolation without antialiasing, so packs should be only slightly
    larger than `size`.
    """

    size: int
    operations: Sequence[Literal["crop", "hflip", "randaugment"]]
    scale: tuple[float, float] = (0.08, 1.0)
    bicubic: bool = True
    seed: int = 0

    def __call__(self, images: torch.Tensor, index: np.ndarray, epoch: int) -> torch.Tensor:
        """uint8 [b, 3, S, S] -> uint8 [b, 3, size, size].

        index: int64 [b], positions in the pack, which select the random numbers.
        """
        if "crop" in self.operations:
            images = self._crop(images, self._uniform("crop", index, epoch, 2 * _TRIES + 2))
        if "hflip" in self.operations:
            flipped_B = self._uniform("hflip", index, epoch, 1)[:, 0] < 0.5
            flipped = on_device(flipped_B, images.device)
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        if "randaugment" in self.operations:
            draws = self._uniform("randaugment", index, epoch, 2 * _OPERATIONS)
            for operation_B, sign_B in zip(draws.T[::2], draws.T[1::2], strict=True):
                images = randaugment(images, operation_B, sign_B)
        return images

    def _uniform(self, name: str, index: np.ndarray, epoch: int, count: int) -> np.ndarray:
        return uniform(self.seed, epoch, index, _STREAMS[name] + np.arange(count))

    def _crop(self, images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
        side = images.shape[-1]
        boxes = on_device(crops(draws, side, self.scale), images.device)
        top, left, height, width = (boxes[:, i].float() for i in range(4))
        theta = torch.zeros(len(images), 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 1, 1] = width / side, height / side
        theta[:, 0, 2] = (2 * left + width) / side - 1
        theta[:, 1, 2] = (2 * top + height) / side - 1
        grid = F.affine_grid(theta, [len(images), 3, self.size, self.size], align_corners=False)
        out = F.grid_sample(
            images.float(),
            grid,
            mode="bicubic" if self.bicubic else "bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return out.round_().clamp_(0, 255).to(torch.uint8)


def randaugment(images: torch.Tensor, operation_B: np.ndarray, sign_B: np.ndarray) -> torch.Tensor:
    """Apply one of `OPERATIONS` to each of the images (uint8 [b, 3, H, W]).

    operation_B, sign_B: uniform numbers [b]. Images with the same operation are a batch of it.
    """
    out, kernels = images.clone(), list(OPERATIONS.values())
    kind_B = (operation_B * len(kernels)).astype(np.int64) * 2 + (sign_B < 0.5)
    for kind in np.unique(kind_B):
        rows = on_device(np.flatnonzero(kind_B == kind), images.device)
        out[rows] = kernels[kind // 2](images[rows], -_MAGNITUDE if kind % 2 else _MAGNITUDE)
    return out


def uniform(seed: int, epoch: int, index: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [b, K], a function of their counters alone.

    index: int64 [b]; columns: int64 [K]. They are SplitMix64's (Steele et al. 2014) at a state that
    hashes seed and epoch, then index, then column.
    """
    start = np.array([seed], np.uint64)
    state_B = _mix(_mix(_mix(start) + np.uint64(epoch)) + index.astype(np.uint64))
    words_BK = _mix(state_B[:, None] + columns.astype(np.uint64))
    return (words_BK >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64, a bijection of 64-bit words; arrays wrap around at 2^64."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def crops(draws: np.ndarray, side: int, scale: tuple[float, float]) -> np.ndarray:
    """Boxes (top, left, height, width), int64 [b, 4], of RandomResizedCrop in a square.

    draws: uniform numbers [b, 2 * tries + 2]. The first pair of area and ratio whose box fits is
    used, otherwise the whole square.
    """
    area_BT = side**2 * (scale[0] + (scale[1] - scale[0]) * draws[:, :_TRIES])
    low, high = map(math.log, RATIO)
    ratio_BT = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    width_BT = np.rint(np.sqrt(area_BT * ratio_BT)).astype(np.int64)
    height_BT = np.rint(np.sqrt(area_BT / ratio_BT)).astype(np.int64)
    fits_BT = (np.maximum(width_BT, height_BT) <= side) & (np.minimum(width_BT, height_BT) > 0)
    first_B, rows = fits_BT.argmax(axis=1), np.arange(len(draws))
    whole_B = ~fits_BT.any(axis=1)
    height_B = np.where(whole_B, side, height_BT[rows, first_B])
    width_B = np.where(whole_B, side, width_BT[rows, first_B])
    top_B = (draws[:, -2] * (side - height_B + 1)).astype(np.int64)
    left_B = (draws[:, -1] * (side - width_B + 1)).astype(np.int64)
    return np.stack([top_B, left_B, height_B, width_B], axis=1)


def _shear(images: torch.Tensor, x: float, y: float) -> torch.Tensor:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return tv.affine(images, 0.0, [0, 0], 1.0, degrees, center=[0, 0])


def _translate(images: torch.Tensor, x: float, y: float) -> torch.Tensor:
    size = images.shape[-1]
    return tv.affine(images, 0.0, [int(x * size), int(y * size)], 1.0, [0.0, 0.0])


# RandAugment's operations on uint8 [n, 3, H, W], by a magnitude in [-1, 1], with torchvision's
# ranges. The last four and the first ignore the sign.
OPERATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "Identity": lambda x, m: x,
    "ShearX": lambda x, m: _shear(x, 0.3 * m, 0.0),
    "ShearY": lambda x, m: _shear(x, 0.0, 0.3 * m),
    "TranslateX": lambda x, m: _translate(x, 150 / 331 * m, 0.0),
    "TranslateY": lambda x, m: _translate(x, 0.0, 150 / 331 * m),
    "Rotate": lambda x, m: tv.rotate(x, 30 * m),
    "Brightness": lambda x, m: tv.adjust_brightness(x, 1 + 0.9 * m),
    "Color": lambda x, m: tv.adjust_saturation(x, 1 + 0.9 * m),
    "Contrast": lambda x, m: tv.adjust_contrast(x, 1 + 0.9 * m),
    "Sharpness": lambda x, m: tv.adjust_sharpness(x, 1 + 0.9 * m),
    "Posterize": lambda x, m: tv.posterize(x, 8 - round(4 * abs(m))),
    "Solarize": lambda x, m: tv.solarize(x, 255 * (1 - abs(m))),
    "AutoContrast": lambda x, m: tv.autocontrast(x),
    "Equalize": lambda x, m: tv.equalize(x),
}
