"""Published numbers of benchmarks, for the reference columns of a report.

Runs of the benchmark's released code are read as such numbers too. It writes
`METHOD_DATASET_MODEL_ARCH_PATCH_WEIGHTS_..._trial_N/results.json` for each run: accuracies in
percent by the folder of each dataset. METHOD is empty for plain fine-tuning, and PRE for the
pretrained model. https://github.com/FieteLab/ImageNet-RIB, lib/argument.py and lib/evaluate.py of
commit e0a7e78.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import msgspec

from engine.errors import RecipeError
from engine.recipe import catalogue
from loaders.files.root import Root

FILE = catalogue.ROOT / "published.yaml"
RUN = re.compile(
    r"(?P<method>[^_]*)_(?P<downstream>[^_]+)_(?P<net>[^_]+)_(?P<size>[^_]+)_(?P<patch>\d+)_"
    r"(?P<weights>[^_]+)_[^_]+_lr_.+_trial_.+/results\.json"
)
METHODS = {
    "": "fine_tune",
    "HeadOnly": "linear_probe",
    "Prompter": "visual_prompt",
    "lora": "lora",
    "ewc": "ewc",
    "lwf": "lwf",
    "LPFT": "lp_ft",
}
SOUPS = {frozenset({"PRE", ""}): "wise_ft", frozenset({"PRE", "", "ewc", "lwf"}): "soup"}
WEIGHTS = {
    "imagenet": "augreg_in21k",
    "orig": "orig_in21k",
    "in1k": "augreg_in1k",
    "openai": "clip_openai",
    "laion": "clip_laion2b",
}
SETS = {  # by the folder that a run evaluates or fine-tunes on
    "imagenet/val": "imagenet_val",
    "imagenet-v2": "imagenet_v2",
    "imagenet-a": "imagenet_a",
    "imagenet-r": "imagenet_r",
    "imagenet-sketch": "imagenet_sketch",
    "objectnet": "objectnet",
    "objectnet-v2": "objectnet",  # `objectnet-1.0` is evaluated with labels of other outputs
    "imagenet-cartoon": "imagenet_cartoon",
    "imagenet-drawing": "imagenet_drawing",
    "imagenet-c": "imagenet_c",
}
OF_C = 15 * 5  # folders of corruptions and severities


class PublishedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pretrained model: mRI in points by method, and accuracies in percent by the publication's
    name of a dataset, before fine-tuning and after it, by the dataset fine-tuned on and method."""

    timm: str | None = None
    recipe: str = ""
    mri: dict[str, float] = {}
    before: dict[str, float] = {}
    fine_tuned: dict[str, dict[str, dict[str, float]]] = {}

    def after(self, downstream: str, method: str) -> dict[str, float]:
        """The accuracies after fine-tuning on a dataset with a method; empty if unpublished."""
        return self.fine_tuned.get(downstream, {}).get(method, {})


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version's numbers. sets: the publication's names of datasets by ours. benchmark: whose
    reports show them; empty: all."""

    source: str
    sets: dict[str, str]
    models: dict[str, PublishedModel]
    alike_in_both_variants: list[str] = []
    benchmark: str = ""

    def of(self, model: str) -> PublishedModel:
        """The numbers of a pretrained model by its published label, timm name or recipe, with
        accuracies by our names of datasets; without numbers if the model is unknown."""
        for label, entry in self.models.items():
            if model in (label, entry.timm, entry.recipe):
                fine_tuned = {
                    downstream: {method: self._by_our_names(of) for method, of in methods.items()}
                    for downstream, methods in entry.fine_tuned.items()
                }
                before = self._by_our_names(entry.before)
                return msgspec.structs.replace(entry, before=before, fine_tuned=fine_tuned)
        return PublishedModel()

    def _by_our_names(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        return {ours: accuracies[on] for ours, on in self.sets.items() if on in accuracies}


def read_published(path: Path = FILE, benchmark: str = "imagenet_rib") -> Published:
    """The last version for a benchmark in a file like `recipes/published.yaml`.

    Without numbers if all versions are of other benchmarks. Raises RecipeError, naming the file and
    the key, for an invalid file.
    """
    try:
        versions = msgspec.convert(catalogue.read_recipe(path), dict[str, Published])
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not versions:
        raise RecipeError(f"{path} has no version: write it as recipes/published.yaml is written")
    of_benchmark = [of for of in versions.values() if of.benchmark in ("", benchmark)]
    return of_benchmark[-1] if of_benchmark else Published("", sets={}, models={})


def read_released(folder: Path) -> Published:
    """The accuracies of the runs in a folder, the released code's `--model_dir`.

    Unknown methods, models and datasets are left out. Raises RecipeError if no run is found, for an
    unreadable file, and for two runs of a method on one dataset from the same model.
    """
    root, models, files = Root(folder), {}, {}
    for file in root.files():
        run = RUN.fullmatch(file)
        if run is None:
            continue
        method, _, members = run["method"].partition("-")
        if method == "Soup":
            method = SOUPS.get(frozenset(members.split("-")))
        else:
            method = METHODS.get(method, method)
        model = run["net"]
        if model == "vit":
            if run["weights"] not in WEIGHTS:
                continue
            model = f"vit_{run['size'][0]}{run['patch']}_{WEIGHTS[run['weights']]}"
        entry = models.setdefault(model, PublishedModel(recipe=model))
        accuracies = _accuracies(root, file)
        if method == "PRE":
            entry.before.update(accuracies)
        elif method and (down := SETS.get(run["downstream"])):
            other = files.setdefault((model, method, down), file)
            if other != file:
                raise RecipeError(f"{folder}: {other} and {file} are runs of one row: keep one")
            entry.fine_tuned.setdefault(down, {})[method] = accuracies
    if not models:
        raise RecipeError(
            f"{folder} has no folder of a run of the released code with results.json, or none of a "
            f"known model (ViTs of {', '.join(WEIGHTS)}; ResNets)"
        )
    sets = {name: name for name in SETS.values()}
    source = f"runs of the released code in {folder.resolve().name}"
    return msgspec.structs.replace(read_published(), source=source, sets=sets, models=models)


def _accuracies(root: Root, file: str) -> dict[str, float]:
    """The accuracies of a run by our names of datasets."""
    try:
        values = msgspec.json.decode(root.read(file), type=dict[str, float])
    except (msgspec.MsgspecError, OSError) as error:
        raise RecipeError(f"{root.path / file}: {error}") from error
    by_folder = {name.strip("/"): value for name, value in values.items()}
    corrupted = [of for name, of in by_folder.items() if re.fullmatch(r"imagenet-c/\w+/\d", name)]
    if len(corrupted) == OF_C:
        by_folder["imagenet-c"] = fmean(corrupted)
    return {SETS[name]: value for name, value in by_folder.items() if name in SETS}
