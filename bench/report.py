"""The table on the screen and the JSON beside it: no number without its machine and its commit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.contest import Row
from bench.roofline import Roofline

ROOT = Path(__file__).parent.parent
_HEADS = ("contest", "peer", "ms / peer ms", "predicted", "measured", "target", "verdict")
_WIDTHS = (21, 24, 13, 9, 8, 6, 7)
_SHOWN = ("triton", "timm", "numpy")
_PEERS = (
    "numba", "scipy", "deepspeed", "apex", "torchvision", "avalanche-lib", "liger-kernel",
    "geomloss", "ott-jax", "jax", "POT", "flash-sinkhorn", "webdataset", "threadpoolctl",
)  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """Device, cores, threads and load of this machine, and the versions that matter."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in (*_SHOWN, *_PEERS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    name = _cpu()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        versions |= {"cuda": torch.version.cuda or "", "driver": _driver()}
    return {
        "device": name,
        "kind": device.type,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
        "commit": _commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def header(about: dict[str, Any], roofline: Roofline) -> str:
    """Two lines about the machine, and one more where other work would disturb the times."""
    versions = ", ".join(
        f"{name} {about['versions'][name]}" for name in ("python", "torch", *_SHOWN)
    )
    lines = [
        f"{about['device']}, {about['cores']} cores, {about['threads']} threads; copy "
        f"{roofline.copy_gb_s:.1f} GB/s, matmul {roofline.matmul_gflop_s:.0f} GFLOP/s",
        f"{versions}; commit {about['commit']}",
    ]
    if about["load"] > 0.75 * about["cores"]:
        lines.append(f"load {about['load']}: other work runs here, so expect wide quartiles")
    return "\n".join(lines)


def table(rows: Iterable[Row], *, heads: bool = True) -> str:
    """At most 100 columns; longer names are cut."""
    lines: list[tuple[str, ...]] = [_HEADS] if heads else []
    for row in rows:
        target = "-" if row.target is None else f"{row.target:.2f}"
        times = f"{_short(row.subject_ms)} / {_short(row.peer_ms)}"
        ratios = _ratio(row.predicted), f"{row.measured:.2f}"
        lines.append((row.contest, row.peer, times, *ratios, target, row.verdict))
    return "\n".join(
        "  ".join(
            cell[:width].ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, _WIDTHS, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: Iterable[Row], *, heads: bool = True) -> str:
    """The same as a Markdown table with quartiles and rounds."""
    names: tuple[str, ...] = (
        "contest",
        "peer",
        "ms",
        "peer ms",
        "predicted",
        "measured (quartiles), n",
    )
    names += ("target", "verdict")
    lines = [names, ("---",) * len(names)] if heads else []
    for row in rows:
        measured = f"{row.measured:.2f} ({row.low:.2f}-{row.high:.2f}), {row.rounds}"
        target = "-" if row.target is None else f"{row.target:.2f}"
        times = _short(row.subject_ms), _short(row.peer_ms)
        lines.append(
            (row.contest, row.peer, *times, _ratio(row.predicted), measured, target, row.verdict)
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rates(rows: Iterable[Row]) -> str:
    """Images a second, MFU and peak memory of every entrant that has them; empty without any."""
    columns = {"images_s": ("images/s", 1), "mfu": ("MFU", 2), "peak_mb": ("peak MB", 0)}
    by_entrant = {(row.contest, name): rates for row in rows for name, rates in row.rates.items()}
    lines = [("contest", "entrant", *(head for head, _ in columns.values()))]
    for names, rates in by_entrant.items():
        written = (f"{rates[k]:.{n}f}" if k in rates else "-" for k, (_, n) in columns.items())
        lines.append((*names, *written))
    widths = 28, 24, -9, -5, -8
    return "\n".join(
        "  ".join(
            cell.rjust(-width) if width < 0 else cell[:width].ljust(width)
            for cell, width in zip(line, widths, strict=True)
        )
        for line in (lines if by_entrant else ())
    )


def save(case: str, results: dict[str, Any], folder: Path | None = None) -> Path:
    """Writes `content` to CASE-DEVICE.json in the folder (bench/results), whole or not at all."""
    device = results["machine"]["kind"]
    if device == "cuda":
        device = re.sub(r"[^a-z0-9]+", "-", results["machine"]["device"].lower()).strip("-")
    path = (folder or ROOT / "bench" / "results") / f"{case}-{device}.json"
    write(path, {"case": case, **results})
    return path


def content(rows: Sequence[Row], about: dict[str, Any], roofline: Roofline) -> dict[str, Any]:
    listed = [asdict(row) | {"verdict": row.verdict} for row in rows]
    return {"machine": about, "roofline": asdict(roofline), "gate": "green", "rows": listed}


def write(path: Path, what: Any) -> None:
    """JSON with four significant digits, under a temporary name until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w") as file:
        json.dump(_rounded(what), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(milliseconds: float) -> str:
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.3g}" if milliseconds >= 1 else f"{milliseconds:.2g}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def _driver() -> str:
    """NVIDIA's, as the kernel module tells it."""
    file = Path("/proc/driver/nvidia/version")
    match = re.search(r"Module\s+([\d.]+)", file.read_text()) if file.exists() else None
    return match[1] if match else "unknown"


def _commit() -> str:
    """The short hash, with a + where files differ from it; "unknown" outside a repository."""
    answers = []
    for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"]):
        try:
            process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return "unknown"
        if process.returncode:
            return "unknown"
        answers.append(process.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")
