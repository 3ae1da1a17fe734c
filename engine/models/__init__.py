"""Networks: architectures, their transforms and heads, and where pre-trained weights come from."""

from engine.models.build import (
    Normalize,
    create,
    data_config,
    description,
    features,
    head,
    head_names,
    head_names_of,
    load_state,
    size_options,
    transform,
)

__all__ = [
    "Normalize",
    "create",
    "data_config",
    "description",
    "features",
    "head",
    "head_names",
    "head_names_of",
    "load_state",
    "size_options",
    "transform",
]
