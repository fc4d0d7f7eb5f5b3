# `make train` and `make test` do all their own set-up; ARGS are handed on: make train ARGS="recipes/voc2012_inductive.yaml"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# PyTorch takes one thread per physical core; a second one, waiting passively, shortens a step.
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
export OMP_WAIT_POLICY ?= passive
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: train record experiments embedded bench load test test-slow smoke style quality venv clean

train: venv
	$(LAUNCH) train.py $(ARGS)

# The committed record: five seeds of LDVC and of the class-query decoder, then the tables of README and cards.
record: venv
	$(BIN)/ldvc experiments recipes/ablations/picturebook_record.yaml --replace
	$(MAKE) embedded

# Every variant of the paper over three seeds: hours; continues where it stopped.
experiments: venv
	$(BIN)/ldvc experiments recipes/ablations/picturebook.yaml --replace
	$(BIN)/ldvc report --figures

# What the repository shows and ships of the record: seed 0's checkpoint (without a copy of the code, which is here),
# its pictures, and the tables of README and cards.
RECORDED := outputs/experiments/picturebook/ldvc_seed0
embedded: venv
	rm -rf picturebook/ldvc && mkdir -p picturebook/ldvc assets
	cd $(RECORDED) && cp config.json model.safetensors processor_config.json tokenizer.json \
	  tokenizer_config.json protocol.json recipe.yaml $(CURDIR)/picturebook/ldvc
	cp $(RECORDED)/predictions.png $(RECORDED)/curves.png assets
	$(BIN)/python -m picturebook.preview --output assets/picturebook.png
	$(BIN)/python -m picturebook.oracle
	$(BIN)/python -c "from picturebook import draw_scene; draw_scene('test', 0, 0, image_size=512).image.save('assets/demo_page.jpg', quality=88)"
	$(BIN)/ldvc explain assets/demo_page.jpg --labels "balloon, cat, grass, sky" --point 400 340 \
	  --output assets/routing.png
	$(BIN)/ldvc report --figures

# Speed and memory against peers, then the tables and the plot: ARGS="--list" names the figures.
bench: venv
	$(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/ldvc report --figures

# Page and bulk command under a bounded load: memory and disk must stay bounded.
load: venv
	$(BIN)/python -m tests.load page
	$(BIN)/python -m tests.load segment

# Two processes of one thread: the models of the tests are too small for more.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test: venv
	$(TEST) $(ARGS)

test-slow: venv
	$(TEST) -m slow $(ARGS)

# The same few things where LDVC is installed in editable mode, from a wheel, and from a wheel beside nothing but what it
# needs at run time, in an environment of its own; and an exported program in one without PyTorch.
SMOKE := build/smoke
smoke: venv
	rm -rf build && mkdir -p $(SMOKE)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(SMOKE) .
	$(BIN)/python -m pip install --quiet --no-deps --target $(SMOKE)/site $(SMOKE)/ldvc-*.whl
	$(PYTHON) -m venv $(SMOKE)/venv
	$(SMOKE)/venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(echo $(SMOKE)/ldvc-*.whl)[torch]"
	$(PYTHON) -m venv $(SMOKE)/light
	$(SMOKE)/light/bin/python -m pip install --quiet --constraint constraints.txt "$$(echo $(SMOKE)/ldvc-*.whl)[runtime]"
	cd $(SMOKE) && HF_HUB_OFFLINE=1 $(CURDIR)/$(BIN)/python $(CURDIR)/tests/smoke.py
	cd $(SMOKE) && HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR)/$(SMOKE)/site $(CURDIR)/$(BIN)/python $(CURDIR)/tests/smoke.py
	cd $(SMOKE) && HF_HUB_OFFLINE=1 venv/bin/python $(CURDIR)/tests/smoke.py
	$(BIN)/ldvc export picturebook/ldvc --output $(SMOKE)/program
	cd $(SMOKE) && light/bin/python $(CURDIR)/tests/smoke_runtime.py program

style: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m tests.gates

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
