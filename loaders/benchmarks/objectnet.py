"""ObjectNet 1.0: 313 objects, 113 of which are ImageNet-1K classes under different names.

The download maps folders to objects, and objects to one or more IN classes. `corrected` uses that
map as it is: an object's logit is the maximum of its IN classes' logits. `released` reproduces the
benchmark's release, which gives each object a single IN class. It splits the text of an object's
classes at commas, so that the first name of a class in "car wheel; paddlewheel, paddle wheel" is
"paddle wheel". Eight objects match no name there, and silently get the class of the previous
object.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from loaders import trees
from loaders.benchmarks.imagenet import in_order, source_of
from loaders.files import typed_json
from loaders.pack import JOIN, Item
from loaders.trees import Listing, Place, first_names

BORDER = 2  # pixels of red frame around the images
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


def list_objectnet(
    root: Path, name: str, wnid_of: Mapping[str, str], mode: str = "corrected"
) -> Listing:
    """Lists the images of the objects that the download maps to IN classes.

    root: the unpacked download, with `images/` and `mappings/`. wnid_of: IN class names (all
    synonyms, as WordNet lists them) to wnids. A class of the result is a wnid, or several wnids
    joined by `JOIN`.

    Raises ValueError naming mappings that are missing or invalid, and folders that no mapping
    names.
    """
    top = next((p for p in (root, *sorted(root.glob("*/"))) if (p / "mappings").is_dir()), None)
    if top is None:
        raise ValueError(
            f"{root} has no mappings/ folder; give the folder that objectnet-1.0.zip unpacks to"
        )
    try:
        label_of, names_of = (
            typed_json.read_json(
                top / "mappings" / file, dict[str, str], "unpack the download again"
            )
            for file in MAPPINGS
        )
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; unpack the download again") from error
    class_of: dict[str, str] = {}  # by folder
    for folder, label in label_of.items():
        if label in names_of:
            thing = _TAKEN_FOR.get(label, label) if mode == "released" else label
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
        raise ValueError(f"{images}: {MAPPINGS[0]} does not name these folders: {shown}")
    if not items:
        raise ValueError(f"{images} has no images <object>/<image> of IN classes")
    return Listing(in_order(items), classes, trees.fingerprint(listed), tuple(left_out))


def open_image(place: Place) -> Image.Image:
    """Returns the image without its red frame."""
    image = trees.open_image(place)
    return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


def imagenet_class(text: str, wnid_of: Mapping[str, str], mode: str) -> str:
    """Returns the wnid of an object, or several joined wnids, from the text of its IN classes.

    Raises ValueError for a class that ImageNet-1K does not have.
    """
    classes = text.split("; ")
    if unknown := [names for names in classes if names not in wnid_of]:
        raise ValueError(f"{MAPPINGS[1]}: ImageNet-1K has no class {first_names(unknown)}")
    wnids = [wnid_of[names] for names in classes]
    if mode == "corrected":
        return JOIN.join(wnids)
    by_name = {name: wnid_of[names] for names in classes for name in names.split(", ")}
    return next((by_name[name] for name in text.split(", ") if name in by_name), wnids[0])
