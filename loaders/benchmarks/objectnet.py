"""ObjectNet 1.0: its own 313 objects, of which 113 are classes of ImageNet-1K under other names.

The download maps folders to objects, and objects to one or several IN classes. `corrected` takes
that map as it is: an object's logit is the largest of its IN classes'. `paper` repeats what the
benchmark's release does: one IN class an object, and eight objects that it could not look up and
silently took for the object before them. It cuts the names of an object at commas first, so of
"car wheel; paddlewheel, paddle wheel" the first that names a class is "paddle wheel".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from loaders import trees
from loaders.benchmarks.imagenet import in_order, source_of
from loaders.pack import Item
from loaders.trees import Listing, Place, some

MODES = ("corrected", "paper")
JOIN = "+"  # between the wnids of an object that is several IN classes
BORDER = 2  # pixels; the images come with a red frame
MAPPINGS = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json")
_TAKEN_FOR = {
    "Binder (closed)": "Bucket",
    "Chair": "Keyboard",
    "Iron (for clothes)": "Vacuum cleaner",
    "Jeans": "Stuffed animal",
    "Skirt": "Clothes hamper",
    "Swimming trunks": "Wok",
    "Trash bin": "Watch",
    "Weight scale": "Still Camera",
}


def read(root: Path, name: str, wnid_of: Mapping[str, str], mode: str = "corrected") -> Listing:
    """The images of objects that are IN classes; other folders are left out by their mapping.

    `root`: the unpacked download, with `images/` and `mappings/`. `wnid_of`: IN class names (all
    synonyms, as WordNet lists them) to wnids. Classes are wnids, those of a several-fold object
    joined by `JOIN`. Raises ValueError naming absent or wrong mappings and folders without one.
    """
    if mode not in MODES:
        raise ValueError(f"objectnet={mode!r}: {' | '.join(MODES)}")
    top = next((p for p in (root, *sorted(root.glob("*/"))) if (p / "mappings").is_dir()), None)
    if top is None:
        raise ValueError(
            f"{root} holds no mappings/ folder; give the folder that objectnet-1.0.zip unpacks to"
        )
    label_of, names_of = (_mapping(top / "mappings" / file) for file in MAPPINGS)
    class_of = _classes(label_of, names_of, wnid_of, mode, top)
    classes = sorted(set(class_of.values()))
    number = {wnids: i for i, wnids in enumerate(classes)}

    images = top / "images"
    found = list(trees.files(images))
    unknown = sorted(
        {f.parts[-2] for f in found if f.is_image and len(f.parts) > 1} - set(label_of)
    )
    if unknown:
        raise ValueError(f"{images}: folders that {MAPPINGS[0]} does not name: {some(unknown)}")
    items = []
    for file in found:
        if file.is_image and len(file.parts) > 1 and file.parts[-2] in class_of:
            key = "/".join(file.parts[-2:])
            items.append(
                Item(number[class_of[file.parts[-2]]], source_of(name, key), key, file.place)
            )
    if not items:
        raise ValueError(f"{images} holds no images of IN classes as <object>/<image>")
    left_out = tuple(file.path for file in found if not file.is_image or len(file.parts) < 2)
    items, twins = in_order(items)
    return Listing(items, classes, trees.fingerprint(found), left_out, twins)


def open_image(place: Place) -> Image.Image:
    """The image without its frame."""
    image = trees.open_image(place)
    return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


def _classes(
    label_of: Mapping[str, str],
    names_of: Mapping[str, str],
    wnid_of: Mapping[str, str],
    mode: str,
    top: Path,
) -> dict[str, str]:
    """Folder -> its IN classes, joined; folders that are none are absent."""
    found: dict[str, str] = {}
    for folder, label in label_of.items():
        if label not in names_of:
            continue
        meant = _TAKEN_FOR.get(label, label) if mode == "paper" else label
        if meant not in names_of:
            raise ValueError(f"{top / 'mappings' / MAPPINGS[1]} lacks {meant!r}")
        classes = names_of[meant].split("; ")
        unknown = [names for names in classes if names not in wnid_of]
        if unknown:
            raise ValueError(
                f"{top / 'mappings' / MAPPINGS[1]}: {meant!r} is {some(unknown)}, which is no "
                "class of ImageNet-1K"
            )
        wnids = [wnid_of[names] for names in classes]
        if mode == "paper":
            by_name = {name: wnid_of[names] for names in classes for name in names.split(", ")}
            cut = names_of[meant].split(", ")
            found[folder] = next((by_name[name] for name in cut if name in by_name), wnids[0])
        else:
            found[folder] = JOIN.join(wnids)
    return found


def _mapping(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); unpack the download again") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f"{path} does not map names to names; unpack the download again")
    return found
