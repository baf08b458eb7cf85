# The course's commands for those who have make. What each does stands in tools/run.py.
# the first Python on this machine that is new enough and starts
FIND := for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done
RUN := python="$$($(FIND))"; \
	if [ -z "$$python" ]; then echo "The course needs Python 3.11 or newer on the PATH."; exit 1; fi; \
	exec $$python tools/run.py
REPO ?=
FOLDER ?=

.PHONY: help setup course test test-all test-notebooks lint jupyter demo label class grade slides notebooks site bench badges lock clean
help setup course test test-all test-notebooks lint jupyter demo label class slides notebooks site bench lock clean:
	@$(RUN) $@

badges:
	@$(RUN) badges "$(REPO)"

grade:
	@$(RUN) grade "$(FOLDER)"
