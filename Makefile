# kvmlet: `make run` shows it, `make test` checks it. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# cargo and maturin are given the same interpreter, or each would rebuild what the other built.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

PYTHON_SOURCES := python tests/unit $(wildcard tests/adapters tests/e2e tests/escape tests/conftest.py tests/prose.py tests/hwkvm benches examples docs/reference.py)
PYTEST := $(BIN)/python -m pytest
UNIT := tests/unit
END_TO_END := $(wildcard tests/e2e tests/escape)
# What the way that calls travel can change.
EACH_WAY := poll and not default_mode
GUEST_PROGRAMS := tests/guests tests/escape/guests

.PHONY: help
help:
	@echo "make run       build, then run a Python script in a VM"
	@echo "make test      every check on this machine's own KVM"
	@echo "make test-long PART=auto|exit|poll|rust|user|servers|runtimes|suites|network|first|silicon  the same, with what is rare repeated in full"
	@echo "make test-hw   end-to-end tests and hostile guests on hardware KVM semantics (an emulated machine)"
	@echo "make hw-shell  a shell on that machine"
	@echo "make bench     measure; prints ratios to native"
	@echo "make bench-fork  the same for freezing, forking and resetting"
	@echo "make bench-calls  what a system call costs, by exit and by polling"
	@echo "make bench-processes  what fork, exec, pipes, switches between processes and builds cost"
	@echo "make bench-files  what starting a program and changing files in memory cost"
	@echo "make bench-net  what sockets cost, inside and to the host"
	@echo "make bench-profile  where the time of some programs goes, as a table and a picture"
	@echo "make bench-faults  page faults that leave the VM, of real programs"
	@echo "make bench-serve  servers behind kvmlet serve, against the same as they are"
	@echo "make bench-limits  how soon a limit or a signal ends hostile guests"
	@echo "make bench-library  what boxes, sessions and isolated functions cost, beside sandlock"
	@echo "make bench-silicon  instructions of requests, resets and forks, counted on the emulated machine"
	@echo "make reference write docs/reference.md anew from docstrings"
	@echo "make wheel     a wheel for glibc 2.28 and CPython 3.11 and later, and the source, in dist"
	@echo "make docs      the documents as a site, in dist/site"
	@echo "make lint      formatters, linters, types, import contracts and plain English only"
	@echo "make clean     remove what was built"

# ---- set-up ----

.PHONY: deps-build deps-test deps-hw deps-bench
deps-build deps-test deps-hw deps-bench: deps-%:
	@.ci/deps build $(filter-out build,$*)

# The groups are those of pyproject.toml. setuptools, which venv brings along, is not used, and
# would add a start-up hook to every run of kvmlet.
$(VENV)/.group-%: pyproject.toml
	@[ -x $(BIN)/python ] || "$$(.ci/python)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group $*
	@$(BIN)/python -m pip uninstall -qq --yes setuptools
	@touch $@

# cargo knows better than make what is out of date. An installed package is compiled, and starts in half the time.
# Without --group, maturin would install all of dev.
# Profiles are those of Cargo.toml: `quick` is built in seconds, `release` is what is measured.
.PHONY: develop develop-release
develop develop-release: develop%: $(VENV)/.group-build
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --profile $(or $(*:-%=%),quick) --quiet --group build
	$(BIN)/python -m compileall -q python/kvmlet

.PHONY: guests
guests: deps-test
	@for d in $(GUEST_PROGRAMS); do flock $$d $(MAKE) -C $$d || exit; done

# The paths of the machine that builds it are told to nobody, and change nothing of what is built.
CARGO_AT := $(or $(CARGO_HOME),$(HOME)/.cargo)
RUSTLIB_AT = $(shell rustc --print sysroot)
WHEEL_RUSTFLAGS = --remap-path-prefix=$(CURDIR)=kvmlet --remap-path-prefix=$(CARGO_AT)=cargo \
	--remap-path-prefix=$(RUSTLIB_AT)=rust
# The versions of glibc are those from 2.28 on, of CPython those from 3.11 on. zig links; what runs in guests
# takes the linker script of the ordinary compiler's.
WHEEL_ENV = PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" \
	CC_x86_64_unknown_linux_gnu=gcc AR_x86_64_unknown_linux_gnu=ar \
	CFLAGS="$${CFLAGS-} -ffile-prefix-map=$(CURDIR)=kvmlet -ffile-prefix-map=$(CARGO_AT)=cargo" \
	RUSTFLAGS="$${RUSTFLAGS-} $(WHEEL_RUSTFLAGS)"
.PHONY: wheel
wheel: deps-build $(VENV)/.group-wheel
	rm -f dist/kvmlet-*
	$(WHEEL_ENV) $(BIN)/maturin build --release --zig --compatibility manylinux_2_28 --strip --quiet --out dist
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/maturin sdist --out dist
	@ls -l dist

.PHONY: docs
docs: $(VENV)/.group-docs
	$(BIN)/mkdocs build --quiet
	@echo "dist/site/index.html"

# ---- use ----

.PHONY: run
run: deps-build
	@$(MAKE) develop
	$(BIN)/kvmlet run --timeout 60s -- /usr/bin/python3 examples/hello.py

# ---- checks ----

# Runs the target $(1), then prints how long it took, whether it passed or not.
timed = @start=$$SECONDS; status=0; $(MAKE) $(1) || status=$$?; \
	echo "make $@: $$((SECONDS - start)) s$$( ((status == 0)) || echo ', failed' )"; exit $$status

.PHONY: test test-steps
test: deps-test
	$(call timed,test-steps)
test-steps:
	@$(MAKE) $(VENV)/.group-dev
	@$(MAKE) --jobs 2 --output-sync=target lint-rust lint-python lint-prose test-unit test-rust
	@$(MAKE) --jobs 2 --output-sync=target test-auto-first test-auto-second
	@$(MAKE) --jobs 2 --output-sync=target test-exit test-poll

# Two compilers go side by side, each in a directory of its own: the largest crate keeps one processor busy.
.PHONY: test-unit
test-unit:
	@$(MAKE) develop
	@$(MAKE) guests
	$(PYTEST) $(UNIT)

# Tests wait more than they compute: two runs go side by side.
SIDE_BY_SIDE := $(PYTEST) -p no:cacheprovider
.PHONY: test-auto-first test-auto-second test-exit test-poll
test-auto-first:
	KVMLET_CALLS=auto $(SIDE_BY_SIDE) --share 1/2 $(END_TO_END)
test-auto-second:
	KVMLET_CALLS=auto $(SIDE_BY_SIDE) --share 2/2 $(END_TO_END)
# Each test by one of both ways: `make test-long` has each by both.
test-exit: SHARE := 1/2
test-poll: SHARE := 2/2
test-exit test-poll: test-%:
	KVMLET_CALLS=$* $(SIDE_BY_SIDE) -m '$(EACH_WAY)' --share $(SHARE) $(END_TO_END)

# What rarely goes wrong, repeated in full, and each test in each mode of calls: PART is one of these.
LONG_PARTS := auto exit poll rust user servers runtimes suites network first silicon
# Servers and other programs that only a part of their own has installed.
SERVERS := tests/e2e/test_servers.py tests/e2e/test_serve_load.py
NETWORK := tests/e2e/test_net_programs.py
# First attempts of a newcomer, likewise.
FIRST := tests/e2e/test_first_attempts.py
# Suites of CPython and Go, likewise.
SUITES := tests/e2e/test_suites.py
.PHONY: test-long $(LONG_PARTS:%=test-long-%) test-long-servers-steps test-long-runtimes-steps
test-long: deps-test
	@$(if $(filter $(LONG_PARTS),$(PART)),,$(error PART is one of: $(LONG_PARTS)))
	$(call timed,test-long-$(PART))
test-long-auto test-long-exit test-long-poll: test-long-%: $(VENV)/.group-long
	@$(MAKE) develop
	@$(MAKE) guests
	$(PYTEST) $(UNIT)/test_tables.py
	KVMLET_LONG=1 KVMLET_CALLS=$* $(PYTEST) -m '$(if $(filter auto,$*),not nothing,not default_mode)' --timeout 1200 $(END_TO_END) $(patsubst %,--ignore %,$(SERVERS) $(SUITES) $(NETWORK) $(FIRST))
# Servers as they are installed, each asked 10,000 times: those of Python, and servers under load; then all others.
OF_PYTHON := flask or django or fastapi or starlette or aiohttp or gunicorn or waitress
SERVED := KVMLET_SERVERS=1 KVMLET_LONG=1 KVMLET_CALLS=auto $(PYTEST) -p no:cacheprovider -rPs --durations 0 --durations-min 1
test-long-servers test-long-runtimes: $(VENV)/.group-servers
	@.ci/deps build test servers load
	@$(MAKE) develop
	@$(MAKE) guests
	@$(MAKE) $@-steps
test-long-servers-steps:
	$(SERVED) tests/e2e/test_serve_load.py
	$(SERVED) tests/e2e/test_servers.py -k '$(OF_PYTHON)'
test-long-runtimes-steps:
	$(SERVED) tests/e2e/test_servers.py -k 'not ($(OF_PYTHON)) and not postgresql'
	tests/as_user env $(SERVED) tests/e2e/test_servers.py -k postgresql
# Suites of CPython and Go and programs for Node and Java, each natively and in a VM. By a user without
# privileges: as root many tests of theirs do nothing.
test-long-suites: $(VENV)/.group-dev
	@.ci/deps build test suites
	@$(MAKE) develop
	tests/as_user env KVMLET_LONG=1 KVMLET_CALLS=auto $(PYTEST) -p no:cacheprovider -rP $(SUITES)
# Programs that talk, each natively and in a VM. As root some do not run.
test-long-network: $(VENV)/.group-dev
	@.ci/deps build test network
	@$(MAKE) develop
	@$(MAKE) guests
	KVMLET_LONG=1 KVMLET_CALLS=auto $(PYTEST) -p no:cacheprovider -rs $(NETWORK) -k 'not pgbench'
	tests/as_user env KVMLET_LONG=1 KVMLET_CALLS=auto $(PYTEST) -p no:cacheprovider -rs $(NETWORK) -k pgbench
# What somebody tries who has just installed it, with the runtimes and tools of a usual machine. The documents become
# a site, and each link in it leads somewhere.
test-long-first: $(VENV)/.group-dev
	@.ci/deps build test first
	@$(MAKE) develop
	KVMLET_LONG=1 KVMLET_CALLS=auto $(PYTEST) -p no:cacheprovider -rs $(FIRST)
	@$(MAKE) docs
# The end-to-end tests once more by a user without privileges who may use /dev/kvm.
test-long-user: $(VENV)/.group-dev
	@$(MAKE) develop
	@$(MAKE) guests
	tests/as_user env KVMLET_CALLS=auto $(PYTEST) -p no:cacheprovider tests/e2e
test-long-rust: $(VENV)/.group-dev
	KVMLET_LONG=1 PROPTEST_CASES=2048 cargo test --workspace --exclude kvmlet-py

.PHONY: lint lint-rust lint-python lint-prose
lint: lint-rust lint-python lint-prose
lint-rust: deps-test $(VENV)/.group-dev
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
lint-python: $(VENV)/.group-dev
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy --strict python tests/unit tests/e2e benches
	$(BIN)/basedpyright
	PYTHONPATH=python $(BIN)/lint-imports --no-logo --no-cache
# Documents, and doc comments of the rooms that are named in the script.
lint-prose: $(VENV)/.group-dev
	$(BIN)/python tests/prose.py

# Without kvmlet-py: an extension module has no Python to link its tests with.
.PHONY: test-rust
test-rust: deps-test
	cargo test --workspace --exclude kvmlet-py

# A machine of $(1) processors runs pytest once for each word of $(2): the calls of guests, a colon and
# more options. On one processor every call leaves the VM whatever the mode: a poller takes a second.
# Each pytest there reads only files that may have tests for it, and no plugin: it took a minute to find them.
hw-tests = $(BIN)/python tests/hwkvm/run.py --smp $(1) --timeout-s 1800 -- \
	env KVMLET_HW=1 PYTHONDONTWRITEBYTECODE=1 /bin/bash -c 'status=0; \
	$(foreach run,$(2),KVMLET_CALLS=$(firstword $(subst :, ,$(run))) $(PYTEST) -p no:cacheprovider \
		-p no:hypothesispytest --timeout 600 $(HW_$(lastword $(subst :, ,$(run)))) $(HW_FILES) || status=$$?;) exit $$status'
HW_FILES = $(shell grep -rl 'mark\.hw' --include='test_*.py' $(END_TO_END) | sort)
HW_most := -m "hw and not default_mode" --share 1-5/7
HW_rest := -m "hw and not default_mode" --share 6-7/7
HW_modes := -m "hw_modes and not default_mode"
HW_calls := -m "hw and default_mode"

# The test of the table of vCPU state (crates/hv/src/state.rs), as cargo names its program.
hv-state-test = $$(cargo test -p kvmlet-hv --test state --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')

# Each machine takes one processor of the host, however many it has: two go side by side, the longest beside
# all others.
HW_RUNS := test-hw-one test-hw-state test-hw-two

.PHONY: test-hw test-hw-steps $(HW_RUNS)
test-hw: deps-hw
	$(call timed,test-hw-steps)
test-hw-steps: $(VENV)/.group-dev
	@$(MAKE) develop
	@$(MAKE) guests
	$(BIN)/python tests/hwkvm/run.py --prepare
	@$(MAKE) --jobs 2 --output-sync=target $(HW_RUNS)
test-hw-state:
	$(BIN)/python tests/hwkvm/run.py --smp 1 --timeout-s 300 -- $(hv-state-test)
test-hw-one:
	$(call hw-tests,1,auto:most)
test-hw-two:
	$(call hw-tests,2,exit:rest poll:modes auto:calls)

# What requests, resets and forks cost may only fall (benches/silicon.toml), and a reset leaves nothing.
engine-test = $$(cargo test --profile quick -p kvmlet-engine --lib --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
SILICON = cargo build --profile $(1) --package kvmlet-engine --example silicon && \
	$(BIN)/python benches/silicon.py --profile $(1)
test-long-silicon: deps-hw $(VENV)/.group-dev
	@$(MAKE) develop
	@$(MAKE) guests
	$(BIN)/python tests/hwkvm/run.py --prepare
	$(BIN)/python tests/hwkvm/run.py --smp 1 --timeout-s 300 -- $(engine-test) snapshot::tests
	$(call SILICON,quick) --check

.PHONY: hw-shell
hw-shell: deps-hw $(VENV)/.group-dev
	@$(MAKE) develop
	$(BIN)/python tests/hwkvm/run.py --shell

.PHONY: bench
bench: deps-bench
	@$(MAKE) develop-release
	$(BIN)/python benches/run.py

.PHONY: bench-fork
bench-fork: deps-bench $(VENV)/.group-bench
	@$(MAKE) develop-release
	$(BIN)/python benches/fork.py

.PHONY: bench-calls
bench-calls: deps-bench
	@.ci/deps build peers || echo "going on without gVisor"
	@$(MAKE) develop-release
	$(BIN)/python benches/calls.py

.PHONY: bench-processes
bench-processes: deps-bench
	@.ci/deps build peers || echo "going on without gVisor"
	@$(MAKE) develop-release
	$(BIN)/python benches/processes.py

.PHONY: bench-files
bench-files: deps-bench
	@$(MAKE) develop-release
	$(BIN)/python benches/files.py

.PHONY: bench-net
bench-net: deps-bench
	@.ci/deps build peers || echo "going on without gVisor"
	@$(MAKE) develop-release
	$(BIN)/python benches/net.py

.PHONY: bench-profile
bench-profile: deps-bench $(VENV)/.group-bench
	@$(MAKE) develop-release
	$(BIN)/python benches/profile.py

.PHONY: bench-faults
bench-faults: deps-bench
	@$(MAKE) develop-release
	$(BIN)/python benches/faults.py

.PHONY: bench-limits
bench-limits: deps-bench
	@$(MAKE) develop-release
	@$(MAKE) guests
	$(BIN)/python benches/limits.py

.PHONY: bench-library
bench-library: deps-bench $(VENV)/.group-bench
	@$(MAKE) $(VENV)/.group-rivals || echo "going on without sandlock"
	@$(MAKE) develop-release
	$(BIN)/python benches/library.py

.PHONY: bench-silicon
bench-silicon: deps-hw $(VENV)/.group-dev
	@$(MAKE) develop-release
	@$(MAKE) guests
	$(call SILICON,release)

.PHONY: reference
reference: $(VENV)/.group-dev
	@$(MAKE) develop
	PYTHONPATH=python $(BIN)/python docs/reference.py

.PHONY: bench-serve
bench-serve: deps-bench $(VENV)/.group-servers
	@.ci/deps build load
	@.ci/deps build servers || echo "going on without Node"
	@$(MAKE) develop-release
	$(BIN)/python benches/serve.py

.PHONY: clean
clean:
	cargo clean
	rm -rf $(VENV) .hw .cache dist benches/build benches/out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f python/kvmlet/_native*.so
	find python tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
	@for d in $(GUEST_PROGRAMS); do $(MAKE) -C $$d clean; done
