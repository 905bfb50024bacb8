# What people run by hand; .ci/run runs the lines of test, campaigns, lint, types and demo.

# list the recipes
default:
    @just --list

# install everything into .venv
setup:
    uv sync

# format code and sort imports
fmt:
    uv run ruff format
    uv run ruff check --fix

# look for mistakes
lint:
    uv run ruff format --check
    uv run ruff check

# check types
types:
    uv run mypy

# run the tests, for example: just test tests/methods/drifting
test *ARGS:
    uv run pytest {{ARGS}}

# the slow tests: processes, kills, compilers, and the long tables; about ten minutes
campaigns *ARGS:
    uv run pytest -m slow {{ARGS}}

# what a change must pass
check: lint types test

# the whole chain on generated images
demo:
    uv run driftkit run pipelines/demo.toml

# a pipeline by name, for example: just pipeline cifar10-jpeg
pipeline NAME *ARGS:
    uv run driftkit run pipelines/{{NAME}}.toml {{ARGS}}

# tests that need a CUDA device
gpu-test:
    uv run pytest -m gpu -n 0

# give readers of files what breaks them, guided by coverage; for example: just fuzz --seconds 600 manifest
fuzz *ARGS:
    uv run --group fuzz python -m tests.fuzz {{ARGS}}

# measure against baselines of the same run and write outputs/benchmarks; for example: just bench field
bench *ARGS:
    uv run python -m tests.benchmarks {{ARGS}}

# what a GPU makes of it: training, the field and sampling, in eight minutes; outputs/benchmarks/gpu.json
bench-gpu *ARGS:
    uv run python -m tests.benchmarks.gpu {{ARGS}}

# train a tiny model for 20,000 steps and see whether memory, handles, threads and disk stay flat (10 to 20 minutes)
soak *ARGS:
    uv run python -m tests.soak {{ARGS}}

# kill commands at chosen and random moments and look at what they leave; for example: just faults --kills 98
faults *ARGS:
    uv run python -m tests.faults {{ARGS}}

# remove caches and results
clean:
    rm -rf outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
