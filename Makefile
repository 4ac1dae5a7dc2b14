# `make demo` runs the main job and `make test` passes the tests; each installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check format install clean

demo: install
	$(BIN)/gliorn-simulate

test: check
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/pytest -n 2 --dist loadfile -m slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

# torch first and by itself: where pip knows a CPU build, that one is taken.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt --editable '.[ray,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
