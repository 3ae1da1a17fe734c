"""torch.compile: one graph for each shape of a model, however many cells, batches and banks."""

import gc
import itertools
import json
import os
import sys
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch._aot_autograd.utils import make_boxed_func

from engine import models
from engine.campaigns.column_job import make_column
from engine.campaigns.prepare_job import prepare
from engine.cost import work
from engine.evaluation import passes
from engine.machine.layers import pass_on_bf16
from engine.models.execution import CACHE, compile_in_place
from engine.recipe.schema import ModelRecipe, Recipe
from engine.training import loop
from helpers import campaigns, processes
from helpers.grids import CONV, SETS, VIT, Grid, distance, prepared, weights

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
ARCHS = [VIT, *(pytest.param(a, marks=pytest.mark.exhaustive) for a in (CONV, "test_resnet"))]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A name for each graph that is compiled; the graphs themselves run uncompiled.

    What is traced, and how often, is decided before a backend sees it.
    """
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        names.append(f"{len(list(graph.graph.nodes))} nodes")
        return graph

    real = torch.compile

    def compile(function: object = None, **options: object) -> object:
        chosen = options or {"backend": backend}  # others compile with options
        return real(function, **chosen)

    monkeypatch.setattr(torch, "compile", compile)
    torch._dynamo.reset()
    counters.clear()
    yield names
    assert not counters["graph_break"] and not counters["unimplemented"]
    torch._dynamo.reset()


@pytest.mark.parametrize("arch", ARCHS)
def test_uneven_batches_and_other_weights_take_the_same_graph(arch, graphs):
    recipe = ModelRecipe(name="m", arch=arch, image_size=64)
    plain, *nets = (models.create(recipe, 5) for _ in range(3))
    for net in nets:
        models.load_state(net, plain.state_dict(), "plain")
        compile_in_place(net, "always", CPU)
        assert net.state_dict().keys() == plain.state_dict().keys()
    for mode, count in ((False, 1), (True, 2), (False, 2)):
        for size in (12, 7, 2, 1, 3):
            x = torch.randn(size, 3, 64, 64)
            for net in nets:
                logits = net.train(mode)(x)
                logits.sum().backward()
            if not (mode or len(graphs) > 1):  # before batch norms have learned
                torch.testing.assert_close(logits, plain.eval()(x))
        assert len(graphs) == count


@pytest.mark.parametrize("arch", [CONV, pytest.param("test_resnet", marks=pytest.mark.exhaustive)])
def test_a_convolutional_net_stays_channels_last(arch, grid, tmp_path, monkeypatch):
    """In one graph forward and one back: on a GPU, a tensor in the other memory format is a copy in
    every step, and convolutions in it take up to twice the time."""
    passes: list[dict[str, bool]] = []

    def read(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        values = {
            node.name: node.meta.get("val")
            for node in graph.graph.nodes
            # The gradient of pooled features, a number for all places, takes no memory of its own.
            if torch.ops.aten.expand.default not in [each.target for each in node.all_input_nodes]
        }
        passes.append({name: x.stride(1) == 1 for name, x in values.items() if is_feature_map(x)})
        return make_boxed_func(graph)

    def is_feature_map(x: object) -> bool:
        """Of a batch of images, with several channels and places: the others have no format."""
        if not isinstance(x, torch.Tensor) or x.dim() != 4 or isinstance(x.shape[0], int):
            return False  # the number of images alone is symbolic
        return x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1

    backend, real = aot_autograd(fw_compiler=read, bw_compiler=read), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    words = (f"model.arch={arch}", "model.channels_last=true", "train.compile=always")
    case = prepared(Grid(grid.folder, tmp_path, grid.device), *words)
    with loop.initialized(case.method, case.builder) as engine:
        engine.backward(engine(case.batch).sum())
    torch._dynamo.reset()
    assert not counters["graph_break"]
    assert [len(kept) > 20 for kept in passes] == [True, True]
    assert [[name for name, is_kept in kept.items() if not is_kept] for kept in passes] == [[], []]


def test_cells_of_a_column_share_graphs(grid, graphs, tmp_path):
    """35 images less their hold-out in batches of 12: 12, 12 and 1; and 15 of a smaller set."""
    runs = Grid(grid.folder, tmp_path, grid.device)
    for method, new in (
        ("fine_tune", (1, 0)),
        ("ewc", (0, 0)),  # the same parameters learn
        ("lwf", (1, 0)),  # its teacher's features
        ("visual_prompt", (1, 0)),  # none learns, and the input has a gradient
        ("lora", (1, 0)),  # the factors learn
        ("self_distillation", (1, 0)),  # its teacher, without gradients
    ):
        for downstream, more in zip(("outline", "few"), new, strict=True):
            before = len(graphs)
            words = (f"method={method}", f"downstream={downstream}", "train.epochs=1")
            runs.build(*words, "train.compile=always")
            assert len(graphs) == before + more, (method, downstream)


def test_methods_of_clip_share_the_graph_of_the_tower(clip_words, grid, graphs, tmp_path):
    """Their losses take its embeddings. The plan counts as many graphs, evaluation's included."""
    runs = Grid(grid.folder, tmp_path, grid.device)
    words = [*clip_words, "train.epochs=1", "train.compile=always"]
    first = runs.builder(*words)
    first.features(first.base, first.target, training=True)
    trained: list[Recipe] = []
    for method, count in (("flyp", 2), ("lipsum_ft", 2), ("carot", 3), ("fine_tune", 4)):
        builder, _ = runs.build(*words, f"method={method}")
        assert len(graphs) == count, method
        trained.append(builder.recipe)
        assert 1 + len({*itertools.chain(*map(work.graphs_of, trained))}) == count, method


def test_what_columns_train_is_compiled_before_they_begin(graphs, folder, tmp_path, users_files):
    """Once, though columns begin side by side; what other processes find is Inductor's cache."""
    names = ("ewc", "lwf", "visual_prompt", "lora")
    added = ", ".join(f"{{a_{name}: {{base: {name}}}}}" for name in names)
    (tmp_path / "own.yaml").write_text("{name: own, title: Own, module: own.py}")
    (tmp_path / "own.py").write_text(OWN)
    methods = f"methods=[fine_tune, linear_probe, {added}, wise_ft, {tmp_path / 'own.yaml'}]"
    compiled_words = ("train.compile=always", "evaluate.compile=always", "train.epochs=1")
    plan = campaigns.planned(folder, f"runs={tmp_path / 'runs'}", methods, *compiled_words)
    prepare(plan, CPU)
    before = len(graphs)
    assert before == 4, "evaluation and LwF's teacher; training of whole networks, VP, LoRA"
    for column in plan.columns[:2]:
        make_column(plan, column, CPU)
    assert len(graphs) == before
    prepare(plan, CPU)
    assert len(graphs) == before


OWN = """
from engine.methods.base import Trained as Method
from engine.recipe.schema import MethodRecipe as Recipe
"""
TWICE = """
import json
import torch
from torch import nn
from torch._dynamo.utils import counters
from engine.models.execution import compile_in_place
torch.manual_seed(0)
net = compile_in_place(nn.Linear(8, 4), "always", torch.device("cpu"))
for images in {batches}:
    net(torch.randn(images, 8)).sum().backward()
names = ("fxgraph_cache_hit", "fxgraph_cache_miss")
print(json.dumps([counters["inductor"][name] for name in names]))
"""


@pytest.mark.exhaustive
def test_a_second_process_finds_the_graphs_of_the_first(monkeypatch, tmp_path):
    """A forward and a backward pass, for batches of another size too."""
    monkeypatch.delenv(CACHE, raising=False)
    found = []
    for batches in ((12, 7), (5,)):
        command = [sys.executable, "-c", TWICE.format(batches=batches)]
        process = processes.run(command, RIB_CACHE=str(tmp_path))
        assert process.returncode == 0, process.stderr[-3000:]
        found.append(json.loads(process.stdout))
    assert found == [[0, 2], [2, 0]]


def test_a_bank_and_its_features_take_one_graph(grid, graphs):
    """Features of another graph would round otherwise than the models that probes stand beside."""
    plain, builder = grid.builder(), grid.builder("evaluate.compile=always")
    base, tuned, prompt, probe = plain.base.name, *(
        plain.cell(name).name for name in ("fine_tune", "visual_prompt", "linear_probe")
    )  # fmt: skip
    mixes = [{base: 0.4, tuned: 0.6}, *({name: 1.0} for name in (base, tuned, prompt, probe))]
    for each in (builder, plain):
        passes.evaluate(each, mixes, SETS, "all")
        assert len(graphs) == 1
    for mix in mixes:
        stored = [passes.find(each, mix, "few", "all") for each in (builder, plain)]
        assert None not in stored and len({artifact.name for artifact in stored}) == 2


def test_a_residual_stream_in_bf16_takes_a_graph_of_its_own(graphs):
    """A graph that another model of the shape compiled would leave it in fp32."""
    recipe, taken = ModelRecipe(name="m", arch=VIT, image_size=32), []
    for is_bf16 in (False, True, True):
        net = models.create(recipe, 5)
        if is_bf16:
            pass_on_bf16(net)
        compile_in_place(net, "always", CPU)
        with torch.autocast("cpu", torch.bfloat16):
            net(torch.randn(2, 3, 32, 32)).sum().backward()
        taken.append(len(graphs))
    assert taken == [1, 2, 2]


def test_a_compiled_model_is_gone_when_it_is_no_longer_used(graphs):
    """At once, not when cycles are collected: another takes its place on the device."""
    recipe = ModelRecipe(name="m", arch=VIT, image_size=32)
    net = compile_in_place(models.create(recipe, 5), "always", CPU)
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    reference = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert reference() is None and graphs
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "training", ["never", pytest.param("always", marks=pytest.mark.exhaustive)]
)
def test_a_cell_that_inductor_compiled_is_the_cell(grid, tmp_path, training):
    _, plain = grid.build()
    runs, word = Grid(grid.folder, tmp_path, grid.device), f"train.compile={training}"
    builder, cell = runs.build(word, "evaluate.compile=always")
    assert distance(weights(cell), weights(plain)) < 1e-5
    mix = {cell.name: 1.0}
    for each in (builder, runs.builder(word)):
        passes.evaluate(each, [mix], ["few"], "all")
    with_graph, without_graph = (
        pq.read_table(passes.predicted(each, mix, "few", "all"))["margin"].to_numpy()
        for each in (builder, runs.builder(word))
    )
    largest = max(1.0, np.abs(without_graph).max())
    apart = np.abs(with_graph - without_graph).max()
    assert 0 < apart < 1e-4 * largest, "compiled, it rounds differently"


def test_caches_of_compiled_code_are_the_users_and_hold_the_instruction_set(monkeypatch, tmp_path):
    """A machine with AVX2 that reads code of one with AVX-512 leaves half of its results unset."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path))
    monkeypatch.setenv(CACHE, "")
    monkeypatch.delenv(CACHE)  # and as it was afterwards
    monkeypatch.setattr(torch.compiler.config, "cache_key_tag", "")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    net = models.create(ModelRecipe(name="m", arch=VIT, image_size=32), 5)
    compile_in_place(net, "always", CPU)
    assert torch.compiler.config.cache_key_tag == "AVX2"
    assert os.environ[CACHE] == str(tmp_path / f"compiled-{os.getuid()}")
