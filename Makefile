# `make train` and `make test` do all their own set-up; ARGS are handed on: make train ARGS="recipes/voc2012_inductive.yaml"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# PyTorch takes one thread per physical core; a second one, waiting passively, shortens a step.
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
export OMP_WAIT_POLICY ?= passive
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: train record embedded test test-slow style quality venv clean

train: venv
	$(LAUNCH) train.py $(ARGS)

# The committed record: three seeds of LDVC and of the class-query decoder, then the tables of README and cards.
record: venv
	for seed in 0 1 2; do \
	  $(LAUNCH) train.py --seed $$seed --overwrite_output_dir true \
	    --output_dir outputs/record/ldvc_$$seed --results_file results/picturebook/ldvc_seed$$seed.json && \
	  $(LAUNCH) train.py --decoder_query class --controls false --seed $$seed --overwrite_output_dir true \
	    --output_dir outputs/record/class_query_$$seed --results_file results/picturebook/class_query_seed$$seed.json \
	  || exit 1; done
	$(MAKE) embedded

# What the repository shows and ships of the record: seed 0's checkpoint (without a copy of the code, which is here),
# its pictures, and the tables of README and cards.
embedded: venv
	rm -rf picturebook/ldvc && mkdir -p picturebook/ldvc assets
	cd outputs/record/ldvc_0 && cp config.json model.safetensors processor_config.json tokenizer.json \
	  tokenizer_config.json protocol.json recipe.yaml $(CURDIR)/picturebook/ldvc
	cp outputs/record/ldvc_0/predictions.png outputs/record/ldvc_0/curves.png assets
	$(BIN)/python -m picturebook.preview --output assets/picturebook.png
	$(BIN)/python -m picturebook.oracle
	$(BIN)/python -c "from picturebook import draw_scene; draw_scene('test', 0, 592).image.save('assets/page.png')"
	$(BIN)/python report.py

test: venv
	$(BIN)/python -m pytest $(ARGS)

test-slow: venv
	$(BIN)/python -m pytest -m slow $(ARGS)

style: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
