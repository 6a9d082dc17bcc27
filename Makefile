# Every target builds the .venv it needs, from nothing. PYTHON picks the interpreter (3.11 to 3.13).
# On a machine with an NVIDIA driver the newest torch that pip finds is installed, elsewhere TORCH, a version known to work.
# Where a plain torch brings gigabytes of CUDA libraries that nobody will use, point pip at PyTorch's CPU wheels:
#     make demo PIP_ARGS="--index-url <the CPU index that PyTorch's installation page names> --extra-index-url <your usual index>"
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-quick mutants disturb kernels lint docs gallery bench bench-rivals evidence clean

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: .venv/run ## Train on digits with four wrong labels and four foreign images planted, look for them, write a report.
	$(BIN)/gmmcnn demo=digits $(ARGS)

test: .venv/dev ## Run all tests; ARGS="tests/filters" runs some.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -q $(ARGS)

coverage: .venv/dev ## Run all tests and ask for the coverage in pyproject.toml: a third longer.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -q --cov --cov-report=term:skip-covered $(ARGS)

test-quick: .venv/dev ## Run the tests that take less than ten seconds each.
	$(BIN)/python -m pytest -n auto --dist loadfile -q -m "not slow" $(ARGS)

mutants: .venv/dev ## Change the code at a hundred places, one at a time, and see whether the tests notice: ARGS="filters/rules.py".
	$(BIN)/python tests/mutants.py $(ARGS)

disturb: .venv/dev ## Kill, damage and refuse runs thousands of times, and see whether they end as undisturbed ones: KIND=kills N=1000.
	$(BIN)/python tests/disturbances.py $(or $(KIND),kills) $(or $(N),100) $(ARGS)

kernels: .venv/dev .venv/nvrtc .venv/nvrtc-12.4 .venv/nvrtc-12.9 ## Compile the CUDA kernels for every supported GPU, and by the compilers of three CUDA versions; needs no GPU and no driver.
	LD_LIBRARY_PATH=$(CURDIR)/.venv/nvrtc/nvidia/cu13/lib PYTHONPATH=.venv/nvrtc GMMCNN_REQUIRE_NVRTC=1 \
		$(BIN)/python -m pytest -q tests/kernels/test_compile.py $(ARGS)
	for version in 12.4 12.9; do \
		LD_LIBRARY_PATH=$(CURDIR)/.venv/nvrtc-$$version/nvidia/cuda_nvrtc/lib GMMCNN_REQUIRE_NVRTC=1 \
			PYTHONPATH=.venv/nvrtc-$$version:.venv/cupy-12 \
			$(BIN)/python -m pytest -q tests/kernels/test_compile.py -k "cupy or twice" $(ARGS) || exit 1; done

lint: .venv/dev ## Check format, style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror kernels/*.cu kernels/*.cuh
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent --untyped-calls-exclude=torch examples  # as a user's own code sees the types

docs: .venv/docs ## Build the documentation site in build/docs.
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs $(ARGS)
	@! grep -rE 'src="https?://' build/docs --include='*.html' || { echo "the site loads this from another host"; exit 1; }

GALLERY ?= runs/gallery
gallery: .venv/run ## Make reports of six networks that people know, and a page that leads to them, in the folder GALLERY.
	$(BIN)/python docs/gallery.py $(GALLERY)

bench: .venv/dev ## Time the CPU engine beside scikit-learn and plain torch: sweep, PCA, the way from a network and from a store, scaling.
	for name in sweep pca live pipeline scaling; do $(BIN)/python -m benchmarks.bench_$$name $(ARGS) || exit 1; done

bench-rivals: .venv/rivals/ready ## Time the sweep beside torchgmm, pomegranate and gmm-gpu as well, in an environment of their own.
	.venv/rivals/bin/python -m benchmarks.bench_sweep $(ARGS)

EVIDENCE ?= runs/evidence
evidence: .venv/dev ## Run the experiments in the folder EVIDENCE; ARGS="experiment.size=full data=cifar10" and so on.
	for name in overfitting gradients pruning ablation sensitivity scalability planted memorised causal tied crossed; do \
		$(BIN)/gmmcnn task=experiment experiment=$$name run=$(EVIDENCE) $(ARGS) || exit 1; done

clean: ## Remove the environment and what tools left behind.
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

.venv/torch:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "gmmcnn needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then $(PIP) install $(PIP_ARGS) torch; \
		else $(PIP) install $(PIP_ARGS) "$(TORCH)"; fi
	touch $@

.venv/run: .venv/torch pyproject.toml
	$(PIP) install $(PIP_ARGS) -e .
	touch $@

# A folder of its own: the environment that runs all other tests has no CuPy.
.venv/nvrtc: .venv/torch
	$(PIP) install $(PIP_ARGS) --no-deps --target $@ cupy-cuda13x nvidia-cuda-nvrtc cuda-pathfinder

.venv/cupy-12: .venv/torch
	$(PIP) install $(PIP_ARGS) --no-deps --target $@ cupy-cuda12x cuda-pathfinder

.venv/nvrtc-%: .venv/torch .venv/cupy-12
	$(PIP) install $(PIP_ARGS) --no-deps --target $@ "nvidia-cuda-nvrtc-cu12==$*.*"

.venv/rivals/ready: pyproject.toml benchmarks/rivals.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(PIP_ARGS) "$(TORCH)" -e . -r benchmarks/rivals.txt
	$(@D)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps gmm-gpu==0.2.8
	touch $@

.venv/docs: .venv/run
	$(PIP) install $(PIP_ARGS) -e ".[docs]"
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(PIP) install $(PIP_ARGS) -e ".[dev]"
	touch $@
	touch .venv/run
