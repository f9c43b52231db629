# `make gallery` and `make test` set everything up on a fresh machine and then do the job.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: gallery test lint clean

gallery: $(INSTALLED)
	$(BIN)/python -m viz.gallery build

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The exact versions of constraints.txt; PIP_EXTRA_INDEX_URL is honoured, for PyTorch's own index of CPU builds.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,gallery,cluster]'
	touch $@

clean:
	rm -rf $(VENV) gallery/_site gallery/_build gallery/_cache
