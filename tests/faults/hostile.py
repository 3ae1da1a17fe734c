"""Kind `hostile`: a stranger's folder of runs, recipe or pack, made to reach what lies outside it.

A canary lies beside the folder: files whose names are those of the campaign's, and a program. Each
trial plants something, then gives commands. The canary must stay as it was, its program must not
run, and each command must end within seconds in a result or one line.
"""

import functools
import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from engine.campaigns.events import Sealed, append_event
from engine.campaigns.plan_folder import REPORT, PlanFolder
from faults.campaign import FINISHED, Campaign
from faults.disk import _places, files_by_kind, only_error
from faults.forked import Ended, FellShort, require
from loaders.files import typed_json
from loaders.files.durable import digest, file_hash

HANGS_S = 60  # a command that waits for a pipe
LOOK = ("report", "report-of-name", "dry-run", "plan", "export", "evaluate")


class Canary:
    """What lies outside: a copy of the runs, a file, and a program that tells that it ran."""

    def __init__(self, campaign: Campaign) -> None:
        self.folder = campaign.folder / "canary"
        if self.folder.exists():
            shutil.rmtree(self.folder)
        shutil.copytree(campaign.copy(FINISHED), self.folder / "runs")
        self.file, self.ran = self.folder / "file", campaign.folder / "ran"
        self.ran.unlink(missing_ok=True)
        self.file.write_text("mine\n")
        self.program = self.folder / "program.py"
        self.program.write_text(f"open({str(self.ran)!r}, 'w').close()\n")
        self.before = self.seen()

    def seen(self) -> dict[str, tuple[int, int, int]]:
        """Each file with its size, its mode and the time of its last change."""
        paths = sorted(self.folder.rglob("*"))
        return {str(p): (s.st_size, s.st_mode, s.st_mtime_ns) for p in paths if (s := p.lstat())}

    def check(self, done: str) -> None:
        after = self.seen()
        names = self.before.keys() | after.keys()
        changed = [name for name in names if self.before.get(name) != after.get(name)]
        require(not changed, f"after {done}, changed outside: {', '.join(sorted(changed)[:3])}")
        require(not self.ran.exists(), f"after {done}, the canary's program ran")


@functools.cache
def canary_of(campaign: Campaign) -> Canary:
    return Canary(campaign)


def hostile(campaign: Campaign, rng: random.Random) -> str:
    """Nothing outside is touched and nothing of a stranger's runs; see the module."""
    campaign.restore(FINISHED)
    canary = canary_of(campaign)
    plant = rng.choice(PLANTS)
    what = plant(campaign, canary, rng)
    if rng.random() < 0.4:  # as an unfinished run, of which a report reads the plan
        for file in campaign.runs.glob("shapes*/plans/*/evaluations.json"):
            if not file.resolve().is_relative_to(canary.folder):  # behind a link that was planted
                file.unlink()
        what += ", unfinished"
    commands = [*rng.sample(LOOK, 2), *(["campaign"] if rng.random() < 0.1 else [])]
    if plant in OF_RECIPES:
        commands = ["recipe", "train"]
    for command in commands:
        done = f"{plant.__name__} ({what}), `rib {command}`"
        ended = give(campaign, command)
        try:
            canary.check(done)
        except FellShort:
            canary_of.cache_clear()
            raise
        if ended.code != 0:
            only_error(ended, done)
        require(stat.S_ISREG(canary.file.lstat().st_mode), done)
    return f"{plant.__name__} ({what}), {' and '.join(commands)}"


def give(campaign: Campaign, command: str) -> Ended:
    """The end of a command on the folder of runs."""
    (place,) = campaign.runs.glob("shapes*") if campaign.runs.exists() else ()
    named, out = [str(campaign.file), *campaign.words], campaign.folder / "out"
    for path in (out, out.with_suffix(".csv")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    row = ["--method", "fine_tune", "--downstream", "few", "--setting", ""]
    sets = ["--sets", f"new={campaign.folder / 'drawings' / 'tinted'}"]
    words = {
        "report": ["report", str(place)],
        "report-of-name": ["report", *named],
        "dry-run": ["campaign", *named, "--dry-run"],
        "plan": ["plan", *named],
        "campaign": ["campaign", *named],
        "export": ["export", *named, *row, "--out", str(out)],
        "evaluate": ["evaluate", "--campaign", *named, *sets, "--out", f"{out}.csv"],
        "recipe": ["campaign", str(campaign.folder / "theirs.yaml"), "--dry-run"],
        "train": ["train", f"recipe={campaign.folder / 'theirs.yaml'}", "--print"],
    }[command]
    return campaign.give(words, HANGS_S)


def _path(campaign: Campaign, rng: random.Random) -> Path:
    kinds = files_by_kind(campaign.runs)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def _name(path: Path, campaign: Campaign) -> str:
    return str(path.relative_to(campaign.runs))


def linked_file(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    path = _path(campaign, rng)
    path.unlink()
    inside = canary.folder / "runs" / path.relative_to(campaign.runs)
    path.symlink_to(rng.choice([canary.file, inside, canary.folder / "new"]))
    return f"{_name(path, campaign)} a link to {path.readlink().name}"


def linked_folder(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    path = _path(campaign, rng)
    above = [folder for folder in path.parents if folder.is_relative_to(campaign.runs)][:-1]
    folder = rng.choice(above)
    shutil.rmtree(folder)
    folder.symlink_to(canary.folder / "runs" / folder.relative_to(campaign.runs))
    return f"{_name(folder, campaign)} a linked folder"


def special(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    path = _path(campaign, rng)
    path.unlink()
    kind = rng.choice(["pipe", "device", "hole", "large"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << (40 if kind == "hole" else 29))
    return f"{_name(path, campaign)} a {kind}"


def planted(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    """A link at a name that the engine, Snakemake or a shell would open to write."""
    (plan,) = campaign.runs.glob("shapes*/plans/*/plan.json")
    place, packs = plan.parent, campaign.runs / "packs"
    (pack, *_) = (path.name for path in packs.iterdir())
    names = [
        *(place / "campaign.log", place / "workflow.json", place / "logs" / "prepare.log"),
        *(place / "events" / "column-few.jsonl", place / "done" / "report", place / "events"),
        *(place.parents[1] / ".lock", place.parent / ".snakemake"),
        *(place / "logs", place / "done", campaign.runs / "store" / "locks"),
        *(campaign.runs / "store" / "pending", packs / f".{pack}.tmp", packs / f".{pack}.lock"),
        *(place.parents[1] / "report" / "tables", place.parents[1] / "report"),
    ]
    path = rng.choice(names)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = canary.folder / "runs" / path.relative_to(campaign.runs)
    path.symlink_to(rng.choice([target, canary.file, canary.folder]))
    if rng.random() < 0.5:  # so that it is made anew
        shutil.rmtree(packs / pack)
    return f"{_name(path, campaign)} planted"


def edited(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    """A text of a stored JSON file, or a key, becomes a hostile name; digests are made anew."""
    paths = sorted(path for path in campaign.runs.rglob("*.json") if path.name != "progress.json")
    path = rng.choice([*paths, *(p for p in paths if p.name in OFTEN)])
    values = json.loads(path.read_bytes())
    section, key = rng.choice(_places(values) or [([values], 0)])
    bad = rng.choice(_texts(campaign, canary))
    if isinstance(section, dict) and rng.random() < 0.3:
        section[bad] = section.pop(key)
    else:
        section[key] = rng.choice([bad, [bad], {bad: bad}, 10**18, -1])
    path.write_bytes(_sealed(path, values))
    return f"{_name(path, campaign)}: {key} {bad!r}"


def edited_module(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    """A plan whose rows name the canary's program as their method, with digests made anew."""
    (path,) = campaign.runs.glob("shapes*/plans/*/plan.json")
    values = json.loads(path.read_bytes())
    row = rng.choice(sorted(values["rows"]))
    values["rows"][row]["recipe"]["method"]["module"] = str(canary.program)
    values["modules"] = {str(canary.program): file_hash(canary.program)}
    path.write_bytes(_sealed(path, values))
    return row


def edited_seal(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    """A report's seal that names files outside, with their right hashes."""
    (plan,) = campaign.runs.glob("shapes*/plans/*")
    report = plan.parents[1] / "report"
    names = [os.path.relpath(canary.file, report), str(canary.file), "linked"]
    (report / "linked").symlink_to(canary.file)
    other = PlanFolder(plan.with_name(rng.choice(["other", plan.name])))
    name = rng.choice(names)
    append_event(other, REPORT, Sealed(files={name: file_hash(canary.file)}))
    return name


def recipe(campaign: Campaign, canary: Canary, rng: random.Random) -> str:
    """A recipe that names programs, addresses, pipes and names that are none."""
    values = yaml.safe_load(campaign.file.read_text())
    pipe = campaign.folder / "pipe"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    texts = [*_texts(campaign, canary), str(pipe), "evil @ file:///tmp/x", "-r/dev/zero"]
    bad = rng.choice(texts)
    model = {"name": "theirs", "arch": "test_vit", "image_size": 32, "head": {"fit": True}}
    method = {"name": "theirs", "title": "T", "module": str(canary.program)}
    keys: list[tuple[str, dict[str, Any]]] = [
        ("package", {"model": model | {"weights": {
            "source": "pypi", "package": bad, "version": bad, "sha256": "0" * 64, "member": "x"}}}),
        ("weights", {"model": model | {"weights": {"source": "file", "path": bad}}}),
        ("model", {"model": bad}),
        ("arch", {"model": model | {"arch": bad, "weights": {"source": "random"}}}),
        ("name", {"model": model | {"name": bad, "weights": {"source": "random"}}}),
        ("sets", {"dataset": {"name": "s", "root": bad, "sets": [bad, "few"]}, "downstream": bad}),
        ("root", {"dataset": {"name": "s", "root": bad, "sets": ["outline", "few"]}}),
        ("method", {"methods": {"fine_tune": {}, "theirs": {"method": method}}}),
        ("row", {"methods": {bad: {"base": "fine_tune"}, "fine_tune": {}}}),
        ("trackers", {"trackers": [f"{canary.program.stem}:X", bad]}),
        ("extends", {"extends": bad}),
    ]  # fmt: skip
    key, change = rng.choice(keys)
    values |= {"runs": str(campaign.runs), **change}
    text = yaml.safe_dump(values, allow_unicode=True)
    (campaign.folder / "theirs.yaml").write_text(text)
    return f"{key} {bad!r}"


def _texts(campaign: Campaign, canary: Canary) -> list[str]:
    touch = f"touch {canary.ran}"
    return [
        "../../canary/file", "../../../canary/runs", str(canary.file), str(canary.folder), "..",
        f"$({touch})", f"`{touch}`", f"; {touch};", f"'; {touch}; '", f'"; {touch}; "', "a\nb",
        "\x1b[2Jx", "a{b}", "x" * 5000, "", ".", "/dev/zero", "--help", str(canary.program), "a\0b",
    ]  # fmt: skip


def _sealed(path: Path, values: Any) -> bytes:
    """The JSON of a stored file with digests that fit, as whoever edits it can make them."""
    if not isinstance(values, dict):
        return json.dumps(values).encode()
    if typed_json.DIGEST in values:
        del values[typed_json.DIGEST]
        return typed_json.with_digest(values)
    if path.name == "manifest.json" and "digest" in values:
        del values["digest"]
        values["digest"] = digest(values)
    return json.dumps(values).encode()


OFTEN = ("plan.json", "evaluations.json", "manifest.json", "done.json", "cell.json")
OF_RECIPES = (recipe,)
PLANTS: list[Callable[[Campaign, Canary, random.Random], str]] = [
    *(linked_file, linked_folder, special, planted, edited, edited, edited, edited_module),
    *(edited_seal, recipe, recipe),
]
