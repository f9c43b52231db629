# `make gallery`, `make serve`, `make test` and `make bench` set everything up on a fresh machine and then do the job.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
BENCH_VENV ?= .venv-bench
JOBS ?= 2

.PHONY: gallery serve test lint bench crash fuzz load costs clean

gallery: $(INSTALLED)
	$(BIN)/python -m viz.gallery build --jobs $(JOBS)

# The built site, on this machine, until Ctrl-C.
serve: $(INSTALLED)
	$(BIN)/python -m viz.gallery serve

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The exact versions of constraints.txt; PIP_EXTRA_INDEX_URL is honoured, for PyTorch's own index of CPU builds.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,gallery,fast,cluster,adapters]'
	touch $@

# Ours and the peers' speed, side by side; half an hour. The gallery shows the table.
bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m pytest -c tests/benchmarks/pytest.ini tests/benchmarks --table gallery/data/benchmarks.json

# The peers have an environment of their own. One that cannot be installed is absent from the table, which says so.
PEERS = $(BENCH_VENV)/bin/python -m pip install --quiet --no-deps -c constraints.txt
$(BENCH_VENV)/.installed: pyproject.toml constraints.txt tests/benchmarks/peers.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[bench,fast]'
	$(PEERS) -r tests/benchmarks/peers.txt || grep -v '^#' tests/benchmarks/peers.txt | while read package; do \
		$(PEERS) $$package || echo "ABSENT: $$package could not be installed"; done
	touch $@

# What run files stand, counted in gallery/data/reliability.json. Killed writers: every write, and real kills.
RELIABILITY = $(BIN)/python tests/reliability
COUNTS = --table gallery/data/reliability.json
crash: $(INSTALLED)
	$(RELIABILITY)/crash.py --twice 20 $(COUNTS)
	$(RELIABILITY)/kill.py --kills 50 $(COUNTS)

# Corrupted files.
fuzz: $(INSTALLED)
	$(RELIABILITY)/fuzz.py --cases 2000 $(COUNTS)

# A million steps, 10 GB, a hundred runs at once. FOLDER is where they are written and removed again.
load: $(INSTALLED)
	$(RELIABILITY)/load.py $(if $(FOLDER),--folder $(FOLDER)) $(COUNTS)

# Seconds and memory of analyses of networks of up to 11 million parameters; an hour, and 2 GB of files meanwhile.
costs: $(INSTALLED)
	$(BIN)/python tests/costs/costs.py --table gallery/data/costs.json

clean:
	rm -rf $(VENV) $(BENCH_VENV) gallery/_site gallery/_build gallery/_cache
