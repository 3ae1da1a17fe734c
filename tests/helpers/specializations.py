"""What is launched of each kernel, for the ahead-of-time gate (`helpers.aot`).

A specialization is a dict of

- name, fn, constexprs, num_warps, and optionally num_stages
- signature: types of the runtime arguments, by name
- divisible: i32 arguments that are multiples of 16; by default all that are specialised on. The JIT
  builds a narrower variant for other sizes. Pointers always count, since fresh tensors are aligned.
- aligned: False if rows of an odd length rule out 16-byte accesses
- streams: number of tensors read and written with 16-byte accesses (default: one and one)
"""

from __future__ import annotations

from typing import Any

from kernels import distill, ewc, interpolation
from kernels.transport import sweep


def every() -> list[dict[str, Any]]:
    return [*_distill(), *_ewc(), *_interpolation(), *_sweep()]


def _distill() -> list[dict[str, Any]]:
    sizes = {"fp32": 4, "bf16": 2, "fp16": 2}
    kinds = [(c, d, d) for d in sizes for c in (1000, distill.ONE_READ_CLASSES, 21843)]
    # Under autocast the student's logits are bf16, and the stored teacher's are fp32.
    kinds += [(c, "bf16", "fp32") for c in (10, 200, 1000, distill.ONE_READ_CLASSES)]
    kinds += [(1000, "bf16", None)]
    specs = []
    for classes, dtype, teacher in kinds:
        options = distill._launch_options(classes)
        a_thread = options["BLOCK"] // (32 * options["num_warps"])
        name = dtype if teacher == dtype else f"{dtype}, teacher {teacher}".lower()
        read = [sizes[d] for d in (dtype, teacher) if d]
        specs.append(
            {
                "name": f"distill[{classes}] {name}",
                "fn": distill._distill_kernel,
                "signature": {
                    "student": f"*{dtype}",
                    "teacher": f"*{teacher or dtype}",
                    "labels": "*i64",
                    "mask": "*i1",
                    "loss": "*fp32",
                    "gradient": f"*{dtype}",
                    "inv_t": "fp32",
                    "kl_weight": "fp32",
                },
                "constexprs": {
                    "CLASSES": classes,
                    "BLOCK": options["BLOCK"],
                    "HAS_TEACHER": teacher is not None,
                    "HAS_MASK": True,
                    "WITH_GRADIENT": True,
                    "LOWEST": distill._LOWEST,
                },
                "num_warps": options["num_warps"],
                # Rows whose length is not a multiple of 16 bytes are not aligned.
                "aligned": all(classes * n % 16 == 0 and a_thread * n >= 16 for n in read),
                "streams": (len(read), 1),
            }
        )
    return specs


def _ewc() -> list[dict[str, Any]]:
    flags = ("HAS_ANCHOR", "HAS_FISHER")
    variants = {"plain": 0, "identity": 1, "ewc": 2}
    return [
        {
            "name": f"{name} {variant}",
            "fn": ewc._step_kernel,
            "signature": {"pointers": "*i64", "owners": "*i32", "firsts": "*i32", "sizes": "*i64"}
            | {"count": "i32", "numbers": "*fp32", "pitch": "i32"},
            "constexprs": {"ALIGNED": True, "BLOCK": ewc.BLOCK, "STATES": states}
            | {flag: number < given for number, flag in enumerate(flags)},
            "num_warps": ewc.WARPS,
            "streams": (2 + states + given, 1 + states),
        }
        for name, states in (("adamw_ewc_", 2), ("sgd_ewc_", 1))
        for variant, given in variants.items()
    ]


def _interpolation() -> list[dict[str, Any]]:
    return [
        {
            "name": f"interpolate[{outputs} of {count}]",
            "fn": interpolation._interpolate_kernel,
            "signature": {
                "parents": "*fp32",
                "weights": "*fp32",
                "out": "*fp32",
                "n": "i32",
                "outputs": "i32",
            },
            "constexprs": {"PARENTS": count, **interpolation._tile(outputs)},
            "num_warps": interpolation._WARPS,
        }
        for outputs, count in ((1, 4), (11, 2), (21, 2), (4, 8), (16, 4))
    ]


def _sweep() -> list[dict[str, Any]]:
    tiles = {
        "PART": sweep.PART,
        "ROWS": sweep._ROWS,
        "COLUMNS": sweep._COLUMNS,
        "ROW_BLOCK": sweep._ROW_BLOCK,
    }
    kinds = dict.fromkeys(("f", "g", "kappa", "log_s", "shares", "columns"), "*fp32")
    kinds |= dict.fromkeys(("pitch", "n", "m"), "i32")
    return [
        {
            "name": f"{name} {kind}",
            "fn": fn,
            "signature": {
                a: {"q": f"*{short}", **kinds}[a] for a in fn.arg_names if a not in tiles
            },
            "constexprs": {a: tiles[a] for a in fn.arg_names if a in tiles},
            "divisible": ["pitch"],
            "num_warps": sweep._WARPS,
            "streams": (1, stores),
        }
        for kind, short in (("int16", "i16"), ("float32", "fp32"))
        for name, fn, stores in (
            ("row_sums", sweep._rows_kernel, 0),
            ("sinkhorn_sweep", sweep._columns_kernel, 1),
        )
    ]
