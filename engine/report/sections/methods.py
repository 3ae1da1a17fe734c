"""The canonical methods that were run, a sentence each."""

from __future__ import annotations

import pandas

from engine.report.section import Section, Table
from engine.report.tables import Results

GLOSSARY = {
    "fine_tune": "Every weight is trained on the downstream set.",
    "linear_probe": "Only the head is trained; the backbone stays as it was.",
    "visual_prompt": "A frame of trained pixels is laid around each image; the network is frozen.",
    "lora": "Low-rank matrices are trained beside the frozen weights, then merged into them.",
    "ewc": "Fine-tuning pulled back to the pre-trained weights, hardest where the Fisher "
    "information says that a weight matters upstream.",
    "lwf": "Fine-tuning that also has to imitate the pre-trained model's outputs.",
    "lp_ft": "A linear probe first, then fine-tuning from there.",
    "wise_ft": "Weights between the pre-trained (α = 0) and the fine-tuned (α = 1) model; "
    "tables show α = 0.5 where they name no other.",
    "soup": "The plain average of the weights of several models fine-tuned in different ways.",
    "greedy_soup": "An average that takes a model in only where held-out downstream images agree.",
}


def section(results: Results) -> Section | None:
    lines = [
        line for model in results.models for line in model.lines if line.arm.variant != "paper"
    ]
    known = {line.title: GLOSSARY[line.arm.method] for line in lines if line.arm.method in GLOSSARY}
    if not known:
        return None
    data = pandas.DataFrame({"method": [*known], "what_it_does": [*known.values()]})
    table = Table("methods", "The methods of this report.", data)
    return Section("methods", "The methods", tables=[table])
