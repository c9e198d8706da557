# `make demo` and `make test` need python3, make and git, and install everything else themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# A working uv, or one in a private environment. `cd /`: version managers read .python-version in this folder.
UV := $(shell if uv --version >/dev/null 2>&1; then command -v uv; else echo .tools/bin/uv; fi)
export HF_HUB_OFFLINE ?= 1
export UV_LINK_MODE ?= hardlink
WORKERS ?= 3 # processes of the tests: a third of the time, each waits for processes that it started

BENCHMARKS ?= aggregate check compress digests evaluate inference overhead secure train

.PHONY: help install feetech wheels demo test slow check lint docs format ui bench audit clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.tools/bin/uv:
	@echo "no working uv found: installing one into .tools"
	@cd / && python3 -m venv --clear "$(CURDIR)/.tools"
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deployments/uv.txt

.venv/.runtime: pyproject.toml uv.lock | $(filter .tools/bin/uv,$(UV))
	@echo "installing what zk0 needs (about 6 GB with PyTorch)"
	@$(UV) sync --quiet --frozen --no-dev --inexact
	@touch $@

.venv/.development: pyproject.toml uv.lock | $(filter .tools/bin/uv,$(UV))
	@echo "installing what zk0 and its tests need (about 6 GB with PyTorch)"
	@$(UV) sync --quiet --frozen
	@touch $@ .venv/.runtime

install: .venv/.runtime ## what zk0 needs, into .venv

feetech: .venv/.runtime ## LeRobot's driver for the motors of SO-100 and SO-101 arms, into .venv
	@$(UV) sync --quiet --frozen --no-dev --inexact --extra feetech

wheels: | $(filter .tools/bin/uv,$(UV)) ## the wheels of zk0 and its plugins, into dist
	@$(UV) build --quiet --all-packages --wheel --out-dir dist

demo: .venv/.runtime ## a federated session: four simulated arms, three rounds, a report
	@.venv/bin/zk0 run deployments/sessions/demo.toml

test: .venv/.development ## the tests that need no GPU, no network and no long time (SLOW=1: the slow ones in the same run, but for those of the real size)
	@.venv/bin/coverage erase
	@.venv/bin/coverage run -m pytest -n $(WORKERS) --dist loadfile -m "not gpu and not network and not $(if $(SLOW),full_size,slow)"
	@find . -maxdepth 1 -name '.coverage.*' ! -name '*.H*h' -delete # half written: a test killed the process
	@.venv/bin/coverage combine --quiet
	@echo "line coverage of zk0, tasks and flows: $$(.venv/bin/coverage report --format=total) %"

slow: .venv/.development ## the slow tests (an hour): every fault on every engine, killed sessions, policies of the real size
	@.venv/bin/pytest -n $(WORKERS) --dist loadfile -m "slow and not gpu and not network"

check: lint test ## everything that must pass before a commit

lint: .venv/.development docs ## style, types, import layers, dependencies, doctests, documentation: check without the tests
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/deptry .
	@.venv/bin/pytest -q --doctest-modules zk0 tasks flows

docs: .venv/.development ## the documentation with the API reference, in site/index.html
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

format: .venv/.development ## apply ruff's fixes and formatting
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

ui: .venv/.runtime ## Prefect server, worker and deployments on this machine, with the UI
	@.venv/bin/zk0 ui

bench: .venv/.development ## the benchmarks that need no arguments, each beside what it is compared with
	@for name in $(BENCHMARKS); do echo "== $$name"; .venv/bin/zk0 bench $$name || exit 1; done

audit: .venv/.development ## known vulnerabilities of all locked packages, from the OSV database (needs the network)
	@.venv/bin/uv audit --frozen $(if $(OSV),--service-url $(OSV))

clean: ## remove caches (not outputs, not recordings)
	@rm -rf site .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
