"""Mistakes in recipes and words of `rib`: one line names each, before any work."""

import re
from pathlib import Path

import pytest

from engine import cli
from helpers.endings import ended

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
    ): "vary and trials make 800,000,000 columns; 10,000 at most",
}  # fmt: skip
MISTAKES += [f"{words} => {line}" for words, line in LONG.items()]
ROWS = "extends: emoji\nmethods:\n  ewc_paper: {base: ewc, method: {variant: paper}}\n"


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
