# The two commands of the README: each sets up .venv when there is none, and again only when the project's needs change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test docs lint lock audit clean

demo: $(READY)
	$(BIN)/mpelu demo

test: $(READY)
	$(BIN)/python -m pytest -n 2

# Spelling, every block of code in the pages, and the site: build/site.
docs: $(READY)
	$(BIN)/codespell
	$(BIN)/python -m pytest -n 2 --dist loadfile docs/*.md README.md CONTRIBUTING.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# WHEELS: the CPU builds of torch, as files
lock: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/python .ci/lock.py $(WHEELS)

# Known vulnerabilities of what is installed at runtime; asks pypi.org, so .ci/run does not do it.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --requirement requirements/common.lock --requirement requirements/cuda.lock

$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard mpelu/ops/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist report.html .mypy_cache .pytest_cache .ruff_cache .hypothesis
