"""docs/extend.md: the files that it names are there, and its methods train."""

import re
from pathlib import Path

import pytest
import torch

from helpers.grids import prepared, trained

pytestmark = pytest.mark.usefixtures("users_files")
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "extend.md").read_text("utf-8")
METHOD, RECIPE = (
    next(block for block in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) if word in block)
    for kind, word in (("python", "class Method"), ("yaml", "module: l1sp.py"))
)
LOSS = re.findall(r"```python\n(    def loss.*?)```", PAGE, re.DOTALL)[0]


def test_every_file_that_the_page_names_is_there():
    named = {name for name in re.findall(r"`((?:\w+/)+\w*\.?\w+)`", PAGE) if "NAME" not in name}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for name in re.findall(r"`((?:\w+/)+)NAME\.\w+`", PAGE):
        assert (ROOT / name).is_dir(), name


def test_the_method_of_the_page_holds_weights_back(grid, tmp_path):
    (tmp_path / "l1sp.py").write_text(METHOD)
    (tmp_path / "l1sp.yaml").write_text(RECIPE)
    plain, none, strong = (
        _moved(prepared(grid, *words))
        for words in (
            ("method=fine_tune",),
            (f"method={tmp_path / 'l1sp.yaml'}", "method.strength=0"),
            (f"method={tmp_path / 'l1sp.yaml'}", "method.strength=0.05"),
        )
    )
    assert none == pytest.approx(plain, rel=1e-5)
    assert strong < 0.9 * plain


def test_the_loss_of_the_page_trains(grid, tmp_path):
    case = prepared(grid, *_with_loss(LOSS, tmp_path))
    assert all(torch.isfinite(t).all() for state in trained(case) for t in state.values())


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (
            ".mean()",
            r"method l1sp: .* \[\], not \[\d+\], a loss a sample: return it without \.mean",
        ),
        (".detach()", r"method l1sp: loss\(batch\) has no gradient: .* without \.detach"),
        (", None", r"l1sp\.py: loss\(batch\) returned tuple, not a tensor"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_with_the_reason(grid, tmp_path, ending, message):
    with pytest.raises(ValueError, match=message):
        trained(prepared(grid, *_with_loss(LOSS.rstrip() + ending, tmp_path)))


def _with_loss(loss: str, folder: Path) -> tuple[str]:
    """The words for a method with this loss."""
    base = METHOD[: METHOD.index("class Method")]
    text = f"{base}from torch.nn.functional import cross_entropy\n\n\n"
    (folder / "l1sp.py").write_text(f"{text}class Method(Trained):\n{loss}")
    (folder / "l1sp.yaml").write_text(RECIPE)
    return (f"method={folder / 'l1sp.yaml'}",)


def _moved(case) -> float:
    start = {name: p.detach().clone() for name, p in case.method.net.named_parameters()}
    last = trained(case)[-1]
    return sum(float((last[name] - start[name]).abs().sum()) for name in start)
