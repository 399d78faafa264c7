# hvdyolo: `make help` lists what there is.
#
# Every target makes .venv first if need be, so a fresh clone needs no step before `make demo` or
# `make test`. Variables of the set-up (PYTHON, TORCH, MPI, HVDYOLO_CACHE …): scripts/make_env.sh --help.

SHELL := /bin/bash
BIN := .venv/bin

# The tests and the demo also run in containers, whose only user is root; Open MPI has to be told
# that this is meant. Nothing that a user starts by hand sets these.
ifeq ($(shell id -u),0)
AS_ROOT := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
endif

# make test TESTS=tests/unit/metrics, make test PYTEST="-k parity -x", make test JOBS=0 for one after the other
TESTS ?= tests
PYTEST ?=
# Tests mostly wait: for imports, launchers, deadlines. Files are shared out whole, with their fixtures, the
# long ones first.
JOBS ?= 2
# make demo IMAGES=120
IMAGES ?=
# make study-augment WORK=/scratch/study
WORK ?= study

.PHONY: help env demo test lint format bench-data bench-train study-augment study-bccd wheelhouse clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: ## make or repair .venv, which holds everything
	@scripts/make_env.sh

demo: env ## draw a dataset, pack it, train on two ranks, evaluate, detect
	@$(AS_ROOT) scripts/demo.sh $(IMAGES)

# tests/parallel runs on several ranks, started by tests/integration.
test: env ## all tests; SLURM's where SLURM is installed
	@$(AS_ROOT) $(BIN)/python -m pytest $(TESTS) --ignore=tests/parallel -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST)

lint: env ## ruff, mypy --strict, import-linter, C warnings, shellcheck
	@scripts/lint.sh

format: env ## let ruff format the Python files
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-data: env ## what is claimed of packing, reading, order and augmentation, measured: about 10 minutes
	@$(AS_ROOT) scripts/bench_data.sh

bench-train: env ## training against its plain form, and two ranks against two processes and DDP: about 14 minutes
	@$(AS_ROOT) $(BIN)/python benchmarks/train_speed.py

study-augment: env ## what faster ways to make training samples cost in AP: some hours, and resumes
	@$(AS_ROOT) $(BIN)/python benchmarks/study_augment.py --work $(WORK)

study-bccd: env ## AP on BCCD with five seeds by one rank and by two: two hours, and resumes
	@$(AS_ROOT) $(BIN)/python benchmarks/study_bccd.py --work $(WORK)

wheelhouse: env ## collect every wheel for a site without internet
	@scripts/wheelhouse.sh

clean: ## remove .venv, the demo and all caches of this folder; kept Horovod wheels stay
	rm -rf .venv .venv.* demo wheelhouse build dist *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
