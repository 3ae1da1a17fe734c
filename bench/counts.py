"""The stages of `make gpu` by their limits, their counted work, and the time that
`engine.cost.rates` predicts for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

ROUNDS_S = 4.0  # of a contest
CHIP, BATCH, CLASSES = "A100", 64, 1000
DECODE_S = 2.8e-3  # of a photo of 500 x 375 on a core: its JPEG, its crop, its tensor
WARM_S = 1.0  # of a run before the rounds, at least (`bench.contest.rounds`)


@dataclass(frozen=True)
class Counts:
    """Work of a stage, of what runs at once the longest.

    Attributes:
        processes: those that start one after the other.
        graphs, traces: graphs that it compiles, or traces where their code is there, in parts of
            the blocks of a ViT-B.
        contests, entrants: a contest's rounds take `ROUNDS_S`, where they are not counted below.
        decodes: photos that one core decodes, or draws.
        trained, eager, fp32, evaluated: images of 224 px that a ViT-B trains on in bf16, compiled
            or not, or in fp32, or evaluates, in batches of 64, beyond the rounds of `contests`.
        terabytes: through memory, beyond those of images.
    """

    processes: int = 1
    graphs: float = 0.0
    traces: float = 0.0
    contests: int = 0
    entrants: int = 0
    decodes: int = 0
    trained: int = 0
    eager: int = 0
    fp32: int = 0
    evaluated: int = 0
    terabytes: float = 0.0

    def predicted_s(self) -> float:
        """Seconds on an A100."""
        # Here, since a machine that lacks the engine's packages has stages that it can run.
        from engine.campaigns.make_plan import make_plan
        from engine.cost import estimate, rates, work
        from engine.recipe.overrides import parsed

        recipe = make_plan("imagenet_rib", parsed([f"train.batch_size={BATCH}"])).recipe
        net, device = work.network(recipe, CLASSES), estimate.gpu(CHIP)
        trained, eager = (
            net.trained("training", images, work.FULL_PASSES, recipe)
            for images in (self.trained, self.eager)
        )
        # The fit's traffic of an uncompiled pass, over that of a compiled one.
        eager = replace(eager, traffic=eager.traffic * rates.FIT.eager / rates.FIT.compiled)
        evaluated = net.evaluated("evaluation", self.evaluated, recipe)
        hours = device.hours([trained, eager, net.fisher(self.fp32), evaluated])
        return (
            self.processes * rates.START_S
            + self.graphs * rates.GRAPH_S
            + self.traces * rates.TRACE_S
            + self.contests * ROUNDS_S
            + self.entrants * WARM_S
            + self.decodes * DECODE_S
            + 3600 * hours
            + 1e3 * self.terabytes / rates.CHIPS[CHIP].memory
        )


# By stage: the most minutes that it may take, and its work.
LIMITS: dict[str, tuple[float, Counts]] = {
    "preflight": (3, Counts(processes=2, graphs=0.1)),
    # How long Triton takes to compile the tests' kernels is not known.
    "tests": (6, Counts(processes=2, graphs=0.1)),
    "kernels": (3, Counts(graphs=0.2, contests=8, entrants=24)),
    # Two graphs of each form of the headline; the engine's four are compiled at the same time.
    "compile": (6, Counts(graphs=6)),
    "headline": (4, Counts(traces=6, contests=7, entrants=28)),
    # Six graphs of half a ViT-B's blocks. Its 62 cells, of a few steps each, are not counted.
    "smoke": (4, Counts(graphs=3)),
    # An exchange, six cells, and jobs side by side, each with 400 images twice. Two cells and the
    # jobs trace a graph of training and one of evaluation. 1600 files for each of two networks.
    "ranks": (
        5,
        Counts(processes=8, traces=6, decodes=3500, trained=2400, eager=1600, fp32=1600),
    ),
    # Three contests on 1920 images: two entrants compiled and two not, each in four runs.
    "train": (
        5,
        Counts(graphs=1, traces=2, decodes=3500, trained=46_080, eager=46_080, evaluated=1920),
    ),
    # 100 textbook iterations in float64; by POT in float32 four solves of as many, and one of 1000.
    "transport": (3, Counts(contests=5, entrants=9, terabytes=32)),
    # Four runs: 12 decodes of each of 128 images, and 11 models twice.
    "evaluation": (2, Counts(traces=1, decodes=6144, evaluated=11_264)),
    # Three sets of 2000 drawn files: six trainings on half of one, 18 models on half of each, the
    # features of the head, and a Fisher.
    "engine": (4, Counts(traces=4, decodes=7000, trained=6000, evaluated=60_000, fp32=2000)),
}
