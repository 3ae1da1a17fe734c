"""The leak, on a made benchmark whose truth is known, and against the files themselves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.data import splits
from engine.extras import leak
from engine.measures import bootstrap
from engine.measures.rows import PRE, Evaluation, trained_sets
from engine.report import headline, sections
from helpers import made_results, stores

SETS = ("cartoon", "drawing", "natural")
PHOTOS, CLASSES, SHARE = 600, 20, 0.3
NAMES = np.array([f"photo {k}" for k in range(PHOTOS)])
IS_HELD_OUT = splits.held_out(NAMES, SHARE, 0)
TITLES = {"fine_tune": "FT", "lwf": "LwF"}
# What fine-tuning adds to the chance of a right answer: anywhere, and on photos seen in another
# set. LwF sees the same photos and learns nothing of them.
EVERYWHERE, SEEN = -0.05, {"fine_tune": 0.2, "lwf": 0.0, PRE: 0.0}


class Made:
    """A store of predictions: two sets of the same photos, of which a part is held out, and one of
    others. seed: of the answers."""

    def __init__(self, folder, seed=0, downstreams=SETS):
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.downstreams, self.held_out, self.seen = list(downstreams), [], []
        folder.mkdir(exist_ok=True)
        cells = [(PRE, "", on) for on in (*SETS, "up")]
        cells += [(m, i, j) for m in TITLES for i in downstreams for j in (*SETS, "up")]
        self.held_out = [self.evaluation(*cell, held_out=True) for cell in cells]
        derived = SETS[:2]
        for method, i, j in cells:
            parts = trained_sets(i)
            if j in derived and (method == PRE or ({*parts} & {*derived} and j not in parts)):
                self.seen.append(self.evaluation(method, i, j, held_out=False))

    def of_kinds(self):
        """The evaluations by what the leak compares."""
        return (("seen", self.seen), ("unseen", self.held_out))

    def evaluation(self, method, downstream, on, *, held_out) -> Evaluation:
        sources = np.array([f"{'photo' if on in SETS[:2] else on} {k}" for k in range(PHOTOS)])
        part = np.flatnonzero(splits.held_out(sources, SHARE, 0) == held_out)
        chance = np.full(len(part), 0.5 + EVERYWHERE * (method != PRE))
        chance += SEEN[method] * (not held_out)
        path = self.folder / f"{method}-{downstream}-{on}-{held_out}.parquet"
        hits = self.rng.random(len(part)) < chance
        label = part % CLASSES
        columns = {"source": sources[part], "label": label, "index": part}
        columns["top1"] = np.where(hits, label, label + 1)
        pq.write_table(stores.table(hits, **columns), path)
        row = stores.cell(path, method, downstream, on)
        return replace(row, role="test" if held_out else "seen")

    def results(self):
        record = made_results.record(
            self.held_out, sets=list(SETS), downstreams=self.downstreams, methods=TITLES
        )
        return made_results.of_record(record, [*self.held_out, *self.seen])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    of = Made(tmp_path_factory.mktemp("made"), seed=1)
    return of, of.results()


def of_methods(results) -> pandas.DataFrame:
    table = leak.table(results).query("downstream == '' and evaluated_on == ''")
    return table.merge(results.shown[["arm", "key"]], on="arm").set_index("key")


def test_the_leak_is_found_where_photos_were_seen_and_is_none_where_nothing_was_learnt(made):
    table = of_methods(made[1])
    found = table.loc["fine_tune"].to_dict()
    assert found["leak_low"] < 20 < found["leak_high"] and found["leak_low"] > 5
    none = table.loc["lwf"].to_dict()
    assert none["leak_low"] < 0 < none["leak_high"]
    assert found["unseen_low"] < 100 * EVERYWHERE < found["unseen_high"]


def interval(gains: np.ndarray) -> np.ndarray:
    """Both ends [2, K] of the leaks of K benchmarks, by each photo's mean change on the derived
    sets [PHOTOS, K]."""
    means = []
    for part in (~IS_HELD_OUT, IS_HELD_OUT):
        counts = bootstrap.counts(NAMES[part])
        means.append(bootstrap.means(counts, np.ones(part.sum()), gains[part]))
    return 100 * bootstrap.interval(means[0] - means[1])


def test_intervals_of_the_leak_hold_as_often_as_they_say(made):
    """Of 2,000 benchmarks (bench/README.md), by the arithmetic that the made one's are made by."""
    of, results = made
    table = of_methods(results)
    for method in TITLES:
        gains = np.zeros(PHOTOS)
        for row in (*of.seen, *of.held_out):
            is_derived = row.evaluated_on in SETS[:2] and row.downstream in ("", *SETS[:2])
            if is_derived and not row.on_downstream and row.method in (PRE, method):
                index = pq.read_table(row.path)["index"].to_numpy()
                gains[index] += (-1 if row.method == PRE else 1) * stores.right(row) / 2
        expected = [table["leak_low"][method], table["leak_high"][method]]
        assert interval(gains[:, None])[:, 0] == pytest.approx(expected, abs=1e-3)

    rng = np.random.default_rng(0)
    for method, truth in (("fine_tune", 20), ("lwf", 0)):
        chance = 0.5 + EVERYWHERE + SEEN[method] * ~IS_HELD_OUT[:, None, None]
        after, before = rng.random((2, PHOTOS, 2, 2000), np.float32)
        low, high = interval(((after < chance) * 1.0 - (before < 0.5)).mean(axis=1))
        assert 0.935 < np.mean((low < truth) & (truth < high)) < 0.965


def test_the_leak_is_the_difference_of_two_changes(made):
    of, results = made
    accuracy = {
        (kind, row.method, row.downstream, row.evaluated_on): 100 * stores.right(row).mean()
        for kind, rows in of.of_kinds()
        for row in rows
    }
    keys: Any = results.shown.set_index("arm")["key"].to_dict()
    for row in leak.table(results).query("evaluated_on != ''").itertuples():
        key = keys[row.arm], row.downstream, row.evaluated_on
        change = {
            kind: accuracy[kind, *key] - accuracy[kind, PRE, "", row.evaluated_on]
            for kind in ("seen", "unseen")
        }
        assert row.seen_pts == pytest.approx(change["seen"])
        assert row.leak_pts == pytest.approx(change["seen"] - change["unseen"])
    pairs = leak.table(results).query("evaluated_on != ''")[["downstream", "evaluated_on"]]
    assert set(pairs.itertuples(index=False, name=None)) == {
        ("cartoon", "drawing"), ("drawing", "cartoon"),
    }  # fmt: skip
    by_column = leak.table(results).query("downstream != '' and evaluated_on == ''")
    means = leak.table(results).query("downstream == ''").set_index("arm")["leak_pts"]
    for arm, rows in by_column.groupby("arm"):
        assert means[arm] == pytest.approx(rows["leak_pts"].mean())


def test_a_union_has_seen_the_photos_of_each_of_its_sets(tmp_path):
    union = f"{SETS[0]}+{SETS[2]}"
    of = Made(tmp_path, seed=1, downstreams=[union, SETS[1]])
    table = leak.table(of.results()).query("evaluated_on != ''")
    found = set(table[["downstream", "evaluated_on"]].itertuples(index=False, name=None))
    assert found == {(union, SETS[1]), (SETS[1], SETS[0])}
    (row,) = (
        table.query("downstream == @union")
        .merge(of.results().shown.query("key == 'fine_tune'")[["arm"]], on="arm")
        .itertuples()
    )
    assert row.leak_low < 20 < row.leak_high and row.leak_low > 0


def test_photos_that_a_column_did_not_train_on_and_their_classes_count_nowhere(made, tmp_path):
    """Of a set with fewer photos than its sibling, the sibling's other photos were not seen."""
    of = Made(tmp_path)
    (trained_on,) = [row for row in of.seen if row.method == PRE and row.evaluated_on == "cartoon"]
    table = pq.read_table(trained_on.path)
    few = table.filter(pa.array(table["label"].to_numpy() < 10)).slice(0, 50)
    pq.write_table(few, trained_on.path)
    of.seen = [
        row for row in of.seen if (row.downstream, row.evaluated_on) != ("drawing", "cartoon")
    ]
    results = of.results()
    on_drawing = leak.table(results).query("evaluated_on == 'drawing'")
    change = {}
    for kind, rows in of.of_kinds():
        name = {"seen": "source", "unseen": "label"}[kind]
        for row in rows:
            if row.evaluated_on == "drawing" and row.downstream in ("", "cartoon"):
                counts = np.isin(pq.read_table(row.path)[name].to_numpy(), few[name].to_numpy())
                change[kind, row.method] = 100 * stores.right(row)[counts].mean()
    keys: Any = results.shown.set_index("arm")["key"].to_dict()
    for row in on_drawing.itertuples():
        expected = change["seen", keys[row.arm]] - change["seen", PRE]
        assert row.seen_pts == pytest.approx(expected)
        expected -= change["unseen", keys[row.arm]] - change["unseen", PRE]
        assert row.leak_pts == pytest.approx(expected)


def test_the_first_screen_and_a_section_say_what_was_found(made):
    results = made[1]
    text = leak.lead(results)
    assert text.startswith("Having seen a photo in another dataset is worth +")
    assert text.endswith("to FT in this one training") and text in headline.lead(results)
    (section,) = [of for of in sections.of(results) if of.key == "leak"]
    assert section.heading == text
    assert list(map(len, (table.data for table in section.tables))) == [2, 8]
    assert "and this one training" in section.text  # a seed replicate says nothing of the leak
    assert made_results.drawn(section)


def test_without_plain_fine_tuning_the_first_method_is_named_and_not_the_largest(made):
    results = made[1]
    record = replace(results.record, methods={"other": "Other", "lwf": "LwF"})
    keys = results.arms["key"].replace("fine_tune", "other")
    arms = results.arms.assign(key=keys).sort_values("key")  # LwF first
    assert leak.lead(replace(results, record=record, arms=arms)).startswith(
        "Having seen a photo in another dataset shows no effect on LwF"
    )
