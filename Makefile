# One command each; needs python3 (3.11 or newer, with venv), make and a package index, and nothing else.
#
#   make setup        .venv with the locked versions (made once, and again when they change)
#   make quickstart   the whole job on real handwritten digits; ARGS="--workdir=DIR …" is passed on
#   make test         check, and the tests that a change must pass
#   make test-all     the same, and what takes an hour more:
#                     test-processes, trainings and launches as real processes that are killed, on Slurm and over ssh too
#                     test-slow, models of published sizes, plans for pods, the quickstart (test-quickstart: it alone)
#   make check        format, lint, types, import rules
#   make format       put the code into the one format
#   make lock         constraints.txt resolved anew for every supported Python (needs uv)
#   make peer         .venv-torch with Torch-Pruning, which the compression benchmarks compare with (Python 3.11 to 3.13)
#   make plan         .venv-plan with libtpu, whose compiler tools.plan asks about pods that are not here
#   make tf           .venv-tf with TensorFlow, which the training benchmarks compare with
#   make clean        remove .venv, .venv-torch, .venv-plan, .venv-tf, caches and build leftovers (never runs/)
#
# make PYTHON=python3.13 setup picks another interpreter (make clean first, if there is a .venv).

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m
ARGS ?=

# pip shows its progress on a terminal and stays silent in a log.
PIP_OUTPUT := $(shell [ -t 2 ] || echo --quiet)
PYTEST := $(RUN) pytest
# Slow tests compute more than they compile: no flags, so that XLA optimizes as it does for users (tests/conftest.py).
PYTEST_SLOW := XLA_FLAGS= $(PYTEST) -m slow
# More workers than this gain little: XLA uses the cores by itself.
PARALLEL := -n auto --maxprocesses=4 --dist=loadfile

# Folders that hold tests by now. tests/devices needs a process of its own: JAX counts its devices once.
QUICK := $(wildcard tests/unit tests/architecture tests/conformance tests/e2e)
DEVICES := $(wildcard tests/devices)
PROCESSES := $(wildcard tests/processes)
# Files with slow tests, found by their mark.
SLOW := $(if $(QUICK),$(shell grep -rlE 'mark\.slow' --include='test_*.py' $(QUICK)))
SLOW_DEVICES := $(if $(DEVICES),$(shell grep -rlE 'mark\.slow' --include='test_*.py' $(DEVICES)))

.PHONY: setup quickstart peer plan tf test test-quick test-devices test-all test-processes test-slow test-quickstart
.PHONY: check format lock clean
.DEFAULT_GOAL := setup

setup: $(READY)

# The stamp is written last: what was interrupted is made anew, from an empty .venv.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: %s is Python %d.%d; Vitforge needs 3.11 or newer: make PYTHON=python3.12 …" % (sys.executable, *sys.version_info[:2]))'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'error: $(PYTHON) has no venv; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	@echo 'Installing the locked versions into $(VENV) (some minutes the first time) …' >&2
	@$(RUN) pip install $(PIP_OUTPUT) --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(READY)
	@$(RUN) tools.quickstart $(ARGS)

# An environment of its own: nothing of it is imported by Vitforge. Where pip finds a CPU build of torch, that one does.
PEER := .venv-torch
PEER_PACKAGES := torch==2.13.0 timm==1.0.31 torch-pruning==1.6.1

peer: $(PEER)/.ready

$(PEER)/.ready: Makefile
	@rm -f $@
	@test -e $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	@echo 'Installing $(PEER_PACKAGES) into $(PEER) (some minutes the first time) …' >&2
	@$(PEER)/bin/python -m pip install $(PIP_OUTPUT) --disable-pip-version-check $(PEER_PACKAGES)
	@touch $@

# libtpu compiles for pods on a machine without one, and has no business where nothing is a TPU.
PLAN := .venv-plan

plan: $(PLAN)/.ready

$(PLAN)/.ready: pyproject.toml constraints.txt
	@rm -f $@
	@test -e $(PLAN)/bin/python || $(PYTHON) -m venv $(PLAN)
	@echo 'Installing jax[tpu] and the trainer into $(PLAN) (some minutes the first time) …' >&2
	@$(PLAN)/bin/python -m pip install $(PIP_OUTPUT) --disable-pip-version-check --constraint constraints.txt --editable '.[train,tpu]'
	@touch $@

# What the trainer is compared with: tf.data, and what google-research/vision_transformer imports.
TF := .venv-tf
TF_PACKAGES := tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 tensorboard==2.21.0 clu==0.0.12 pandas einops scikit-image

tf: $(TF)/.ready

$(TF)/.ready: Makefile constraints.txt
	@rm -f $@
	@test -e $(TF)/bin/python || $(PYTHON) -m venv $(TF)
	@echo 'Installing $(TF_PACKAGES) into $(TF) (some minutes the first time) …' >&2
	@$(TF)/bin/python -m pip install $(PIP_OUTPUT) --disable-pip-version-check --constraint constraints.txt $(TF_PACKAGES) \
		jax flax optax ml_collections
	@touch $@

test: check test-quick test-devices

test-all: test test-processes test-slow

test-quick: $(READY)
	$(PYTEST) $(PARALLEL) -m 'not slow' $(QUICK)

test-devices: $(READY)
	$(if $(DEVICES),$(PYTEST) -m 'not slow' $(DEVICES))

# One after the other: these start servers and trainings of several processes, which would only slow each other down.
test-processes: $(READY)
	$(if $(PROCESSES),$(PYTEST) $(PROCESSES))

test-slow: $(READY) $(PLAN)/.ready
	$(if $(SLOW),$(PYTEST_SLOW) $(SLOW))
	$(if $(SLOW_DEVICES),$(PYTEST_SLOW) $(SLOW_DEVICES))

test-quickstart: $(READY)
	$(PYTEST_SLOW) tests/e2e/test_quickstart.py

check: $(READY)
	@$(RUN) ruff format --check --output-format=concise . || { echo 'error: make format puts this right' >&2; exit 1; }
	$(RUN) ruff check --quiet .
	$(RUN) mypy
	$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache --no-logo

format: $(READY)
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

lock:
	uv pip compile --quiet --universal --python-version 3.11 --all-extras pyproject.toml --output-file constraints.new \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links
	sed '1!d' constraints.txt | cat - constraints.new > constraints.both
	mv constraints.both constraints.txt
	rm constraints.new

clean:
	rm -rf $(VENV) $(PEER) $(PLAN) $(TF) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
