"""What `rib evaluate` takes and prints: alphas, tables, CSV files and one-line errors."""

import csv
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from engine import cli
from engine.commands.arguments import alphas, named_images
from engine.evaluation.accuracies import OnSet
from helpers.endings import refused
from helpers.grids import CLASSES, SIZE, VIT


def row(model: str, name: str, n: int, accuracy: float) -> OnSet:
    return OnSet(model, "", "", None, "", "", name, n, accuracy)


def test_alphas():
    assert alphas("0:1:0.1") == [k / 10 for k in range(11)]
    assert alphas("0:1:0.3") == [0, 0.3, 0.6, 0.9]
    assert alphas("0,1,0.5,1") == [0, 1, 0.5]
    assert alphas("0:1e-6:1e-7") == [0, 1e-6], "each once"
    assert len(alphas("0.001:1:0.001")) == 1000
    with pytest.raises(ArgumentTypeError, match=r"0:1:1e-4 are 10001 models: give at most 1000"):
        alphas("0:1:1e-4")
    for text in ("", "0:1", "1:0:0.1", "0:1:0", "0,nan"):
        with pytest.raises(ArgumentTypeError, match=r"START:STOP:STEP or a,b,c"):
            alphas(text)


@pytest.fixture
def words(user_grid, monkeypatch) -> list[str]:
    """`rib evaluate A B` in the folder of these checkpoints and sets."""
    monkeypatch.chdir(user_grid.folder)
    Path("classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    words = f"evaluate --arch {VIT} --classes classes.txt runs=runs model.image_size={SIZE}"
    return [*words.split(), "--models", "A.safetensors", "B.safetensors"]


def test_the_command_prints_a_table_and_writes_csv(words, capsys):
    words += ["--alphas", "0:1:0.5", "--sets", "outline", "small=few", "--intervals"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "(1 - alpha) A.safetensors + alpha B.safetensors" in printed
    with Path("accuracy.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    places = [(alpha, name) for name in ("outline", "small") for alpha in ("0.0", "0.5", "1.0")]
    assert [(row["alpha"], row["evaluated_on"]) for row in rows] == places
    for row in rows:
        assert f"{float(row['accuracy_pct']):.2f} ±" in printed
        ends = float(row["accuracy_low"]), float(row["accuracy_high"])
        assert ends[0] <= float(row["accuracy_pct"]) <= ends[1]


def test_an_unreadable_checkpoint_does_not_stop_the_others(words, capsys):
    whole = Path("A.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("text.pt").write_text("no tensors", encoding="utf-8")
    words += ["cut.safetensors", "text.pt", "--sets", "outline"]
    assert cli.main(words) == 1
    with Path("accuracy.csv").open(encoding="utf-8") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["A.safetensors", "B.safetensors"]
    table, _, rest = capsys.readouterr().out.partition("not evaluated: 2 of 4\n")
    assert "A.safetensors" in table
    assert [line.split()[0] for line in rest.splitlines()] == ["cut.safetensors", "text.pt"]
    del words[words.index("A.safetensors") : words.index("cut.safetensors")]
    assert "cut.safetensors is truncated" in refused(*words, "--force"), "none can be read"


def test_a_table_that_is_there_is_replaced_on_request_alone(words):
    words += ["--sets", "outline"]
    table, other = Path("accuracy.csv"), Path("other.csv")
    table.write_text("mine", encoding="utf-8")
    assert "accuracy.csv exists already: replace it with --force, or ch" in refused(*words)
    assert not Path("runs").exists(), "work was done before the refusal"
    assert cli.main([*words, "--out", "other.csv"]) == 0 and table.read_bytes() == b"mine"
    assert cli.main([*words, "--force"]) == 0 and table.read_bytes() == other.read_bytes()


def test_sets_are_named_by_their_folders_or_by_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("odd=name", "x/pictures", "x/p", "y/p"):
        Path(folder).mkdir(parents=True)
    Path("x/test-1.parquet").touch()
    for word, named in (
        ("x/pictures", ("pictures", Path("x/pictures"))),
        ("b=y", ("b", Path("y"))),
        ("odd=name", ("odd=name", Path("odd=name"))),
        ("of=x/test-*.parquet", ("of", Path("x/test-*.parquet"))),
    ):
        assert named_images(word) == named
    for word, message in (
        ("x/test-*.parquet", r"name the dataset, as in --sets NAME=x/test-\*.parquet"),
        *((word, "cannot be part of a path") for word in ("a/b=x", "..=x", "=x")),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            named_images(word)
    line = refused("evaluate", "--models", "x", "--sets", "x/p", "y/p")
    assert "the same name, x/p and y/p: rename one, as in --sets NAME=y/p" in line
