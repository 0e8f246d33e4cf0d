# The two commands of a fresh machine are `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := vsockproxy/pump/_native
C_FILES := $(filter-out %/_pump.c,$(wildcard $(NATIVE)/*.c))
C_ALL := $(C_FILES) $(wildcard $(NATIVE)/*.h)
C_FLAGS := -std=gnu11 -Wall -Wextra -Werror -g -O1 -fno-omit-frame-pointer -I$(NATIVE)

DRIVER_WRAPS := -Wl,--wrap=splice,--wrap=epoll_ctl

LOAD_FILES := $(wildcard benchmarks/load/*.c)
LOAD_FLAGS := -std=gnu11 -Wall -Wextra -Werror -O2 -g

.PHONY: venv demo test check sanitize bare bench bench-quick bench-vsock guard soak pictures clean

venv: $(VENV)/installed

# Editable, so that the tests and the demo run this working copy.
$(VENV)/installed: pyproject.toml setup.py $(C_ALL) $(NATIVE)/build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: venv
	$(BIN)/vsockproxy demo --config config/demo.toml

test: venv
	$(BIN)/pytest

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Draw docs/pictures: a minute of the demo under load, as `top` and the metrics show it.
pictures: venv
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/pictures.py

# The man pages are committed; a test fails if they are older than their sources.
man: venv
	$(BIN)/python -m man.generate

# The C driver under ASan, UBSan, LSan and TSan, then the pump's tests under ASan and UBSan.
sanitize: venv build/driver-address build/driver-thread build/sanitized/compiled
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
bench: venv build/load $(VENV)/plots
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/report.py

bench-quick: venv build/load
	$(BIN)/python benchmarks/bench.py --quick

# The same with AF_VSOCK targets, in a User-Mode Linux kernel; updates its part of the page.
bench-vsock: venv build/load $(VENV)/plots
	PYTHONPATH=. $(BIN)/python benchmarks/vsock.py

# Fail if the data path costs more than before, relative to a plain relay; a part of .ci/run.
guard: venv build/load
	$(BIN)/python benchmarks/guard.py

# Hours of what is a minute in `make test`: random schedules through the pumps, and the daemon
# under adverse load.  First the proof that the schedules find the faults of earlier versions.
soak: venv build/load
	VSOCKPROXY_SOAK=1 $(BIN)/pytest -q tests/pump/test_old_faults.py
	VSOCKPROXY_SCHEDULES=100000 $(BIN)/pytest -q -o faulthandler_timeout=0 tests/pump/test_differential.py
	$(BIN)/python benchmarks/soak.py

$(VENV)/plots: venv
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

build/load: $(LOAD_FILES) benchmarks/load/load.h
	mkdir -p build
	gcc $(LOAD_FLAGS) -o $@ $(LOAD_FILES)

# Without a compiler and without AF_VSOCK in Python, as on macOS, the package installs and its
# suite passes on the portable pump.
bare: venv
# A module that was moved or deleted would stay in build/lib, and be installed from there.
	rm -rf build/bare build/lib* && mkdir -p build/bare/tree
	CC=/bin/false $(BIN)/pip install --quiet --no-deps --target build/bare/site .
	! ls build/bare/site/vsockproxy/pump/_native/*.so 2>/dev/null
	cp -r $$(git ls-files | cut -d/ -f1 | sort -u | grep -v vsockproxy) build/bare/tree
	cd build/bare/tree && PYTHONPATH=$(abspath build/bare/site) TEST_WITHOUT_VSOCK=1 \
		$(abspath $(BIN))/python -m pytest -q -m "not native" \
		--ignore=tests/kernel --ignore=tests/container

clean:
	rm -rf $(VENV) build dist *.egg-info $(NATIVE)/_pump.c $(NATIVE)/*.so $(NATIVE)/*.o
