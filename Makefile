# Commands, each of which works in a fresh clone with nothing but Python and make:
#   make lab       JupyterLab at the first notebook
#   make compare   the strategies side by side on the embedded model, as a table
#   make lint      format, ruff, mypy and the layers of the packages
#   make quick     the tests that need no browser, no server and no patience: two minutes
#   make test      every test
#   make fuzz      odd files, words, arguments and interrupts for half an hour (MINUTES=5, SEED=1)
#   make results   measure the embedded model again and write results/ (RUN=video for one task)
#   make leaderboard  the lab's own rows of the leaderboard, from the tables in results/
#   make versions  the model tests on the oldest, a middle and the newest transformers, each in its own environment
#   make prerelease  the same on the newest pre-release of transformers, if there is one
#   make notebooks run the notebooks and store their outputs
#   make docs      the documentation site, in docs/_build/html
#   make release   build wheel and sdist, check them, and use both in empty environments (some GB, some minutes)
# The first one run makes .venv and installs into it; later ones install again only if pyproject.toml or
# constraints.txt changed. Options: PYTHON=python3.12, ARGS="--no-browser", TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
ARGS ?=
RUN ?=
MODEL_TESTS := $(addprefix tests/,hooks models/test_foreign_code.py models/test_odd_folders.py schedules/test_schedule.py \
	session)
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check

# The index with torch builds. Unless it is named: on Linux without an NVIDIA driver, the one with the CPU builds, because
# the default build there brings several gigabytes of CUDA libraries. Where pip was told where packages come from, that stands.
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
	! $(PIP) config list | grep -E "index-url|find-links" >/dev/null && echo https://download.pytorch.org/whl/cpu)
INSTALL = $(PIP) install --quiet -c constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)) -e

.PHONY: help lab compare results leaderboard notebooks docs lint quick test release fuzz versions prerelease clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

lab: $(VENV)/.installed
	$(VENV_PYTHON) -m illava_lab lab $(ARGS)

compare: $(VENV)/.installed
	$(VENV_PYTHON) -m illava_lab compare $(ARGS)

results: $(VENV)/.installed
	$(VENV_PYTHON) results/make_embedded.py $(RUN)

leaderboard: $(VENV)/.installed
	$(VENV_PYTHON) results/make_leaderboard.py

notebooks: $(VENV)/.installed
	$(VENV_PYTHON) notebooks/execute.py

docs: $(VENV)/.installed-docs
	$(VENV_PYTHON) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env $(ARGS) docs docs/_build/html
	@echo "The site: docs/_build/html/index.html"

# Each says by itself what it found; the last line says what to do about it.
lint: $(VENV)/.installed-test
	@$(VENV_PYTHON) -m ruff format --check . || $(call failed,the format; `$(VENV_PYTHON) -m ruff format` mends it)
	@$(VENV_PYTHON) -m ruff check . || $(call failed,ruff; `$(VENV_PYTHON) -m ruff check --fix` mends some of it)
	@$(VENV_PYTHON) -m mypy || $(call failed,mypy)
	@$(VENV)/bin/lint-imports --no-cache || $(call failed,lint-imports; pyproject.toml has the layers)
failed = { echo 'make lint stopped at $(1)'; exit 1; }

PYTEST = $(VENV_PYTHON) -m pytest -q -n 2 --dist loadfile --durations=30 --durations-min=5

quick: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not browser and not network" $(ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

release: $(VENV)/.installed-release
	$(VENV_PYTHON) release.py $(addprefix --torch-index ,$(TORCH_INDEX)) $(ARGS)

MINUTES ?= 30
SEED ?= 0
fuzz: $(VENV)/.installed-test
	$(VENV_PYTHON) benchmarks/fuzz.py --minutes $(MINUTES) --seed $(SEED) $(ARGS)

# Each environment has its own transformers, and sees everything else in $(VENV).
VERSIONS ?= 5.6.0 5.17.0 5.24.0
versions: $(VERSIONS:%=.versions/%/.tested)

.versions/%/.tested: $(VENV)/.installed-test .FORCE
	test -d .versions/$* || $(PYTHON) -m venv .versions/$*
	$(VENV_PYTHON) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > \
		"$$(.versions/$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth"
	.versions/$*/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed "transformers==$*" "numpy==$$($(VENV_PYTHON) -c \
		'import numpy; print(numpy.__version__)')"
	.versions/$*/bin/python -c "import transformers; assert transformers.__version__ == '$*'"
	.versions/$*/bin/python -m pytest -q $(MODEL_TESTS) $(ARGS)

# What broke is in pytest's last lines: one for each test that failed, with the reason.
prerelease: $(VENV)/.installed-test
	@newest=$$($(PIP) index versions --pre transformers 2>/dev/null | sed -n '1s/.*(\(.*\))/\1/p'); \
	case "$$newest" in \
	"") echo "the releases of transformers could not be listed"; exit 1 ;; \
	*a*|*b*|*rc*|*dev*) $(MAKE) versions VERSIONS=$$newest ARGS="--tb=line $(ARGS)" ;; \
	*) echo "transformers has no pre-release that is newer than $$newest" ;; \
	esac

.PHONY: .FORCE
.FORCE:

clean:
	rm -rf $(VENV) .versions .release docs/_build docs/course build dist illava_lab.egg-info

# An environment whose Python is gone (upgraded, or the folder came from another machine) is no environment.
ifneq ($(shell $(VENV_PYTHON) -c "print(1)" 2>/dev/null),1)
.PHONY: $(VENV)/.created
endif

$(VENV)/.created:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "illava-lab needs Python 3.10 or newer as '$(PYTHON)'; name another one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make environments: install its venv module (Debian, Ubuntu: sudo apt install python3-venv)"; exit 1; }
	@rm -rf $(VENV)
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet "pip>=23.1"
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing illava-lab and what it needs into $(VENV): once, about 1.5 GB, some minutes"
	@$(INSTALL) .
	@touch $@
	@echo "Installed."

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing illava-lab, what it needs and what makes its site into $(VENV): once, about 1.5 GB, some minutes"
	@$(INSTALL) ".[docs]"
	@touch $(VENV)/.installed $@
	@echo "Installed."

# The test installation holds everything that the others hold, so it stands for all of them.
$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing illava-lab, what it needs and its test tools into $(VENV): once, about 1.5 GB, some minutes"
	@$(INSTALL) ".[test,lint]"
	@touch $(VENV)/.installed $(VENV)/.installed-docs $@
	@echo "Installed."

# Only what builds and checks: what is built brings everything else into environments of its own.
$(VENV)/.installed-release: $(VENV)/.created pyproject.toml
	@$(PIP) install --quiet "build>=1.2" "twine>=6"
	@touch $@
