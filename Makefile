# `make help` lists what there is. Everything is installed into .venv, in the
# tested versions of constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt

# The first of these that is a Python 3.10 to 3.13 with venv is used. A command of
# that name is not enough: version managers leave shims that only print an error.
# 3.12 comes first, since TFLite Micro has wheels for 3.11 and 3.12 alone.
PYTHON := python3.12 python3.11 python3.13 python3.10 python3
SUITABLE := import sys, venv, ensurepip; \
    sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

# Two at a time: more would need gigabytes, and each uses several cores already.
WORKERS := --numprocesses 2

# kdprune/__init__.py holds the version, which pip writes down when it installs.
PACKAGE := setup.cfg pyproject.toml constraints.txt kdprune/__init__.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.package ## install, then run the quickstart recipe into runs/quickstart
	$(BIN)/kdprune run configs/quickstart.yaml --output runs/quickstart

test: $(VENV)/.test ## install, then run the fast tests (ARGS="..." goes to pytest)
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) $(ARGS)

test-slow: $(VENV)/.test $(VENV)-clients/.installed ## install, then run the tests that train and convert
	$(BIN)/python -m pytest -m slow $(WORKERS) $(ARGS)

lint: $(VENV)/.lint ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.docs ## build the site into site/ and check its links
	$(BIN)/python docs/tools/recipe_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove .venv, builds and caches; runs/ is kept
	rm -rf $(VENV) $(VENV)-clients site build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find kdprune scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a step is repeated when what it depends on is newer, or was interrupted.
$(VENV)/.created:
	@for python in $(PYTHON); do \
	    if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	        echo "Creating $(VENV) with $$python"; \
	        "$$python" -m venv --clear $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "kdprune needs Python 3.10 to 3.13 with its venv module; looked for:" \
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

# Checking style needs ruff alone, not the package with TensorFlow.
$(VENV)/.lint: $(VENV)/.created constraints.txt
	@echo "Installing ruff"
	@$(PIP) ruff
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@echo "Installing what builds the site"
	@$(PIP) --editable ".[docs]"
	@touch $@
