# Two commands set up everything they need: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Training steps allocate and free large maps; glibc would give them back to the system each time.
demo: export MALLOC_MMAP_THRESHOLD_ := 2147483648
demo: export MALLOC_TRIM_THRESHOLD_ := 8589934592
demo: export MALLOC_TOP_PAD_ := 268435456

.PHONY: demo test lint env clean

demo: $(VENV)/.runtime  ## prune and distil the bundled driving network on generated scenes
	$(BIN)/taskprune demo --out runs/demo

test: $(VENV)/.dev lint  ## run linters and the whole test suite
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: $(VENV)/.dev  ## only create the environment

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) --editable ".[driving,distill]"
	@touch $@

# torchvision and timm only serve as test subjects. Their wheels ask for a CUDA build of torch, so
# they come without dependencies; benchmarks/architectures registers the operators that are then missing.
$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps torchvision timm
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
