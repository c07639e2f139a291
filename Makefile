# Everything that a developer runs. It needs make and Python 3.10 or newer; pip fetches the rest, once.
#
#   make PYTHON=python3.12 test      another Python
#   make PIP_ARGS="..." demo         further arguments of pip, such as the index of PyTorch's CPU builds
#   make WORKERS=8 test              tests in more processes than two

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin

# A full development set-up serves the demo as well.
DEMO_READY := $(or $(wildcard $(VENV)/.ready-dev),$(VENV)/.ready-geometry)

# Compiled kernels are tested where they can be built: on x86-64 with a C++ compiler. All else works without them.
CXX_FOUND := $(if $(filter x86_64 amd64,$(shell uname -m)),$(shell command -v $(CXX)))
NATIVE_READY := $(if $(CXX_FOUND),$(VENV)/.ready-native)

.PHONY: help demo test native lint format types imports docs minimal clean

help:
	@echo "make demo      match the two bundled photographs"
	@echo "make test      everything that has to pass: lint, types, imports, all tests"
	@echo "make native    build the compiled kernels (x86-64, needs a C++ compiler); make test does so where it can"
	@echo "make lint      ruff, check and format"
	@echo "make format    let ruff repair and format the files"
	@echo "make types     pyright"
	@echo "make imports   the order of the folders (import-linter)"
	@echo "make docs      run the commands and examples of README.md and docs/"
	@echo "make minimal   install without extras in a fresh environment, import every module, match"
	@echo "make clean     remove the environment and what tools left behind"

demo: $(DEMO_READY)
	$(RUN)/keyglue match assets/motorcycle_left.png assets/motorcycle_right.png -o matches.png
	@echo "The matches are drawn in $(CURDIR)/matches.png"

# One thread a worker: two that share a core wait for each other most of the time.
test: lint types imports $(NATIVE_READY)
	OMP_NUM_THREADS=1 $(RUN)/pytest -q -n $(WORKERS) --dist loadfile

native: $(VENV)/.ready-native

lint: $(VENV)/.ready-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: $(VENV)/.ready-dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: $(VENV)/.ready-dev
	$(RUN)/pyright

imports: $(VENV)/.ready-dev
	$(RUN)/lint-imports

docs: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(RUN)/pytest -q tests/docs

minimal:
	rm -rf build/minimal
	$(PYTHON) -m venv build/minimal
	build/minimal/bin/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) .
	build/minimal/bin/python tests/architecture/minimal_install.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache matches.png

# One stamp a set of extras: a second call is instant, a changed requirement installs again.
$(VENV)/.ready-%: pyproject.toml constraints.txt | $(RUN)/python
	$(RUN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[$*]'
	@touch $@

$(VENV)/.ready-native: $(wildcard native/pyproject.toml native/CMakeLists.txt native/src/* native/src/*/*) | $(RUN)/python
	$(RUN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) ./native
	@touch $@

$(RUN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "keyglue needs Python 3.10 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
