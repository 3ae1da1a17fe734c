"""Options of DoRA."""

from __future__ import annotations

from engine.methods.options import lora


class Recipe(lora.Recipe):
    """LoRA's options."""
