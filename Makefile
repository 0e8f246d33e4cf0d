# `make help` lists the commands.  The two of a fresh machine are `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := vsockproxy/pump/_native
C_FILES := $(filter-out %/_pump.c,$(wildcard $(NATIVE)/*.c))
C_ALL := $(C_FILES) $(wildcard $(NATIVE)/*.h)
C_FLAGS := -std=gnu11 -Wall -Wextra -Werror -g -O1 -fno-omit-frame-pointer -I$(NATIVE)
SOURCES := pyproject.toml setup.py $(C_ALL) $(NATIVE)/build.py

DRIVER_WRAPS := -Wl,--wrap=splice,--wrap=epoll_ctl,--wrap=epoll_wait,--wrap=vsp_clock_us
DRIVER_WRAPS := $(DRIVER_WRAPS),--wrap=vsp_relay_upstream,--wrap=vsp_route_give,--wrap=vsp_throttle_take

LOAD_FILES := $(wildcard benchmarks/load/*.c)
LOAD_FLAGS := -std=gnu11 -Wall -Wextra -Werror -O2 -g

.PHONY: help venv demo test test-kernels test-others check man sanitize bare bench \
	bench-quick bench-readers bench-uring bench-vsock guard soak pictures docs lock wheel deb onefile sbom release-check tag clean

help: ## list these commands
	@awk -F ' ## ' '/^[a-z-]+:.* ## / { sub(/:.*/, "", $$1); printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/runtime ## try vsockproxy with an embedded guest; installs only what it needs
	$(BIN)/vsockproxy demo --config config/demo.toml

test: venv ## run every test that this machine can run, and list the others
	$(BIN)/pytest

# For two processors: .ci/run runs them side by side.
KERNELS := tests/kernel tests/container

test-kernels: venv ## of these tests, those in kernels and containers of their own
	$(BIN)/pytest $(KERNELS)

test-others: venv ## of these tests, the others
	$(BIN)/pytest $(KERNELS:%=--ignore=%)

venv: $(VENV)/installed ## create .venv with the tools of the tests

SUPPORTED := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
NO_PYTHON := make: cannot create $(VENV): $(PYTHON) is not Python 3.11 or newer; \
	name another, as in: make PYTHON=python3.12
NO_VENV := make: cannot create $(VENV): $(PYTHON) has no venv module; \
	on Debian: apt install python3-venv

# Editable, so that the tests and the demo run this working copy.  An environment that could not
# be created, or that another Python left, is removed: nothing could be installed in it.
define install
@$(PYTHON) $(SUPPORTED) || { echo '$(NO_PYTHON)' >&2; exit 1; }
@[ ! -e $(VENV) ] || $(BIN)/python $(SUPPORTED) || rm -rf $(VENV)
@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo '$(NO_VENV)' >&2; exit 1; }
$(BIN)/pip install --editable '$(1)'
endef

$(VENV)/runtime: $(SOURCES)
	$(call install,.)
	touch $@

$(VENV)/installed: $(SOURCES)
	$(call install,.[dev])
	touch $(VENV)/runtime $@

check: venv ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Draw docs/pictures: a minute of the demo under load, as `top` and the metrics show it.
pictures: venv ## draw docs/pictures from a minute of the demo under load
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/pictures.py

# MkDocs' notice of its successors is no result of a build.
docs: $(VENV)/docs ## build the site of docs/ in build/site, with its links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/docs: $(SOURCES)
	$(call install,.[docs])
	touch $(VENV)/runtime $@

# The man pages are committed; a test fails if they are older than their sources.
man: venv ## generate the man pages and the tables of the documentation
	$(BIN)/python -m man.generate

# The C driver under ASan, UBSan, LSan and TSan, then the pump's tests under ASan and UBSan.
sanitize: venv build/driver-address build/driver-thread build/sanitized/compiled ## the pump in C under the address, undefined-behaviour and thread sanitizers
	build/driver-address
	build/driver-thread
	cd build/sanitized && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONMALLOC=malloc \
		VSOCKPROXY_SCHEDULES=300 $(abspath $(BIN))/python -m pytest -q tests/pump -k "native or (direct and not portable)"

build/driver-address: tests/pump/driver.c $(C_ALL)
	mkdir -p build
	gcc $(C_FLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $< $(C_FILES) -lpthread $(DRIVER_WRAPS)

build/driver-thread: tests/pump/driver.c $(C_ALL)
	mkdir -p build
	gcc $(C_FLAGS) -fsanitize=thread -o $@ $< $(C_FILES) -lpthread $(DRIVER_WRAPS)

# A copy of the package whose compiled part is instrumented.  Leaks are the driver's to find:
# an interpreter keeps too much to the end for LSan to say anything.
build/sanitized/compiled: venv $(C_ALL)
	rm -rf build/sanitized && mkdir -p build/sanitized
	cp -r vsockproxy build/sanitized
	rm -f build/sanitized/$(NATIVE)/*.so build/sanitized/$(NATIVE)/*.o
	cd build/sanitized && CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1" \
		$(abspath $(BIN))/python -c "from vsockproxy.pump._native.build import ffibuilder; ffibuilder.compile()"
	cp -r tests pyproject.toml build/sanitized
	touch $@

# The results of docs/benchmarks.md.  For one row: python benchmarks/bench.py --only churn --rounds 3
bench: venv build/load $(VENV)/plots ## measure everything in docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/report.py

bench-quick: venv build/load ## measure a few rows in a few minutes
	$(BIN)/python benchmarks/bench.py --quick

bench-readers: venv build/load ## measure clients that name their targets, beside a plain route and others
	$(BIN)/python benchmarks/readers.py

# A plain relay by io_uring beside the one by epoll; needs liburing-dev.
bench-uring: venv build/load build/uring-relay ## measure what io_uring would save
	$(BIN)/python benchmarks/uring.py

# `make bench` over AF_VSOCK, in a User-Mode Linux kernel, into a guest and out of one.
bench-vsock: venv build/load $(VENV)/plots ## measure AF_VSOCK, both ways, in a User-Mode Linux kernel
	PYTHONPATH=. $(BIN)/python benchmarks/vsock.py in
	PYTHONPATH=. $(BIN)/python benchmarks/vsock.py out
	PYTHONPATH=. $(BIN)/python benchmarks/vsock.py without

# Fail if the data path costs more than before, relative to a plain relay; a part of .ci/run.
guard: venv build/load ## fail if the data path costs more than before
	$(BIN)/python benchmarks/guard.py

# Hours of what is a minute in `make test`: random schedules through the pumps, and the daemon
# under adverse load.  First the proof that the schedules find the faults of earlier versions.
SCHEDULES := 100000
MINUTES := 60
soak: venv build/load ## hours of random schedules and of adverse load
	VSOCKPROXY_SOAK=1 $(BIN)/pytest -q tests/pump/test_old_faults.py
	VSOCKPROXY_SCHEDULES=$(SCHEDULES) $(BIN)/pytest -q -o faulthandler_timeout=0 tests/pump/test_differential.py
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

$(VENV)/plots: venv
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

build/load: $(LOAD_FILES) benchmarks/load/load.h
	mkdir -p build
	gcc $(LOAD_FLAGS) -o $@ $(LOAD_FILES)

build/uring-relay: benchmarks/uring/relay.c benchmarks/load/address.c benchmarks/load/message.c benchmarks/load/load.h
	mkdir -p build
	gcc $(LOAD_FLAGS) -o $@ $(filter %.c,$^) -luring

# Without a compiler and without AF_VSOCK in Python, as on macOS, the package installs and its
# suite passes on the portable pump.
bare: venv ## the suite without a compiler and without AF_VSOCK, as on macOS
# A module that was moved or deleted would stay in build/lib, and be installed from there.
	rm -rf build/bare build/lib* && mkdir -p build/bare/tree
	CC=/bin/false $(BIN)/pip wheel --quiet --no-deps --wheel-dir build/bare .
	$(BIN)/pip install --quiet --no-deps --target build/bare/site build/bare/*-py3-none-any.whl
	cp -r $$(git ls-files | cut -d/ -f1 | sort -u | grep -v vsockproxy) build/bare/tree
	cd build/bare/tree && PYTHONPATH=$(abspath build/bare/site) TEST_WITHOUT_VSOCK=1 \
		$(abspath $(BIN))/python -m pytest -q -m "not native" \
		--ignore=tests/kernel --ignore=tests/container

# ---- a release: docs/install.md

$(VENV)/release: $(VENV)/installed
	$(BIN)/pip install --editable '.[release]'
	touch $@

lock: $(VENV)/release ## pin the newest versions of the requirements, with hashes, in release/requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command 'make lock' --output-file release/requirements.txt pyproject.toml

wheel: $(VENV)/release ## the sdist, and wheels for glibc, musl and neither, x86-64 and aarch64, in dist/
	$(BIN)/python release/wheels.py

# For Debian 12; SUITE=trixie is for Debian 13.  Needs debhelper, and the release's Python.
SUITE := bookworm
deb: $(VENV)/release ## the Debian package of the wheel that make wheel left in dist/
	$(BIN)/python -m release.deb $(SUITE)

onefile: $(VENV)/release ## one file for a quick trial, of the wheel in dist/, tried on this machine's Pythons
	$(BIN)/python -m release.onefile

sbom: $(VENV)/release ## the bill of materials and the licences of what a release contains, in dist/
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m release.sbom

# Everything, within hours; for one step: make release-check STEPS=try-deb
STEPS :=
release-check: $(VENV)/release ## what is longer than .ci/run: packages tried, version sets, a soak; as root
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m release.check $(STEPS)

tag: $(VENV)/release ## tag the commit as a release, if the last whole release-check passed for it
	$(BIN)/python -m release.tag

clean: ## remove everything that was built, and .venv
	rm -rf $(VENV) build dist *.egg-info $(NATIVE)/_pump.c $(NATIVE)/*.so $(NATIVE)/*.o
