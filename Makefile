# make demo   a fresh clone to a page to look at: environment, conversion, a minute of training, the layer report
# make test   the fast tests; make test-slow the rest; make lint ruff and mypy
# make docs   the site, in docs/_build/html; make docs-live with the pocket model's report in it; make docs-links checks links outside
# make test-newest   the fast tests on the newest Python here, without PyTorch
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
comma := ,
SCENE ?= 1
DEMO_STEPS ?= 150
DEMO_OPTIONS = --layers all --backbone .demo/pocket --steps $(DEMO_STEPS) --batch-size 8 --learning-rate 2e-3 --warmup-steps 15 \
    --no-augment --val-pairs 32 --log-every 10 --save-every 25
# A run goes on only with the options and the backbone it was started with: others have a folder of their own.
DEMO_RUN = .demo/run-$(firstword $(shell (echo '$(DEMO_OPTIONS)'; cat pocket/model.safetensors) | cksum))

# The versions that the package is for, the newest first: pyenv's, whichever of them is switched on, or those on PATH.
NEWEST = $(shell for version in 3.13 3.12 3.11; do \
    found=$$(pyenv latest $$version 2>/dev/null) && echo $$(pyenv prefix $$found)/bin/python && break; \
    python$$version -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)

.PHONY: demo test test-newest test-slow lint docs docs-live docs-links clean

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

# PyTorch by an exact version; TORCH chooses another, or another build (the default one for Linux brings CUDA along); empty, none.
$(VENV)/.test: $(VENV)/.demo
	$(if $(TORCH),$(BIN)/pip install --quiet $(TORCH))
	$(BIN)/pip install --quiet --editable '.[$(if $(TORCH),torch$(comma))test,tpu]'
	touch $@

# Interrupted, the training goes on where it was when the same command is given again.
demo: export JAX_PLATFORMS ?= cpu
demo: $(VENV)/.demo
	$(BIN)/python -m convert --repo pocket/probes --backbone pocket --out .demo/pocket --verify --overwrite
	$(BIN)/python -m train $(DEMO_OPTIONS) --out $(DEMO_RUN)
	$(BIN)/python -m und3rstand_jax report --scene $(SCENE) --checkpoint $(DEMO_RUN)/probes --out .demo/report --overwrite
	@echo "Click: file://$(CURDIR)/.demo/report/report.html"

# The TPU's compiler is installed for one test; without this, JAX would look for a TPU in all of them.
test test-slow: export JAX_PLATFORMS ?= cpu
test test-slow: export TPU_SKIP_MDS_QUERY ?= 1

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TEST_OPTIONS)

test-newest:
	@test -n "$(NEWEST)" || { echo "no Python 3.11 to 3.13 found"; exit 1; }
	@if test "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" = "$$($(NEWEST) -c 'import sys; print(sys.version_info[:2])')"; then \
	    echo "the newest Python here is the one that make test runs on: nothing more to test"; \
	else $(NEWEST) --version && $(MAKE) test PYTHON=$(NEWEST) TORCH= VENV=.venv-newest; fi

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Warnings are errors, and so is a link to a page or heading that is not there.
SPHINX = $(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet --jobs 2 --doctree-dir docs/_build/doctrees
LIVE = docs/_build/live/pocket_report.html

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

docs docs-live docs-links: export JAX_PLATFORMS ?= cpu

docs: $(VENV)/.docs
	$(SPHINX) --builder html docs docs/_build/html
	@echo "Click: file://$(CURDIR)/docs/_build/html/index.html"

docs-live: $(LIVE)
	$(MAKE) docs

$(LIVE): $(VENV)/.docs pocket/model.safetensors pocket/probes/model.safetensors
	$(BIN)/python -m convert --repo pocket/probes --backbone pocket --out docs/_build/pocket-jax --overwrite
	$(BIN)/python -m und3rstand_jax report --scene 1 --checkpoint docs/_build/pocket-jax --out docs/_build/report --overwrite
	mkdir -p $(dir $@)
	cp docs/_build/report/report.html $@

# Needs a network.
docs-links: $(VENV)/.docs
	$(SPHINX) --builder linkcheck docs docs/_build/links

clean:
	rm -rf $(VENV) .venv-newest .demo build docs/_build *.egg-info
