# Two commands: `make demo` sets everything up and forecasts the bundled sample, `make test` sets up and runs the tests.
PYTHON ?= python3
# pinned: those of constraints.txt; lowest: what pyproject.toml still allows; newest: what the registry has.
VERSIONS ?= pinned
VENV ?= .venv$(if $(filter-out pinned,$(VERSIONS)),-$(VERSIONS))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint docs benchmark clean install-pinned install-lowest install-newest
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "egno_md needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(MAKE) --no-print-directory install-$(VERSIONS)
	touch $@

install-pinned:
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(head -n 1 constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,plot,paper,test,docs]"

# Only what pyproject.toml names is held at its lowest: what those need in turn is theirs to say.
install-lowest install-newest: install-%:
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution $(if $(filter lowest,$*),lowest-direct,highest) \
	    -e ".[train,plot,paper,test]"

demo: $(READY)
	@mkdir -p demo
	$(BIN)/egno-md predict egno_md/models/sample/ubiquitin.pdb egno_md/models/sample/ubiquitin.xtc \
	    --horizon 8 --with-input --force -o demo/ubiquitin_forecast.dcd
	@echo "open it with: vmd demo/ubiquitin_forecast.pdb demo/ubiquitin_forecast.dcd"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

benchmark: $(READY)
	$(BIN)/python -m pytest -q tests/benchmarks

clean:
	rm -rf $(VENV) demo docs/_build build *.egg-info
