"""Numbers that the page of the bench predicts are those that its command computes."""

from bench import predicted
from bench.report import ROOT


def test_the_page_has_the_commands_numbers():
    step, fp32, bf16, *workflows = predicted.rows()
    page = (ROOT / "bench" / "README.md").read_text()
    assert f"(a) | {step['ms']:.3g} ms, {100 * step['mfu']:.3g}% MFU |" in page
    assert f"(a) | {fp32['hours']:.3g} / {bf16['hours']:.3g} hours |" in page
    for row in workflows:
        models, gpus = row["what"].removeprefix("models: ").split(", GPUs: ")
        plain, wide, best, queued = (f"{row[k]:,.0f}" for k in ("plain", "wide", "best", "queued"))
        shape = f"({row['gpus']}, {row['jobs']})"
        assert f"| {models} | {gpus} | {plain} | {wide} | {best} {shape} | {queued} |" in page
        assert row["best"] <= 1.05 * min(row["plain"], row["wide"])
    assert len(workflows) == 2 * 2 * 3
