"""How long a large campaign's numbers and page take, and how much memory, on made-up predictions.

    python -m bench.results [--columns 100] [--methods 20] [--sets 9] [--images 200]

A column is a set fine-tuned on; the last of the sets is the upstream set. Predictions are written
first, which is not counted. Reports CPU seconds of all threads and the process's peak memory. It is
no case of `python -m bench`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.grid.record import Record
from engine.measures import predictions
from engine.measures.rows import PRE, Evaluation
from engine.report import finish, results


def campaign(
    folder: Path, columns: int, methods: int, sets: int, images: int
) -> tuple[Record, list[Evaluation]]:
    """A record, and the evaluations of its grid, whose predictions are written."""
    rng = np.random.default_rng(0)
    names = [f"set-{k}" for k in range(sets - 1)]
    trained_on = [*names, *(f"train-{k}" for k in range(columns - len(names)))][:columns]
    titles = {f"method_{k}": f"Method {k}" for k in range(methods)}
    label = np.arange(images) % 100
    source = [f"image-{k}" for k in range(images)]
    cells = [(PRE, "", "")]
    cells += [(method, "canonical", column) for method in titles for column in trained_on]
    evaluations = []
    for method, variant, column in cells:
        for name in (*names, "up"):
            right = rng.random(images) < 0.5
            p = rng.random((3, images)).astype(np.float32)
            arrays = [np.arange(images), source, label, np.where(right, label, label + 1), *p]
            path = folder / f"{len(evaluations)}.parquet"
            pq.write_table(pa.table(arrays, schema=predictions.SCHEMA), path)
            row = Evaluation("model", method, variant, None, "", column, name, path)
            evaluations.append(row)
    record = Record(
        "large", names, trained_on, "up", titles, {}, [], "", False, None, evaluations, {}
    )
    return record, evaluations


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.results", description=__doc__)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--sets", type=int, default=9)
    parser.add_argument("--images", type=int, default=200)
    options = vars(parser.parse_args(arguments))
    with tempfile.TemporaryDirectory() as place:
        record, evaluations = campaign(Path(place), **options)
        start = time.process_time()
        made = results.of_record(record, evaluations)
        numbers = time.process_time() - start
        page = finish.write_into(Path(place) / "report", made)
        seconds = time.process_time() - start
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{len(evaluations):,} evaluations: numbers {numbers:.1f} s, all files {seconds:.1f} s "
            f"(CPU), peak {megabytes:,.0f} MB, page {page.stat().st_size / 1e6:.1f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
