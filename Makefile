# `make` lists the targets. Each sets up .venv from pinned versions first, once.

PYTHON ?= python3
DATA ?= synthetic
SEED ?= 0
PRESET ?= forget10
PIP_ARGS ?=
ARGS ?=

VENV := .venv
OLDEST := .venv-oldest
READY := $(VENV)/ready
RUN := $(VENV)/bin/python

.PHONY: help setup demo muse full-size test test-oldest bench theory theory-thorough theory-mutations lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

setup: $(READY) ## install into .venv, from requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: found Python %d.%d, need 3.11 or newer; call make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## unlearn 2 of 20 authors and report; DATA=<folder of TOFU json files> or DATA=hub, SEED=, ARGS="..."
	@$(RUN) -m experiments tofu --data "$(DATA)" --seed $(SEED) $(ARGS)

muse: $(READY) ## unlearn 28 invented news articles by MUSE; DATA=hub or a folder, SEED=, ARGS="..."; 9.5 minutes on 2 idle cores
	@$(RUN) -m experiments muse --data "$(DATA)" --seed $(SEED) $(ARGS)

full-size: $(READY) ## all methods on TOFU's PRESET with a 100M-parameter model, 3 seeds, for one GPU; goes on when called again
	@for seed in 0 1 2; do \
	  $(RUN) -m experiments tofu --data "$(DATA)" --preset $(PRESET) --size 100m --methods all --finetune-batch 64 \
	    --steps 120 --batch 32 --seed $$seed --out runs/full-$(PRESET)-$$seed $(ARGS) || exit; done
	@$(RUN) -m experiments summary runs/full-$(PRESET)-[012] --out runs/full-$(PRESET)

test: $(READY) ## run every test
	@$(RUN) -m pytest

test-oldest: ## the tests of the Trainer and the command with the oldest torch, transformers and accelerate that are accepted
	@test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  torch==2.11.0 transformers==5.0.0 accelerate==1.13.0 --editable ".[dev]"
	@$(OLDEST)/bin/python -m pytest tests/ngdiff/test_trainer.py tests/ngdiff/test_checkpoints.py tests/ngdiff/test_unlearn.py \
	  tests/ngdiff/test_command.py $(ARGS)

bench: $(READY) ## time the step beside other ways to write it; appends to kernels/results/bench.csv
	@$(RUN) -m ngdiff_kernels.bench --out kernels/results/bench.csv --plot kernels/results/bench.png $(ARGS)

theory: $(READY) ## check every claim against the library and write theory/report/; ARGS="--claim T5" for one
	@$(RUN) -m theory $(ARGS)

theory-thorough: $(READY) ## the same with 10,000 problems a claim and the 1.3M-parameter model; 20 minutes on 2 cores
	@$(RUN) -m theory --examples 10000 --model 1m $(ARGS)

theory-mutations: $(READY) ## show which claim catches which wrong version of the library
	@$(RUN) -m theory.mutations

lint: $(READY) ## check style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: $(READY) ## rewrite the code in the project's style
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean: ## remove .venv and caches; results under runs/ stay
	rm -rf $(VENV) $(OLDEST) .pytest_cache .hypothesis .mypy_cache .ruff_cache
