"""ObjectNet 1.0: 313 objects, of which 113 are classes of ImageNet-1K under different names.

The download maps folders to objects, and objects to one or several IN classes. `corrected` takes
that map as it is: an object's logit is the largest of its IN classes' logits. `paper` repeats what
the benchmark's release does. It gives each object one IN class. It cuts the text of an object's
classes at commas, so that the first name of a class in "car wheel; paddlewheel, paddle wheel" is
"paddle wheel". Eight objects match no name there, and silently get the class of the object before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from loaders import schema, trees
from loaders.benchmarks.imagenet import in_order, source_of
from loaders.pack import Item
from loaders.trees import Listing, Place, first_names

JOIN = "+"  # between the wnids of an object that stands for several IN classes
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
    """The images of the objects that the download maps to IN classes.

    `root`: the unpacked download, with `images/` and `mappings/`. `wnid_of`: IN class names (all
    synonyms, as WordNet lists them) to wnids. A class of the result is a wnid, or several wnids
    joined by `JOIN`. Raises ValueError naming mappings that are missing or wrong, and folders that
    no mapping names.
    """
    top = next((p for p in (root, *sorted(root.glob("*/"))) if (p / "mappings").is_dir()), None)
    if top is None:
        raise ValueError(
            f"{root} holds no mappings/ folder; give the folder that objectnet-1.0.zip unpacks to"
        )
    try:
        label_of, names_of = (
            schema.read(top / "mappings" / file, dict[str, str], "unpack the download again")
            for file in MAPPINGS
        )
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; unpack the download again") from error
    class_of: dict[str, str] = {}  # of folders with IN classes
    for folder, label in label_of.items():
        if label in names_of:
            thing = _TAKEN_FOR.get(label, label) if mode == "paper" else label
            class_of[folder] = imagenet_class(names_of[thing], wnid_of, mode)
    classes = sorted(set(class_of.values()))
    number = {wnids: i for i, wnids in enumerate(classes)}

    images = top / "images"
    listed = list(trees.files(images))
    items: list[Item] = []
    left_out: list[str] = []
    unknown: set[str] = set()
    for file in listed:
        *_, folder, image = ("", *file.parts)
        if not (file.is_image and folder):
            left_out.append(file.path)
        elif folder in class_of:
            key = f"{folder}/{image}"
            items.append(Item(number[class_of[folder]], source_of(name, key), key, file.place))
        elif folder not in label_of:
            unknown.add(folder)
    if unknown:
        shown = first_names(sorted(unknown))
        raise ValueError(f"{images}: folders that {MAPPINGS[0]} does not name: {shown}")
    if not items:
        raise ValueError(f"{images} holds no images of IN classes as <object>/<image>")
    return Listing(in_order(items), classes, trees.fingerprint(listed), tuple(left_out))


def open_image(place: Place) -> Image.Image:
    """The image without its red frame."""
    image = trees.open_image(place)
    return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


def imagenet_class(text: str, wnid_of: Mapping[str, str], mode: str) -> str:
    """The wnid of an object, or several wnids joined, from the text that names its IN classes."""
    classes = text.split("; ")
    if unknown := [names for names in classes if names not in wnid_of]:
        raise ValueError(f"{MAPPINGS[1]}: ImageNet-1K has no class {first_names(unknown)}")
    wnids = [wnid_of[names] for names in classes]
    if mode == "corrected":
        return JOIN.join(wnids)
    by_name = {name: wnid_of[names] for names in classes for name in names.split(", ")}
    return next((by_name[name] for name in text.split(", ") if name in by_name), wnids[0])
