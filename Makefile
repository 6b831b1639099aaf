# Every target sets up what it needs in .venv; nothing but make and Python 3.11, 3.12 or 3.13 is taken for granted.
# STACK=newest or STACK=declared chooses between the locks; .venv keeps its stack until the other one is named.
export PYTHON STACK
BIN := .venv/bin
# Without --quiet, which would hide the warnings that --strict counts
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --no-emit-index-url --no-header --no-annotate --quiet \
    --upgrade --python-version 3.11 --extra eval --extra comet --extra dev --extra docs

.PHONY: help install demo test test-all study chaos lint docs bench gpu-wheels audit lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

install: ## set up .venv, which all targets do first (STACK=newest for the newest GPUs; PYTHON=python3.12)
	@./install.sh

demo: install ## build, train, kill, resume, evaluate on real text (5 minutes on 2 cores)
	$(BIN)/python demo/demo.py

test: install ## run the quick tests: what an hour's work can break (9 minutes on 2 cores)
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile --ignore tests/end_to_end
	$(BIN)/python -m pytest -m 'not slow' tests/end_to_end

test-all: install ## run the rest of the tests: kills, launches, clusters (40 minutes on 2 cores)
	$(BIN)/python -m pytest -m slow

study: install ## all settings and open questions in miniature, with a report (70 minutes on 2 cores; FAST=1: 15)
	$(BIN)/python benchmarks/study/study.py $(if $(FAST),--fast) $(if $(TEXT),--text $(TEXT))

chaos: install ## break it on purpose: SEEDS=20 experiments with random kills, damage and outages (10 to 20 minutes)
	$(BIN)/python -m tests.chaos.chaos --seeds $(or $(SEEDS),20) --first $(or $(FIRST),1)

lint: install ## ruff, mypy, which packages may import which, and dead links in docs/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(MKDOCS)

docs: install ## write the generated reference pages, then the site: site/index.html
	PYTHONPATH=. $(BIN)/python -m docs.generate
	$(MKDOCS)

bench: install ## run the benchmarks in their quick form, and write docs/outputs/benchmarks.json and its table (not spikes.py, which trains 73 models, nor gpu_check.py)
	$(BIN)/python benchmarks/run.py; status=$$?; $(BIN)/python -m docs.generate && exit $$status

gpu-wheels: install ## collect what benchmarks/gpu_check.py needs beside PyTorch, without a network (FOR=3.13: another Python than 3.12)
	rm -rf dist/gpu-wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    --python-version $(or $(FOR),3.12) --implementation cp --platform manylinux1_x86_64 --platform manylinux2010_x86_64 \
	    --platform manylinux2014_x86_64 $(foreach glibc,$(shell seq 5 28),--platform manylinux_2_$(glibc)_x86_64) \
	    --constraint requirements-newest.lock --requirement benchmarks/gpu/wheels.txt --dest dist/gpu-wheels
	du -sh dist/gpu-wheels

audit: install ## known vulnerabilities of the pinned dependencies (asks the network)
	for lock in requirements*.lock; do $(BIN)/uvx pip-audit --requirement $$lock --no-deps --disable-pip || exit 1; done

lock: install ## resolve the dependencies of both stacks again
	$(COMPILE) --constraint constraints-declared.txt -o requirements.lock
	$(COMPILE) -o requirements-newest.lock

clean: ## remove what the demonstration, the study and the chaos left
	rm -rf runs/demo runs/study runs/chaos
