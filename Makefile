# Commands of the project; `make env` once, or any target that needs it does it for you.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# tests that start no cluster and no server
QUICK := not ray and not s3 and not slow and not chaos
SLOW := slow and not cluster and not chaos

.PHONY: demo test slow chaos cluster env check lint types ui bench

# sample data, pre-training, fine-tuning with and without it, evaluation, and where to look
demo: env
	$(BIN)/python -m jobs.demo

# what every change has to pass; CI runs `slow` too. The quick ones run on two cores at once, the others need both
test: env lint types
	$(BIN)/pytest -n 2 --dist loadfile -m '$(QUICK)'
	$(BIN)/pytest -m 'not slow and not chaos and (ray or s3)'

# whole runs on real workers and servers, killed and started again; those without either on two cores at once
slow: env
	$(BIN)/pytest -n 2 --dist loadfile -m '$(SLOW) and not (ray or s3 or alone)' --durations 10
	$(BIN)/pytest -m '$(SLOW) and (ray or s3 or alone)' --durations 25

# real runs that die at every place we know of: CHAOS_SEED=N draws another order
chaos: env
	$(BIN)/pytest -m chaos -s

# a job on a cluster to its result, and on three hosts of this machine, reached over SSH, of which one is lost; needs
# root, and installs what is missing
cluster: env
	test -x /usr/sbin/sshd && command -v ip && command -v rsync || \
		{ apt-get update -qq && apt-get install -y -qq openssh-server iproute2 rsync; }
	$(BIN)/pytest -m cluster -s

# before each commit: lint, types and the tests that start no cluster and no server
check: env lint types
	$(BIN)/pytest -n 2 --dist loadfile -m '$(QUICK)'

# short benchmarks: rows of benchmarks/results.csv and docs/images/speed.png, which shows all rows over time
bench: env
	PYTHONPATH=platform:. $(BIN)/python -m benchmarks.bench

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: env
	$(BIN)/mypy

# MLflow on this checkout's tracking store, for this machine only
ui: env
	MLFLOW_BACKEND_STORE_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$${HERO_HOME:-outputs}/mlflow.db}" \
		$(BIN)/mlflow ui --host 127.0.0.1

env: $(VENV)/.installed

# torch comes first and exactly: resolving a range could pick a build with gigabytes of CUDA libraries
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,captions,video,mlflow-server]'
	touch $@
