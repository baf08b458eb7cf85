# The course's commands. Paths are relative, so a folder with spaces in its name works.
PYTHON := .venv/bin/python
# the first Python on this machine that is new enough and starts
FIND := for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done
REPO ?=

.PHONY: help setup course test lint jupyter demo notebooks bench badges clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /	/'

setup:  ## make or mend .venv
	@python="$$($(FIND))"; \
	if [ -z "$$python" ]; then echo "The course needs Python 3.11 or newer on the PATH."; exit 1; fi; \
	$$python tools/bootstrap.py

course: setup  ## set up, then run every notebook in the lab profile
	@$(PYTHON) tools/build_standins.py
	@$(PYTHON) tools/run_course.py

test: setup  ## set up, then run every test, the notebooks included
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests -n 2 --dist loadgroup -rs
	$(PYTHON) tools/build_standins.py
	COURSE_PROFILE=lab $(PYTHON) -m pytest --nbmake --nbmake-timeout=900 notebooks

lint: setup  ## mend what ruff can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

jupyter: setup  ## open the course in JupyterLab
	$(PYTHON) -m jupyter lab --notebook-dir=.

notebooks: setup  ## run every notebook in the lab profile and keep the outputs
	@$(PYTHON) tools/run_course.py --write
	@$(PYTHON) tools/figures.py

bench: setup  ## PPO against TRL 1.12, its quality over seeds; SFT, DPO and pair search
	$(PYTHON) benchmarks/ppo.py
	$(PYTHON) benchmarks/ppo_quality.py
	$(PYTHON) benchmarks/sft.py
	$(PYTHON) benchmarks/dpo.py
	$(PYTHON) benchmarks/mining.py

demo: setup  ## open the web demo on this machine
	$(PYTHON) tools/demo.py

badges: setup  ## point every badge and clone URL at REPO=owner/name
	@$(PYTHON) tools/badges.py "$(REPO)"

clean:  ## remove the environment, caches and artifacts; votes stay
	rm -rf .venv .cache
	find artifacts -mindepth 1 -maxdepth 1 ! -name 'votes.sqlite*' -exec rm -rf {} + 2>/dev/null || true
