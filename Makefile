# Two commands set up everything they need: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

# Training steps allocate and free large maps; glibc would give them back to the system each time.
demo: export MALLOC_MMAP_THRESHOLD_ := 2147483648
demo: export MALLOC_TRIM_THRESHOLD_ := 8589934592
demo: export MALLOC_TOP_PAD_ := 268435456

.PHONY: demo test lint docs lowest newest env package clean

demo: $(VENV)/.runtime  ## prune and distil the bundled driving network on generated scenes
	$(BIN)/taskprune demo --out runs/demo

test: $(VENV)/.dev lint docs  ## run linters, build the pages, run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the pages as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

# What touches each dependency, in some minutes. Warnings of versions that nobody chose are no errors.
PART := tests/structure tests/graph tests/plan tests/files tests/checkpoint tests/rewrite tests/solver \
	tests/cost tests/deployment tests/importance tests/compensation tests/cli/test_cli_demo.py \
	tests/api/test_html_report.py tests/distillation/test_distill_resume.py tests/driving/fusion/test_fusion_kitti.py \
	tests/driving/test_metrics_detection.py tests/driving/test_training_cli.py tests/integrations

# Where pip is told of PyTorch's own index for CPUs (PIP_EXTRA_INDEX_URL), torch is a tenth of the size.
lowest: VERSIONS := --constraint constraints-lowest.txt
newest: VERSIONS := --upgrade --upgrade-strategy eager
lowest newest:  ## test a part with the oldest versions allowed, or the newest there are
	$(PYTHON) -m venv $(VENV)-$@
	$(VENV)-$@/bin/python -m pip --disable-pip-version-check install --quiet $(VERSIONS) \
		--editable ".[driving,distill,lightning,onnx,openvino,transformers,ultralytics]" pytest hypothesis
	$(VENV)-$@/bin/python -m pytest -W default -p no:cacheprovider $(PART)

env: $(VENV)/.dev  ## only create the environment

# Built twice, since the same source must make the same bytes; the wheel is tried where nothing else is.
package: $(VENV)/.dev  ## build what is published, check it, and try the wheel in an empty environment
	$(PIP) build twine
	rm -rf dist $(VENV)-wheel
	for folder in dist dist/again; do \
		$(BIN)/python -m build --outdir $$folder . && \
		$(BIN)/python -m build --wheel --outdir $$folder taskprune/driving/weights || exit 1; \
	done
	cd dist && sha256sum *.whl *.gz | (cd again && sha256sum --check) && rm -r again
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		"torch==2.13.0"
	$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		dist/taskprune-*.whl
	cd "$$(mktemp -d)" && export PATH="$(abspath $(VENV)-wheel)/bin:$$PATH" && unset PYTHONPATH && \
		taskprune --help && taskprune init net.py && taskprune inspect net.py && \
		taskprune prune net.py --ratio 0.5 && taskprune report runs/net && \
		taskprune verify net.py runs/net && taskprune export net.py runs/net --out net.pt2

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) --editable ".[driving,distill]"
	@touch $@

# torchvision, timm and ultralytics only serve as test subjects. Their wheels ask for a CUDA build of torch,
# so they come without dependencies; benchmarks/architectures registers the operators that are then missing.
$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps torchvision timm ultralytics ultralytics-thop
	$(PIP) opencv-python-headless polars requests  # for ultralytics
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-wheel build dist site *.egg-info
