# Everything from nothing: `make demo`, `make test` and `make check` create .venv, install what they need, and run.
# They start again only where something changed. Needs make and Python 3.11 or newer with its venv module.
#
#   make demo PYTHON=python3.12     another Python
#   make demo TORCH_INDEX=          PyTorch from the package index alone: on Linux its build for CUDA (after make clean)

PYTHON ?= python3
# PyPI's own Linux build of PyTorch brings gigabytes of CUDA packages; this index has the CPU build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints/cpu.txt Makefile
INSTALL := bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt
# PyTorch goes alone and first, so that an index which does not answer is asked for a few packages only, once each.
TORCH := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 0) torch

.DEFAULT_GOAL := help
.PHONY: help demo test wheel check lint types layers format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-train  ## find defects on generated surfaces with the weights in the package
	@echo "== The demo: generated steel surfaces, the packaged detector"
	@$(BIN)/setdet demo

test: $(VENV)/.installed-dev  ## the whole quick test suite
	@echo "== The quick test suite"
	@$(BIN)/python -m pytest

wheel: $(BIN)/python  ## build the wheel, install it alone into an empty environment, run the demo there
	@echo "== The wheel, in an environment of its own"
	@rm -rf build/wheel && mkdir -p build/wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	@$(PYTHON) -m venv build/wheel/environment
	@build/wheel/environment/$(INSTALL) $(TORCH)
	@build/wheel/environment/$(INSTALL) "$$(echo build/wheel/*.whl)[train]"
	@cd build/wheel && environment/bin/setdet demo

check: lint types layers  ## format, lint, types, layers

lint: $(VENV)/.installed-dev
	@echo "== Format and lint (ruff; 'make format' repairs the format)"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	@echo "== Types (mypy, strict)"
	@$(BIN)/mypy

layers: $(VENV)/.installed-dev
	@echo "== Layers (import-linter)"
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## format the code and sort its imports
	@$(BIN)/ruff check --quiet --select I --fix .
	@$(BIN)/ruff format .

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist

# Each stamp is written last, so an installation that broke off is taken up again by the next command.
$(VENV)/.installed-train: $(BIN)/python $(SOURCES)
	@echo "== Installing setdet with PyTorch into $(VENV) (a few minutes the first time)"
	@$(VENV)/$(INSTALL) $(TORCH)
	@$(VENV)/$(INSTALL) --editable '.[train]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-train
	@echo "== Installing the tools for tests and checks into $(VENV)"
	@$(VENV)/$(INSTALL) --editable '.[train,dev]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no '$(PYTHON)'. Install Python 3.11 or newer (Debian: apt install python3-venv)," \
			"or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old: setdet needs Python 3.11 or newer." \
			"Name one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$$($(PYTHON) --version) comes without its venv module." \
			"Install it (Debian: apt install python3-venv) and run make again." >&2; exit 1; }
	@echo "== Creating the virtual environment $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv --clear $(VENV)
