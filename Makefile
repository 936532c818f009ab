# What a developer runs, on Debian 12 with python3.11 or newer. Each target installs what it needs:
# Python packages into .venv, the lab's programs with apt (as root).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
N ?= 1
T ?=

BIN := .venv/bin
INSTALLED := .venv/.complete
SAY := @echo "make:"
export LC_ALL := C.UTF-8
# Models of the tests are tiny: more threads than one only wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: help demo test lint bench lab fixture clean lab-programs test-programs
.DEFAULT_GOAL := help

help: ## Say what each target does
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(INSTALLED) lab-programs ## Bring a throw-away host up, ask it 你好, show what it says (90 s)
	@$(BIN)/python -m tests.demo

test: $(INSTALLED) test-programs ## Run every test, or those of T="tests/unit -k name"
	$(SAY) pytest $(or $(T),everything in two processes: the lab, and beside it the rest)
	@$(BIN)/python -m pytest $(or $(T),-n 2 --dist loadscope)

lint: $(INSTALLED) ## Check style and types: ruff, mypy, yamllint, ansible-lint
	$(SAY) ruff
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	$(SAY) mypy
	@$(BIN)/mypy qwen_deploy service tests
	$(SAY) yamllint
	@$(BIN)/yamllint --strict --config-file .config/yamllint.yml .config playbooks
	$(SAY) ansible-lint
	@PATH="$(CURDIR)/$(BIN):$$PATH" ANSIBLE_CONFIG=playbooks/ansible.cfg \
		ansible-lint -q --config-file .config/ansible-lint.yml playbooks

bench: $(INSTALLED) test-programs ## Measure, print and write build/bench/figures.json
	@$(BIN)/python -m tests.bench

lab: $(INSTALLED) lab-programs ## Start N=1 hosts to play with, until Ctrl-C
	@$(BIN)/python -m tests.lab $(N)

fixture: $(INSTALLED) ## Train the tiny model of the tests, once, and print its folder
	@$(BIN)/python -c 'from tests.fixture_model import fixture_model; print(fixture_model())'

clean: ## Remove .venv, build and caches of this folder
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .ansible
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml service/pyproject.toml
	$(SAY) installing the Python packages into .venv, about a minute
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: needs python 3.11")'
	@$(PYTHON) -m tests.install python
	@touch $@

lab-programs test-programs: %-programs:
	@$(PYTHON) -m tests.install $*
