"""Vendors' emoji drawings, read directly from their packages.

Drawings come in three kinds of package: Iconify JSON (SVG), a folder of WebP files, and a font.
Each kind has a class with two methods: `identity(code)` is equal for equal drawings, and None if a
code point has no drawing; `draw(code, px)` returns an RGBA image of px x px.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from loaders.fetch import registry

FONT_MEMBER = "package/400Regular/NotoEmoji_400Regular.ttf"
_ICONS, _CHARS = "package/icons.json", "package/chars.json"
_BASIC = ImageFont.Layout.BASIC


def plain(sequence: str) -> str:
    """Returns a code point sequence in lower case, without emoji presentation selectors."""
    return sequence.lower().replace("-fe0f", "")


class SvgDrawings:
    """Iconify JSON. The oldest packages have no code points, so `naming` gives the codes' names."""

    def __init__(self, path: Path, naming: Mapping[str, tuple[str, ...]]) -> None:
        files = registry.members(path, {_ICONS, _CHARS}.__contains__)
        self._set = json.loads(files[_ICONS])
        self._aliases = self._set.get("aliases", {})
        self._name_of: dict[str, str] = json.loads(files[_CHARS])
        if not self._name_of:
            known = self._set["icons"].keys() | self._aliases.keys()
            for code, names in naming.items():
                if known_names := [name for name in names if name in known]:
                    self._name_of[code] = known_names[0]

    def names(self) -> dict[str, tuple[str, ...]]:
        """Returns code -> the package's name for it, then that name's aliases."""
        aliases: dict[str, list[str]] = defaultdict(list)
        for alias, entry in self._aliases.items():
            aliases[entry["parent"]].append(alias)
        return {code: (name, *aliases[name]) for code, name in self._name_of.items()}

    def identity(self, code: str) -> Hashable:
        if code not in self._name_of:
            return None
        icon, flip = self._resolve(code)
        return icon["body"], flip

    def draw(self, code: str, px: int) -> Image.Image:
        import resvg_py  # imported here: everything else works without it

        icon, flip = self._resolve(code)
        left, top, width, height = (
            icon.get(key, self._set.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        mirror = f' transform="translate({2 * left + width} 0) scale(-1 1)"' if flip else ""
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{px}" height="{px}" color="#000" '
            f'viewBox="{left} {top} {width} {height}"><g{mirror}>{icon["body"]}</g></svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    def _resolve(self, code: str) -> tuple[dict, bool]:
        name, flip = self._name_of[code], False
        while name in self._aliases:
            flip ^= self._aliases[name].get("hFlip", False)
            name = self._aliases[name]["parent"]
        return self._set["icons"][name], flip


class WebpDrawings:
    """One WebP file per code point sequence."""

    def __init__(self, path: Path) -> None:
        files = registry.members(path, lambda name: name.endswith(".webp"))
        self._files = {plain(Path(name).stem): data for name, data in files.items()}

    def identity(self, code: str) -> Hashable:
        return self._files.get(code)

    def draw(self, code: str, px: int) -> Image.Image:
        image = Image.open(io.BytesIO(self._files[code])).convert("RGBA")
        return image.resize((px, px), Image.Resampling.LANCZOS)


class FontDrawings:
    """A font of black glyphs for single code points; it has no sequences."""

    def __init__(self, path: Path) -> None:
        data = registry.member(path, FONT_MEMBER)
        # All builds of Pillow have the basic layout, which is enough for single code points.
        self._font = cache(
            lambda size: ImageFont.truetype(io.BytesIO(data), size, layout_engine=_BASIC)
        )
        self._missing = self._glyph("\U0010ffff")

    def identity(self, code: str) -> Hashable:
        glyph = self._glyph(chr(int(code, 16)))
        return None if glyph == self._missing else glyph

    def draw(self, code: str, px: int) -> Image.Image:
        character = chr(int(code, 16))
        font = self._font(round(px * 100 / self._font(100).getlength(character)))
        left, top, right, bottom = font.getbbox(character)
        image = Image.new("RGBA", (px, px))
        corner = ((px - right - left) / 2, (px - bottom - top) / 2)
        ImageDraw.Draw(image).text(corner, character, fill="black", font=font)
        return image

    def _glyph(self, character: str) -> Hashable:
        image = Image.new("L", (64, 64))
        ImageDraw.Draw(image).text((8, 8), character, fill=255, font=self._font(32))
        return image.tobytes()
