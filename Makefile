# `make` lists the targets. Everything runs in .venv, which the first call creates from the hashed lock file.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
SET_UP := $(VENV)/.set-up

# dvc starts the stages with the first `python` on the path
export PATH := $(CURDIR)/$(BIN):$(PATH)
# switch off the telemetry of all tools
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

# Set these on the command line, for example `make seeds SEEDS="0 1 2 3 4"`
SEEDS ?= 0 1 2
RATES ?= 0.002 0.004 0.008 0.016
RATE_STEPS ?= 400
LONG_STEPS ?= 4000
MLFLOW_PORT ?= 5000
PYTEST ?=
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))

.PHONY: help setup repro repro-long seeds guided learning-rates test test-slow test-browser test-gpu accept chaos bench gpu-check gpu-bench gpu-evidence check format lock up down status serve-mlflow dashboard clean .moved

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(SET_UP)  ## create .venv from requirements.lock with checked hashes, and install this project into it

repro: setup  ## run the pipeline of params.yaml from data to report/index.html; skips stages that are up to date
	$(BIN)/sfd reproduce
	$(BIN)/sfd track
	$(BIN)/sfd results

repro-long: setup  ## the same with LONG_STEPS training steps per variant, in .sfd/experiments/long
	$(BIN)/sfd experiment long --curves docs/results/long.csv --studies docs/results/long_offsets.csv \
		--set train.optimisation.steps=$(LONG_STEPS) --set train.optimisation.decay_steps=$$(( $(LONG_STEPS) / 3 )) \
		--set train.snapshots=6

seeds: setup  ## train and evaluate every active variant with each of SEEDS, in .sfd/experiments/seeds
	$(BIN)/sfd experiment seeds --vary seed $(SEEDS) --table docs/results/seeds.csv --studies docs/results/offsets.csv

guided: setup  ## sample every variant with every kind of guidance (preset avatars+guided), in .sfd/experiments/guided
	$(BIN)/sfd experiment guided --preset avatars+guided --studies docs/results/guided.csv

learning-rates: setup  ## train every active variant for RATE_STEPS steps at each of RATES, in .sfd/experiments/learning-rates
	$(BIN)/sfd experiment learning-rates --vary learning_rate $(RATES) --table docs/results/learning_rates.csv \
		--set train.optimisation.steps=$(RATE_STEPS) --set train.optimisation.decay_steps=$$(( $(RATE_STEPS) / 3 )) \
		--set train.snapshots=1 --set studies={} --set evaluate.snapshot_samples=500 --set evaluate.final_samples=500 --set evaluate.oracle=false

# Tests run in one process per core and one more, because many wait for a server; each has one thread
test: setup  ## run all quick tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup $(PYTEST)

test-slow: setup  ## run the tests that take minutes: long trainings
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow $(PYTEST)

test-browser: setup  ## test the report in a headless Chromium (/usr/bin/chromium)
	$(BIN)/pytest -m browser $(PYTEST)

test-gpu: setup  ## run the tests that need a CUDA device
	$(BIN)/pytest -m 'gpu and not bench' $(PYTEST)

accept: setup  ## take over a refactoring of STAGE: prove on a small project that its result is equal, then record it
	@[ -n "$(STAGE)" ] || { echo "error: name a stage, such as make accept STAGE=train" >&2; exit 2; }
	SFD_ACCEPT=$(STAGE) OMP_NUM_THREADS=1 $(BIN)/pytest -m accept tests/integration/test_accept.py $(PYTEST)
	$(BIN)/dvc repro code
	$(BIN)/dvc stage list --name-only | grep -E '^$(STAGE)(@|$$)' | xargs $(BIN)/dvc commit --force

chaos: setup  ## kill stages, workers and servers, fill the disk, remove S3 and MLflow, and check what survives
	OMP_NUM_THREADS=1 $(BIN)/pytest -m chaos -n 2 --dist loadgroup tests/chaos tests/flows $(PYTEST)

bench: setup  ## measure training, data, sampling, metrics and cost; write the tables of docs/performance.md
	mkdir -p .benchmarks
	$(BIN)/pytest -m bench --benchmark-columns=min,median,max,rounds --benchmark-sort=name --benchmark-json=.benchmarks/last.json $(PYTEST) && code=0 || code=$$?; \
		PYTHONPATH=tests:tests/support $(BIN)/python -m bench.performance_page .benchmarks/last.json && exit $$code

gpu-check: setup  ## compare this GPU's results with the CPU's; writes .gpu/results/check.json (docs/gpu.md)
	$(BIN)/python -m infra.gpu check

gpu-bench: setup  ## measure training and sampling at the paper's sizes on this GPU; writes .gpu/results/bench.json
	$(BIN)/python -m infra.gpu bench

gpu-evidence: setup  ## train preset cifar10, shortened, on this GPU from .gpu/images.tar.xz; writes .gpu/results/evidence.json
	$(BIN)/python -m infra.gpu evidence

check: setup  ## check format, lint, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup  ## pin the dependencies of pyproject.toml with hashes in requirements.lock
	UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --quiet -o requirements.lock

up: setup  ## start S3, MLflow, Prefect and a worker on this machine; SFD_LAB_... sets ports and more (infra/README.md)
	$(BIN)/python -m infra.lab up

down: setup  ## stop the servers; all data in .sfd/lab stays
	$(BIN)/python -m infra.lab down

status: setup  ## show which servers run, their health and their memory
	$(BIN)/python -m infra.lab status

serve-mlflow: setup  ## serve the embedded MLflow store on http://127.0.0.1:MLFLOW_PORT (5000)
	-MLFLOW_TRACKING_URI= $(BIN)/sfd track  # also after the project was moved
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--backend-store-uri sqlite:///.sfd/mlflow.db --serve-artifacts --artifacts-destination .sfd/mlartifacts

dashboard: setup  ## update the comparison of runs in MLflow (MLFLOW_TRACKING_URI, or the embedded store) and print its link
	$(BIN)/sfd dashboard

clean: setup  ## delete outputs and reports, also of experiments (`sfd clean`), and tool caches; DVC's cache stays, so `make repro` restores them
	$(BIN)/sfd clean --yes
	rm -rf build dist .benchmarks .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A .venv that was copied or moved here would run the programs of the folder that it was made in, so it is made anew
.moved:
	rm -rf $(VENV)

# The first Python 3.11 to 3.13 found creates .venv. pip installs uv at the locked version and hash; uv installs the rest.
$(SET_UP): requirements.lock pyproject.toml $(if $(shell grep -sLF '$(realpath $(VENV))/bin/' $(BIN)/sfd),.moved)
	@if [ ! -x $(BIN)/python ]; then \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
			if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
				echo "making $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV); break; \
			fi; \
		done; \
	fi
	@[ -x $(BIN)/python ] || { echo "error: found no Python 3.11 to 3.13; install one or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 2; }
	@if [ ! -x $(BIN)/uv ]; then \
		awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.lock; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock; \
	fi
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@[ -e .git ] || $(BIN)/dvc config --local core.no_scm true  # a downloaded tree without its history
	@touch $(SET_UP)
