"""How `rib` reads its words, and what a shell makes of the script that completes them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from engine import cli

WORDS = {
    "rib cam": "campaign",
    "rib campaign emoji_v": "emoji_variants emoji_vit",
    "rib campaign emoji train.ep": "train.epochs=",
    "rib campaign emoji --exec": "--executor",
    "rib train emoji/ew": "emoji/ewc",
    "rib distance tw": "twemoji",
    "rib evaluate --campaign emoji_d": "emoji_dynamics",
    "rib encode imagenet_s": "imagenet_sketch",
}
ASK = 'COMP_WORDS=({}); COMP_CWORD={}; _rib rib; echo "${{COMPREPLY[@]}}"'


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "rib"
    path.write_text(cli.completion("bash"))
    return path


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("evaluate --models a --sets x runs=y --intervals", ["runs=y"]),
        ("evaluate --models a model.crop=1 --sets new=x", ["model.crop=1"]),
        ("evaluate --campaign seed=1 --sets x seeds=2", ["seeds=2"]),
        ("metrics emoji --compare runs=x", ["runs=x"]),
        ("campaign seeds=2 --dry-run emoji methods=[ewc]", ["seeds=2", "methods=[ewc]"]),
        ("campaign --cores 2 emoji --dry-run trian.epochs=1", ["trian.epochs=1"]),
        ("export emoji --setting train.epochs=2 seed=1 --out x", ["seed=1"]),
        ("distance runs=x twemoji --half seed=3 fluent-flat", ["runs=x", "seed=3"]),
        ("report a --out b c d runs=x", ["runs=x"]),
        ("encode dataset.subsample=full --all --source a --model b", ["dataset.subsample=full"]),
    ],
)  # fmt: skip
def test_key_value_words_may_stand_anywhere(words, overrides):
    assert cli.parse(words.split()).overrides == overrides


def test_values_and_paths_are_no_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs=old", "my.set", "a"):
        (tmp_path / folder).mkdir()
    assert cli.parse(["report", "runs=old", "b=c", "--out", "d=e"]).names == ["runs=old", "b=c"]
    assert cli.parse(["export", "a", "--out", "o", "--setting", "seed=1"]).setting == "seed=1"
    sets = ["new=a", "my.set=a", "new=missing"]
    assert cli.parse(["evaluate", "--models", "m", "--sets", *sets]).sets == sets


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("campagin emoji", "there is no command 'campagin'; did you mean 'campaign'?"),
        ("recipes emoji train.epochs=1", "unrecognized arguments: train.epochs=1"),
        ("campaign emoji --dry", "unrecognized arguments: --dry"),
    ],
)
def test_a_wrong_word_is_named(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_names_and_keys(script):
    for shell in ("bash", "zsh", "fish"):
        text = cli.completion(shell)
        assert all(name in text for name in (*cli.COMMANDS, cli.COMPLETION))
    asked = [ASK.format(words, len(words.split()) - 1) for words in WORDS]
    text = "\n".join([f"source {script}", "compopt() { :; }", *asked])
    bash = [str(shutil.which("bash")), "-c", text]
    environment = {"PATH": ""}  # the script starts no program
    done = subprocess.run(bash, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (list(WORDS.values()), "")


def test_recipes_are_a_short_table_and_a_campaigns_rows(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 100
    assert any(line.split()[:2] == ["emoji_shots", "emoji-RIB"] for line in lines)
    assert cli.main(["recipes", "emoji_variants"]) == 0
    shown = capsys.readouterr().out
    assert "ewc_paper               EWC (paper)     base: ewc, method: {variant: paper}\n" in shown
    assert cli.main(["recipes", "emoj"]) == 2
    assert "no campaign 'emoj'; did you mean 'emoji'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["export emoji", "merge soup a.pt b.pt", "report emoji"])
def test_a_folder_is_not_written_where_a_file_is(words, tmp_path, capsys):
    out = tmp_path / "mine"
    out.write_text("mine")
    assert cli.main([*words.split(), "--out", str(out), "--force"]) == 2
    assert f"{out} is a file, not a folder: --out writes elsewhere" in capsys.readouterr().err
    assert out.read_text() == "mine"
