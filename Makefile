# est-ocp: `make demo` and `make test` do everything on a machine with Python 3.11 or 3.12 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two test processes, one thread each: what two cores carry. Files go out in the order of folders, so that the
# long ones of tests/cluster begin early.
TEST_WORKERS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help install demo test test-slow lint format clean

help:
	@echo "make demo       set up, train a small EST model, evaluate it, write demo/report/index.html"
	@echo "make test       set up, run the test suite (without the tests marked slow)"
	@echo "make test-slow  run the tests marked slow"
	@echo "make lint       ruff check and format check;  make format  apply them"

install: $(STAMP)

$(STAMP): pyproject.toml scripts/setup_venv.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup_venv.sh
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/est-ocp demo --out demo

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -rs -m "not slow" tests

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m slow tests

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:
	rm -rf demo build *.egg-info .pytest_cache .ruff_cache
