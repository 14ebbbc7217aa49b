PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow bench gpu gpu-wheels lint docs wheel sweep report tensorboard lock

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 14

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "layergraft needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(BIN)/.installed  ## make .venv and install what pyproject.toml names, once

test: setup  ## the tests, as CI runs them
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## the tests that `make test` leaves out: minutes each, one at a time
	$(BIN)/python -m pytest -m slow

bench: setup  ## speed, beside what people would use instead: long; TOPICS='prefix start' takes some of it
	$(BIN)/python benchmarks/bench.py $(TOPICS)

# No setup: these are for machines that have PyTorch and no network. GPU_PARTS=1,2 runs some parts, DEVICE=cpu
# rehearses them, GPU_MINUTES=9 gives them more time than 5 minutes all told.
DEVICE ?= cuda
OUT ?= outputs/gpu
GPU_WHEELS ?= outputs/gpu-wheels
# The environment of `make setup` if it is there and no other Python is asked for.
GPU_PYTHON = $(if $(and $(filter file,$(origin PYTHON)),$(wildcard $(BIN)/.installed)),$(BIN)/python,$(PYTHON))

gpu:  ## check and measure layergraft on an NVIDIA GPU, in five minutes (docs/gpu.md)
	$(GPU_PYTHON) benchmarks/gpu.py --device '$(DEVICE)' --wheels '$(GPU_WHEELS)' --to '$(OUT)' $(if $(GPU_PARTS),--parts '$(GPU_PARTS)') $(if $(GPU_MINUTES),--minutes '$(GPU_MINUTES)')

gpu-wheels:  ## wheels of what a machine for `make gpu` may lack, in outputs/gpu-wheels; needs a network
	$(GPU_PYTHON) -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir '$(GPU_WHEELS)' hydra-core omegaconf antlr4-python3-runtime

lint: setup  ## ruff (rules, format), mypy (strict) and the hooks of pre-commit
	$(BIN)/pre-commit run --all-files

docs: setup  ## the documentation as a site in dist/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

sweep: setup  ## the default sweep (a few minutes on 2 cores), with its report
	$(BIN)/layergraft train -m +experiment=quickstart

report: setup  ## the default sweep's report, written anew
	$(BIN)/layergraft report outputs/sweeps/quickstart

tensorboard: setup  ## TensorBoard on all runs, at 127.0.0.1:6006
	@echo 'http://127.0.0.1:6006/#custom_scalars&regexInput=seed0 shows the runs of one seed: of over 40 runs TensorBoard draws those alone that its filter leaves'
	$(BIN)/tensorboard --logdir outputs/runs --host 127.0.0.1

wheel: setup  ## layergraft as a wheel, in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lock: setup  ## pin what is installed now in constraints.txt
	$(BIN)/python -m pip freeze --all --exclude pip --exclude layergraft > constraints.txt
