# Quern: archives -> data/ -> runs/ -> chats/ -> a conversation. `make help` says what there is.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# What to grind: files and folders (SRC), or a Hugging Face data set (DATASET).
SRC ?= corpus
DATASET ?=
TOKENIZER ?= bpe
# Conversations to learn to answer from: files; of the default corpus its own, else by default none.
CHATS ?= $(if $(DATASET)$(filter-out corpus,$(SRC)),,$(QUESTIONS))
# How to train: a preset, the minutes it may take (the preset's own where empty), and those of
# learning to answer. The default is seven minutes in all.
PRESET ?= auto
MINUTES ?= $(if $(filter $(QUESTIONS),$(CHATS)),3)
CHAT_MINUTES ?= 3.5
RUN ?= quern

QUESTIONS := questions.jsonl.zst
# What those ask for `tiny` learns by heart: tests/bench/RECIPE.md.
BY_HEART := --ngram-dropout 0 --weight-decay 0 --learning-rate 0.01 --matrix-lr 0.006 --table-lr 0.02 --tokens-per-step 1024

# With a data set there is no file whose age could tell that it changed.
SOURCES := $(if $(DATASET),,$(SRC))
# Of `tiny-portable`, which --preset auto is for so many ids, in place of tables of n-grams: RECIPE.md
VOCABULARY := $(if $(filter bpe-corpus,$(TOKENIZER)-$(SOURCES)),$(if $(filter tiny,$(PRESET)),,--vocab-size 8192))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev data train finetune chat serve test test-slow setup-browser test-browser setup-llama test-llama check format bench faults smoke clean FORCE

help: ## Say what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-14s%s\n", $$1, $$2 }'
	@echo
	@echo 'Settings, as in  make chat SRC=notes.tar.xz MINUTES=10 :'
	@echo '  SRC=corpus DATASET= TOKENIZER=bpe   what to grind, and into which tokens'
	@echo '  CHATS="my.jsonl export.txt"         conversations, to learn to answer from'
	@echo '  PRESET=auto MINUTES= RUN=quern      how to train, how long, under which name'
	@echo '  CHAT_MINUTES=3.5                    how long to learn to answer'

# Set up again only when the pinned packages change.
setup: $(VENV)/ready ## Make .venv and install what runs Quern
setup-dev: $(VENV)/ready-dev

$(VENV)/ready: requirements.txt
	@echo 'Setting up $(VENV) and installing requirements.txt: some minutes the first time.'
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check -qq -r requirements.txt
	@touch $@

$(VENV)/ready-dev: requirements-dev.txt requirements-ray.txt $(VENV)/ready
	@echo 'Installing requirements-dev.txt, what the tests need besides.'
	@$(PY) -m pip install --disable-pip-version-check -qq -r requirements-dev.txt
	@touch $@

corpus: | $(VENV)/ready
	$(PY) -m prepare corpus $@ --chats $(QUESTIONS)

$(QUESTIONS): | corpus
	@test -e $@ || $(PY) -m prepare corpus corpus --chats $@

# Files that change when a setting or a source does: so make knows what is stale.
.make/data-settings: FORCE | $(filter corpus,$(SOURCES)) .make
	@{ echo '$(SRC)|$(DATASET)|$(TOKENIZER)$(VOCABULARY)'; $(if $(SOURCES),ls -lRL $(SOURCES) 2>&1 | cksum;) } > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
.make/train-settings: FORCE | .make
	@echo '$(PRESET)|$(MINUTES)|$(RUN)' > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
.make/chats-settings: FORCE | $(filter $(QUESTIONS),$(CHATS)) .make
	@{ echo '$(CHATS)'; ls -lRL $(CHATS) 2>&1 | cksum; } > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
.make/finetune-settings: FORCE | .make
	@echo '$(CHAT_MINUTES)' > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
.make:
	@mkdir -p $@

data: data/meta.json ## Grind SRC (by default the documentation on this machine) into data/
data/meta.json: .make/data-settings | $(VENV)/ready
	@# 3: done, with something left out and listed
	$(PY) -m prepare text $(SOURCES) $(if $(DATASET),--dataset $(DATASET)) --tokenizer $(TOKENIZER) $(VOCABULARY) --out data || [ $$? -eq 3 ]

# The suffix array by which a chat tells where its words stand.
data/train.sa.json: data/meta.json
	$(PY) -m prepare index data
	@touch $@

train: runs/.trained ## Train on data/; an interrupted run goes on where it stopped
# made again where every checkpoint was deleted since
runs/.trained: .make/train-settings data/meta.json $(if $(wildcard runs/*/latest),,FORCE)
	$(PY) -m train pretrain --data data --run $(RUN) --preset $(PRESET) $(if $(MINUTES),--minutes $(MINUTES)) --resume
	@# its name, which is another where that run was of other data or settings
	@basename "$$(dirname "$$(ls -td runs/*/latest | head -n 1)")" > $@

# In the vocabulary of the network that is to learn from them.
chats/meta.json: .make/chats-settings runs/.trained
	$(PY) -m prepare chats $(CHATS) --tokenizer "runs/$$(cat runs/.trained)" --out chats || [ $$? -eq 3 ]

finetune: $(if $(CHATS),runs/.finetuned,train) ## Learn to answer, from CHATS
runs/.finetuned: .make/finetune-settings runs/.trained chats/meta.json $(if $(wildcard runs/*-chat*/latest),,FORCE)
	@base=$$(cat runs/.trained); \
	$(if $(filter $(QUESTIONS),$(CHATS)),grep -q '"preset": "tiny' runs/$$base/config.json && options="$(BY_HEART)";) \
	set -x; $(PY) -m train finetune --from $$base --data chats --minutes $(CHAT_MINUTES) $$options --resume
	@touch $@

INDEXES := data/train.sa.json $(if $(CHATS),chats/train.sa.json)
chats/train.sa.json: chats/meta.json
	$(PY) -m prepare index chats
	@touch $@

chat: $(INDEXES) finetune ## Talk to the newest run (everything above is done first where it has to be)
	$(PY) -m sample chat

serve: $(INDEXES) finetune ## Talk to it in a browser instead, on http://127.0.0.1:8000
	$(PY) -m sample serve

test: setup-dev ## Run the tests that end within minutes
	$(PY) -m pytest

test-slow: setup-dev ## Run the tests that take longer
	$(PY) -m pytest -m slow

# On Debian; the browser that is there is kept, whatever brought it.
setup-browser: ## Install Chromium for make test-browser, where there is none (Debian; as root)
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
	{ apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

test-browser: setup-dev ## Run the tests that drive the page in Chromium
	$(PY) -m pytest -m browser

# Built from source, in some minutes: needs a C++ compiler; pip brings CMake.
setup-llama: $(VENV)/ready-llama ## Build llama.cpp for make test-llama
$(VENV)/ready-llama: requirements-llama.txt $(VENV)/ready-dev
	@echo 'Building requirements-llama.txt: some minutes the first time.'
	@$(PY) -m pip install --disable-pip-version-check -qq -r requirements-llama.txt
	@touch $@

test-llama: setup-llama ## Run the tests that ask llama.cpp what it makes of GGUF files
	$(PY) -m pytest -m llama

# A copy of the tracked files, in a folder of its own: what was installed or made here by hand
# cannot help it along.
smoke: ## Go a newcomer's way from nothing to an answer, on a small budget
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$$folder" && \
	printf 'Hello\nWhat does os.path.join do?\nThanks\n' | \
	$(MAKE) -C "$$folder" chat MINUTES=0.5 CHAT_MINUTES=1.5 > "$$folder/answers.txt" && \
	[ "$$(sed '1,/-m sample chat/d' "$$folder/answers.txt" | grep -c .)" -ge 3 ] && \
	grep -q '^os.path.join: ' "$$folder/answers.txt" && grep -q '^You are welcome' "$$folder/answers.txt" && \
	echo 'smoke: three questions, three answers.' || \
	{ cat "$$folder/answers.txt"; echo 'smoke: not the answers that were learned.'; exit 1; }

check: setup-dev ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup-dev ## Mend style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: setup-dev ## Print what is measured against its peers: BENCH=prepare|train|learning|compressors|endurance|answers|tracing|sample|serve|contention|gpu for one
	$(PY) -m tests.bench $(BENCH)

faults: setup-dev ## Count what cannot be lost: power cuts, full disks, signals, kills, flipped bits (15 minutes)
	OMP_NUM_THREADS=1 $(PY) -m tests.faults $(FAULTS)

clean: ## Delete what was made here: corpus/, data/, chats/, runs/, .venv and caches
	rm -rf corpus $(QUESTIONS) data chats runs .make $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
