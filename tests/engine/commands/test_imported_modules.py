"""Each command imports the slow packages that it uses, and no other."""

import sys

import pytest

from helpers.processes import run

SLOW = ("torch", "timm", "torch._dynamo", "deepspeed", "pandas", "scipy", "snakemake", "numba")
TIMM = "torch timm torch._dynamo"  # which timm imports
OF_OTHER_JOBS = (
    "pandas scipy engine.otdd kernels.transport engine.cost loaders.benchmarks.emoji "
    "engine.campaigns.make_plan engine.recipe.resolve engine.recipe.catalogue"  # plans
)
CODE = (
    "import sys\nfrom engine import cli\ntry: cli.main(sys.argv[2:])\nexcept SystemExit: pass\n"
    "print('imported:', *(name for name in sys.argv[1].split() if name in sys.modules))"
)


@pytest.mark.parametrize(
    ("words", "imported"),
    [
        ("--help", ""),
        ("campaign --help", ""),
        ("recipes", ""),
        ("status {}", ""),
        ("campaign emoji --limit 1", ""),
        ("train emoji/ewc --print", ""),
        ("report emoji runs={}", ""),
        ("campaign emoji --dry-run runs={}", "torch"),
        ("campaign imagenet_rib model=resnet50.a1_in1k --dry-run runs={}", TIMM),
        ("plan imagenet_rib runs={}", ""),
        ("export emoji --out {}/new runs={}", ""),
    ],
)
def test_a_command_imports_what_it_uses(words, imported, tmp_path):
    given = words.format(tmp_path, tmp_path).split()
    done = run([sys.executable, "-c", CODE, " ".join(SLOW), *given])
    assert done.stdout.splitlines()[-1] == f"imported: {imported}".rstrip(), done.stderr


def test_a_columns_job_imports_nothing_of_planning_and_other_jobs():
    code = "import sys, engine.campaigns.column_job; print(*{*sys.argv[1:]} & {*sys.modules})"
    done = run([sys.executable, "-c", code, *OF_OTHER_JOBS.split()])
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
