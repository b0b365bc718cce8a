# make demo: the main job on drawn data.   make test: the tests.   Both set everything up.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV := .venv
RUN := $(VENV)/bin/python
# Four figures: train and validation images, their side, and the seed of the drawing.
SAMPLE := --train 200 --val 50 --size 128 --seed 0

.PHONY: setup demo test slow cluster faults soak lint docs bench clean

setup: $(VENV)/installed

# Installed again only when the build file changes.
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing; name it with make PYTHON=FILE" >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e '.[dev]'
	touch $@

demo: setup
	$(RUN) -m gmf_platform sample-data ade20k data/sample_ade20k $(SAMPLE)
	$(RUN) -m gmf_platform fit --config seg_ade20k --config demo/seg --name demo
	$(RUN) -m gmf_platform validate --run runs/demo
	@$(RUN) -m datamodules.sample_data.colour_baseline data/sample_ade20k
	@echo "run          runs/demo"
	@echo "pictures     runs/demo/pictures/validation.png"
	@echo "curves       $(VENV)/bin/tensorboard --logdir runs"

test: setup
	$(RUN) -m pytest -m "not slow and not fault" -n 2 --dist loadfile

slow: setup
	$(RUN) -m pytest -m slow --ignore tests/cluster

# Jobs on a real Slurm, on this machine.
cluster: setup
	$(RUN) -m pytest -m slow tests/cluster --durations 0

# A third of the faults, as the commit's hash has it; --third N takes another.
faults: setup
	$(RUN) -m pytest tests/faults -m fault --third commit --durations 0

# All of them, each ROUNDS times; and jobs on a real Slurm, stopped at 20 random moments.
ROUNDS ?= 1
soak: setup
	$(RUN) -m pytest tests/faults -m fault --rounds $(ROUNDS) --durations 0
	SOAK=1 $(RUN) -m pytest tests/cluster -m slow --durations 0

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, into build/site; a link to nowhere is an error. Read it with
# `python -m http.server --directory build/site`: from files alone all works but the search.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

bench: setup
	$(RUN) benchmarks/transforms.py
	$(RUN) -m gmf_platform benchmark backbone --against timm:swin_tiny_patch4_window7_224

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
