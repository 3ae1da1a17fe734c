"""What a user's method file changes in Python and torch reaches no other row of the table."""

import sys
from pathlib import Path

import pytest

from engine.campaigns.plan import PREPARE
from helpers import campaigns
from helpers.processes import run

METHOD = """
import numpy, torch
import torch.nn.functional as F
import engine.models, kernels.distill, kernels.ewc
from engine.methods import base, fine_tune, wise_ft
from engine.methods.fine_tune import Recipe
from engine.store import cells

class Method(base.Trained):
    def export(self):
        made = super().export()
        {statement}
        return made
"""
STATEMENTS = [
    "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 1.01)",
    "F.cross_entropy = lambda x, *_, **__: x.square().mean(-1)",
    "F.linear = torch.nn.Module.__call__",
    "kernels.distill.distill_loss = lambda x, *_, **__: x.square().mean(1)",
    "base.Trained.loss = lambda self, batch: self.logits(batch).square().mean(1)",
    "base.Trained.prepare = None",
    "engine.models.logits = lambda x, weight, bias: x",
    "wise_ft.Method.make = lambda self, context: []",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device('meta')",
    "torch.set_grad_enabled(False)",
    "torch.inference_mode().__enter__()",
    "torch.manual_seed = lambda seed: None",
    "torch.nn.Module.train = lambda self, mode=True: self",
]


@pytest.mark.slow
def test_a_users_row_changes_no_other(folder, finished, forked, tmp_path):
    """The rows after it have the bytes of a campaign without it."""
    runs = campaigns.unfinished(finished, tmp_path / "runs")
    (tmp_path / "mine.py").write_text(METHOD.format(statement="; ".join(STATEMENTS)))
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\n")
    methods = f"methods=[{tmp_path}/mine.yaml,{','.join(campaigns.METHODS)}]"
    plan = campaigns.planned(folder, f"runs={runs}", methods)
    campaigns.do(plan, PREPARE)
    words = ("column-few", "--plan", str(plan.place.plan))
    done = run([sys.executable, "-m", "engine.commands.job", *words], **forked)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = files(finished), files(runs)
    assert len(before) > 9 and any("mine-few" in name for name in after)
    assert before == {name: after.get(name) for name in before}


def files(runs: Path) -> dict[str, bytes]:
    """The weights and predictions of the column `few`, by path."""
    found = [*runs.glob("store/cells/*-few-*/*"), *runs.glob("store/predictions/*-few-on-*/*")]
    kept = [path for path in found if path.suffix in (".safetensors", ".parquet")]
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in kept}


AT_ONCE = """
import torch
from engine.methods import base
from engine.methods.fine_tune import Recipe

def change(module, inputs, made):
    return made * 1.02 if isinstance(made, torch.Tensor) else made

torch.nn.modules.module.register_module_forward_hook(change)

class Method(base.Trained):
    def prepare(self, net, context):
        context.fisher(0, "model")
        super().prepare(net, context)
"""


@pytest.mark.slow
def test_what_a_users_method_trains_beside_keeps_no_trace_of_it(folder, forked, tmp_path):
    """`rib train` of a method whose file changes torch as it is imported, and which asks for the
    Fisher first: the pretrained head, its predictions and EWC are those of a clean folder."""
    (tmp_path / "mine.py").write_text(AT_ONCE)
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\n")
    of_campaign = campaigns.GRID.format(folder=folder).partition("methods:")[0]
    for method, file in (("mine", "mine.yaml"), ("ewc", "ewc")):
        (tmp_path / f"train_{method}.yaml").write_text(f"{of_campaign}method: {file}\n")
    stored = []
    for name in ("clean", "after"):
        runs = tmp_path / name
        for method in ("mine", "ewc") if name == "after" else ("ewc",):
            recipe = f"{tmp_path}/train_{method}.yaml"
            words = ("train", recipe, f"runs={runs}", "downstream=few")
            done = run([sys.executable, "-m", "engine.cli", *words], **forked)
            assert done.returncode == 0, done.stderr[-3000:]
        files = [*runs.glob("store/*/*/*.safetensors"), *runs.glob("store/predictions/*/*.parquet")]
        stored.append({path.relative_to(runs).as_posix(): path.read_bytes() for path in files})
    clean, after = stored
    assert any("fisher" in name for name in clean) and any("ewc-few" in name for name in clean)
    assert clean == {name: after.get(name) for name in clean}
