# The commands of this project. Each one sets up .venv by itself.
#
#   make PYTHON=python3.12 test     another interpreter for a new .venv
#   make test ARGS='-k kmeans -x'   further arguments for pytest
#   make test PARALLEL=             one after another, in one process

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
PARALLEL ?= -n auto --dist worksteal
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: $(shell awk -F: '/^[a-z0-9-]+:/ {print $$1}' $(MAKEFILE_LIST))

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## watch a codebook collapse, and see it repaired
	$(BIN)/collapse-guard demo

ablation: $(STAMP)  ## what would have helped against that collapse; some ten minutes of one core, resumable; ARGS='--seeds 1'
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_ablation import main; main()" $(ARGS)

test: $(STAMP)  ## run the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: $(STAMP)  ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-cuda: $(STAMP)  ## run the tests that need a CUDA device; elsewhere they are skipped
	$(BIN)/python -m pytest tests/cuda -m cuda -rs $(ARGS)

lint: $(STAMP)  ## check style, layout and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## build the documentation's site into build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## time the policy engine alone
	$(BIN)/python -c "from collapse_guard.demos.bench_engine import main; main()"

bench-overhead: $(STAMP)  ## measure what guarding costs, and write docs/benchmarks/overhead.md; ARGS='--device cuda' on a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_overhead import main; main()" $(ARGS)

zoo: $(STAMP)  ## run the collapse zoo, resumable; ARGS=--quick for a look, ARGS='--processes 4' for more cores
	OMP_NUM_THREADS=1 $(BIN)/collapse-guard zoo run --folder docs/benchmarks --processes 2 $(ARGS)

bench-log: $(STAMP)  ## show the log of a million events, and write docs/benchmarks/log.md; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_log import main; main()" $(ARGS)

bench-kmeans: $(STAMP)  ## compare fit_codebook with scikit-learn and FAISS; hours, resumable; ARGS=--quick for a look
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_kmeans import main; main()" $(ARGS)

bench-kmeans-gpu: $(STAMP)  ## time k-means on a CUDA device, beside FAISS on the CPU, and write docs/benchmarks/kmeans-gpu.md
	$(BIN)/python -c "from collapse_guard.demos.kmeans_device import main; main()" $(ARGS)

bench-upkeep: $(STAMP)  ## compare a tended codebook with a quantizer's own prevention; hours, resumable; ARGS='--seeds 1'
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_upkeep import main; main()" $(ARGS)

bench-evaluation: $(STAMP)  ## build collapses that only evaluation sees, and see them found and repaired; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_evaluation import main; main()" $(ARGS)

bench-diagnosis: $(STAMP)  ## does the guard name the cause that was built in? minutes, resumable; ARGS='--seeds 1'
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_diagnosis import main; main()" $(ARGS)

bench-loss-bound: $(STAMP)  ## is an intervention that worsens the loss beyond its bound undone, and only then? a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.interventions.loss_bound

peers: $(STAMP)  ## compare encodec's own replacement of dead codes with the guard's reset
	$(BIN)/python -m tests.contract.replacement

chaos-ranks: $(STAMP)  ## a hundred runs of 2 to 4 ranks in which things go wrong; none may hang
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.ranks.chaos 100

ray: $(STAMP)  ## install Ray, and compare a run under Ray Train with one under plain DDP
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/callbacks/test_ray_train.py $(ARGS)

pictures: $(STAMP)  ## make the pictures of docs/see.md from a run of the demo; needs chromium
	OMP_NUM_THREADS=1 $(BIN)/python docs/pictures.py

readme: $(STAMP)  ## run the demo and write its output into the README
	$(BIN)/python -m tests.update_readme

support: $(STAMP)  ## write the table of supported quantizer classes into the README
	$(BIN)/python -m tests.contract.support

bench-endurance: $(STAMP)  ## measure memory, cost and log of 20,000 guarded steps, and write docs/benchmarks/endurance.md; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -c "from collapse_guard.demos.bench_endurance import main; main()" $(ARGS)

kill: $(STAMP)  ## kill training runs at fifty random moments each, resume them, compare bit for bit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_kill.py -m slow $(ARGS)

chaos: $(STAMP)  ## inject every collapse into every kind of quantizer in every phase of the guard, and break a part of it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/testing/test_chaos.py -m slow $(ARGS)

coverage: $(STAMP)  ## measure branch coverage; collapse_guard and policies need 95 % each
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report --include='callbacks/*' --fail-under=0
	$(BIN)/coverage report --include='policies/*'
	$(BIN)/coverage report --include='collapse_guard/*'

clean:  ## remove .venv and everything the checks leave behind
	rm -rf .venv build dist *.egg-info .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache

# Made again whenever the dependencies change.
$(STAMP): pyproject.toml constraints.txt codecs.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r codecs.txt
	@touch $@
