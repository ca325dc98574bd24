# Two commands: `make demo` and `make test`. Both set everything up first; a second run repeats no set-up.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint setup system bench netlists clean

demo: setup
	@# A finished run is made anew; an interrupted one goes on where it stopped.
	@force=; ! grep -qs '"finished": true' runs/fair/run.json || force=--force; \
	$(BIN)/tngd run fair --out runs/fair $$force

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

setup: system $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
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

# One thread: ratios are of work, not of cores. A line of JSON for every result.
bench: setup
	for name in rounding exact sampling; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done

# The three reference decks; a test compares them with what the writer writes.
netlists: setup
	$(BIN)/python netlists/write_netlists.py

clean:
	rm -rf $(VENV) runs build *.egg-info
