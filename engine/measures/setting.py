"""The varied keys of a column or an arm, with their values."""

from __future__ import annotations

Scalar = bool | int | float | str


class Setting(dict[str, Scalar]):
    """Values by key, such as `{"optimizer.lr": 1e-4}`. It is hashable, so never change it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __str__(self) -> str:
        """`optimizer.lr=0.0001,train.epochs=1`, for tables and file names."""
        return ",".join(f"{key}={text(value)}" for key, value in self.items())

    @property
    def short(self) -> str:
        """`adamw, lr 0.0001`, for labels: the last part of each key, which a name does without."""
        parts = ((key.rpartition(".")[2], text(value)) for key, value in self.items())
        return ", ".join(value if key == "name" else f"{key} {value}" for key, value in parts)

    def without(self, key: str) -> Setting:
        """The other values."""
        return Setting({name: value for name, value in self.items() if name != key})


PLAIN = Setting()  # of a grid without varied keys


def text(value: Scalar) -> str:
    """A value as written in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0")
