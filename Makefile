# What can be done here: `make help`. Everything is installed into .venv, nothing outside of it.
#   make test ARGS="-k runner -x"     arguments for tests/run.py and pytest
#   make env PYTHON=/opt/python3.14/bin/python3

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --no-input
MARIADB_PACKAGES := mariadb-server libmariadb-dev pkg-config gcc

# The first Python >= 3.12 that really runs and can make an environment: names on PATH may be shims.
define find_python
usable() { "$$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }; \
found=; \
if [ -n "$(PYTHON)" ]; then \
	if usable "$(PYTHON)"; then found="$(PYTHON)"; else \
		echo "PYTHON=$(PYTHON) is no Python >= 3.12 with venv; name another or leave it out." >&2; \
		exit 1; \
	fi; \
else \
	for name in python3.14 python3.13 python3.12 python3 \
		$$(ls -d "$$HOME"/.pyenv/versions/*/bin/python3 2>/dev/null | sort -rV); do \
		if usable "$$name"; then found="$$name"; break; fi; \
	done; \
fi; \
if [ -z "$$found" ]; then \
	echo "No Python >= 3.12 found. Install one (apt-get install python3.12 python3.12-venv," >&2; \
	echo "or pyenv install 3.13), or name it: make env PYTHON=/path/to/python3" >&2; \
	exit 1; \
fi
endef

.PHONY: help
help:  ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: env
env: .venv/stamp  ## .venv with the project (editable) and all that its tests need
	@if [ -e .venv/mysqlclient.stamp ]; then exit 0; fi; \
	if [ -e .venv/mysqlclient.log ] && ! pkg-config --exists libmariadb 2>/dev/null; then false; \
	else $(PY) $(PIP_INSTALL) --editable ".[mysql]" >.venv/mysqlclient.log 2>&1; fi \
	&& touch .venv/mysqlclient.stamp || { \
		echo "NO MARIADB: mysqlclient could not be built (.venv/mysqlclient.log)." >&2; \
		echo "  apt-get install $(MARIADB_PACKAGES), then make env again." >&2; \
	}

.venv/stamp: pyproject.toml
	@$(find_python); echo "Installing into .venv with $$found"; "$$found" -m venv --clear .venv
	@$(PY) $(PIP_INSTALL) --editable ".[dev,manifests,postgresql]"
	@mkdir -p .venv/mypy && ln -sfn ../../supervisor .venv/mypy/dbtasks_supervisor
	@touch $@

.venv60/stamp: pyproject.toml
	@$(find_python); echo "Installing into .venv60 with $$found"; "$$found" -m venv --clear .venv60
	@.venv60/bin/python $(PIP_INSTALL) --editable ".[dev,postgresql]" "Django>=6.0,<6.1"
	@touch $@

.PHONY: test
test: env  ## The suite on SQLite, PostgreSQL and MariaDB; ARGS="-k name" for pytest
	@$(PY) -m tests.run $(ARGS)

.PHONY: test-django60
test-django60: .venv60/stamp  ## The suite on SQLite with Django 6.0
	@.venv60/bin/python -m tests.run --database sqlite $(ARGS)

.PHONY: test-dist
test-dist: env  ## What is in wheel and sdist, and the wheel in an empty environment
	@$(PY) -m pytest -q tests/dist/distribution.py $(ARGS)

# Without a wheel for this Python pip takes the latest hypothesis that needs none.
.venvt/stamp: pyproject.toml
	@$(find_python); echo "Installing into .venvt with $$found"; "$$found" -m venv --clear .venvt
	@.venvt/bin/python $(PIP_INSTALL) --editable . --only-binary hypothesis \
		pytest hypothesis PyYAML prometheus-client opentelemetry-sdk
	@touch $@

.PHONY: test-free-threaded
test-free-threaded: .venvt/stamp  ## Without a GIL: threads and the suite on SQLite; PYTHON=python3.14t
	@PYTHONPATH=. .venvt/bin/python -m tests.free_threaded
	@.venvt/bin/python -m tests.run --database sqlite $(ARGS)

# A booted systemd: root, a kernel with cgroup2 and namespaces, debootstrap for the image (300 MB
# in .systemd, made once), no network otherwise. SUITE= must be no older than this system.
.PHONY: test-systemd
test-systemd: env  ## deploy/systemd under a real systemd, in namespaces; needs root, SUITE=bookworm
	@mkdir -p .systemd
	@DBTASKS_SYSTEMD_IMAGE=.systemd/$(or $(SUITE),bookworm) \
		$(PY) -m pytest tests/systemd/service.py -v $(ARGS)

.PHONY: lint
lint: env  ## ruff, mypy, and the list of packages in pyproject.toml
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@for init in $$(find dbtasks supervisor -name __init__.py); do \
		package=$$(dirname "$$init" | sed 's,^supervisor,dbtasks_supervisor,; s,/,.,g'); \
		grep -q "^    \"$$package\",$$" pyproject.toml || { \
			echo "pyproject.toml: add \"$$package\" to [tool.setuptools] packages." >&2; exit 1; \
		}; \
	done

.PHONY: bench
bench: env  ## What it does here, beside raw SQL: QUICK=1 (2 minutes), PEERS=1, WRITE=1 (docs/)
	@$(PY) -m tests.bench $(if $(QUICK),--quick) $(if $(PEERS),--peers) $(if $(WRITE),--write) $(ARGS)

.PHONY: chaos
chaos: env  ## Load and random kills on every database: SECONDS=180 in all, SEED=, ARGS="--help"
	@$(PY) -m tests.chaos --seconds $(or $(SECONDS),180) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: soak
soak: env  ## Whether a node grows: TASKS=100000 DEATHS=200, ARGS="--database postgresql"
	@$(PY) -m tests.soak --tasks $(or $(TASKS),100000) --deaths $(or $(DEATHS),200) $(ARGS)

.PHONY: reference
reference: env  ## docs/reference/, written from the code
	@$(PY) -m tests.reference

.PHONY: test-upgrade
test-upgrade: env  ## The first version's code beside this one's on one schema: ARGS="--help"
	@$(PY) -m tests.upgrade $(ARGS)

.PHONY: test-import
test-import: .venv-import/stamp  ## `dbtasks import` from the real products, in an environment of its own
	@.venv-import/bin/python -m tests.imports

.venv-import/stamp: pyproject.toml
	@$(find_python); echo "Installing into .venv-import with $$found"; "$$found" -m venv --clear .venv-import
	@.venv-import/bin/python $(PIP_INSTALL) --editable ".[postgresql]" pytest hypothesis \
		django-tasks-db dj-queue django-q2 "django-celery-beat>=2.9"
	@.venv-import/bin/python $(PIP_INSTALL) --target .venv-import/earlier --no-deps "django-dbtasks==0.5.0"
	@.venv-import/bin/python $(PIP_INSTALL) mysqlclient >/dev/null 2>&1 || \
		echo "NO MARIADB: mysqlclient could not be built." >&2
	@touch $@

.PHONY: demo
demo: env  ## The example project, start to end, with what it shows
	@$(PY) deploy/example/demo.py $(ARGS)

.PHONY: run
run: env  ## The example project until Ctrl-C
	@$(PY) deploy/example/demo.py --forever $(ARGS)

.PHONY: clean
clean:  ## Remove the environments, builds and caches
	@rm -rf .venv .venv60 .venvt .venv-import .bench .systemd build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@rm -rf django_dbtasks.egg-info
	@find dbtasks supervisor tests -name __pycache__ -prune -exec rm -rf {} +
