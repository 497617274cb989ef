# `make demo` and `make test` set up what they need. `make env` does nothing when .venv is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.dsvid-env
SOURCES := pyproject.toml setup.py dsvid/ops/build.py $(wildcard csrc/*)
RANKS ?= 0
# test files that run side by side
JOBS ?= 2

.PHONY: env demo test test-long test-cluster check lint format types docs clean

env: $(STAMP)

$(STAMP): $(SOURCES)
	@if command -v uv >/dev/null 2>&1; then \
	  echo "environment: uv, $(VENV)"; \
	  { test -x $(BIN)/python || uv venv --quiet --python "$(PYTHON)" $(VENV); } && \
	  uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  echo "environment: pip, $(VENV) (some minutes and about 6 GB the first time; uv is faster)"; \
	  { test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV); } && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@$(BIN)/python -m dsvid.ops.build
	@touch $@

demo: env
	$(BIN)/dsvid demo --ranks $(RANKS)

test: env
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# What takes minutes. SHORT=1: without twenty kills, and every pair of ZeRO stages for every change of ranks.
test-long: env
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "long$(if $(SHORT), and not slow)"

# Two nodes and a Slurm, made of namespaces: root; installs Debian packages that are missing. SHORT=1: the half of it.
test-cluster: env
	bash tests/cluster/install.sh
	$(BIN)/python -m pytest tests/cluster $(if $(SHORT),-m "not slow")

check: lint types test

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu)

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu)

types: env
	$(BIN)/mypy

# The documents as a site, build/docs/index.html; what Sphinx warns of is an error.
docs: $(VENV)-docs/.stamp
	$(VENV)-docs/bin/sphinx-build -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

$(VENV)-docs/.stamp: docs/requirements.txt
	"$(PYTHON)" -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

clean:
	rm -rf build dist *.egg-info dsvid/ops/lib .pytest_cache .mypy_cache .ruff_cache
