# Every target that needs the environment sets it up first: `make demo` on a fresh clone is enough.
PY := .venv/bin/python
STAMP := .venv/.set-up

.PHONY: help setup demo serve test test-delivery test-slow test-gpu test-operate chaos check fmt docs docs-serve protos bench clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything pagewire needs.

$(STAMP): pyproject.toml constraints.txt
	@tools/setup.sh $@

demo: $(STAMP) ## Start router and shard on the bundled model and complete three prompts.
	@.venv/bin/pagewire demo

serve: $(STAMP) ## Serve a model over HTTP and gRPC until Ctrl-C: MODEL=NAME, the bundled one if left out.
	@.venv/bin/pagewire serve $(MODEL)

test: $(STAMP) ## Run the tests of the engine, the service and the clients.
	@tools/test.sh -m "not slow and not gpu and not operate and not delivery"

test-delivery: $(STAMP) ## Run the tests of the chart, dashboards, alerts and documentation.
	@tools/test.sh -m "delivery and not slow and not operate"

test-slow: $(STAMP) ## Run the tests that take minutes.
	@tools/test.sh -m "slow and not gpu and not operate"

test-gpu: $(STAMP) ## Run the tests that need a CUDA device.
	@tools/test_gpu.sh

test-operate: $(STAMP) ## Install trace and metrics backends, helm and compilers, and run the tests that need them.
	@tools/operate/setup.sh
	@$(PY) -m pytest -m operate --verbose --junitxml=.operate/results.xml; $(PY) tools/operate/report.py .operate/results.xml

chaos: $(STAMP) ## Break every process and connection under load; print and write what was lost, and the pauses.
	@$(PY) tests/chaos/run.py

check: $(STAMP) ## Check format, lint, types, structure and generated stubs.
	@tools/check.sh

fmt: $(STAMP) ## Format the code, fix what can be fixed, write the generated pages and lists of docs/.
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .
	@$(PY) tools/generate_docs.py && $(PY) tools/chart_readme.py

docs: $(STAMP) ## Build the site of docs/ into build/site, strictly.
	@tools/docs.sh

docs-serve: docs ## Build the site and serve it on http://localhost:8000.
	@$(PY) -m http.server --directory build/site --bind localhost 8000

protos: $(STAMP) ## Generate client/pagewire/v1 from protos/.
	@tools/generate_stubs.sh client

protos-release: $(STAMP) ## Keep protos/ as what later versions must stay compatible with.
	@tools/release_protos.sh

bench: $(STAMP) ## Measure this machine: every script of benchmarks/ but the peers.
	@tools/bench.sh

clean: ## Remove the environment and every cache.
	@rm -rf .venv build dist bench-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
