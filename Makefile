# Each target builds .venv by itself where it is missing or older than what it is made from.
PYTHON ?= python3
# Of what is imported the compiled form is kept: without it each process compiles torch anew.
export PYTHONDONTWRITEBYTECODE :=
PRESET ?= quick
VENV := .venv
RUN := $(VENV)/bin/python -m
# These run once, with checks of every index.
KERNELS := tests/test_table.py tests/test_bag.py tests/test_streams.py tests/test_stress.py tests/test_pool.py
JOBS ?= 2

.PHONY: help study docs report test browser lab bench notebooks format clean

help:
	@echo "make study               the study in minutes: notebooks, figures, docs (PRESET=full: the committed records, FRESH=1: all anew)"
	@echo "make docs                pages, committed notebooks and reference as an offline site, build/site"
	@echo "make test                format, lint, types, unit tests with doctests, notebooks, docs, browser"
	@echo "make browser             the browser tests alone (needs chromium)"
	@echo "make lab                 JupyterLab in notebooks/"
	@echo "make bench               speed and memory beside peers, and the slow tests (some 15 minutes, 10 GB)"
	@echo "make notebooks           execute the notebooks in place, as they are committed"
	@echo "make format              format code and notebooks"

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) pip install --quiet --no-compile --constraint constraints.txt --editable '.[study,docs,integrations,dev]'
	@touch $@

study: $(VENV)/.ready
	$(RUN) bonlib.study --preset $(PRESET) $(if $(FRESH),--fresh)

docs report: $(VENV)/.ready
	$(RUN) sphinx -b html -W --keep-going -q docs build/site
	@echo "build/site/index.html"

# The notebooks run with records of their own beside the committed ones, so that no open notebook's checkpoint is touched.
test: $(VENV)/.ready
	$(RUN) ruff format --check --quiet .
	$(RUN) ruff check --quiet .
	$(RUN) pyright
	$(RUN) pytest -q -n $(JOBS) $(addprefix --ignore=,$(KERNELS)) tests bonlib
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/build/boundscheck $(RUN) pytest -q -n $(JOBS) $(KERNELS)
	rm -rf build/check && mkdir -p build/check/results
	ln -s $(filter-out %/scratch/,$(wildcard $(CURDIR)/data/results/*/)) build/check/results/
	BONLIB_RESULTS=$(CURDIR)/build/check/results BONLIB_FIGURES=$(CURDIR)/build/check/figures OMP_NUM_THREADS=1 $(RUN) pytest -q -n $(JOBS) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout 300 notebooks
	$(MAKE) --no-print-directory docs
	$(RUN) pytest -q -rs -n $(JOBS) -m "browser and not slow" tests/test_browser.py

browser: docs
	$(RUN) pytest -q -m browser tests/test_browser.py

lab: $(VENV)/.ready
	cd notebooks && ../$(RUN) jupyterlab --LabApp.default_url=/lab/tree/00_start_here.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(VENV)/.ready
	$(VENV)/bin/python benchmarks/run.py
	$(RUN) pytest -q -m slow tests

notebooks: $(VENV)/.ready
	for notebook in notebooks/[0-9]*.ipynb; do $(RUN) papermill $$notebook $$notebook --no-progress-bar || exit 1; done
	$(MAKE) format

format: $(VENV)/.ready
	$(RUN) nbstripout --keep-output --keep-count --extra-keys "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution metadata.language_info" notebooks/[0-9]*.ipynb
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

clean:
	rm -rf build $(VENV)
