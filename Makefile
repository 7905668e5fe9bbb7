# The commands of this project. `make demo` and `make test` need only Python 3.10+ and a C++ compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECKED := edge_agent converters train_host
SCRIPTS := tests benchmarks dev docs

.PHONY: help demo test check fix lock venv clean

help:            ## this list
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: venv       ## two small models answer through the daemon; first run compiles llama.cpp
	@$(BIN)/python dev/demo.py

test: venv       ## every test
	@$(BIN)/python -m pytest

check: venv      ## ruff, mypy --strict, the direction of imports
	@$(BIN)/ruff check $(CHECKED) $(SCRIPTS)
	@$(BIN)/ruff format --check $(CHECKED) $(SCRIPTS)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_imports.py

fix: venv        ## format, repair what ruff can, rewrite the README's tree and docs/cli.md
	@$(BIN)/ruff check --fix $(CHECKED) $(SCRIPTS)
	@$(BIN)/ruff format $(CHECKED) $(SCRIPTS)
	@$(BIN)/python dev/readme_tree.py
	@$(BIN)/python docs/make_cli.py > docs/cli.md.new && mv docs/cli.md.new docs/cli.md

# uv resolves for every Python >= 3.10 at once; it is needed only here. The host packages (torch,
# trl, ...) get a lock of their own when training arrives: they would triple this one.
lock: venv       ## write requirements.lock anew from pyproject.toml
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --upgrade \
	  --extra build --extra convert --extra demo --extra test pyproject.toml -o requirements.lock

venv:            ## ./.venv from requirements.lock; does nothing when it is up to date
	@$(PYTHON) dev/install.py $(VENV)

clean:           ## remove the environment and the demo's state, not the caches in ~/.cache/edge-agent
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis edge_agent.egg-info
