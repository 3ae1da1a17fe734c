"""The results of `make gpu` as Markdown, so that nobody types a number.

    python -m bench.gpu.write_up [FOLDER]                            prints it
    python -m bench.gpu.write_up [FOLDER] --into docs/performance.md  between the marks there

A page holds what lies between `BEGIN` and `END`; it is replaced. Results of a CPU go into no page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        text = written(options.folder)
        if options.into is None:
            print(text)
        else:
            options.into.write_text(replaced(options.into, text, device_kind(options.folder)))
    except (ValueError, OSError) as error:
        print(error)
        return 2
    return 0


def written(folder: Path) -> str:
    """Every table that the folder's files give. Raises ValueError where it has no summary."""
    summary = _read(folder, "summary.json")
    if summary is None:
        raise ValueError(f"{folder} has no summary.json; run: make gpu OUT={folder}")
    probe, engine = _read(folder, "probe.json"), _read(folder, "engine.json")
    headline = _read(folder, "headline.json")
    benches = [_read(folder, file.name) for file in sorted(folder.glob("*.json"))]
    contests = [results for results in benches if results and "case" in results]
    machines = [results["machine"] for results in (headline, probe, engine, *contests) if results]
    parts = [_machine(machines), _stages(summary["stages"])]
    parts += [_headline(headline["rows"])] if headline else []
    parts += [_probe(probe["items"])] if probe else []
    parts += [_contests(contests)] if contests else []
    parts += [_campaign(engine["parts"])] if engine else []
    return "\n\n".join(filter(None, parts))


def device_kind(folder: Path) -> str:
    summary = _read(folder, "summary.json") or {}
    return summary.get("device", "")


def replaced(page: Path, text: str, kind: str) -> str:
    """The page with the text between its marks. Raises ValueError for a CPU's and for no marks."""
    if kind != "cuda":
        raise ValueError("these are results of a CPU: they show that the stages run, and no more")
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _machine(machines: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for about in machines:
        versions = about["versions"]
        named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm"))
        kind = (
            " (a CPU: the stages run, the numbers mean nothing)" if about["kind"] == "cpu" else ""
        )
        lines.append(f"{about['device']}{kind}; {named}; commit {about['commit']}.")
    return "\n".join(dict.fromkeys(lines))


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> str:
    def why(outcome: Mapping[str, Any]) -> str:
        missing = outcome.get("missing")
        return f"lacks {', '.join(missing)}" if missing else "; ".join(outcome.get("why", ()))

    rows = [(n, o["state"], f"{o['seconds']:.0f}", why(o)) for n, o in stages.items()]
    return _table(("stage", "state", "s", "why"), rows)


def _headline(rows: Iterable[Mapping[str, Any]]) -> str:
    heads = ("ViT-B/16, bf16", "batch", "compiled", "images/s", "ms", "MFU", "peak MB")
    keys = ("what", "batch", "compiled", "images_s", "ms", "mfu", "peak_mb")
    lines = [[_number(row.get(key, "-")) for key in keys] for row in rows]
    return _table(heads, lines)


def _probe(items: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, entry in items.items():
        hidden = ("predicted", "took_s")
        values = [
            f"{k} {_number(v)}" for k, v in entry.items() if k not in hidden and v is not None
        ]
        rows.append((name, ", ".join(values), entry.get("predicted", "-")))
    return _table(("probe", "measured", "predicted for an H100"), rows)


def _contests(contests: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for results in contests:
        if results["gate"] == "red":
            rows.append(
                (results["case"], "its gate is red", "-", "-", "-", "-", results["message"])
            )
        for row in results["rows"]:
            target = "-" if row["target"] is None else _number(row["target"])
            times = _number(row["subject_ms"]), _number(row["peer_ms"])
            measured = f"{_number(row['measured'])}, {row['rounds']}"
            ratios = _number(row["predicted"] or "-"), measured
            rows.append(
                (row["contest"], row["peer"], *times, *ratios, f"{target} {row['verdict']}")
            )
    heads = ("contest", "peer", "ms", "peer ms", "predicted", "measured, n", "target")
    return _table(heads, rows)


def _campaign(parts: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for part in parts:
        rates = [_number(part[name]) if name in part else "-" for name in ("images_s", "mfu")]
        rows.append((part["part"], _number(part["seconds"]), *rates))
    return _table(("campaign", "s", "images/s", "MFU"), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    return json.loads(path.read_text()) if path.is_file() else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.write_up", description=__doc__)
    default = ROOT / "bench" / "results" / "gpu"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--into", type=Path, help="a page with the marks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
