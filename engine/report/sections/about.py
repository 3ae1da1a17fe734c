"""All numbers, their meaning, what was run, and credits for images and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas

from engine.campaigns.record import HEAD_PHOTOS
from engine.measures import scores
from engine.measures.rows import PRE
from engine.measures.tables import with_ends
from engine.recipe import catalogue
from engine.recipe.schema import MethodRecipe
from engine.report import columns
from engine.report.results import Results
from engine.report.section import Picture, Section, Table
from engine.report.text import counted, listed
from engine.store import made_by

OTHERS, EACH = "others", "all"
COLUMNS = ["model", "method", "variant", "against", "downstream", "evaluated_on"]
SHA256 = 64  # characters
DRAWINGS = (
    "Each emoji style has one drawing per concept, so a held-out image of the downstream dataset "
    "is another rendering of a drawing in the training set. RI counts other drawings, some of them "
    "by the same maker; disjoint RI leaves these out. All drawings of a concept are one source "
    "image."
)


def all_numbers(results: Results) -> Section | None:
    """One table of cells, RI, mRI, means per dataset, and differences between methods."""
    if results.cells.empty:
        return None
    names = dict(zip(with_ends("difference_pts"), with_ends("change_pts"), strict=True))
    pairs = results.comparisons.rename(columns=names)
    titles = results.shown.set_index("arm")["method"]
    pairs = pairs.assign(downstream="", against=pairs["against"].map(titles))
    data = pandas.concat([results.grid.numbers, pairs], ignore_index=True)
    data = data.fillna({"against": "pretrained"}).assign(
        downstream=data["downstream"].replace("", EACH),
        evaluated_on=data["evaluated_on"].replace("", OTHERS),
    )
    data = data.merge(results.shown[["arm", "model", "method", "variant"]], on="arm")
    known = data.dropna(axis=1, how="all")
    numbers = known.filter(
        regex="_(pct|pts|score|nats)$|^(accuracy|(disjoint_)?change)_|^adjusted_p$"
    )
    return Section(
        "all-numbers",
        f"All numbers: {len(data):,} rows to filter",
        f"Evaluated on {OTHERS}: mean over the datasets that a model was not fine-tuned on.\n"
        f"Downstream dataset {EACH}: mean over the models that were not fine-tuned on the dataset "
        "evaluated on.\n"
        f"The change on {OTHERS} is RI for one downstream dataset, and mRI for {EACH}.\n"
        "against: the reference of a change, the "
        "pretrained model or another method. p is adjusted (Holm) over all pairs for mRI, and "
        "over all pairs and datasets for datasets. intervals.csv has the other intervals.",
        tables=[
            Table(
                "all-numbers",
                "Accuracy in percent before and after fine-tuning, its change in points, and "
                "properties of the predictions, with 95% intervals.",
                data[[*COLUMNS, *numbers]],
            )
        ],
    )


def how_to_read(results: Results) -> Section | None:
    """What the numbers mean, and their limits."""
    excluded = "The downstream dataset is excluded."
    if results.record.upstream:
        excluded = f"The downstream dataset and {results.record.upstream} are excluded."
    statements = [
        f"RI of a method fine-tuned on one dataset is its mean change in accuracy on "
        f"{results.measured_on}; mRI is the mean of RI over {results.averaged_over}. {excluded}",
        "Intervals contain the middle 95% of bootstrap resamples of the source images. Copies of "
        "one source in several datasets are drawn together, and every model is compared with the "
        "pretrained one on the same draw.",
        _about_seeds(results),
        f"Properties of the predictions: {scores.legend()}.",
    ]
    for name, value in results.record.settings.items():
        if name.split(",")[0] == HEAD_PHOTOS:
            statements.append(
                f"Models are judged on photos that fitted the head in {value}: accuracy before "
                "fine-tuning is too high there."
            )
    if mixed := made_by.text(maker.values for maker in results.record.made_by):
        statements.append(f"These numbers mix work of different code or versions: {mixed}.")
    if results.record.contact_sheet:  # of emoji-RIB alone
        statements.append(DRAWINGS)
    if any(results.published.of(model).before for model in results.models):
        statements.append(f"Published numbers: {results.published.source}.")
    return Section("how-to-read", "How to read this", "\n".join(statements))


def _about_seeds(results: Results) -> str:
    """Which numbers cover other training seeds."""
    if (seeds := len(results.grid.seeds)) > 1:
        return f"They also cover {seeds} training seeds."
    if results.replicated:
        return (
            f"Models on {listed(results.replicated)} were trained a second time with another seed "
            "(a seed replicate). Intervals and tests of mRI, and of other means over all "
            "downstream datasets, include the variance between the two; numbers of a single "
            "downstream dataset are about this one training."
        )
    return (
        "They are about this one training: another seed may reverse differences of a point or two. "
        "Several seeds (seeds=3) or a seed replicate (replicates=1) measure this."
    )


def left_out(results: Results) -> list[str]:
    """Which methods diverged in which settings, and on which downstream datasets."""
    sets: dict[str, list[str]] = {}
    for row in results.record.diverged:
        method = results.record.methods.get(row.method, row.method)
        trained = f"{method} with {row.setting}{results.of(row.model)}"
        sets.setdefault(trained, []).append(row.downstream)
    return [f"{of} diverged on {listed(names)} and is left out" for of, names in sets.items()]


def what_was_run(results: Results) -> Section | None:
    """Settings, versions, hardware, hours, hyperparameters, and missing columns."""
    record, cells = results.record, results.grid.cells
    names = ["campaign", "stage", "device", "processes", "job", "ended", "hours", "failure"]
    rows = [[getattr(attempt, name) for name in names] for attempt in record.attempts]
    attempts = pandas.DataFrame(rows, columns=names).rename(columns={"failure": "why"})
    attempts["minutes"] = (60 * attempts["hours"]).astype(float).round(1)
    ended, failed = attempts.dropna(subset="ended"), attempts[attempts["why"] != ""]
    of_stage = ended.groupby(names[:4], sort=False)
    sums = {"jobs": ("job", "nunique"), "attempts": ("job", "size"), "minutes": ("minutes", "sum")}
    settings = [(name, _text(value)) for name, value in record.settings.items()]
    recipes = pandas.DataFrame(
        {"method": record.methods.get(row.method, row.method), **_columns(row.settings)}
        for row in record.rows
    )
    diverged = [
        dataclasses.asdict(row)
        | {"method": record.methods.get(row.method, row.method), "setting": str(row.setting)}
        for row in record.diverged
    ]
    tables = [
        Table(
            "missing-columns",
            "Missing downstream datasets, and why. mRI averages over the rest.",
            _named(pandas.DataFrame(record.missing)),
        ),
        Table(
            "diverged",
            "Trainings that diverged, each with its setting. The report leaves a method out in "
            "such a setting, on all downstream datasets.",
            pandas.DataFrame(diverged),
        ),
        Table(
            "settings",
            "Settings and versions that reproduce these numbers.",
            pandas.DataFrame(settings, columns=["setting", "value"]),
        ),
        Table(
            "made-by",
            "Digests of the code, versions and devices that made the models and predictions.",
            pandas.DataFrame(
                [{"artefacts": maker.artifacts, **maker.values} for maker in record.made_by]
            ),
        ),
        Table(
            "job-minutes",
            "Minutes by stage and device. A job on several GPUs counts once, a killed attempt "
            "until its last event; the report's job is not counted.",
            _named(of_stage.agg(**sums).reset_index()),
        ),
        Table(
            "train-seconds",
            "Seconds of training one model, averaged over the downstream datasets; of an average, "
            "with the trainings of its members. They depend on what else ran on the machine.",
            pandas.DataFrame(
                [(record.methods.get(name, name), s) for name, s in record.train_seconds.items()],
                columns=["method", "seconds"],
            ).round(1),
        ),
        Table(
            "failed-attempts",
            "Failed attempts at jobs, and why. A later attempt resumes.",
            _named(failed[["campaign", "job", "minutes", "why"]]),
        ),
        Table(
            "hyper-parameters",
            f"Hyperparameters of each method. {_shared(recipes)}Methods without training steps, "
            "such as weight averages and fitted probes, do not use those of the optimizer and "
            "training.",
            recipes,
            hides_equal=True,
        ),
    ]
    fine_tuned = cells[cells["method"] != PRE]
    keys = ["model", "method", "variant", "setting", "downstream"]
    count = len(fine_tuned.drop_duplicates(keys)) * len(results.grid.seeds)
    images = (
        "images that the models compared on it did not train on"
        if record.holdout
        else "all of its images. Nothing is held out, so the downstream dataset includes the "
        "training images"
    )
    hours = ended["hours"].sum()
    took = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    ran = f"{counted('model', count)}, {took} of jobs"
    if ended.empty:
        ran = f"{counted('model', count)}, found in the store"
    if record.missing:
        ran += f"; {counted('job', len(record.missing))} missing"
    return Section(
        "settings",
        ran,
        "A cell is one model fine-tuned on one dataset with one method and one seed. Each dataset "
        f"was evaluated on {images}.",
        tables=[table for table in tables if len(table.data)],
    )


def _shared(recipes: pandas.DataFrame) -> str:
    """A sentence on the hyperparameters that the page leaves out, being equal in all rows."""
    equal = recipes[columns.equal(recipes)].head(1).to_dict("records") or [{}]
    pairs = [f"{name} {value}" for name, value in equal[0].items() if value not in ("", None)]
    return f"Equal in all: {', '.join(pairs)}. " if pairs else ""


def _text(value: Any) -> str:
    """A setting as text, with fingerprints shortened."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{k} {v[:12] if len(v) == SHA256 else v}" for k, v in value.items())


def _columns(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A row's settings for the table; a method's own options share a column."""
    shared = {f"method.{field.name}" for field in dataclasses.fields(MethodRecipe)}
    own = {key: v for key, v in settings.items() if key.startswith("method.") and key not in shared}
    values = {
        "variant": settings["method.variant"],
        "options": ", ".join(f"{key.removeprefix('method.')}={v}" for key, v in own.items()),
        "optimizer": settings["optimizer.name"],
    }
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if section in ("optimizer", "train", "") and key != "optimizer.name":
            values[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return values


def _named(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table, without an empty column for the campaign."""
    is_alone = "campaign" in table and not table["campaign"].any()
    return table.drop(columns="campaign") if is_alone else table


def artwork(results: Results) -> Section | None:
    """Authors and licences of datasets and weights."""
    if not results.record.credits:
        return None
    credits = pandas.DataFrame(results.record.credits)
    return Section(
        "credits",
        "Credits for artwork and weights",
        tables=[Table("credits", "Sources, authors and licences.", credits)],
    )


def samples(results: Results) -> Section | None:
    """Images of every dataset."""
    record = results.record
    if not record.contact_sheet:
        return None
    sets = [*filter(None, [record.upstream]), *record.sets, *record.evaluate_on]
    words = f"Samples of {listed(sets)}."
    sheet = Picture(words, f"data:image/png;base64,{record.contact_sheet}")
    return Section("samples", "Samples of the datasets", pictures={words: [sheet]}, is_open=True)


def to_cite(results: Results) -> Section:
    """BibTeX of the benchmark and of the methods' papers."""
    return Section(
        "cite",
        "References for the benchmark and the methods",
        "Methods without an entry have no paper.",
        code=bibtex(results),
    )


def bibtex(results: Results) -> str:
    """BibTeX of the benchmark and of the papers of a report's methods."""
    return catalogue.bibtex(
        str(row.settings.get("method.name", row.method)) for row in results.record.rows
    )
