"""Distances between sets against POT, the formula and laws; problems side by side; and what
distances say about forgetting."""

import csv
import dataclasses
import itertools
import math
import threading
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from engine import cli
from engine.evaluation import features
from engine.otdd import problems, solve
from engine.otdd.distance_matrix import Matrix, write_csv
from engine.otdd.problems import DistanceOptions, LabelledFeatures
from engine.otdd.solve import matrix, side_by_side, workers
from engine.report.sections import distances as section
from engine.run import Run
from engine.store import artifacts
from engine.store.artifacts import Store
from helpers import clouds, grids, made_results
from helpers.clouds import CLASSES, D
from kernels.transport.store import most_bytes
from loaders.files.typed_json import DamagedFile


def labelled(n: int, seed: int, shift: float) -> LabelledFeatures:
    return LabelledFeatures(*clouds.labelled(n, seed, shift))


NEAR, MID, FAR = labelled(60, 0, 0.0), labelled(50, 1, 0.5), labelled(45, 2, 3.0)
SETS = {"near": NEAR, "mid": MID, "far": FAR}
DRAWN = ["outline", "tinted", "few"]
OFF = ~np.eye(3, dtype=bool)
FOUR = {name: labelled(40 + k, k, 0.3 * k) for k, name in enumerate("abcd")}
CPU = torch.device("cpu")


def values(sets=SETS, classes: int = CLASSES, **options) -> np.ndarray:
    return matrix(sets, classes, DistanceOptions(**options)).values


@pytest.fixture
def run(grid: grids.Grid, tmp_path: Path) -> Run:
    """The drawn sets' run, without features and distances."""
    run = grid.builder()
    assert run.base  # made in the grid's store
    run.store = Store(tmp_path)
    return run


def table_cost(a: LabelledFeatures, b: LabelledFeatures) -> np.ndarray:
    """The reference's way: moments a class, square roots, and a dense matrix."""
    gaussian = pytest.importorskip("ot.gaussian")
    cost = torch.cdist(a.features.double(), b.features.double()).square()
    for i, j in itertools.product(range(CLASSES), repeat=2):
        x, y = a.features[a.labels == i].double(), b.features[b.labels == j].double()
        w = gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), x.T.cov(), y.T.cov())
        cost[(a.labels == i)[:, None] & (b.labels == j)] += float(w) ** 2
    return cost.numpy()


def test_a_small_eps_approaches_pots_exact_transport_of_the_dense_cost():
    ot = pytest.importorskip("ot")
    exact = np.zeros((3, 3))
    for (i, a), (j, b) in itertools.combinations(enumerate(SETS), 2):
        exact[i, j] = exact[j, i] = ot.emd2([], [], table_cost(SETS[a], SETS[b]))
    large, small = (values(eps=eps, debias=False) - exact for eps in (0.1, 0.005))
    assert (large[OFF] > small[OFF]).all() and (small[OFF] > 0).all()
    assert small.max() < 0.02 * exact.max() and not small.diagonal().any()


def test_the_matrix_is_ordered_symmetric_and_certified():
    distances = matrix(SETS, CLASSES, DistanceOptions(eps=0.1))
    assert distances.names == ("near", "mid", "far")
    assert np.array_equal(distances.values, distances.values.T)
    assert not distances.values.diagonal().any()
    assert 0 < distances.row("near")["mid"] < distances.row("near")["far"]
    assert (distances.gaps <= 1e-4).all() and (distances.marginal_errors[OFF] > 0).all()
    assert distances.marginal_errors.max() < 1e-2
    turned = matrix(dict(reversed(SETS.items())), CLASSES, DistanceOptions(eps=0.1))
    assert turned.eps == pytest.approx(distances.eps, rel=1e-6)
    np.testing.assert_allclose(turned.values[::-1, ::-1], distances.values, rtol=1e-2, atol=1e-3)


def test_samples_are_drawn_by_a_sets_name_alone():
    """In pairs, two copies would be at distance 0 from each other whatever is drawn."""
    copies = {name: NEAR for name in ("clean", "blurred")}
    assert values(copies, eps=0.2)[0, 1] < 1e-3 * values(eps=0.2)[0, 2]
    distance = values(copies, samples=20)[0, 1]
    turned = dict(reversed(copies.items()))
    assert distance > 1
    assert values(turned, samples=20)[0, 1] == pytest.approx(distance, rel=1e-3)
    np.testing.assert_array_equal(*(values(samples=20) for _ in range(2)))


def test_distances_scale_with_the_features():
    tiny = {
        name: LabelledFeatures(1e-8 * s.features.double(), s.labels) for name, s in SETS.items()
    }
    np.testing.assert_allclose(values(tiny, eps=0.2), 1e-16 * values(eps=0.2), rtol=1e-3)


def test_classes_that_a_set_lacks_or_has_one_image_of_do_not_matter():
    spread = {name: LabelledFeatures(s.features, s.labels * 3 + 1) for name, s in SETS.items()}
    np.testing.assert_allclose(values(spread, 20, eps=0.2), values(eps=0.2), rtol=1e-6)
    single = {"near": NEAR, "single": LabelledFeatures(FAR.features[:2], FAR.labels[:2])}
    assert values(single)[0, 1] > 0
    single["near"] = LabelledFeatures(NEAR.features[:2], NEAR.labels[:2])
    assert values(single)[0, 1] > 0


def test_an_unconverged_pair_is_missing_everywhere(caplog, monkeypatch):
    monkeypatch.setattr(problems, "TOLERANCE", 1e-17)
    few = {name: LabelledFeatures(s.features[:9], s.labels[:9]) for name, s in SETS.items()}
    distances = matrix(few, CLASSES, DistanceOptions(eps=0.2))
    assert math.isnan(distances.values[0, 1]) and not distances.row("near")
    assert "near to mid did not converge" in caplog.text
    assert "3 pairs missing" in distances.certainty()


def test_the_csv_keeps_every_digit(tmp_path):
    distances = matrix(SETS, CLASSES, DistanceOptions(eps=0.2))
    distances.values[0, 1] = distances.values[1, 0] = np.nan  # of a pair that did not converge
    write_csv(tmp_path / "d.csv", distances)
    written = pandas.read_csv(tmp_path / "d.csv", index_col=0, dtype=str)
    np.testing.assert_array_equal(written.astype(float), distances.values)
    pairs = pandas.read_csv(tmp_path / "d_pairs.csv", dtype=str)
    assert pairs[["set", "other"]].values.tolist() == [*map(list, itertools.combinations(SETS, 2))]
    rows = np.triu_indices(3, 1)
    columns = distances.values, distances.gaps, distances.marginal_errors
    for name, column in zip(("distance", "gap", "marginal_error"), columns, strict=True):
        np.testing.assert_array_equal(pairs[name].astype(float), column[rows])
    assert set(pairs["eps"].astype(float)) == {distances.eps}


def test_distances_take_stored_features_and_are_kept(run, monkeypatch):
    computed = solve.distances(run, DRAWN, DistanceOptions(eps=0.2))
    sets = {
        name: LabelledFeatures(
            features.stored(run, run.base, run.sets[name]), run.sets[name].labels
        )
        for name in DRAWN
    }
    np.testing.assert_array_equal(computed.values, values(sets, eps=0.2))
    with monkeypatch.context() as patch:
        patch.setattr(solve, "matrix", None)
        again = solve.distances(run, DRAWN, DistanceOptions(eps=0.2))
    for name in ("values", "gaps", "marginal_errors"):
        np.testing.assert_array_equal(getattr(again, name), getattr(computed, name))
    assert (again.names, again.eps) == (computed.names, computed.eps)
    assert solve.distances(run, DRAWN, DistanceOptions(eps=0.3)).eps == pytest.approx(
        1.5 * again.eps
    )
    for path in run.store.root.glob("distances/*/matrix.json"):
        path.write_text(path.read_text().replace("few", "wef"))
    artifacts._hash_once.cache_clear()
    with pytest.raises(ValueError, match=r"matrix\.json was altered"):
        solve.distances(run, DRAWN, DistanceOptions(eps=0.2))


def test_features_are_not_collected_behind_a_link(run, tmp_path):
    """On another disk their last step, a rename, failed after all the work."""
    (tmp_path / "elsewhere").mkdir()
    (run.store.root / "pending").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedFile, match=r"pending.* leads through a link"):
        features.stored(run, run.base, run.sets["few"])
    assert not any((tmp_path / "elsewhere").iterdir())


SPOILED = FAR.features.clone()
SPOILED[3, 1] = math.nan


@pytest.mark.parametrize(
    ("far", "message"),
    [
        (LabelledFeatures(SPOILED, FAR.labels), "far: features: sample 3 holds NaN or infinity"),
        (
            LabelledFeatures(FAR.features[:, :3], FAR.labels),
            "near to far: .*16 .* 3.* from the same model",
        ),
        (LabelledFeatures(FAR.features, FAR.labels + 1), r"far: .* label 5, outside \[0, 5\)"),
        (
            LabelledFeatures(FAR.features, FAR.labels[:9]),
            r"far: labels of features must be int64 \[45\]",
        ),
        (
            LabelledFeatures(FAR.features[:1], FAR.labels[:1]),
            "far: one sample; a distance needs at least",
        ),
        (LabelledFeatures(0 * FAR.features, FAR.labels), "far to far: all costs are zero"),
    ],
)
def test_a_matrix_of_a_bad_set_is_refused_by_name(far, message):
    for samples in (None, 2):
        with pytest.raises(ValueError, match=message):  # of two samples the bad one need not be
            values({"near": NEAR, "far": far}, samples=samples)


@pytest.fixture
def cores():
    """Two threads of torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"debias": False, "eps": 0.2}])
def test_a_matrix_is_the_same_bit_for_bit_as_one_after_another(options, cores, monkeypatch):
    at_once = []

    def counted(work, items, count, device):
        at_once.append(count)
        return side_by_side(work, items, count, device)

    monkeypatch.setattr(solve, "side_by_side", counted)
    beside = matrix(FOUR, CLASSES, DistanceOptions(**options))
    assert set(at_once) == {2} and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = matrix(FOUR, CLASSES, DistanceOptions(**options))
    assert set(at_once) == {1, 2} and np.isfinite(alone.values).all() and alone.values[0, 1] > 0
    assert beside.plain() == alone.plain()


def test_items_run_at_the_same_time_on_their_share_of_threads(cores):
    barrier = threading.Barrier(2, timeout=30)

    def work(item: int) -> tuple[int, int]:
        barrier.wait()  # breaks unless another is there
        return item * item, torch.get_num_threads()

    squares = side_by_side(work, [1, 2, 3, 4], 2, CPU)
    assert squares == {k: (k * k, 1) for k in (1, 2, 3, 4)}


def test_after_an_error_what_runs_is_finished_and_nothing_is_begun(cores):
    begun, ended, failing = [], [], threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failing.set()
            raise ValueError("zero")
        failing.wait(30)
        time.sleep(0.02)
        ended.append(item)

    with pytest.raises(ValueError, match="zero"):
        side_by_side(work, list(range(50)), 2, CPU)
    assert ended and sorted([0, *ended]) == sorted(begun) and len(begun) < 50
    assert torch.get_num_threads() == 2


def test_as_many_at_once_as_cores_problems_and_memory_allow(cores):
    assert workers(36, 100, 1000, CPU) == 2
    assert workers(1, 100, 1000, CPU) == 1
    assert workers(36, 2000, 1000, CPU) == 1  # it may run, and read its costs again


def test_memory_is_estimated_for_the_largest_problem():
    of = {
        str(n): problems.Cloud.of(str(n), labelled(n, 0, 0.0), CLASSES, DistanceOptions())
        for n in (20, 300, 100)
    }
    within, across = most_bytes(300, 300, D, CPU), most_bytes(100, 300, D, CPU)
    for options, most in ((DistanceOptions(), within), (DistanceOptions(debias=False), across)):
        assert problems.Problems(of, options).bytes_each() == most
    assert across < within


def test_a_problem_has_its_share_of_the_memory_and_names_its_pair(cores, monkeypatch):
    real, asked = problems.transport, []

    def transport(cost, **options):
        asked.append(options["memory"])
        if cost.shape == (40, 42):
            raise ValueError("out of luck")
        return real(cost, **options)

    monkeypatch.setattr(problems, "transport", transport)
    monkeypatch.setattr(solve, "free_memory", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"^a to c: out of luck$"):
        matrix(FOUR, CLASSES, DistanceOptions())
    assert set(asked) == {400_000_000}


@pytest.mark.slow
def test_the_command_prints_the_matrix_and_writes_it(folder, grid, capsys, tmp_path):
    options = ["--campaign", str(folder / "shapes.yaml"), "--eps", "0.2", "--samples", "20"]
    words = ["distance", "outline", "few", *options, f"runs={tmp_path}"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    (matrix_folder,) = (tmp_path / "distance").iterdir()
    page = (matrix_folder / "index.html").read_text()
    assert f"matrix  {matrix_folder / 'distances.csv'}" in printed
    assert 'data-figure="distances"' in page
    rows = list(csv.reader((matrix_folder / "distances.csv").open()))
    assert rows[0] == ["", "outline", "few"] and float(rows[1][2]) > 0
    assert ["1", "outline", "0", f"{float(rows[1][2]):.4g}"] in map(str.split, printed.splitlines())
    assert rows[1][2] == rows[2][1]
    pair = next(csv.DictReader((matrix_folder / "distances_pairs.csv").open()))
    assert pair["distance"] == rows[1][2] and float(pair["gap"]) <= 1e-4
    line = f"ε {float(pair['eps']):.3g}, worst gap {float(pair['gap']):.1e}, worst marginal error "
    assert line in page and line in printed

    text = (folder / "model.yaml").read_text().replace("test_vit", "test_efficientnet")
    (tmp_path / "other.yaml").write_text(text.replace("name: tiny", "name: other"))
    assert cli.main([*words, f"model={tmp_path / 'other.yaml'}"]) == 0
    (matrix_folder,) = (tmp_path / "distance").glob("other-*")
    assert list(csv.reader((matrix_folder / "distances.csv").open()))[1] != rows[1]
    assert cli.main([*words, "model.crop=0.6"]) == 0
    assert len(list((tmp_path / "distance").glob("tiny-*"))) == 2, "other images, another folder"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return made_results.results(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    ("drops", "heading"),
    [
        (
            [1.0, 4.0, 9.0, 16.0, 25.0],
            "loses more accuracy upstream: Spearman +1.00 (p 0.017), over 5 datasets",
        ),
        (
            [4.0, 1.0, 16.0, 9.0, 25.0],
            "is not significantly related to distance: Spearman +0.80 (p 0.13",
        ),
        ([1.0, 4.0, 9.0, 16.0], "4 datasets are too few to test whether fine-tuning on more dist"),
        ([1.0, 2.0], "are closest, "),
    ],
)
def test_a_relation_of_few_sets_says_how_little_it_proves(drops, heading, results, monkeypatch):
    distances = [1.0, 2.0, 3.0, 5.0, 8.0][: len(drops)]
    data = pandas.DataFrame({"set": [*"abcde"][: len(drops)], "distance": distances})
    monkeypatch.setattr(section, "_points", lambda *_: data.assign(drop_pts=drops))
    apart = Matrix(("a", "c", "up"), *np.zeros((3, 3, 3)), 1.0)
    monkeypatch.setattr(Matrix, "of", lambda stored: stored)
    record = dataclasses.replace(results.record, distances=apart)
    assert heading in section.section(dataclasses.replace(results, record=record)).heading


def test_points_pair_the_drop_upstream_with_the_distance(results):
    matrix = Matrix(("a", "c", "up"), np.arange(9.0).reshape(3, 3), *np.zeros((2, 3, 3)), 1.0)
    cells = results.grid.cells.set_index(["method", "downstream", "evaluated_on"])["accuracy"]
    points = section._points(results, matrix)
    assert list(points["set"]) == ["a", "c"] and list(points["distance"]) == [6.0, 7.0]
    for row in points.itertuples():
        drop = cells["pretrained", "", "up"] - cells["fine_tune", row.set, "up"]
        assert row.drop_pts == pytest.approx(drop)
