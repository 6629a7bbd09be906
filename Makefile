# `make demo` and `make test` do all of their own set-up.
#
#   make demo [SEED=1]       synthetic plates to a judged translation, with a report (about 10 minutes on 2 cores)
#   make test                every test that is not marked slow
#   make study STUDY=bbbc021_cyclohexamide ROOT=path/to/bbbc021_cells
#   make check               lint, types and import contracts

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 1
STUDY ?= demo
OUT ?= runs/$(STUDY)$(if $(filter demo,$(STUDY)),-seed$(SEED))
ROOT ?=
CORES ?= $(shell python3 -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
WORKFLOW = $(BIN)/snakemake --snakefile pipelines/workflow/Snakefile --cores $(CORES) --quiet rules --nolock --rerun-triggers mtime

.PHONY: demo test slow study check install clean

demo: STUDY := demo
demo: study

study: install
	PATH="$(abspath $(BIN)):$$PATH" $(WORKFLOW) --config study=pipelines/studies/$(STUDY) out=$(OUT) seed=$(SEED) $(if $(ROOT),root=$(ROOT))
	@cat $(OUT)/evaluation/table.txt
	@echo; echo "Report: $(OUT)/evaluation/report.html"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed

# On a machine without an NVIDIA GPU the CPU build of torch comes first, and nothing afterwards may replace it. The .pth file lets every
# interpreter of the environment import the published torchvision beside it (cellbridge/_compat.py): accelerate's launcher does, through timm.
$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 was found. Install one, or name it: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q torch==2.13.0; \
	else $(BIN)/pip install -q torch==2.13.0+cpu 2>/dev/null || $(BIN)/pip install -q torch==2.13.0; fi
	$(BIN)/pip install -q -c .ci/constraints.txt -e '.[pipelines,notebooks,profiles,extractors,dev]'
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && cp cellbridge/_compat.py $$site/torchvision_guard.py && \
	echo 'import torchvision_guard; torchvision_guard.install()' > $$site/torchvision_guard.pth
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
