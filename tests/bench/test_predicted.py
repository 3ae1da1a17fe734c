"""Numbers that the page of the bench predicts are those that its command computes."""

from bench import predicted
from bench.report import ROOT


def test_the_page_has_the_commands_numbers():
    step, fp32, bf16 = predicted.rows()
    page = (ROOT / "bench" / "README.md").read_text()
    assert f"(a) | {step['ms']:.3g} ms, {100 * step['mfu']:.3g}% MFU |" in page
    assert f"(a) | {fp32['hours']:.3g} / {bf16['hours']:.3g} hours |" in page
