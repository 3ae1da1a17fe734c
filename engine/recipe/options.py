"""The options of the engine's methods, in addition to those of every method.

They are not in the methods' modules, so that reading a recipe does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from engine.errors import RecipeError
from engine.recipe.schema import (
    BelowOne,
    Count,
    MethodRecipe,
    NotNegative,
    Number,
    Part,
    Positive,
    Recipe,
    Unit,
)

NO_HOLDOUT = "a greedy soup is selected on held-out downstream images; set dataset.holdout above 0"


@dataclass(frozen=True)
class Ensemble(MethodRecipe):
    trains = False
    has_weights = False
    members: list[str] = field(default_factory=lambda: ["fine_tune", "ewc", "lwf"])

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.members if name != "pre"]

    def check(self, cell: Recipe) -> None:
        if len(self.members) < 2 or len(set(self.members)) < len(self.members):
            raise RecipeError(
                f"method.members={self.members}: name at least two different members, methods or "
                "`pre`"
            )


@dataclass(frozen=True)
class DaWin(Ensemble):
    members: list[str] = field(default_factory=lambda: ["pre", "fine_tune"])


@dataclass(frozen=True)
class EWC(MethodRecipe):
    lam: NotNegative = 1.0
    fisher_images: Count = 0  # images of the upstream training split; 0, or more than it has: all
    # model: labels sampled from the model's predictions; data: true labels (empirical Fisher)
    fisher_labels: Literal["model", "data"] = "model"
    # mean: divide by its mean, so that lambda has the same scale for every model
    fisher_scale: Literal["none", "mean"] = "none"


@dataclass(frozen=True)
class OfCLIP(MethodRecipe):
    """A method that needs CLIP's text tower."""

    def check(self, cell: Recipe) -> None:
        if cell.model.weights.source != "open_clip":
            raise RecipeError(
                f"{self.title} needs CLIP's text tower, and the model {cell.model.name} has none: "
                "choose a model with a zero-shot head, such as vit_b16_clip_openai_zero_shot"
            )


@dataclass(frozen=True)
class FLYP(OfCLIP):
    def check(self, cell: Recipe) -> None:
        super().check(cell)
        if not cell.dataset.has_imagenet_classes:
            raise RecipeError(
                f"{self.title} trains with ImageNet's class names, and {cell.dataset.name} has "
                "other classes: choose another method"
            )
        if cell.train.accumulation > 1:
            raise RecipeError(
                f"train.accumulation={cell.train.accumulation}: {self.title} contrasts all images "
                "of a batch with one another, so batches cannot be split; set train.accumulation=1"
            )


@dataclass(frozen=True)
class CaRot(FLYP):
    weight: NotNegative = 1.5  # of the cross-entropy to the teacher
    average: Literal["ema", "beta"] = "ema"  # ema: CaRot's; beta: TRACER's
    orthogonality: NotNegative = 0.2  # weight of the orthogonality penalty


@dataclass(frozen=True)
class FTP(MethodRecipe):
    annealing: Unit = 1.0  # factor on gradients that shrink a radius; 0: radii never shrink


@dataclass(frozen=True)
class L2SP(MethodRecipe):
    alpha: NotNegative = 0.1
    # shared: pull the head to its pretrained values, by alpha; new: pull it to zero, by beta
    head: Literal["shared", "new"] = "shared"
    beta: NotNegative = 0.01


@dataclass(frozen=True)
class LinearProbe(MethodRecipe):
    l2: Positive = 1e-3  # canonical: weight of the penalty (`engine.methods.heads`)
    anchor: Literal["base", "zero"] = "base"  # canonical: l2 pulls to the base model's head, or 0


@dataclass(frozen=True)
class LiNeS(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    alpha: Unit = 0.5  # scale of the first block
    beta: Unit = 0.5  # scale of the last block minus alpha


@dataclass(frozen=True)
class LipsumFT(OfCLIP):
    weight: NotNegative = 1.0
    texts: Number = 80  # per step
    tokens: Annotated[int, Meta(ge=1, le=70)] = 8  # per text, without start and end tokens


@dataclass(frozen=True)
class LoRA(MethodRecipe):
    rank: Number = 8
    scale: float = 1 / 8  # factor on B A; the LoRA paper's alpha / rank
    train_head: bool = True  # canonical: train the head too


@dataclass(frozen=True)
class LPFT(MethodRecipe):
    needs = ("linear_probe",)


@dataclass(frozen=True)
class LwF(MethodRecipe):
    weight: NotNegative = 1.0
    temperature: Positive = 2.0


@dataclass(frozen=True)
class ModelStock(MethodRecipe):
    trains = False
    members: list[str] = field(default_factory=lambda: ["fine_tune"])
    seeds: Number = 2  # of each member: the recipe's seed, seed + 1000, seed + 2000, ...

    @property
    def needs(self) -> Sequence[str]:
        return self.members

    def check(self, cell: Recipe) -> None:
        if len(set(self.members)) * self.seeds < 2:
            raise RecipeError(
                f"method.members={self.members} with method.seeds={self.seeds}: Model Stock needs "
                "at least two models; raise method.seeds or name more members"
            )
        if len(set(self.members)) < len(self.members):
            raise RecipeError(f"method.members={self.members} names a member twice")


@dataclass(frozen=True)
class MonoSoup(MethodRecipe):
    needs = ("fine_tune",)
    trains = False


@dataclass(frozen=True)
class SelfDistillation(MethodRecipe):
    weight: NotNegative = 1.5  # of the divergence from the teacher
    average: Literal["ema", "beta"] = "ema"  # ema: CaRot's; beta: TRACER's


@dataclass(frozen=True)
class Soup(MethodRecipe):
    trains = False
    has_weights = False
    select: Literal["uniform", "greedy"] = "uniform"
    members: list[str] = field(default_factory=lambda: ["pre", "fine_tune", "ewc", "lwf"])

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.members if name != "pre"]

    def check(self, cell: Recipe) -> None:
        if not self.members:
            raise RecipeError("method.members is empty; name at least one method or `pre`")
        if self.select == "greedy" and not cell.dataset.holdout:
            raise RecipeError(NO_HOLDOUT)


@dataclass(frozen=True)
class SPD(MethodRecipe):
    lam: NotNegative = 1.0  # 1: return exactly to the distance before the step


@dataclass(frozen=True)
class StrongFineTune(MethodRecipe):
    layer_decay: Part = 1.0  # ratio of a layer's learning rate to the next layer's; 1: all equal
    ema: BelowOne = 0.0  # decay of a moving average of the weights; 0: no average
    label_smoothing: BelowOne = 0.0
    mixup: NotNegative = 0.0  # alpha of the Beta distribution of mixing coefficients; 0: no mixup
    hflip: Unit = 0.0  # probability of a horizontal flip


@dataclass(frozen=True)
class TIES(MethodRecipe):
    trains = False
    members: list[str] = field(default_factory=lambda: ["fine_tune", "ewc", "lwf"])
    density: Part = 0.2  # fraction of each task vector's entries to keep, over all parameters
    elect: bool = True  # False: add the trimmed vectors
    scale: NotNegative = 1.0

    @property
    def needs(self) -> Sequence[str]:
        return self.members

    def check(self, cell: Recipe) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise RecipeError(f"method.members={self.members}: name one or more methods, each once")


@dataclass(frozen=True)
class VisualPrompt(MethodRecipe):
    # width of the frame in pixels for images of 224 pixels; scales with the image size
    frame_at_224: Annotated[int, Meta(ge=1, le=111)] = 30

    def check(self, cell: Recipe) -> None:
        size = cell.model.image_size
        if not 0 < 2 * self.width(size) < size:
            raise RecipeError(
                f"method.frame_at_224={self.frame_at_224}: a frame of {self.width(size)} px does "
                f"not fit an image of {size} px"
            )

    def width(self, image_size: int) -> int:
        """Width of the frame in pixels."""
        return round(self.frame_at_224 * image_size / 224)


@dataclass(frozen=True)
class VRF(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    middle: float = 1.5  # squared distance at which both models have equal weight
    width: Positive = 0.6  # of the sigmoid, in units of squared distance


@dataclass(frozen=True)
class WiSEFT(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    alpha: Unit = 0.5  # shown in tables; evaluated even if it is not in `alphas`
    alphas: list[Unit] = field(default_factory=lambda: [i / 10 for i in range(11)])


OPTIONS: dict[str, type[MethodRecipe]] = {  # by module of `engine.methods`
    "carot": CaRot,
    "dawin": DaWin,
    "dora": LoRA,
    "ensemble": Ensemble,
    "ewc": EWC,
    "fine_tune": MethodRecipe,
    "flyp": FLYP,
    "ftp": FTP,
    "l2sp": L2SP,
    "linear_probe": LinearProbe,
    "lines": LiNeS,
    "lipsum_ft": LipsumFT,
    "lora": LoRA,
    "lp_ft": LPFT,
    "lwf": LwF,
    "model_stock": ModelStock,
    "mono_soup": MonoSoup,
    "self_distillation": SelfDistillation,
    "soup": Soup,
    "spd": SPD,
    "strong_fine_tune": StrongFineTune,
    "ties": TIES,
    "visual_prompt": VisualPrompt,
    "vrf": VRF,
    "wise_ft": WiSEFT,
}
