# `make train` and `make test` set up what they need on a machine that has Python, pip and make.
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
DATA   ?=
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
SYNTHETIC := data/synthetic

.PHONY: train test check docs
.DELETE_ON_ERROR:

# The main job. `make train CONFIG=configs/cnn.yaml DATA=DIR ARGS="--trainer.max_steps 900"` passes through.
train: $(VENV)/.installed $(if $(DATA),,$(SYNTHETIC))
	$(BIN)/python scripts/train.py --config $(CONFIG) --data.root "$(or $(DATA),$(SYNTHETIC))" $(ARGS)

# Every test, the slow ones too; those on real patches where PCAM_REAL_DATA names their folder. Two processes of one
# thread each: with more threads than cores, those of one process wait for those of the other.
test: $(VENV)/.installed check docs
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "" -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The pages of docs/ as a site, which can be read without a connection: site/index.html. A broken link fails.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Installs again only if what is to be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(SYNTHETIC): | $(VENV)/.installed
	$(BIN)/python scripts/prepare_data.py synthesize --output $@
