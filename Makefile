# `make help` lists what there is. Everything is installed into .venv, in the
# tested versions of constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt

# The first of these that is a Python 3.11 to 3.13 with venv is used. A command of
# that name is not enough: version managers leave shims that only print an error.
# 3.12 comes first, since TFLite Micro has wheels for 3.11 and 3.12 alone.
PYTHON := python3.12 python3.11 python3.13 python3
SUITABLE := import sys, venv, ensurepip; \
    sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Two at a time: more would need gigabytes, and each uses several cores already. The
# tests of a file stay together where they can, since they share models and runs.
WORKERS := --numprocesses 2 --dist worksteal

# What `make canary` tries, in an environment of its own. Together tf_keras would hold
# TensorFlow back to the release that it was made for.
CANARY := $(VENV)-canary/bin
CANARY_TESTS := tests/models tests/intake tests/distill tests/prune tests/quantize tests/tflite

# Where the environment forbids bytecode files, each process would compile the package
# again, and each run rewrite the assertions of all tests: a third of the collection.
unexport PYTHONDONTWRITEBYTECODE

# kdprune/__init__.py holds the version, which pip writes down when it installs.
PACKAGE := setup.cfg pyproject.toml constraints.txt kdprune/__init__.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-soak lint docs canary clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.package ## install, then run the quickstart recipe into runs/quickstart
	$(BIN)/kdprune run configs/quickstart.yaml --output runs/quickstart

test: $(VENV)/.test ## install, then run the fast tests (ARGS="..." goes to pytest)
	$(BIN)/python -m pytest -m "not slow and not soak" $(WORKERS) $(ARGS)

test-slow: $(VENV)/.test $(VENV)-clients/.installed ## install, then run the tests that train and convert
	$(BIN)/python -m pytest -m "slow and not soak" $(WORKERS) $(ARGS)

test-soak: $(VENV)/.test ## install, then repeat kills and damage at random; tally in results/soak.json
	$(BIN)/python -m pytest -m soak --soak-tally results/soak.json $(ARGS)

lint: $(VENV)/.lint ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs ## build the site into site/ and check its links
	$(BIN)/python docs/tools/recipe_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

canary: ## try the newest pre-releases of TensorFlow, Keras and tf_keras; never fails
	@$(MAKE) --no-print-directory VENV=$(VENV)-canary $(VENV)-canary/.test
	-for newest in keras tensorflow "--no-deps tf_keras"; do \
	    $(CANARY)/python -m pip install --quiet --upgrade --pre $$newest; done
	@$(CANARY)/python -m pip list | grep -iE "^(tensorflow|keras|tf[-_]keras) "
	-$(CANARY)/python -c "import kdprune.stages, kdprune.tflite"
	-$(CANARY)/python -m pytest -m "not slow and not soak" --override-ini filterwarnings= \
	    $(WORKERS) $(CANARY_TESTS) $(ARGS)
	@echo "canary: what failed above breaks with these versions"

clean: ## remove .venv, builds and caches; runs/ is kept
	rm -rf $(VENV) $(VENV)-clients $(VENV)-canary site build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find kdprune scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a step is repeated when what it depends on is newer, or was interrupted.
$(VENV)/.created:
	@for python in $(PYTHON); do \
	    if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	        echo "Creating $(VENV) with $$python"; \
	        "$$python" -m venv --clear $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "kdprune needs Python 3.11 to 3.13 with its venv module; looked for:" \
	    "$(PYTHON). Install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

$(VENV)/.package: $(VENV)/.created $(PACKAGE)
	@echo "Installing kdprune into $(VENV) (some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@echo "Installing what the tests need"
	@$(PIP) --editable ".[test,micro]"
	@touch $@

# MediaPipe, which Android apps use, does not install beside the package.
$(VENV)-clients/.installed: $(VENV)/.created tests/kit/clients.txt
	@echo "Installing what plays the Android app into $(VENV)-clients"
	@$(BIN)/python -m venv --clear $(VENV)-clients
	@$(VENV)-clients/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement tests/kit/clients.txt \
	    || echo "MediaPipe can't be installed here: its tests are skipped"
	@touch $@

# Checking types needs the package, for the types of what it is built on.
$(VENV)/.lint: $(VENV)/.package
	@echo "Installing what checks style and types"
	@$(PIP) --editable ".[lint]"
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@echo "Installing what builds the site"
	@$(PIP) --editable ".[docs]"
	@touch $@
