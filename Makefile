# make demo    fine-tunes the bundled model and writes runs/demo
# make test    runs the whole test suite, and what compares numbers once more as XLA optimises for users
# make check   lints and checks types
# make docs    builds the documentation into docs/_build/html, and runs its lesson: some minutes
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check docs clean

demo: .venv/installed
	$(BIN)/jaxgpt train --freeze=first6 --resume

test: .venv/installed-test .venv/tpu
	$(BIN)/python -m pytest
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 -m users_xla tests/test_parity.py tests/test_segments.py tests/test_cache.py

check: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxgpt needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

# beside the environment: where libtpu can be imported, every JAX process looks for a TPU. Where there is none, tests skip
.venv/tpu: .venv/installed-test
	-$(INSTALL) --no-deps --target $@ libtpu --constraint tests/constraints.txt
	mkdir -p $@ && touch $@

.venv/installed: .venv/bin/python pyproject.toml tests/constraints.txt
	$(INSTALL) --editable . --constraint tests/constraints.txt
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml tests/constraints.txt
	$(INSTALL) --editable '.[test]' --constraint tests/constraints.txt
	touch $@ .venv/installed

.venv/installed-docs: .venv/bin/python pyproject.toml tests/constraints.txt
	$(INSTALL) --editable '.[docs]' --constraint tests/constraints.txt
	touch $@ .venv/installed

clean:
	rm -rf .venv build docs/_build *.egg-info
