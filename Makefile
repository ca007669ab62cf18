# Set-up and daily work; every target creates .venv and installs everything it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-browser check docs screenshots bench clean

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

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# The review page in a real browser: the system's Chromium, or the one that ANOMALY_CHROMIUM names.
test-browser: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	$(BIN)/python -m pytest tests/browser

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The reference of the command line, from the code.
docs: $(INSTALLED)
	$(BIN)/python docs/generate_cli.py

# The picture of the review page in the README; needs Chromium, as test-browser does.
screenshots: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	$(BIN)/python docs/screenshots.py

# DATA is a folder of sets in MVTec layout (train/good, test/<type>, ground_truth/<type>).
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.memory_growth
	$(if $(DATA),$(BIN)/python -m benchmarks.quality --data $(wildcard $(DATA)/*/) --out demo/quality.csv)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
