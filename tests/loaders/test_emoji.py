import base64
import hashlib
import io
import itertools
import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageFont

from helpers.tarballs import tarball, zipped
from loaders.benchmarks import drawings, emoji
from loaders.fetch import registry

# The stand-in font draws letters, so the stand-in emoji are letters: a to h, less i (not in one).
LETTERS = {f"{ord(letter):x}": f"letter-{letter}" for letter in "abcdefghi"}
SHAPE = '<path d="M2 2H{x}V14H2z" fill="{fill}"/>'


def icons(codes: dict, fill: str, names: Iterable[str], aliases: dict | None = None) -> dict:
    bodies = {
        name: {"body": SHAPE.format(x=4 + index, fill=fill)} for index, name in enumerate(names)
    }
    icon_set = {"icons": bodies, "aliases": aliases or {}, "width": 16, "height": 16}
    files = {"package/icons.json": icon_set, "package/chars.json": codes}
    return {name: json.dumps(value).encode() for name, value in files.items()}


def webp(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (8, 8), (shade, 90, 40, 255)).save(stream, "WEBP", lossless=True)
    return stream.getvalue()


def package(name: str, style: emoji.Style, cache: Path) -> emoji.Style:
    """Write a tiny stand-in for a style's package and pin its checksum."""
    if style.kind == "webp":
        files = {f"package/assets/{code}-fe0f.webp": webp(int(code, 16)) for code in LETTERS}
    elif style.kind == "font":
        font = ImageFont.load_default(20)
        assert isinstance(font, ImageFont.FreeTypeFont)
        files = {drawings.FONT_MEMBER: font.font_bytes}
    elif name == "emojione":  # names only, one of them an alias, one unknown
        old = ["old-a", *(f"letter-{letter}" for letter in "bcdefgh")]
        files = icons({}, "#c22", old, {"letter-a": {"parent": "old-a"}})
    elif name == "twemoji":  # g and h share one drawing
        names = {code: name.replace("-h", "-g") for code, name in LETTERS.items()}
        files = icons(names, "#22c", names.values())
    else:
        files = icons(LETTERS, "currentColor" if style.mono else "#2a2", LETTERS.values())
    file = f"{style.package.lstrip('@').replace('/', '-')}-{style.version}.tgz"
    digest = hashlib.sha512(tarball(cache / file, files).read_bytes()).digest()
    return msgspec.structs.replace(style, sha512=base64.b64encode(digest).decode())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Ten synthetic styles of nine letters in three subgroups, and their metadata."""
    rows = [
        {"unified": code.upper(), "category": "Objects", "subcategory": f"s{order % 3}"}
        | {"sort_order": -order}
        for order, code in enumerate(LETTERS)
    ]
    rows.append(rows[0] | {"unified": "0062-200D-0063"})
    rows[1] = rows[1] | {"category": "Symbols"}
    content = {emoji.METADATA.member: json.dumps(rows).encode()}
    wheel = zipped(tmp_path / emoji.METADATA.wheel, content)
    metadata = msgspec.structs.replace(
        emoji.METADATA, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    styles = {name: package(name, style, tmp_path) for name, style in emoji.STYLES.items()}
    monkeypatch.setattr(emoji, "STYLES", styles)
    monkeypatch.setattr(emoji, "METADATA", metadata)
    monkeypatch.setattr(registry, "_run", lambda *_: pytest.fail("the network was asked"))
    return tmp_path


@pytest.fixture
def artwork(cache) -> emoji.Artwork:
    return emoji.fetch(cache)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_concepts_are_those_that_every_style_draws_apart(artwork):
    # b is a symbol, g and h share a drawing, i is missing in one style, b+c is a sequence.
    names = [concept.name for concept in artwork.concepts]
    assert names == ["letter-f", "letter-e", "letter-d", "letter-c", "letter-a"]


def test_choice_is_even_nested_and_deterministic(artwork):
    chosen = [set(artwork.choose(n, seed=3)) for n in range(1, 6)]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    assert len({concept.subgroup for concept in chosen[2]}) == 3
    assert len({artwork.choose(2, seed) for seed in range(20)}) > 1
    for n in (0, 6):
        with pytest.raises(ValueError, match="1 to 5"):
            artwork.choose(n, 0)


def test_every_style_draws_and_renders(artwork):
    for style in emoji.STYLES:
        image = artwork.render(style, artwork.concepts[0].code, 0, 0, 33)
        assert (image.mode, image.size) == ("RGB", (33, 33))
        assert pixels(image).std((0, 1)).max() > 10, style


def test_a_mirrored_alias_is_mirrored(tmp_path):
    aliases = {"right": {"parent": "left", "hFlip": True}}
    files = icons({"61": "left", "62": "right"}, "#2a2", ["left"], aliases)
    pack = drawings.SvgDrawings(tarball(tmp_path / "mirror.tgz", files), {})
    left, right = pixels(pack.draw("61", 32)), pixels(pack.draw("62", 32))
    assert (left != right).any() and (left[:, ::-1] == right).all()
    assert pack.identity("61") != pack.identity("62")


def test_renderings_differ_by_each_part_of_the_seed_and_by_nothing_else(cache):
    artwork, again = emoji.fetch(cache), emoji.fetch.__wrapped__(cache)
    first, second = (concept.code for concept in artwork.concepts[:2])
    cases = [("noto", first, 0, 0), ("noto", first, 1, 0), ("noto", first, 0, 1)]
    cases += [("noto", second, 0, 0), ("openmoji", first, 0, 0)]
    images = [artwork.render(*case, 24).tobytes() for case in cases]
    assert len(set(images)) == len(cases)
    assert [again.render(*case, 24).tobytes() for case in reversed(cases)] == images[::-1]
    # The same in every process, unlike Python's own hash of a text.
    assert emoji._seed(0, "noto", "1f436", 2) == 13523267228795877977


def test_a_full_square_stays_whole_at_every_scale_angle_and_shift():
    drawing = Image.new("RGBA", (96, 96), (0, 0, 0, 255))
    centres = []
    for seed in range(60):
        scale = random.Random(seed).uniform(*emoji.SCALE)
        alpha = pixels(emoji._place(random.Random(seed), drawing).getchannel("A")) / 255
        assert alpha.mean() == pytest.approx(scale**2, rel=0.02), seed
        centres.append(alpha.sum(0) @ np.arange(96) / alpha.sum())
    assert np.std(centres) > 2


def test_a_mono_style_stands_out_from_every_background():
    for seed in range(200):
        image, luminance = emoji._background(random.Random(seed), 16)
        linear = (pixels(image) / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
        assert linear.mean() == pytest.approx(luminance, abs=0.02)
        ink = (emoji.INK[luminance > emoji.EQUAL_CONTRAST][0] / 255) ** 2.2
        bright, dark = np.maximum(linear, ink) + 0.05, np.minimum(linear, ink) + 0.05
        assert (bright / dark).min() > 2.5, seed


def test_items_are_labelled_keyed_and_drawn_by_any_process(cache):
    artwork = emoji.fetch(cache)
    concepts = artwork.choose(3, 0)
    items = emoji.items(cache, ["noto", "noto-mono"], concepts, renderings=2, seed=5, px=20)
    assert len(items) == 2 * 3 * 2 == len({item.key for item in items})
    labelled = Counter((item.label, item.source) for item in items)
    assert labelled == {(label, concept.code): 4 for label, concept in enumerate(concepts)}
    assert items[1].key == f"noto/{concepts[0].code}/1"
    image = emoji.open_image(pickle.loads(pickle.dumps(items[1].payload)))
    assert image.tobytes() == artwork.render("noto", concepts[0].code, 1, 5, 20).tobytes()


def test_derived_sets_show_the_same_drawings_and_each_is_altered(cache):
    concepts = emoji.fetch(cache).choose(3, 0)
    styles, plain = emoji.styles_of("noto-mono", "upstream")
    assert (styles, plain) == (("noto-mono",), "")
    sets = {}
    for name in emoji.DERIVED:
        styles, effect = emoji.styles_of(name, "upstream")
        items = emoji.items(cache, styles, concepts, 2, 5, 32, effect)
        assert len({item.key for item in items}) == len(items) == len(styles) * 3 * 2
        sets[name] = {item.key.replace(f" {effect}", ""): item for item in items}
    natural = emoji.items(cache, emoji.ORIGINALS, concepts, 2, 5, 32)
    images = {item.key: pixels(emoji.open_image(item.payload)) for item in natural}
    for name, items in sets.items():
        assert {k: i.source for k, i in items.items()} == {k: k.rpartition("/")[0] for k in images}
        for key, image in images.items():
            altered = pixels(emoji.open_image(items[key].payload))
            assert altered.shape == image.shape and not np.array_equal(altered, image), name
            if name == "colour":
                assert np.array_equal(altered[..., [1, 2, 0]], image)
            if name == "low-contrast":
                np.testing.assert_allclose(altered.std(), 0.3 * image.std(), rtol=0.05)
            if name == "blur":
                assert np.abs(np.diff(altered, axis=0)).max() < np.abs(np.diff(image, axis=0)).max()
            if name == "outline":
                assert (altered[..., 0] == altered[..., 1]).all()


def test_fingerprint_changes_with_all_that_changes_pixels(artwork):
    first, second = artwork.concepts[:2], artwork.concepts[1:3]
    base = {"styles": ["noto"], "concepts": first, "renderings": 2}
    base |= {"seed": 0, "px": 32}
    changes = [{}, {"styles": ["twemoji"]}, {"concepts": second}, {"renderings": 3}]
    changes += [{"seed": 1}, {"px": 33}, {"effect": "blur"}]
    prints = [emoji.fingerprint(**base | change) for change in changes]
    assert len(set(prints)) == len(prints) and emoji.fingerprint(**base) == prints[0]


@pytest.mark.slow
@pytest.mark.network
def test_the_real_artwork_has_its_concepts_and_draws_them():
    folder = Path(os.environ.get("RIB_CACHE", Path.home() / ".cache" / "rib"))
    artwork = emoji.fetch(folder)
    assert len(artwork.concepts) == emoji.CONCEPTS
    assert len({concept.subgroup for concept in artwork.choose(100, 0)}) == 81
    names = {concept.name for concept in artwork.concepts}
    assert {"dog-face", "snake", "volcano"} < names
    assert not names & {"cricket", "one-oclock", "flag-japan", "person-light-skin-tone"}
    for style in emoji.STYLES:
        for concept in artwork.choose(5, 1):
            alpha = pixels(artwork._drawing(style, concept.code, 48).getchannel("A"))
            assert 0.03 < (alpha > 128).mean() < 1, (style, concept.name)
