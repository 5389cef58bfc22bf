# make demo: the main job on real data.  make test: the whole suite.  Both do all their set-up in .venv.
.PHONY: demo test lint types layers bench torture clean

demo:
	@.ci/venv demo
	@.venv/bin/python examples/demo.py

test:
	@.ci/venv test
	@TRACKIO_TEST_PATIENCE=$${TRACKIO_TEST_PATIENCE:-2} .venv/bin/python -m pytest -n 3 --dist worksteal $(ARGS)

lint:
	@.ci/venv lint
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types:
	@.ci/venv lint
	@.venv/bin/mypy

layers:
	@.ci/venv lint
	@.venv/bin/lint-imports

# A thousand seeded schedules of faults, and a line that says what came of them; make torture ARGS="1 --seed 42" for one.
torture:
	@.ci/venv test
	@.venv/bin/python tests/torture.py $(ARGS)

bench:
	@.ci/venv demo
	@.venv/bin/python -m benchmarks

clean:
	rm -rf .venv .demo build *.egg-info
