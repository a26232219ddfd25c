# make demo   a fresh clone to pictures: environment, conversion, every layer of two images
# make test   the fast tests; make test-slow the rest; make lint ruff and mypy
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

# PyTorch by an exact version; TORCH chooses another, or another build (the default one for Linux brings CUDA along).
$(VENV)/.test: $(VENV)/.demo
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable .[torch,test,tpu]
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m tests.make_checkpoint --case tiny_dpt --hidden 64 --out .demo/source
	$(BIN)/python -m tests.demo_scene --out .demo/photos
	$(BIN)/python -m convert --repo .demo/source/probes --out .demo/checkpoint --verify --overwrite
	$(BIN)/python -m und3rstand_jax .demo/photos/a.png .demo/photos/b.png --checkpoint .demo/checkpoint --out .demo/result --overwrite
	@echo "Open .demo/result/contact_sheet.png, and .demo/result/point_clouds/*.ply in any mesh viewer."

# The TPU's compiler is installed for one test; without this, JAX would look for a TPU in all of them.
test test-slow: export JAX_PLATFORMS ?= cpu
test test-slow: export TPU_SKIP_MDS_QUERY ?= 1

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .demo build *.egg-info
