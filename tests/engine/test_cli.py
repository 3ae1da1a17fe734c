"""How `rib` reads its words, names a mistake in them in one line, and completes them in a shell."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from engine import cli
from engine.commands.arguments import COMMANDS
from helpers.endings import ended, refused

WORDS = {
    "rib cam": "campaign",
    "rib campaign emoji_v": "emoji_variants emoji_vit",
    "rib campaign emoji train.ep": "train.epochs=",
    "rib campaign emoji --exec": "--executor",
    "rib train emoji/ew": "emoji/ewc",
    "rib encode imagenet_s": "imagenet_sketch",
}
TABLE = Path(__file__).with_name("mistakes.txt").read_text(encoding="utf-8").splitlines()
MISTAKES = [line for line in TABLE if line and line[0] != "#"]
LONG = {  # or with letters that no file shows
    f"train emoji/ewc train.warmup_steps=1{'0' * 20} --print": "train.warmup_steps=1",
    f"train emoji/ewc {'a.' * 20}a=1 --print": "is not an override",
    f"train emoji/ewc model.name={'x' * 101} --print": "use at most 100 bytes, without slashes",
    f"train emoji/ewc {'a' * 200_000}=1 --print": f"unknown key '{'a' * 149}; ",
    "train emoji/ewc method.title=a\x01b --print": "method.title='a\\x01b' contains a control",
    "rows.yaml + " + "".join(f"  r{i}: {{base: ewc}}\\n" for i in range(3000))
    + " ; campaign own.yaml --dry-run": "maximum is 100",
    "sweep emoji/ewc method.lam={0} train.epochs={0} optimizer.lr={0} seed={0}".format(
        ",".join(map(str, range(1, 101)))
    ): "param_grid and trials make 800,000,000 columns; 10,000 at most",
}  # fmt: skip
MISTAKES += [f"{words} => {line}" for words, line in LONG.items()]
ROWS = "extends: emoji\nmethods:\n  ewc_released: {base: ewc, method: {variant: released}}\n"
ASK = 'COMP_WORDS=({}); COMP_CWORD={}; _rib rib; echo "${{COMPREPLY[@]}}"'


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("evaluate --models a --sets x runs=y --intervals", ["runs=y"]),
        ("evaluate --campaign seed=1 --sets x seeds=2", ["seeds=2"]),
        ("report emoji --compare runs=x", ["runs=x"]),
        ("campaign seeds=2 --dry-run emoji methods=[ewc]", ["seeds=2", "methods=[ewc]"]),
        ("campaign --cores 2 emoji --dry-run trian.epochs=1", ["trian.epochs=1"]),
        ("export emoji --setting train.epochs=2 seed=1 --out x", ["seed=1"]),
        ("report a --out b c d runs=x", ["runs=x"]),
    ],
)
def test_key_value_words_may_stand_anywhere(words, overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ax":
        (tmp_path / name).touch()
    assert [each.text for each in cli.parse(words.split()).overrides] == overrides


def test_every_command_shows_its_help(capsys):
    for words in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as end:
            cli.parse([*words, "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0 and shown.startswith(" ".join(["usage: rib", *words]))
    with pytest.raises(SystemExit):
        cli.parse(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown and each.help in shown for name, each in COMMANDS.items())
    assert len(set(re.findall(r"^(\w[\w ]*):$", shown, re.M)) - {"options"}) == 6  # and examples


def test_values_and_paths_are_no_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs=old", "my.set", "a"):
        (tmp_path / folder).mkdir()
    assert cli.parse(["report", "runs=old", "b=c", "--out", "d=e"]).names == ["runs=old", "b=c"]
    assert cli.parse(["export", "a", "--out", "o", "--setting", "seed=1"]).setting == "seed=1"
    read = cli.parse(["evaluate", "--models", "a", "--sets", "new=a", "my.set=a"]).sets
    assert read == [("new", Path("a")), ("my.set", Path("a"))]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_names_and_keys(tmp_path, capsys):
    for shell in ("fish", "zsh", "bash"):
        script = tmp_path / shell
        assert cli.main(["completion", shell]) == 0
        script.write_text(capsys.readouterr().out)
        assert all(name in script.read_text() for name in COMMANDS)
    asked = [ASK.format(words, len(words.split()) - 1) for words in WORDS]
    text = "\n".join([f"source {script}", "compopt() { :; }", *asked])
    bash = [str(shutil.which("bash")), "-c", text]
    no_program = {"PATH": ""}
    done = subprocess.run(bash, env=no_program, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (list(WORDS.values()), "")


def test_recipes_are_a_short_table_and_a_campaigns_rows(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 100
    assert any(line.split()[:2] == ["emoji_shots", "K-shot"] for line in lines)
    assert cli.main(["recipes", "emoji_variants"]) == 0
    shown = capsys.readouterr().out
    row = "ewc_released            EWC (released)      base: ewc, method: {variant: released}\n"
    assert row in shown


def test_a_folder_is_not_written_where_a_file_is(tmp_path):
    (out := tmp_path / "mine").touch()
    for words in ("export emoji", f"merge soup {out}", "report emoji"):
        line = refused(*words.split(), "--out", str(out), "--force")
        assert f"{out} is a file, not a folder: choose another place with --out" in line
    assert out.is_file()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake:.60}")
def test_a_mistake_is_named_in_one_line(mistake, folder, tmp_path, monkeypatch):
    if "clip" in mistake:
        pytest.importorskip("open_clip", reason="the extra [clip]")
    monkeypatch.chdir(tmp_path)
    shapes = (folder / "shapes.yaml").read_text(encoding="utf-8")
    files = {"": "", "rows.yaml": ROWS, "shapes.yaml": shapes}
    call, expected = mistake.split(" => ")
    text, words = re.fullmatch(r"(?:(\S* ?\+ .*) ; )?(.*)", call, re.S).groups()
    Path("shapes.yaml").write_text(shapes, encoding="utf-8")
    if text:
        base, text = re.split(r" ?\+ ", text, maxsplit=1)
        Path("own.yaml").write_text(files[base] + text.replace("\\n", "\n"), encoding="utf-8")
    code, line = ended(cli.main, words.split())
    pattern = ".*".join(map(re.escape, expected.split(" ... ")))
    assert code == 2 and re.search(pattern, line), (expected, line)
    assert not Path("runs").exists()
