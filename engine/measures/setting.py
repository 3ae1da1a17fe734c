"""What varies in a grid, by key of a recipe: a column's setting, and part of an arm."""

from __future__ import annotations

Scalar = bool | int | float | str


class Setting(dict[str, Scalar]):
    """Values by key, such as `{"optimizer.lr": 1e-4}`. It is hashed, so it is never changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __str__(self) -> str:
        """`optimizer.lr=0.0001,train.epochs=1`: what tables show, and a part of names of files."""
        return ",".join(f"{key}={text(value)}" for key, value in self.items())

    @property
    def short(self) -> str:
        """`adamw, lr 0.0001`, for labels: the last part of each key, which a name does without."""
        parts = ((key.rpartition(".")[2], text(value)) for key, value in self.items())
        return ", ".join(value if key == "name" else f"{key} {value}" for key, value in parts)

    def without(self, key: str) -> Setting:
        """The other values."""
        return Setting({name: value for name, value in self.items() if name != key})


PLAIN = Setting()  # of a grid in which nothing varies


def text(value: Scalar) -> str:
    """A value as a recipe writes it: the shortest text that is read as the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0")
