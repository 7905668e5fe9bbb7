# The commands of this project. `make demo` and `make test` need only Python 3.10+ and a C++ compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECKED := edge_agent converters train_host
SCRIPTS := tests benchmarks dev docs

HOST := .venv-host
# torch is pinned here: its newest release may be no CPU build that lies on a machine's disk, and an
# open range then costs gigabytes of CUDA. The hash is that of the CPU build for Python 3.11 on x86_64,
# which PyPI does not have; PyPI's own files are in the lock as well.
TORCH := 2.13.0
TORCH_CPU := sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
PINNED := uv pip compile -q --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command "make lock" --upgrade

.PHONY: help demo test test-host check fix lock lock-host venv host clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: venv       ## two small models answer through the daemon; first run compiles llama.cpp
	@$(BIN)/python dev/demo.py

test: venv       ## every test
	@$(BIN)/python -m pytest

check: venv      ## ruff, mypy --strict, dead code, the direction of imports
	@$(BIN)/ruff check $(CHECKED) $(SCRIPTS)
	@$(BIN)/ruff format --check $(CHECKED) $(SCRIPTS)
	@$(BIN)/mypy
	@$(BIN)/vulture
	@$(BIN)/python -m pytest tests/repo/test_imports.py tests/repo/test_rooms.py

fix: venv        ## format, repair what ruff can, write docs/files.md and docs/cli.md anew
	@$(BIN)/ruff check --fix $(CHECKED) $(SCRIPTS)
	@$(BIN)/ruff format $(CHECKED) $(SCRIPTS)
	@$(BIN)/python docs/make_files.py > docs/files.md.new && mv docs/files.md.new docs/files.md
	@$(BIN)/python docs/make_cli.py > docs/cli.md.new && mv docs/cli.md.new docs/cli.md

test-host: host  ## the tests of training, which need torch (make host)
	@$(HOST)/bin/python -m pytest tests/train_host

# uv resolves for every Python >= 3.10 at once; it is needed only here. The host's packages (torch,
# trl, ...) have a lock of their own, because they would triple this one; what both need is in the
# first, at the same version.
lock: venv       ## write both locks anew from pyproject.toml
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/$(PINNED) --universal --python-version 3.10 \
	  --extra build --extra convert --extra demo --extra test pyproject.toml -o requirements.lock
	@$(MAKE) --no-print-directory lock-host

lock-host: venv  ## write requirements-host.lock anew, for Python 3.11 and newer on x86_64
	@$(BIN)/python -m pip install -q uv
	@echo torch==$(TORCH) | $(BIN)/$(PINNED) -c requirements.lock \
	  --python-platform x86_64-manylinux_2_28 --python-version 3.11 \
	  $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock | sort -u) \
	  --extra host --extra qlora --extra tensorboard pyproject.toml - -o requirements-host.lock
	@sed -i 's/^torch==$(TORCH) \\$$/&\n    --hash=$(TORCH_CPU) \\/' requirements-host.lock

venv:            ## ./.venv from requirements.lock; does nothing when it is up to date
	@$(PYTHON) dev/install.py $(VENV)

host:            ## ./.venv-host: the above and what trains, torch and all (docs/host.md)
	@$(PYTHON) dev/install.py --host $(HOST)

clean:           ## remove the environment and the demo's state, not the caches in ~/.cache/edge-agent
	rm -rf $(VENV) $(HOST) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis edge_agent.egg-info
