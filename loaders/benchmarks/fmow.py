"""FMoW-WILDS: satellite images of 62 kinds of buildings and land use, by region and year.

`rgb_metadata.csv` has a row per image, whose number is in the image's name. WILDS derives the
region from the country's code, and the official split from the split of FMoW and the year.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from loaders import tables
from loaders.tables import Row

COUNTRIES = "country_code_mapping.csv"
UNKNOWN = "Other"  # region of a country's code that the mapping lacks or leaves empty
FIRST_VAL, FIRST_TEST = 2013, 2016  # years of the out-of-distribution parts
DERIVED = ("path", "region", "year", "part")


def rows(table: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yields the line and the values of these columns of each row of rgb_metadata.csv.

    Besides the file's own columns there are `path`, `region`, `year` and `part`: WILDS' official
    split, `train`, `id_val`, `id_test`, `ood_val` or `ood_test`, and otherwise `unused`. Raises
    ValueError as `tables.of_csv` does, and naming the line of a timestamp without a year.
    """
    codes = ("alpha-3", "region")
    countries = tables.of_csv(table.with_name(COUNTRIES), codes)
    region_of = {code: region for _, (code, region) in countries}
    own = [name for name in names if name not in DERIVED]
    read = tables.of_csv(table, ["split", "country_code", "timestamp", *own])
    for number, (line, (split, country, timestamp, *of_own)) in enumerate(read):
        if not timestamp[:4].isdecimal():
            raise ValueError(
                f"{table}, line {line}: timestamp is {timestamp!r}, but must begin with the year"
            )
        values = {
            "path": f"images/rgb_img_{number}.png",
            "region": region_of.get(country) or UNKNOWN,
            "year": timestamp[:4],
            "part": _part(split, int(timestamp[:4])),
            **dict(zip(own, of_own, strict=True)),
        }
        yield line, [values[name] for name in names]


def _part(split: str, year: int) -> str:
    if year < FIRST_VAL:
        return {"train": "train", "val": "id_val", "test": "id_test"}.get(split, "unused")
    judged = "test" if year >= FIRST_TEST else "val"
    return f"ood_{judged}" if split == judged else "unused"
