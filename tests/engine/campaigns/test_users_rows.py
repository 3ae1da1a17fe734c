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


TRAINED = """
import torch
from engine.methods import base
from engine.methods.fine_tune import Recipe

torch.nn.modules.module.register_module_forward_hook(
    lambda module, given, made: made * 1.02 if isinstance(made, torch.Tensor) else None
)

class Method(base.Trained):
    def prepare(self, net, context):
        super().prepare(net, context)
        context.fisher(0, "model")
"""


def test_nothing_that_a_users_training_makes_is_taken_by_others(folder, finished, tmp_path):
    """Head, Fisher and cells, with a hook in torch since the file's import."""
    (tmp_path / "mine.py").write_text(TRAINED)
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\n")
    words = ("train", f"{folder}/shapes.yaml", f"method={tmp_path}/mine.yaml", "downstream=few")
    command = [sys.executable, "-P", "-m", "engine.cli", *words, f"runs={tmp_path}/runs"]
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    made, others = artifacts(tmp_path / "runs"), artifacts(finished)
    assert {"cells", "fisher"} <= {name.partition("/")[0] for name in made}
    # The backbone's weights are random numbers or a file's, which no layer computes.
    assert {name for name in made & others if not name.startswith("weights/")} == set()


def artifacts(runs: Path) -> set[str]:
    """The names of all artefacts."""
    store = runs / "store"
    return {path.parent.relative_to(store).as_posix() for path in store.glob("*/*/done.json")}


def files(runs: Path) -> dict[str, bytes]:
    """The weights and predictions of the column `few`, by path."""
    found = [*runs.glob("store/cells/*-few-*/*"), *runs.glob("store/predictions/*-few-on-*/*")]
    kept = [path for path in found if path.suffix in (".safetensors", ".parquet")]
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in kept}
