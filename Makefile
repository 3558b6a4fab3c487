# The commands of this project. `make install` makes .venv; every other target makes it first if it is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

TOO_OLD := "edgeloop needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12"

.DEFAULT_GOAL := help
WAYS := test bench bench-threads bench-pass bench-deltas asan ubsan tsan fuzz million

.PHONY: help install lock native demo bench test lint docs lm-eval android app-hosts swift arm64 arm64-root native-cross native-host clean $(WAYS:%=native-%)

help:
	@echo "make install   .venv with edgeloop, its exporter, the engines and the test tools"
	@echo "make lock      write requirements.lock anew: the versions that make install has"
	@echo "make native    compile the lane engine again; make install does it when its sources change"
	@echo "make demo      export the shipped story model and let it tell a tale"
	@echo "make bench     measure the demo model, and a 360M shape against its peers"
	@echo "make test      style, types, tests"
	@echo "make lint      style and types only"
	@echo "make docs      the documents as a site, in build/site"
	@echo "make lm-eval   install lm-evaluation-harness, and test the model that edgeloop is to it"
	@echo "make native-X  the lane engine's C++: X is one of $(WAYS)"
	@echo "make app-hosts the Java on ONNX Runtime's and ExecuTorch's APIs, on this computer's JVM"
	@echo "make android   the Kotlin and Java of apps/android on this computer's JVM"
	@echo "make swift     the Swift of apps/ios on Linux, with stand-ins for Apple's frameworks"
	@echo "make native-host  edgeloop-run, the lane engine and its command line in one file without Python"
	@echo "make arm64     the same for 64-bit Arm, run under qemu, with whole models: the bits of this computer"
	@echo "make arm64-root  edgeloop and its engines in a Debian for 64-bit Arm, unpacked and run under qemu"
	@echo "make native-cross  compile it for Windows and macOS; under wine, the tests and models too"
	@echo "make clean     remove what was built (not .venv)"

install: $(VENV)/installed $(VENV)/native

EXTRAS := chat,cli,onnx,executorch,coreml,export,calibrate,sign,docs,dev
COMMA  := ,

# The stamps are older than pyproject.toml or the lock when a version in it has changed: then pip runs again. torch is not
# locked by hash: its builds for processors and for cards differ, and pip takes what its index has of the version that
# pyproject.toml names.
$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and $(TOO_OLD))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing edgeloop into $(VENV) (a minute or two)"
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) install -e '.[$(EXTRAS)]'
	@touch $@

# What the lock has are the newest releases that pyproject.toml allows; `make lock UPGRADE=` adds only what is missing.
UPGRADE := --upgrade
lock:
	@test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip -q install uv==0.13.9; }
	@build/lock/bin/uv pip compile -q pyproject.toml -o requirements.lock $(UPGRADE) \
		$(addprefix --extra ,$(subst $(COMMA), ,$(EXTRAS))) --universal --python-version 3.11 --generate-hashes \
		--no-emit-package torch --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

$(VENV)/installed-peers: $(VENV)/installed
	@echo "installing the benchmark's peers into $(VENV)"
	@$(PIP) install -e '.[$(EXTRAS),peers]'
	@touch $@

# The lane engine is optional: without a compiler this says what to install, and everything else works.
NATIVE := runtime/engines/native
native: $(VENV)/native

$(VENV)/native: $(VENV)/installed $(NATIVE)/build.py $(wildcard $(NATIVE)/src/*.* $(NATIVE)/src/*/*.*)
	@$(BIN)/python -m edgeloop.runtime.engines.native.build && touch $@ || true

demo: $(VENV)/installed $(VENV)/native
	@$(BIN)/edgeloop demo

bench: $(VENV)/installed-peers $(VENV)/native
	@test -f build/demo/manifest.json || $(BIN)/edgeloop demo > /dev/null
	$(BIN)/edgeloop bench build/demo
	$(BIN)/edgeloop compare --shape mor-360m-r3

test: lint $(VENV)/native
	@PYTHONUTF8=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# mypy wants the package under its own name, whatever the checkout is called.
lint: $(VENV)/installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@mkdir -p build/types && ln -sfn ../.. build/types/edgeloop
	@MYPYPATH=build/types $(BIN)/mypy --strict -p edgeloop.export -p edgeloop.runtime -p edgeloop.quant -p edgeloop.apps

# Warnings, as of links that lead nowhere, are errors.
docs: $(VENV)/installed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

# 260 MB in 38 packages, which `make install` does without; `make test` skips this test where they are not.
$(VENV)/installed-lm-eval: $(VENV)/installed
	@echo "installing lm-evaluation-harness into $(VENV)"
	@$(PIP) install -e '.[$(EXTRAS),lm-eval]'
	@touch $@

lm-eval: $(VENV)/installed-lm-eval
	@PYTHONUTF8=1 $(BIN)/python -m pytest -q tests/apps/test_lm_eval.py

# Compiled each time, with the flags of the library and, for the last five, a sanitizer.
$(WAYS:%=native-%): native-%: $(VENV)/installed
	@$(BIN)/python tests/native_programs.py $* $(ARGUMENTS)

native-host: $(VENV)/installed
	@$(BIN)/python -m edgeloop.runtime.engines.native.programs

# Kotlin's compiler with Compose's plugin and coroutines, 90 MB, which npm has; `make test` skips what needs them.
KOTLIN := build/kotlin
$(KOTLIN)/package:
	@mkdir -p $(KOTLIN)/fresh && cd $(KOTLIN)/fresh && npm pack --silent kotlin-compiler@2.4.20 > /dev/null
	@cd $(KOTLIN)/fresh && tar xzf kotlin-compiler-2.4.20.tgz && mv package .. && rm -r ../fresh

android: $(VENV)/installed $(VENV)/native | $(KOTLIN)/package
	@PYTHONUTF8=1 $(BIN)/python -m pytest -q tests/apps/test_phone_sources.py tests/apps/test_android*.py

# ONNX Runtime's Java classes, 0.4 MB of the 165 MB of a package of PyPI's that has them; `make test` skips what needs them.
ORT_JAVA := build/onnxruntime-java
$(ORT_JAVA)/ai: | $(VENV)/installed
	@$(PIP) download --no-deps -d $(ORT_JAVA)/package pyserini==1.6.0
	@$(BIN)/python tests/onnxruntime_java.py $(ORT_JAVA)/package/pyserini-1.6.0.tar.gz
	@rm -r $(ORT_JAVA)/package

app-hosts: $(VENV)/installed $(VENV)/native $(ORT_JAVA)/ai
	@PYTHONUTF8=1 $(BIN)/python -m pytest -q tests/apps/test_app_hosts.py

# Minutes. With swiftc; or as root, with debootstrap and a network for a Debian that has it, of 3 GB; skipped by name without.
swift: $(VENV)/installed $(VENV)/native
	@$(BIN)/python tests/swift_compiler.py
	@PYTHONUTF8=1 $(BIN)/python -m pytest -q tests/apps/test_swift*.py tests/apps/test_ios*.py tests/apps/test_phone_sources.py

# Minutes. With Debian's cross-compiler and qemu; skipped by name without them.
arm64: $(VENV)/installed
	@$(BIN)/python tests/arm64.py

# Minutes. As root, with debootstrap and qemu, and a network for Debian's packages and pip's wheels; skipped by name without.
arm64-root: $(VENV)/installed
	@$(BIN)/python tests/arm64_root.py $(ARGUMENTS)

# Minutes. With zig's compiler and, to run what is for Windows, wine; skipped by name without them.
native-cross: $(VENV)/installed
	@$(BIN)/python tests/native_cross.py

clean:
	rm -rf build dist $(NATIVE)/libedgeloop.* $(NATIVE)/edgeloop-run $(VENV)/native .pytest_cache .mypy_cache .ruff_cache
