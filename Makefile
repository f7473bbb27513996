# Every target creates .venv when it is missing. `make demo` is the place to start.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# A caller's environment must not leak into the project's own.
export PYTHONPATH :=

.PHONY: demo test slow smoke lint types consistency recipes outlines ablations bench bench-full bench-crash results docs clean

demo: $(VENV)/.ready
	$(BIN)/unnoise demo

# One process a core, one torch thread each: the whole suite in minutes.
test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

# Every recipe in its smallest form: trained, sampled, measured, and its figure drawn. Some minutes on two cores.
smoke: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/smoke.py

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package and the code of the README, the tutorials and docs/extend have no type error, by pyright in its basic mode
# (basedpyright is pyright as a wheel), and every name of tests/typed/own_network.py has a type.
types: $(VENV)/.ready-dev
	$(BIN)/basedpyright
	$(BIN)/python tests/typed/docs.py

# The pictures and tables of docs/results, from scratch: about two and a half hours on two cores.
PAPERS := ddpm improved-ddpm ddim guided-diffusion classifier-free progressive-distillation upsampling d3pm \
	edm flow-matching ncsn inverse-problems bridge
TEXTS := d3pm-text-chain d3pm-text-shakespeare
results: $(VENV)/.ready
	for paper in $(PAPERS); do \
		$(BIN)/unnoise reproduce $$paper-digits --out runs/results/$$paper && mkdir -p docs/results/$$paper && \
		cp runs/results/$$paper/table.md runs/results/$$paper/[!s]*.png docs/results/$$paper/ && \
		{ cp runs/results/$$paper/samples.png docs/results/$$paper/ 2>/dev/null || true; } || exit 1; \
	done
	$(BIN)/unnoise reproduce score-sde-digits --training.steps 3000 --training.cooldown 1000 --out runs/results/score-sde
	mkdir -p docs/results/score-sde && cp runs/results/score-sde/table.md runs/results/score-sde/*.png docs/results/score-sde/
	for text in $(TEXTS); do \
		$(BIN)/unnoise reproduce $$text --out runs/results/$$text && mkdir -p docs/results/$$text && \
		cp runs/results/$$text/table.md runs/results/$$text/samples.md runs/results/$$text/figure.png docs/results/$$text/ || exit 1; \
	done

# The reports of docs/results/ablations, from scratch: about two hours on two cores. What is finished in
# runs/ablations is not run again.
ABLATIONS := three-families three-families-icons ddpm-parts d3pm-parts d3pm-text-parts samplers predictor-corrector \
	averages guidance fast-digits
ablations: $(VENV)/.ready
	for name in $(ABLATIONS); do \
		$(BIN)/unnoise ablate $$name --out runs/ablations/$$name && mkdir -p docs/results/ablations/$$name && \
		cp runs/ablations/$$name/report.md runs/ablations/$$name/*.png docs/results/ablations/$$name/ || exit 1; \
	done

# The table, figures and JSON of docs/results/speed: less than ten minutes on two cores that do nothing else. Other
# libraries are measured where they are installed; `python -m benchmarks --help` says how to measure some rows alone.
bench: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

# More rounds, and further rows: about an hour.
bench-full: $(VENV)/.ready-parity
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --full

# Kills runs at random moments, continues them and compares them with uninterrupted ones: ten minutes on two cores.
bench-crash: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.crash

# docs/consistency.md, from the table that tests/consistency tests.
consistency: $(VENV)/.ready-dev
	$(BIN)/python tests/consistency/cells.py

# docs/recipes.md, from the ledger of experiments/ledger.
recipes: $(VENV)/.ready
	$(BIN)/unnoise recipes --markdown docs/recipes.md

# experiments/cli/outlines.json, from the commands and recipes: what help and refusals are printed from without torch.
outlines: $(VENV)/.ready
	$(BIN)/python -m unnoise.experiments.cli.outlining

docs: $(VENV)/.ready-docs
	$(BIN)/pdoc --math -d google -o docs/api unnoise
	@echo "open docs/api/index.html"

clean:
	rm -rf $(VENV) build dist src/*.egg-info docs/api .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and from constraints.txt, so that no other package pulls a newer build of several gigabytes.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (about a minute, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt numpy torch
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.ready-parity: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e ".[parity]"
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e ".[docs]"
	touch $@
