# `make run` and `make test` need Python 3.10 or newer with venv, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint audit docs lock clean

# On a laptop nobody else should reach it, whatever its port.
run: .venv/run
	@$(BIN)/python -m email_services
	@HOST=$${HOST:-127.0.0.1} exec $(BIN)/gunicorn --config gunicorn.conf.py

test: .venv/dev
	$(BIN)/pytest -n 3 --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of the exact versions; needs the internet, and an environment of its own. It
# fails where it could not ask about one, too.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.txt

# The tables of README.md and docs/ that the code knows: fields, providers, modules.
docs: .venv/dev
	$(BIN)/python -m docs.tables

# Exact versions of everything, from the short lists in *.in; needs `pip install uv`.
lock:
	uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-emit-index-url \
	  --custom-compile-command "make lock" requirements.in -o requirements.txt
	uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-emit-index-url \
	  --custom-compile-command "make lock" -c requirements.txt requirements-dev.in -o requirements-dev.txt

clean:
	rm -rf .venv .venv-audit .pytest_cache .mypy_cache .ruff_cache tests/clients/node_modules

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/run
