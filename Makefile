# Each target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
VENV := .venv
IN_VENV := $(VENV)/bin/python
INSTALL := -m pip install --quiet --disable-pip-version-check
INSTALL_HERE := $(IN_VENV) $(INSTALL) --constraint constraints.txt
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
COLAB := .venv-colab-$(VERSION)
FAST := .venv-fast-$(VERSION)
LOWEST := .venv-lowest-$(VERSION)
OUT := .venv-out
SITE := .venv-site
IN_SITE := $(SITE)/bin/python

# One peer is compared in the form that the transformers of constraints.txt give it, and what autograd keeps is counted for
# the torch of constraints.txt.
NOT_LOWEST := tests/model/test_moe.py::test_equals_deepseek_v3 \
  tests/measure/test_cost.py::test_what_training_keeps_is_met_to_five_per_cent

define CREATE
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with PYTHON=python3.11"; exit 1; }
@echo "Creating a virtual environment in $(@D)"
@$(PYTHON) -m venv $(@D) || { echo "The venv module is missing; on Debian and Ubuntu it is in the package python3-venv"; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help experiment site test test-study test-browser test-site test-colab test-fast test-lowest test-cuda test-out bench colab-versions lint lab notebooks clean

help:
	@echo "make experiment   train the model on digit chains and plot loops against accuracy (2 to 4 minutes)"
	@echo "make test         run the tests, and the lessons whole with the newest versions, from an empty folder"
	@echo "make test COVERAGE=--cov  say besides which lines of the package none of the tests reaches"
	@echo "make test-colab   run the lessons whole with Colab's versions: from a wheel, and as standalone files without network"
	@echo "make lab          open the lessons in JupyterLab"
	@echo "make test-study   rerun four rows of the study and compare them with the committed ones (6 to 12 minutes)"
	@echo "make test-browser run a lesson in JupyterLab in Chromium"
	@echo "make site         build the site, with lessons as pages and the model in the browser, into site/_build/html; needs npm"
	@echo "make test-site    build it, and try it in Chromium"
	@echo "make test-fast    run the tests alone, as in: make test-fast PYTHON=python3.12; test-lowest: with the lowest versions"
	@echo "make test-cuda    compare an NVIDIA GPU with the CPU, and time a step there; TORCH_PYTHON names a Python with CUDA's torch"
	@echo "make test-out     run the tests of mythos_lite.interop with the libraries that they need, and the appendix"
	@echo "make bench        measure speed and memory beside a peer and the machine's limit (5 minutes; ARGS names parts)"
	@echo "make colab-versions  Colab's versions beside those tested; FREEZE=pip-freeze.txt names a newer list of Colab's"
	@echo "make notebooks    write badges and links, and execute the lessons again"
	@echo "make lint         check style only"
	@echo "make clean        remove the virtual environments and caches"
	@echo "ARGS passes options on, as in: make experiment ARGS='--recipe hold --seed 3'"

experiment: $(VENV)/package
	$(IN_VENV) -m mythos_lite experiment $(ARGS)

test: $(VENV)/tests lint
	$(IN_VENV) -m pytest -n 2 $(ARGS) $(COVERAGE)
	$(if $(ARGS),,$(IN_VENV) tests/colab/lessons.py newest)

test-colab: colab-versions
	$(COLAB)/bin/python tests/colab/lessons.py colab

colab-versions: $(COLAB)/created
	$(COLAB)/bin/python tests/colab/versions.py $(FREEZE)

test-fast: $(FAST)/created
	$(FAST)/bin/python -m pytest -n 2 $(ARGS)

test-lowest: $(LOWEST)/created
	$(LOWEST)/bin/python -m pytest -n 2 --disable-warnings $(addprefix --deselect ,$(NOT_LOWEST)) $(ARGS)

# An interpreter that has a CUDA build of torch, and pytest, is taken as it is.
test-cuda: $(if $(TORCH_PYTHON),,$(VENV)/tests)
	@$(or $(TORCH_PYTHON),$(IN_VENV)) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	  f"There is no GPU to test on: torch {torch.__version__} sees no CUDA device. Run this where there is one; \
	TORCH_PYTHON names a Python whose torch was built with CUDA.")'
	MYTHOS_TEST_DEVICE=cuda PYTHONPATH=. $(or $(TORCH_PYTHON),$(IN_VENV)) -m pytest tests/cuda $(ARGS)
	PYTHONPATH=. $(or $(TORCH_PYTHON),$(IN_VENV)) benchmarks/on_gpu.py

# Rows whose seeds agree: with the tanh and no more, long chains come out otherwise with every change in rounding.
test-study: $(VENV)/package
	rm -rf runs/slice
	$(IN_VENV) -m mythos_lite study ladder removal --rungs "as published" "+ loss from the needed loop on, one digit too" "experts not balanced" --seeds 0 --results runs/slice --compare results/study
	$(IN_VENV) -m mythos_lite study baseline-tasks --rungs "parity: GRU" --seeds 50 --results runs/slice --compare results/study

test-out: $(OUT)/created
	$(OUT)/bin/python -m pytest -n 2 tests/interop $(ARGS)
	$(if $(ARGS),,$(OUT)/bin/python tests/colab/lessons.py appendix)

test-browser: $(VENV)/tests
	@test -n "$(CHROMIUM)" || { echo "Chromium is needed; name it with CHROMIUM=/path/to/chromium"; exit 1; }
	$(INSTALL_HERE) playwright
	CHROMIUM=$(CHROMIUM) $(IN_VENV) -m pytest tests/browser

site: $(SITE)/site
	$(IN_SITE) site/build.py

test-site: $(SITE)/tests site
	@test -n "$(CHROMIUM)" || { echo "Chromium is needed; name it with CHROMIUM=/path/to/chromium"; exit 1; }
	CHROMIUM=$(CHROMIUM) $(IN_SITE) -m pytest tests/site $(ARGS)

bench: $(VENV)/package .bench/open_mythos
	$(IN_VENV) benchmarks/bench.py $(ARGS)

notebooks: $(VENV)/tests
	$(IN_VENV) notebooks/build.py --run all

lint: $(VENV)/tests
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .

lab: $(VENV)/lessons
	$(IN_VENV) -m jupyterlab $(wildcard notebooks) $(ARGS)

$(VENV)/created:
	$(CREATE)
	@touch $@

$(VENV)/package: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing mythos_lite and what it runs on (torch is large; this can take some minutes)"
	@$(INSTALL_HERE) --editable .
	@touch $@

$(VENV)/tests: $(VENV)/lessons
	@echo "Installing what the tests need"
	@$(INSTALL_HERE) --editable ".[test]"
	@touch $@

$(VENV)/lessons: $(VENV)/package requirements.txt
	@echo "Installing what the lessons need"
	@$(INSTALL_HERE) --requirement requirements.txt
	@touch $@

$(SITE)/created:
	$(CREATE)
	@touch $@

$(SITE)/site: $(SITE)/created site/requirements.txt site/package.json pyproject.toml constraints.txt
	@command -v npm >/dev/null || { echo "npm is needed; it comes with Node.js, on Debian and Ubuntu in the package npm"; exit 1; }
	@echo "Installing what the site is built with (torch is large; this can take some minutes)"
	@$(IN_SITE) $(INSTALL) --constraint constraints.txt --requirement site/requirements.txt --editable .
	@npm install --prefix site --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
	@touch $@

$(SITE)/tests: $(SITE)/site
	@$(IN_SITE) $(INSTALL) --constraint constraints.txt playwright pytest
	@touch $@

# The peer's model needs torch alone; what else its package asks for is left out.
.bench/open_mythos: $(VENV)/created
	@$(IN_VENV) $(INSTALL) --no-deps --target $(@D) open-mythos==0.5.0

$(COLAB)/created: tests/colab/colab.txt
	$(CREATE)
	@echo "Installing Colab's versions (torch is large; this can take some minutes)"
	@$(@D)/bin/python $(INSTALL) --requirement $<
	@touch $@

$(FAST)/created: requirements.txt pyproject.toml constraints.txt
	$(CREATE)
	@echo "Installing what the tests need (torch is large; this can take some minutes)"
	@$(@D)/bin/python $(INSTALL) --constraint constraints.txt --requirement requirements.txt --editable ".[test]"
	@touch $@

$(OUT)/created: requirements.txt pyproject.toml constraints.txt
	$(CREATE)
	@echo "Installing libraries that run models elsewhere (torch is large; this can take some minutes)"
	@$(@D)/bin/python $(INSTALL) --constraint constraints.txt --requirement requirements.txt --editable ".[test,out]"
	@touch $@

# What needs newer versions of the lowest is left open.
$(LOWEST)/created: requirements.txt pyproject.toml constraints.txt
	$(CREATE)
	@echo "Installing the lowest versions (torch is large; this can take some minutes)"
	@sed -n 's/>=/==/p' requirements.txt > $(@D)/lowest.txt
	@names=$$(sed -n 's/>=.*//p' requirements.txt | paste -s -d '|'); \
	  grep -v -E "^($$names|transformers|tokenizers|huggingface_hub)==" constraints.txt > $(@D)/constraints.txt
	@$(@D)/bin/python $(INSTALL) --constraint $(@D)/constraints.txt --requirement $(@D)/lowest.txt --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-* .bench site/_build site/node_modules .pytest_cache .hypothesis .ruff_cache .coverage build *.egg-info
