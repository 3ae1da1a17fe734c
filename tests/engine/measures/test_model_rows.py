"""Users' rows of accuracies: what is read, and the line that names each mistake; published ones."""

from pathlib import Path

import numpy as np
import pandas
import pytest

from engine.measures import model_rows
from engine.measures.effective_robustness import least_squares, predicted, probit
from engine.recipe.catalogue import TIMM_MODELS

GOOD = "model,set,accuracy\nm,up,80\nm,a,40\n"


def read(folder: Path, text: str | bytes):
    file = folder / "models.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return model_rows.read_model_rows(file, ["a", "b"], "up")


def test_rows_in_any_order_with_further_columns_and_a_byte_order_mark(tmp_path):
    text = "\ufeffset,year,model,accuracy\na,2020,m, 40.5 \nup,2020,m,80\n\nup,2021,n,0\na,,n,100\n"
    rows = read(tmp_path, text)
    assert list(rows.index) == ["m", "n"] and list(rows) == ["up", "a", "b"]
    np.testing.assert_array_equal(rows, [[80, 40.5, np.nan], [0, 100, np.nan]])


@pytest.mark.parametrize(
    "text, message",
    [
        ("model,set\nm,up\n", "with the columns model, set, accuracy"),
        ("model,set,accuracy\nm,up,0.8\nm,a,0.4\n", "no accuracy is above 1: .* in percent"),
        (GOOD + "\nm,A,3\n", "line 5: m on A: the campaign has no such set, only up, a, b"),
        (GOOD + "m,b,101\n", "line 4: m on b: the accuracy is not a number"),
        (GOOD + "m,a,40\n", "line 4: m on a: the set is given twice"),
        (GOOD + " ,b,3\n", "line 4: .*the line names no model"),
        (GOOD + "n,a,3\n", "n: add a line for the upstream dataset, up, and one"),
        (b"model,set,accuracy\n\xff,up,3\n", "is not a CSV file in UTF-8"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"models.csv.*{message}"):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv is not a CSV"):
        model_rows.read_model_rows(tmp_path / "none.csv", ["a"], "up")


def test_the_published_models_that_saw_imagenet_1k_alone_are_told_by_their_tags():
    alone = (
        "resnet50.tv_in1k", "deit3_base_patch16_224.fb_in1k", "vit_base_patch16_224.augreg_in1k",
        "hiera_base_224.mae_in1k_ft_in1k", "convnextv2_base.fcmae_ft_in1k",
        "resmlp_12_224.fb_distilled_in1k",
    )  # fmt: skip
    others = (
        "vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_clip_224.openai_ft_in1k",
        "tf_efficientnet_b0.ns_jft_in1k", "resnext50_32x4d.fb_swsl_ig1b_ft_in1k",
        "regnety_16gf.swag_lc_in1k", "hgnet_base.ssld_in1k", "tf_efficientnet_b0.ap_in1k",
        "beitv2_base_patch16_224.in1k_ft_in1k", "resnetv2_50x1_bit.goog_distilled_in1k",
        "convnext_base.clip_laion2b_augreg_ft_in12k_in1k", "nextvit_base.bd_ssld_6m_in1k",
        "vit_base_patch16_224.dino", "resnet50",
    )  # fmt: skip
    assert all(map(model_rows.saw_in1k_alone, alone))
    assert not any(map(model_rows.saw_in1k_alone, others))


def test_near_copies_are_a_family():
    names = (
        "resnet18.a1_in1k", "resnet50d.ra2_in1k", "tf_efficientnet_b0.in1k",
        "efficientnet_b3.ra_in1k", "vit_base_patch16_224.augreg_in1k",
    )  # fmt: skip
    families = ["resnet", "resnet", "efficientnet", "efficientnet", "vit"]
    assert [model_rows.family(name) for name in names] == families


def test_published_lines_of_imagenet_are_those_of_the_literature():
    """Slopes near 1 but on IN-A, and CLIP far above all lines but that of V2."""
    sets = ["imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "objectnet"]
    table = model_rows.published(TIMM_MODELS, sets, "imagenet_val")
    assert len(table) == 963 and table["objectnet"].isna().all()
    assert model_rows.published(TIMM_MODELS, ["a"], "imagenet_val") is None
    assert model_rows.published(TIMM_MODELS, sets, "upstream") is None
    every = pandas.read_csv(TIMM_MODELS, comment="#", index_col="model")
    clip = every.loc[["vit_base_patch16_clip_224.openai_ft_in1k"]]
    expected = {"v2": (0.95, 0.99, 0.8), "a": (2.9, 0.73, 12), "r": (1.0, 0.87, 15),
                "sketch": (1.1, 0.89, 13)}  # fmt: skip
    for name, (slope, r2, above) in expected.items():
        x, y = (table[[each]].to_numpy().T for each in ("imagenet_val", f"imagenet_{name}"))
        found = least_squares(probit(x), probit(y))
        assert (found[0].item(), found[2].item()) == pytest.approx((slope, r2), abs=0.05)
        predicted_pct = predicted(x, y, clip[["imagenet_val"]].to_numpy()).item()
        assert clip[f"imagenet_{name}"].item() - predicted_pct == pytest.approx(above, abs=1.5)
