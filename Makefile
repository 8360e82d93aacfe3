# Each target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
VENV := .venv
IN_VENV := $(VENV)/bin/python
COLAB := tests/lessons/test_colab.py
INSTALL := $(IN_VENV) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help experiment test test-study test-browser lint lab notebooks clean

help:
	@echo "make experiment   train the model on digit chains and plot loops against accuracy (2 to 4 minutes)"
	@echo "make test         run the tests"
	@echo "make lab          open the lessons in JupyterLab"
	@echo "make test-study   rerun three rows of the study and compare them with the committed ones (5 to 10 minutes)"
	@echo "make test-browser run a lesson in JupyterLab in Chromium"
	@echo "make notebooks    write badges and links, and execute the lessons again"
	@echo "make lint         check style only"
	@echo "make clean        remove the virtual environment and caches"
	@echo "ARGS passes options on, as in: make experiment ARGS='--recipe hold --seed 3'"

experiment: $(VENV)/package
	$(IN_VENV) -m mythos_lite experiment $(ARGS)

test: $(VENV)/tests lint
	$(IN_VENV) -m pytest -n 2 $(if $(ARGS),$(ARGS),--cov --ignore=$(COLAB))
	$(if $(ARGS),,CI=1 OMP_NUM_THREADS=1 $(IN_VENV) -m pytest --nbval --nbval-current-env -n 2 --dist loadscope notebooks $(COLAB))

test-study: $(VENV)/package
	rm -rf runs/slice
	$(IN_VENV) -m mythos_lite study ladder removal --rungs "as published" "+ tanh on the state" "experts not balanced" --seeds 0 --results runs/slice --compare results/study

test-browser: $(VENV)/tests
	@test -n "$(CHROMIUM)" || { echo "Chromium is needed; name it with CHROMIUM=/path/to/chromium"; exit 1; }
	$(INSTALL) playwright
	CHROMIUM=$(CHROMIUM) $(IN_VENV) -m pytest tests/browser

notebooks: $(VENV)/tests
	$(IN_VENV) notebooks/build.py --run all

lint: $(VENV)/tests
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .

lab: $(VENV)/lessons
	$(IN_VENV) -m jupyterlab $(wildcard notebooks) $(ARGS)

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with PYTHON=python3.11"; exit 1; }
	@echo "Creating a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing; on Debian and Ubuntu it is in the package python3-venv"; exit 1; }
	@touch $@

$(VENV)/package: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing mythos_lite and what it runs on (torch is large; this can take some minutes)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/tests: $(VENV)/lessons
	@echo "Installing what the tests need"
	@$(INSTALL) --editable ".[test]"
	@touch $@

$(VENV)/lessons: $(VENV)/package requirements.txt
	@echo "Installing what the lessons need"
	@$(INSTALL) --requirement requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .coverage build *.egg-info
