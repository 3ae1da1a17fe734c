"""Check a folder that somebody published, trusting nothing in it.

Each number is computed again from the predictions; images are compared with packs, or counted.
This runs no code of the folder, follows no link and imports no torch. It cannot tell whether the
models made these predictions, and it does not check distances, CKA, hours and the card.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from engine.campaigns import record
from engine.campaigns.plan import RESULTS, Plan
from engine.campaigns.plan_folder import CHECKSUMS, PLAN, RECORD, REPORT, PublishedFolder
from engine.campaigns.record import FinishedCampaign, Record
from engine.data import splits
from engine.data.kinds import kind_of
from engine.exchange.cards import CARD
from engine.exchange.publish import KEYS, keys_of, without_distances
from engine.measures import predictions
from engine.measures.rows import PRE, PROBE, REPLICATE, SEEN, TEST, Diverged, Evaluation, Role
from engine.recipe import catalogue, kinds
from engine.report import number_files, results_file
from engine.report.results import Results, of_campaign
from loaders.files import typed_json
from loaders.files.durable import file_hash
from loaders.files.names import is_name, one_line
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile
from loaders.pack import MANIFEST, Pack

UNCHECKED = (CARD, ".gitattributes")  # which the Hub and its users write
HIDDEN = (".git", ".cache")  # folders of git and of the Hub's client, which are not read
MOST_FILES, MOST_IMAGES = 100_000, predictions.MOST_ROWS  # in a folder; of a dataset
MOST_SUMS = 32 << 20  # bytes of the checksums
MOST_COLUMNS = 100  # of the images, besides the known ones
LONGEST, DEEPEST = 4096, 50  # characters of a text; levels of JSON
MOST_GROUPS = 1000  # of the images, by a further column
PICTURES = ("contact_sheet", "thumbnails")  # of a record, which have no bound
TOLERANCE = 1e-3  # of a number, in its unit: other processors draw and round slightly differently
MOST_SHOWN = 10  # differences of a file
MOST_PROBLEMS, LONGEST_PROBLEM = 100, 500  # that are shown, and their characters
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit of a folder found.

    problems: each a line that starts with the name of the file; none: the folder passes. images:
    how the images of each dataset were checked. results: computed from the predictions, if the
    folder passes.
    """

    folder: Path
    problems: list[str]
    images: dict[str, str]
    results: Results | None


def audit(folder: Path, runs: Path) -> Audit:
    """Audit a published folder. runs: a folder of runs, with whose packs images are compared.

    Raises ValueError if the folder has no checksums, because then it is no published folder.
    """
    root = Root(folder)
    if not folder.is_dir() or not root.has(CHECKSUMS):
        raise ValueError(f"{folder} has no {CHECKSUMS}: `rib publish` writes folders that have one")
    problems: list[str] = []
    images: dict[str, str] = {}
    results = None
    try:
        problems += itertools.islice(_of_files(root), MOST_PROBLEMS + 1)
        if not problems:
            problems += _of_texts(root)
        if not problems:
            run = record.read_record(PublishedFolder(root.path))
            problems += _of_claims(run.record, run.plan)
        if not problems:
            problems += itertools.islice(_of_predictions(run), MOST_PROBLEMS + 1)
        if not problems:
            problems += _of_images(run, runs, images)
            results = of_campaign(without_distances(run))
            problems += _of_numbers(root, results)
    except (ValueError, OSError, msgspec.MsgspecError, pa.ArrowException) as error:
        problems.append(str(error).removeprefix(f"{folder}/"))
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{CHECKSUMS}: and more problems"]
    shown = (one_line(each) for each in problems)
    problems = [f"{of[:LONGEST_PROBLEM]}{' ...' * (len(of) > LONGEST_PROBLEM)}" for of in shown]
    return Audit(folder, problems, images, None if problems else results)


def _of_files(root: Root) -> Iterator[str]:
    """Problems of the files as such: links, names, and checksums."""
    names = []
    for name in itertools.chain.from_iterable(
        [inner] if root.has(inner) else (f"{inner}/{each}" for each in root.files(inner))
        for inner in _checked_names(root)
    ):
        names.append(name)
        if len(names) > MOST_FILES:
            yield f"{name}: more than {MOST_FILES:,} files"
            return
    sums: dict[str, str] = {}
    for line in root.read(CHECKSUMS, MOST_SUMS).decode("utf-8", "replace").splitlines():
        found = _LINE.fullmatch(line)
        name = found[2] if found else ""
        if not found or not all(map(is_name, name.split("/"))) or name in sums:
            yield f"{CHECKSUMS}: {line!r:.200} is no checksum of a file in the folder"
        else:
            sums[name] = found[1]
    for name in sums.keys() - {*names}:
        yield f"{name}: missing"
    for name in names:
        if name not in sums and name not in (CHECKSUMS, *UNCHECKED):
            yield f"{name}: not in {CHECKSUMS}"
        elif name in sums and file_hash(root.file(name)) != sums[name]:
            yield f"{name}: another SHA-256 than in {CHECKSUMS}"


def _checked_names(root: Root) -> Iterator[str]:
    """The names in the folder. Raises DamagedFile for a link, a pipe, a socket or a device."""
    for name in root.names():
        if name in HIDDEN and name in root.folders():
            continue
        root.at(name)  # raises for a link
        if name in root.folders():
            root.check(name)
        elif not root.has(name):
            raise DamagedFile(f"{root.path / name} is a pipe, a socket or a device")
        yield name


def _of_texts(root: Root) -> Iterator[str]:
    """Texts of the plan and the record that are too long for a page."""
    for name in (PLAN, RECORD):
        values = typed_json.read_json(root.path / name, dict[str, Any], "get another copy", root)
        texts = {key: value for key, value in values.items() if key not in PICTURES}
        if len(longest := _longest(texts, name)) > LONGEST:
            yield f"{name}: a text of {len(longest):,} characters: {longest:.40}"


def _longest(value: Any, name: str, levels: int = DEEPEST) -> str:
    """The longest text of a JSON value of a file, keys included. Raises ValueError, naming the
    file, if the value has more levels."""
    if not isinstance(value, dict | list):
        return value if isinstance(value, str) else ""
    if not levels:
        raise ValueError(f"{name}: more than {DEEPEST} levels of JSON")
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return max((_longest(each, name, levels - 1) for each in inner), key=len, default="")


def _of_claims(claimed: Record, plan: Plan) -> Iterator[str]:
    """What the record says other than the plan, or the plan than the installed benchmark."""
    dataset = plan.recipe.dataset
    planned = {
        "benchmark": dataset.name,
        "version": dataset.version,
        "sets": dataset.sets,
        "downstreams": plan.downstreams,
        "evaluate_on": dataset.evaluate_on,
        "upstream": dataset.upstream,
        "makers": dataset.makers,
        "methods": {name: row.recipe.method.title for name, row in plan.rows.items()},
        "holdout": dataset.holdout > 0,
        "limit": 0,
        "missing": [],
    }
    for name, value in planned.items():
        if (found := getattr(claimed, name)) != value:
            yield f"{RECORD}: {name} is {found}, but {PLAN} says {value}"
    if dataset.name in catalogue.names("datasets"):
        installed = catalogue.read_recipe(catalogue.path_of("datasets", dataset.name)).get(
            "version", 1
        )
        if installed != dataset.version:
            yield f"{PLAN}: {dataset.name} has version {dataset.version}; installed is {installed}"
    for row in claimed.evaluations:
        method = plan.rows[row.method].recipe.method if row.method in plan.rows else None
        if method is None and row.method != PRE:
            yield f"{RECORD}: {PLAN} has no row {row.method}"
            return
        if row.headline and row.alpha not in (None, getattr(method, "alpha", row.alpha)):
            yield f"{RECORD}: the table shows alpha {row.alpha} of {row.method}, not its recipe's"
            return
    if len(plan.columns) * len(plan.rows) * plan.seeds > MOST_FILES:
        yield f"{PLAN}: more than {MOST_FILES:,} models"
        return
    tried = [column for column in plan.columns if column.setting.is_tried]
    model = plan.recipe.model.name
    may = {
        Diverged(model, row, each.downstream, each.setting) for each in tried for row in plan.rows
    }
    left_out = {(each.method, each.setting) for each in claimed.diverged}
    is_known = len(claimed.diverged) <= len(may) and may.issuperset(claimed.diverged)
    if not is_known or any((row.method, row.setting) in left_out for row in claimed.evaluations):
        yield f"{RECORD}: `diverged` has trainings that {PLAN} does not try, or that are evaluated"
        return
    bases = [""] if dataset.upstream else plan.downstreams
    needed: set[tuple[str, str, str, int, Role]] = {(PRE, "", name, 0, TEST) for name in bases}
    for column in plan.columns:
        for row, cell in plan.named_cells(column):
            if (row, column.setting) not in left_out:
                role = REPLICATE if column.is_replicate else TEST
                setting = str(column.setting)
                needed.add((row, setting, column.downstream, cell.recipe.seed, role))
    given = {
        (row.method, str(row.setting), row.downstream, row.seed, row.role, row.evaluated_on)
        for row in claimed.evaluations
    }
    wanted = {(*model, name) for model in needed for name in dataset.evaluated_sets}
    for row, setting, downstream, seed, _, name in sorted(wanted - given)[:MOST_SHOWN]:
        words = ", ".join(filter(None, [downstream, setting, f"seed {seed}"]))
        yield f"{RECORD}: {row} ({words}) is not evaluated on {name}"


def _of_predictions(run: FinishedCampaign) -> Iterator[str]:
    """Problems within a file of predictions."""
    root, given = run.place.root, run.record
    named = {row.path.as_posix() for row in given.evaluations}
    for name in root.files():
        if name.endswith(".parquet") and name not in named:
            yield f"{name}: {RECORD} does not name it"
    for row in given.evaluations:
        # Probe sets have classes of their own.
        classes = np.inf if row.role == PROBE else len(given.classes)
        name = row.path.as_posix()
        path = root.file(name)
        try:
            table = predictions.read_predictions(path)
            problem = _of_further(table) or _of_table(path, table, row, given, classes)
        except (ValueError, OSError, pa.ArrowException) as error:
            problem = re.sub(rf"^{re.escape(str(path))}:? |: evaluate again$", "", str(error))
        if problem:
            yield f"{name}: {problem}"


def _of_further(table: pa.Table) -> str:
    """Why a page cannot show the images' further columns, or empty."""
    further = [name for name in table.column_names if predictions.is_further(name)]
    longest = max(map(len, further), default=0)
    if len(further) > MOST_COLUMNS or longest > LONGEST:
        return f"{len(further)} further columns, with names of up to {longest:,} characters"
    for name in further:
        if (count := len(table[name].unique())) > MOST_GROUPS:
            return f"{name} has {count:,} groups"
    return ""


def _of_table(path: Path, table: pa.Table, row: Evaluation, given: Record, classes: float) -> str:
    """What contradicts itself in an evaluation's predictions, or empty."""
    keys = predictions.read_columns(path, KEYS)
    for name, value in keys_of(row).items():
        if (found := keys[name].unique().to_pylist()) != [value]:
            return f"{name} is {', '.join(map(str, found[:3]))}; {RECORD} says {value}"
    fingerprint = (table.schema.metadata or {}).get(b"pack", b"").decode()
    if fingerprint != _fingerprints(given).get(row.evaluated_on):
        return f"predictions of other images than the fingerprint of {row.evaluated_on}"
    top1, label = table["top1"].to_numpy(), table["label"].to_numpy()
    p_top1, p_true = table["p_top1"].to_numpy(), table["p_true"].to_numpy()
    margin, is_right = table["margin"].to_numpy(), top1 == label
    for what, is_wrong in (
        ("a class that the head lacks", np.minimum(top1, label) < 0),
        ("a class that the head lacks", np.maximum(top1, label) >= classes),
        ("a probability that is none", (p_true < 0) | (p_top1 > 1 + 1e-5)),
        ("a top-1 class less probable than the true class", p_true > p_top1 + 1e-5),
        ("a right class with a negative margin", is_right & (margin < 0)),
        ("a wrong class with a positive margin", ~is_right & (margin > 0)),
    ):
        if is_wrong.any():
            return f"row {int(is_wrong.argmax())} has {what}"
    return ""


def _of_images(run: FinishedCampaign, runs: Path, how: dict[str, str]) -> Iterator[str]:
    """Images that differ from those of a pack, or from a known count.

    All evaluations of a dataset have the images of its first, and those of models that trained on
    it of the first of these: this is checked with the numbers.
    """
    shared, given = run.plan.recipe, run.record
    outputs: dict[str, int] = {}  # of the head, by class name
    named = list(zip(given.evaluations, run.evaluations, strict=True))
    for name in shared.dataset.evaluated_sets:
        of_set = [(row, found.path) for row, found in named if row.evaluated_on == name]
        tests = [pair for pair in of_set if pair[0].role == TEST]
        firsts = {row.on_downstream: (row, path) for row, path in reversed(tests)}
        seen = [pair for pair in of_set if pair[0].role == SEEN]
        pack = _pack(runs, name, _fingerprints(given)[name])
        count = min(kind_of(shared.dataset, name).expected_images() or 0, MOST_IMAGES)
        how[name] = "as in packs" if pack else "counted" if count else "not checked"
        for row, path in (*firsts.values(), *seen):
            recipe = replace(shared, downstream=row.downstream or run.plan.columns[0].downstream)
            split = "train" if row.role == SEEN else recipe.split_of(name)
            file, table = row.path, predictions.read_predictions(path)
            index, whole = table["index"].to_numpy(), np.arange(len(pack) if pack else count)
            if pack is not None:
                _, train, held_out = splits.of_pack(pack, kinds.of_set(recipe.dataset, name))
                positions = {"train": train, "holdout": held_out}.get(split, whole)
                positions = positions if len(held_out) else whole
                yield from (f"{file}: {each}" for each in _unlike(table, pack, positions, outputs))
            elif count:
                is_whole = np.array_equal(index, whole)
                if not (is_whole if split == "all" else np.isin(index, whole).all()):
                    yield f"{file}: {len(index):,} images, but {name} has {count:,}"


def _fingerprints(given: Record) -> dict[str, str]:
    """The packs' fingerprints by dataset."""
    return msgspec.convert(given.settings.get("Data fingerprints", {}), dict[str, str])


def _unlike(
    table: pa.Table, pack: Pack, positions: np.ndarray, outputs: dict[str, int]
) -> Iterator[str]:
    """How predictions' images differ from those of a pack at `positions`.

    outputs: of the head, by class name; classes of this pack are added.
    """
    index, label = table["index"].to_numpy(), table["label"].to_numpy()
    if not np.array_equal(index, positions):
        missing, more = np.setdiff1d(positions, index), np.setdiff1d(index, positions)
        yield f"lacks {len(missing)} images of {pack.folder}, and has {len(more)} others"
        return
    if (wrong := table["source"].to_numpy() != pack.sources[index]).any():
        yield f"image {index[wrong.argmax()]} has another source than in {pack.folder}"
    for number in np.unique(pack.labels[index]):
        is_of_class = pack.labels[index] == number
        known = outputs.setdefault(pack.classes[number], int(label[is_of_class][0]))
        if (wrong := is_of_class & (label != known)).any():
            where = wrong.argmax()
            yield (
                f"image {index[where]} has label {label[where]}, and {pack.classes[number]} is "
                f"{known}"
            )
            return


def _pack(runs: Path, name: str, fingerprint: str) -> Pack | None:
    """The pack of a fingerprint, if the runs folder has it."""
    folders = Root(runs).below("packs")
    for each in folders.folders():
        if each.startswith(f"{name}-") and folders.has(f"{each}/{MANIFEST}"):
            pack = Pack.open(folders.path / each)
            if pack.fingerprint == fingerprint:
                return pack
    return None


def _of_numbers(root: Root, results: Results) -> Iterator[str]:
    """Numbers of the report that differ from those computed from the predictions."""
    with tempfile.TemporaryDirectory() as made:
        names = number_files.write_numbers(Path(made), results)
        for name in sorted({*names, *root.files(REPORT)}):
            where = f"{REPORT}/{name}"
            if name not in names or not root.has(where):
                yield f"{where}: {'missing' if name in names else 'nothing to check it with'}"
                continue
            claimed, computed = root.read(where), Path(made, name).read_bytes()
            try:
                found = list(itertools.islice(_differences(name, claimed, computed), MOST_SHOWN))
            except (msgspec.MsgspecError, UnicodeDecodeError, csv.Error, RecursionError) as error:
                found = [str(error)]
            yield from (f"{where}: {difference}" for difference in found)


def _differences(name: str, claimed: bytes, computed: bytes) -> Iterator[str]:
    if claimed == computed:
        return
    if len(claimed) > 2 * len(computed) + 1000:
        yield f"{len(claimed):,} bytes, computed {len(computed):,}"
        return
    pair = (
        msgspec.to_builtins(results_file.read_results(of))
        if name == RESULTS
        else [*csv.reader(of.decode().splitlines())]
        for of in (claimed, computed)
    )
    yield from _of_values("", *pair)


def _of_values(where: str, claimed: Any, computed: Any) -> Iterator[str]:
    """Differences between two JSON values, or rows of a CSV file."""
    if isinstance(computed, Mapping) and isinstance(claimed, Mapping):
        for key in dict.fromkeys([*computed, *claimed]):
            yield from _of_values(f"{where}.{key}", claimed.get(key), computed.get(key))
    elif isinstance(computed, list) and isinstance(claimed, list):
        if len(claimed) != len(computed):
            yield f"{where} has {len(claimed)} rows, computed {len(computed)}"
        for number, pair in enumerate(zip(claimed, computed, strict=False)):
            yield from _of_values(f"{where}[{number}]", *pair)
    elif claimed != computed and not _is_near(claimed, computed):
        yield f"{where} is {str(claimed)!r:.60}, computed {computed!r:.60}"


def _is_near(claimed: Any, computed: Any) -> bool:
    """Whether both are numbers, or texts of numbers, that agree."""
    if any(
        isinstance(of, bool) or not isinstance(of, str | int | float) for of in (claimed, computed)
    ):
        return False
    try:
        return math.isclose(float(claimed), float(computed), rel_tol=1e-5, abs_tol=TOLERANCE)
    except (ValueError, OverflowError):  # no number, or an integer beyond every float
        return False
