"""Publishing a campaign, auditing what others published, and a page of several folders."""

import getpass
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

import engine
from engine import cli
from engine.campaigns import record
from engine.campaigns.plan_folder import PublishedFolder
from engine.exchange.audit import audit
from engine.exchange.publish import KEYS, without_distances
from engine.report import number_files
from engine.report.results import of_campaign
from helpers.processes import ROOT, run
from loaders.files import typed_json
from loaders.files.durable import file_hash

pytestmark = pytest.mark.slow
FT, LP = "fine_tune,few,original,tiny,0.parquet", "linear_probe,few,original,tiny,0.parquet"
OF_FEW, SUMS, RECORD = "predictions/few/", "SHA256SUMS", "evaluations.json"
RESULTS = "report/results.json"
STEERING = "\x1b[2J<script>alert(1)&lt;[x](javascript:x)\u202e\r\n| x |"


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "theirs"
    assert cli.main(["publish", str(finished / "shapes"), "--out", str(folder)]) == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def seal(folder: Path) -> None:
    """Write checksums that fit, as whoever alters a folder can."""

    def hashes(values: dict) -> None:
        named = {name: folder / name for name in values["files"]}
        values["files"] |= {n: file_hash(of) for n, of in named.items() if of.is_file()}

    edit(folder, RECORD, hashes)
    names = [name for name in files(folder) if name not in (SUMS, "README.md")]
    (folder / SUMS).write_text("".join(f"{file_hash(folder / n)}  {n}\n" for n in names))


def edit(folder: Path, name: str, change: Callable[[dict], Any]) -> None:
    values = json.loads((folder / name).read_bytes())
    digested = values.pop(typed_json.DIGEST, None) is not None
    change(values)
    text = typed_json.with_digest(values) if digested else json.dumps(values).encode()
    (folder / name).write_bytes(text)


def alter(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table of predictions."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def column(name: str, change: Callable[[np.ndarray], object]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column's values."""

    def changed(table: pa.Table) -> pa.Table:
        values = table[name].to_pandas().to_numpy(copy=True)
        change(values)
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        return table.set_column(place, field, pa.array(values, field.type))

    return changed


def rewrite_numbers(folder: Path) -> None:
    """Compute the report again, as whoever alters predictions can."""
    seal(folder)
    run = record.read_record(PublishedFolder(folder))
    number_files.write_numbers(folder / "report", of_campaign(without_distances(run)))


def put(values: np.ndarray, place: int | slice, value: object) -> None:
    values[place] = value


def swapped_classes(table: pa.Table) -> pa.Table:
    """Classes 0 and 1 take each other's place: no accuracy changes."""
    for name in ("label", "top1"):
        table = column(name, lambda of: put(of, slice(None), np.array([1, 0, 2, 3, 4])[of]))(table)
    return table


def of_all(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """A change of all models' predictions on a dataset, with numbers that follow from them."""

    def changed(folder: Path) -> None:
        for path in (folder / OF_FEW).glob("*.parquet"):
            alter(path, change)
        rewrite_numbers(folder)

    return changed


def of_one(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda folder: alter(folder / OF_FEW / FT, change)


def of_json(name: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, name, change)


def of_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return changed


def raised(values: dict) -> None:
    number = next(each for each in values["numbers"] if each["quantity"] == "mRI")
    number["value"] += 1


def without_a_model(values: dict) -> None:
    gone = ("linear_probe", "few")
    left = [row for row in values["evaluations"] if (row["method"], row["downstream"]) != gone]
    values["evaluations"] = left


def of_another_role(values: dict) -> None:
    for row in values["evaluations"]:
        if (row["method"], row["downstream"]) == ("linear_probe", "few"):
            row["role"] = "replicate"


def a_diverged_model(values: dict) -> None:
    """No recipe's own setting may be left out as diverged."""
    values["diverged"].append(
        {"model": "tiny", "method": "linear_probe", "downstream": "few", "setting": {}}
    )
    without_a_model(values)


def another_alpha(values: dict) -> None:
    for row in values["evaluations"]:
        if row["alpha"] is not None:
            row["headline"] = row["alpha"] == 0.0


def another_pack(folder: Path) -> None:
    path = folder / OF_FEW / FT
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"pack": b"0"}), path)


def many_rows(folder: Path) -> None:
    path = folder / OF_FEW / FT
    table = pq.read_table(path, columns=["index"]).slice(0, 1)
    pq.write_table(table.take(pa.array(np.zeros(11_000_000, np.int64))), path)


def with_column(name: str, values: list[str], count: int = 1) -> Callable[[Path], None]:
    """A model's predictions with a further column: images in turn have these values."""

    def longer(table: pa.Table) -> pa.Table:
        rows = table.take(pa.array(np.arange(count) % len(table)))
        place = rows.schema.get_field_index("index")
        rows = rows.set_column(place, rows.schema.field("index"), pa.array(np.arange(count)))
        return rows.append_column(f"column:{name}", pa.array((values * count)[:count]))

    return of_one(longer)


def nested(values: dict) -> None:
    values["settings"]["x"] = inner = []
    for _ in range(900):
        inner.append(inner := [])


def of_version(folder: Path) -> None:
    def benchmark(values: dict) -> None:
        values |= {"benchmark": "emoji", "version": 7}

    def planned(values: dict) -> None:
        for row in values["rows"].values():
            row["recipe"]["dataset"] |= {"name": "emoji", "version": 7}

    edit(folder, RECORD, benchmark)
    edit(folder, "plan.json", planned)


# How a folder is altered, what its problem begins with, and a part of the rest. The checksums fit
# again, unless the change is among UNSEALED.
UNSEALED = {
    "an edited mRI": (of_json(RESULTS, raised), RESULTS, "another SHA-256"),
    "an extra file": (lambda f: (f / "x.txt").touch(), "x.txt", "not in SHA256SUMS"),
    "a missing file": (lambda f: (f / OF_FEW / FT).unlink(), OF_FEW + FT, "missing"),
    "a checksum outside": (
        lambda f: (f / SUMS).write_text(f"{'0' * 64}  ../../etc/passwd\n"), SUMS, "etc/passwd"
    ),
    "two checksums": (
        lambda f: (f / SUMS).write_text((f / SUMS).read_text() * 2), SUMS, "no checksum"
    ),
    "a link": (lambda f: (f / "x").symlink_to("/etc/passwd"), "x", "link"),
    "a linked folder": (lambda f: (f / "report/x").symlink_to(f), "report/x", "a link"),
    "a file of no text": (
        lambda f: Path(os.fsdecode(bytes(f / "x") + b"\xff")).touch(), r"x\udcff", "not in SHA256S"
    ),
    "a steering file": (lambda f: (f / STEERING).touch(), r"\x1b[2J", "not in SHA256SUMS"),
    "a pipe": (lambda f: os.mkfifo(f / "x"), "x", "a pipe"),
}  # fmt: skip
SEALED = {
    "an edited mRI": (of_json(RESULTS, raised), RESULTS, ".numbers"),
    "an integer beyond every float": (
        of_json(RESULTS, lambda v: v["methods"][0]["settings"].update({"seeds": 10**400})),
        RESULTS, ".methods[0].settings.seeds is '1000",
    ),
    "such an integer in the record": (
        of_json(RECORD, lambda v: v["rows"][0]["settings"].update({"seeds": 10**400})),
        RESULTS, ".methods[0].settings.seeds is",
    ),
    "an edited accuracy": (
        lambda f: of_text("report/accuracy.csv", ",True\n", ",True\nx,y,,,,,few,1,99.9,True\n")(f),
        "report/accuracy.csv", "rows",
    ),
    "an edited p": (
        of_text("report/comparisons.csv", "few", "fewer"), "report/comparisons.csv", "fewer"
    ),
    "NaN in JSON": (
        of_text(RESULTS, '"value": ', '"value": NaN, "x": '), RESULTS, "JSON is malformed"
    ),
    "depth in a CSV's place": (
        of_text(RESULTS, '"value": ', f'"x": {"[" * 9999}{"]" * 9999}, "value": '),
        RESULTS, "recursion",
    ),
    "another CSV": (
        lambda f: (f / "report/mine.csv").write_text("mRI\n99\n"), "report/mine.csv", "nothing"
    ),
    "a CSV of blank lines": (
        lambda f: (f / "report/mri.csv").write_bytes(b"\n" * 10**6), "report/mri.csv",
        "1,000,000 bytes",
    ),
    "no CSV": (lambda f: (f / "report/mri.csv").unlink(), "report/mri.csv", "missing"),
    "a dropped image": (of_one(lambda t: t.slice(1)), OF_FEW, "lacks 1 images"),
    "an image dropped everywhere": (of_all(lambda t: t.slice(1)), OF_FEW, "lacks 1 images"),
    "a label": (of_one(column("label", lambda of: put(of, 0, (of[0] + 1) % 5))), OF_FEW, ""),
    "swapped classes": (of_all(swapped_classes), OF_FEW, "has label"),
    "another source": (
        of_all(column("source", lambda of: put(of, 0, "x"))), OF_FEW, "another source"
    ),
    "more right answers": (
        of_all(lambda t: column("top1", lambda of: put(of, slice(None), t["label"]))(t)),
        OF_FEW, "a right class with a negative margin",
    ),
    "a class of no output": (
        of_one(column("top1", lambda of: put(of, 0, 5))), OF_FEW + FT, "a class that the head"
    ),
    "a probability": (
        of_one(column("p_top1", lambda of: put(of, 0, 2.0))), OF_FEW + FT, "a probability"
    ),
    "NaN": (of_one(column("p_top1", lambda of: put(of, 0, np.nan))), OF_FEW + FT, "NaN or null"),
    "a row twice": (
        of_one(lambda t: pa.concat_tables([t, t.slice(0, 1)])), OF_FEW + FT, "more than once"
    ),
    "another model's predictions": (
        lambda f: shutil.copy(f / OF_FEW / LP, f / OF_FEW / FT), OF_FEW + FT, "method is linear"
    ),
    "predictions of other images": (another_pack, OF_FEW + FT, "other images"),
    "an extra table": (
        lambda f: shutil.copy(f / OF_FEW / LP, f / "x.parquet"), "x.parquet", "does not name it"
    ),
    "half a table": (
        lambda f: (f / OF_FEW / FT).write_bytes((f / OF_FEW / FT).read_bytes()[:-99]),
        OF_FEW + FT, "magic bytes",
    ),
    "too many rows": (many_rows, OF_FEW + FT, "is not a table of predictions"),
    "a long text": (
        of_one(column("source", lambda of: put(of, 0, "x" * 9999))), OF_FEW + FT, "9,999 bytes"
    ),
    "a long further text": (
        with_column("place", ["x" * 1_000_000]), OF_FEW + FT, "1,000,000 bytes"
    ),
    "a long column": (with_column("x" * 5000, ["a"]), OF_FEW + FT, "up to 5,007"),
    "too many groups": (
        with_column("place", [f"{k}" for k in range(1001)], 1001), OF_FEW + FT, "1,001 groups"
    ),
    "a long name": (of_json(RECORD, lambda v: v.update(name="x" * 10**6)), RECORD, "1,000,000"),
    "a long key": (of_json("plan.json", lambda v: v.update({"x" * 10**6: 0})), "plan.json", "1,00"),
    "a long class": (of_json(RECORD, lambda v: put(v["classes"], 0, "x" * 5000)), RECORD, "5,000"),
    "a steering name": (
        of_json(RECORD, lambda v: v.update(benchmark=STEERING)), RECORD, r"is \x1b[2J"
    ),
    "deep JSON": (of_json(RECORD, nested), RECORD, "levels of JSON"),
    "another version": (of_json(RECORD, lambda v: v.update(version=2)), RECORD, "version is 2"),
    "a version not installed": (of_version, "plan.json", "installed is 1"),
    "a dataset less": (of_json(RECORD, lambda v: v["sets"].pop()), RECORD, "sets is"),
    "another title": (
        of_json(RECORD, lambda v: v["methods"].update(fine_tune="Ours")), RECORD, "methods is"
    ),
    "a model less": (of_json(RECORD, without_a_model), RECORD, "is not evaluated on"),
    "a model of another role": (of_json(RECORD, of_another_role), RECORD, "is not evaluated on"),
    "a diverged model": (of_json(RECORD, a_diverged_model), RECORD, "`diverged` has"),
    "the best alpha": (of_json(RECORD, another_alpha), RECORD, "alpha 0.0"),
    "many models": (
        of_json("plan.json", lambda v: [
            row["recipe"].update(seeds=1000) for row in v["rows"].values()
        ] and v["columns"].extend(v["columns"] * 50)), "plan.json", "more than",
    ),
    "another digest": (of_text(RECORD, '"sha256": "', '"sha256": "0'), RECORD, "get another copy"),
}  # fmt: skip
CASES = [(False, name) for name in UNSEALED] + [(True, name) for name in SEALED]


@pytest.mark.parametrize(("is_sealed", "name"), CASES)
def test_an_altered_folder_is_refused_and_the_file_is_named(
    is_sealed, name, published, finished, tmp_path
):
    change, start, rest = (SEALED if is_sealed else UNSEALED)[name]
    folder = shutil.copytree(published, tmp_path / "folder")
    change(folder)
    if is_sealed and name != "another digest":
        seal(folder)
    elif is_sealed:
        sums = f"{file_hash(folder / RECORD)}  {RECORD}"
        lines = (folder / SUMS).read_text().splitlines()
        (folder / SUMS).write_text("\n".join(x for x in lines if RECORD not in x) + f"\n{sums}\n")
    found = audit(folder, finished)
    assert found.problems and found.results is None
    assert found.problems[0].startswith(start) and rest in found.problems[0], found.problems
    assert all(len(line) < 600 and line.isprintable() for line in found.problems)


def noting(seen: list[str], call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(path: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(str(path))
        return call(path, *args, **kwargs)

    return noted


def test_a_plan_leads_an_audit_to_no_path_and_no_memory(published, tmp_path, monkeypatch):
    folder = shutil.copytree(published, tmp_path / "folder")
    (tmp_path / "mine").mkdir()

    def planned(values: dict) -> None:
        for row in values["rows"].values():
            row["recipe"]["dataset"] |= {"root": str(tmp_path / "mine"), "images": 10**13}

    edit(folder, "plan.json", planned)
    seal(folder)
    seen: list[str] = []
    for name in ("stat", "scandir", "open"):  # through which Python reads folders and files
        monkeypatch.setattr(os, name, noting(seen, getattr(os, name)))
    found = audit(folder, tmp_path / "none")
    assert not found.problems and {*found.images.values()} == {"counted"}
    assert seen and not [path for path in seen if "mine" in path]


def test_a_published_campaign_passes_its_audit_without_torch(published, finished, capsys):
    assert cli.main(["audit", str(published), "--runs", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("as in packs") == 4 and "passes: its numbers follow" in shown
    (published / ".gitattributes").touch()  # as the Hub adds it
    program = "from engine import cli; import sys; code = cli.main(sys.argv[1:]); "
    program += "sys.exit(code or 3 * ('torch' in sys.modules))"
    alone = run([sys.executable, "-c", program, "audit", str(published), "--runs", "none"])
    assert alone.returncode == 0 and alone.stdout.count("not checked") == 4, alone.stderr
    again = engine.compare(published, finished / "shapes")
    assert not again["difference"].any() and len(again)


def test_the_report_of_a_published_folder_has_the_bytes_of_the_campaigns(
    published, finished, tmp_path
):
    """Its command alone differs, where it has paths."""
    runs = shutil.copytree(finished, tmp_path / "runs")
    (place,) = runs.glob("shapes/plans/*")
    command = "rib campaign shapes.yaml runs=runs"
    named = json.loads((published / RECORD).read_bytes())
    assert named["settings"]["Command"] == command

    def without_paths(values: dict) -> None:
        values["name"] = named["name"]
        values["settings"]["Command"] = command

    edit(place, RECORD, without_paths)
    assert cli.main(["report", str(runs / "shapes")]) == 0
    assert cli.main(["publish", str(runs / "shapes"), "--out", str(tmp_path / "theirs")]) == 0
    assert cli.main(["report", str(tmp_path / "theirs"), "--out", str(tmp_path / "report")]) == 0
    before, after = files(runs / "shapes/report"), files(tmp_path / "report")
    assert len(before) > 40 and before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []
    numbers = files(tmp_path / "theirs/report")
    assert len(numbers) == 6 and [n for n in numbers if numbers[n] != before[n]] == []


def test_a_published_folder_is_a_data_set_of_the_hub_and_says_nothing_of_a_machine(
    published, finished
):
    card = DatasetCard.load(published / "README.md").data
    configs = {each["config_name"]: each["data_files"] for each in card.to_dict()["configs"]}
    assert [*configs] == ["upstream", "outline", "tinted", "few"]
    for pattern in configs.values():
        schemas = [pq.read_schema(path).names for path in published.glob(pattern)]
        assert len(schemas) == 16 and all(names == schemas[0] for names in schemas)
        assert schemas[0][: len(KEYS)] == KEYS.names
    stored = pq.read_table(published / OF_FEW / FT)
    expected = {"method": "fine_tune", "downstream": "few", "evaluated_on": "few", "seed": 0}
    assert {name: stored[name].unique().to_pylist() for name in expected} == {
        name: [value] for name, value in expected.items()
    }
    accuracy = 100 * np.mean(stored["label"].to_numpy() == stored["top1"].to_numpy())
    rows = (published / "report/accuracy.csv").read_text().splitlines()
    (row,) = [each for each in rows if each.startswith("tiny,fine_tune,original,,,few,few,")]
    assert f"{accuracy:.8g}" in row
    private = {str(ROOT), str(finished), str(finished.parent.parent), "/tmp/", "events"}
    private |= {socket.gethostname(), str(Path.home()), f"/{getpass.getuser()}/"}
    for name, content in files(published).items():
        assert not [each for each in private if each.encode() in content], name
    assert not [name for name in files(published) if name.endswith(".safetensors")]


def test_what_is_not_finished_or_was_altered_is_not_published(finished, tmp_path, capsys):
    runs = shutil.copytree(finished, tmp_path / "runs")
    out = tmp_path / "out"
    words = ["publish", str(runs / "shapes"), "--out", str(out)]
    assert cli.main([*words, "--weights"]) == 0
    weights = sorted(path.parent.name for path in out.glob("weights/*/weights.safetensors"))
    assert len(weights) == 7 and audit(out, runs).problems == []
    assert cli.main(words) == 2 and "exists already" in capsys.readouterr().err
    shutil.rmtree(out)
    (runs / "shapes/report/mri.csv").write_text("mine")
    assert cli.main(words) == 2 and "missing or was altered" in capsys.readouterr().err
    (place,) = runs.glob("shapes/plans/*")
    (place / "evaluations.json").unlink()
    (place / "done/column-few").unlink()
    assert cli.main(words) == 2 and "is unfinished" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "nothing half written"


def test_a_page_of_folders_has_each_ones_verdict(published, finished, tmp_path, capsys):
    altered = shutil.copytree(published, tmp_path / "altered")
    of_json(RESULTS, raised)(altered)
    mine = shutil.copytree(published, tmp_path / "mine" / published.name)
    words = ["report", str(published), str(altered), str(mine)]
    assert cli.main([*words, "--out", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.count("passes\n") == 2
    page = (tmp_path / "page/index.html").read_text()
    assert f"altered: {RESULTS}: another SHA-256" in page and "1 folder refused" in page
    rows = (tmp_path / "page/board.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 and not [row for row in rows if "altered" in row]
    assert len({row.split(",")[0] for row in rows[1:]}) == 2, "folders of the same name differ"
    mri = (finished / "shapes/report/mri.csv").read_text()
    best = rows[1].split(",")
    assert best[rows[0].split(",").index("mRI_pts")] in mri
    assert cli.main([*words, "--figures", "--out", str(tmp_path / "other")]) == 2
    assert cli.main(["report", str(published)]) == 2
    assert "give a folder" in capsys.readouterr().err
