# Two commands: `make quickstart` and `make test`. Each makes the environment in .venv when it is not there yet.

VENV    ?= .venv
EVAL    ?= .venv-eval
PYTHON  ?= $(shell for p in python3.11 python3.12 python3 python; do \
               $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; \
             done)
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
PIP     := $(BIN)/python -m pip install -qq --disable-pip-version-check
TORCH   := torch==2.13.0+cpu
# Where the CPU builds of torch are published; asked only if the configured package index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Threads that wait busily slow down everything beside them.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE = 1

.DEFAULT_GOAL := help
.PHONY: help quickstart three-tasks test lint env eval-env properties layout-properties loss-properties hostile-answers clean-env

help:
	@echo "make quickstart   make the environment, then train a small Qwen2.5-VL to read handwriting, on a CPU"
	@echo "make three-tasks  afterwards: its policy before and after APO on digits, counting and geometry, with pages"
	@echo "make test         make the environment, then ruff, mypy and the tests"
	@echo "make lint         ruff and mypy alone"
	@echo "make env          the environment alone (in $(VENV); about 4 GB)"
	@echo "make eval-env     lmms-eval's own environment (in $(EVAL)), for tools/published_benchmarks.py"
	@echo "make properties   random models, inputs and layouts: outputs against transformers, losses against one unsplit"
	@echo "                  computation (DRAWS=500 of each; layout-properties or loss-properties: one of them alone)"
	@echo "make hostile-answers  answers that try to hang or fool the grader, and DRAWS=1000 random changes of them"
	@echo "make clean-env    remove it"
	@echo "PYTHON=/path/to/python3.12 chooses the interpreter: 3.11 (tested), or 3.12 (not yet)"

env: $(READY)

$(READY): setup.py requirements/cpu-constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no Python 3.11 or 3.12 on PATH; install one, or run make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else \
	    "error: $(PYTHON) is Python %d.%d; 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.12" % v)'
	@echo "Making the environment in $(VENV) with $$($(PYTHON) --version): several minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --dry-run --no-deps "$(TORCH)" >/dev/null 2>&1 && index= || index="--extra-index-url $(TORCH_INDEX)"; \
	    $(PIP) $$index --constraint requirements/cpu-constraints.txt --editable ".[cpu,demo,dev]"
	@touch $(READY)

eval-env: requirements/eval-environment.txt
	@test -x $(EVAL)/bin/python || $(PYTHON) -m venv $(EVAL)
	@pip="$(EVAL)/bin/python -m pip install -qq --disable-pip-version-check"; \
	    $$pip --dry-run --no-deps "$(TORCH)" >/dev/null 2>&1 && index= || index="--extra-index-url $(TORCH_INDEX)"; \
	    $$pip $$index "$(TORCH)" --requirement requirements/eval-environment.txt && \
	    $$pip --no-deps --requirement requirements/eval-grader.txt
	@$(EVAL)/bin/python -m pip uninstall -qq -y torchvision

quickstart: $(READY)
	@$(BIN)/python examples/digits/quickstart.py

three-tasks: $(READY)
	@$(BIN)/python examples/digits/three_tasks.py

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@$(BIN)/python -m pytest -q

# Random models, inputs and layouts: a line per draw and a summary in properties.log and loss_properties.log.
properties: layout-properties loss-properties

layout-properties: $(READY)
	@$(BIN)/python -m tests.properties.layouts --draws $(or $(DRAWS),500) --log properties.log

loss-properties: $(READY)
	@$(BIN)/python -m tests.properties.losses --draws $(or $(DRAWS),500) --log loss_properties.log

hostile-answers: $(READY)
	@$(BIN)/python -m tests.properties.answers --mutations $(or $(DRAWS),1000)

clean-env:
	rm -rf $(VENV)
