"""How tests/apps/test_pages.py runs the commands of the pages: at which size, and which of them not, and why.

A command of a page that cannot be run as it stands gets a line here; a line that no page needs any more goes.
"""

from __future__ import annotations

import shlex

AT_MOST = {
    "bench": {
        "--chat": 2,
        "--prompt-tokens": 16,
        "--requests": 3,
        "--runs": 1,
        "--soak": 0.02,
        "--tokens": 8,
    },
    "calibrate": {"--max-tokens": 600},
    "compare": {"--context": 64, "--prompt-tokens": 4, "--rounds": 1, "--tokens": 2},
    "drift": {"--depth": 6, "--max-tokens": 40, "--random": 8},
    "eval": {"--max-tokens": 100},
    "export": {"--context": 64},
    "predict": {"--context": 32, "--prompt-tokens": 16, "--threads": 2},
    "quantize": {"--refine": 2},
    "run": {"-n": 8},
    "sensitivity": {"--max-tokens": 40},
}
"""By verb and flag, the largest number that a test runs with. Checkpoints, bundles and shapes are tiny as well."""
ADDED = {
    "bench": ("--prompt-tokens", "--runs", "--tokens"),
    "drift": ("--max-tokens",),
    "eval": ("--max-tokens",),
    "sensitivity": ("--max-tokens",),
}
"""By verb, the flags of ``AT_MOST`` that a command gets where the page leaves it to their defaults."""
CHARACTERS = 3000
"""Of a text that ``edgeloop.apps.demo.texts`` writes, what is left."""
INSTEAD = {
    "edgeloop bench bundle -p 128,512 -n 64 --contexts 0,1024 --depths": (
        "edgeloop bench bundle --prompt-tokens 8 -n 8 --contexts 0,8 --depths"
    ),
    "edgeloop compare --target native --group-size 128 32 --rounds 5 --prompt-tokens 128 --tokens 64": (
        "edgeloop compare --target native --group-size 32 --rounds 5 --prompt-tokens 128 --tokens 64 --threads 1"
    ),
    "edgeloop compare apps/demo/checkpoint --target native --group-size 32 --rounds 5 --prompt-tokens 128 "
    "--tokens 128": "edgeloop compare apps/demo/checkpoint --target native --group-size 32 --threads 1",
    "edgeloop export mor -o mor-pte --target onnx,executorch --quant int4 --group-size 32": (
        "edgeloop export mor -o mor-pte --quant int4"  # one export to ExecuTorch on a page is enough
    ),
    "edgeloop bench mor-pte --engine executorch": "edgeloop bench bundle --engine executorch",
    "edgeloop eval layers --text some.txt --exit depth:40 --exit stable:5": (
        "edgeloop eval layers --text some.txt --exit depth:2 --exit stable:2"  # as many layers as are there
    ),
    "edgeloop device measure -o mine.toml": "edgeloop device show pixel-8",  # half a minute
    "edgeloop device show mine.toml": "edgeloop device show raspberry-pi-5",
    "edgeloop predict bundle --device mine.toml": "edgeloop predict bundle --device raspberry-pi-5",
    "make demo": "edgeloop demo",  # once everything is installed
}
"""By command, what is run in its place: less of the same."""

BOARD = "a board; tests/apps/test_device.py and test_board.py have one"
COMMITS = "compiles the engine of two commits; tests/apps/test_bench_commits.py has commits of its own"
COMPILES = "compiles the engine; the fixture lane_engine does it for all tests"
CHECKED = "with keys of its own; tests/runtime/bundle/test_signature.py runs it"
HARNESS = "fetches data sets; tests/apps/test_lm_eval.py runs it on requests of its own"
HOST = "compiles a program into the checkout; tests/runtime/engines/native/test_run.py does it elsewhere"
INSTALLS = "installs packages"
JNI = "minutes: the engine once more; tests/apps/test_android.py links the JNI to its library, and runs the page's Java"
MEASURES = "minutes: the kernels by themselves, compiled for it"
MEASURES_UPDATES = "minutes: exports models; tests/export/test_update.py has a tiny one"
MEASURES_MODELS = (
    "minutes: exports models and times them; tests/test_prediction_table.py does it with tiny ones"
)
RUNNER = (
    "compiles a program into the checkout; tests/export/targets/test_executorch_runner.py does it elsewhere"
)
TESTS = "tests, or a part of them"
THEIR_EXPORTER = "minutes of ExecuTorch's own exporter; tests/apps/test_compare_pte.py tests the parts"
TRAINS = "hours; tests/apps/test_demo_recipe.py does a little of it"
NOT_RUN = {
    'edgeloop bench bundle --compare commit:main commit:HEAD "commit:HEAD --threads 1"': COMMITS,
    ".venv/bin/python tests/draft_prediction_table.py build/predictions": MEASURES_MODELS,
    ".venv/bin/python tests/draft_prediction_table.py build/predictions prepare": MEASURES_MODELS,
    ".venv/bin/python tests/prediction_table.py build/predictions": MEASURES_MODELS,
    ".venv/bin/python tests/update_table.py build/updates": MEASURES_UPDATES,
    ".venv/bin/python -m pytest tests/apps -k show": TESTS,
    "CMAKE_ARGS=-DGGML_AMX_INT8=OFF pip install llama-cpp-python==0.3.36 gguf": INSTALLS,
    "EDGELOOP_DEPTHS=2 apps/board/native/executorch-run bundle 20 3412 590 259 570": RUNNER,
    "apps/board/native/executorch-run bundle 20 3412 590 259 570": RUNNER,
    "apps/board/native/executorch-run bundle --chat --depths 2 --times": RUNNER,
    'apps/board/native/executorch-run bundle -p "Once upon a time" --times': RUNNER,
    'apps/board/native/executorch-run bundle -p "Once upon a time" -n 64 --stop "The end" --json': RUNNER,
    "cmake --build build/jni": JNI,
    "cmake -S apps/android/engine/src/main/cpp -B build/jni": JNI,
    "cd bundle": CHECKED,
    "edgeloop compare --shape mor-360m-r3 --target executorch --group-size 32 --rounds 3 --context 256": (
        THEIR_EXPORTER
    ),
    "edgeloop bench bundle --device local": "wheels come from a network; tests/apps/test_device.py has its own",
    "edgeloop bench bundle --device ssh://pi@board --host native": BOARD,
    "edgeloop board --host python --engine onnx pi@board push bundle": BOARD,
    'edgeloop board --host python pi@board run bundle -p "Once upon a time" -n 100 --engine onnx': BOARD,
    "edgeloop board pi@board bench bundle -p 128 -n 64": BOARD,
    "edgeloop board pi@board chat bundle": BOARD,
    "edgeloop board pi@board pull bundle -o copy": BOARD,
    "edgeloop board pi@board push bundle": BOARD,
    "edgeloop board pi@board remove bundle": BOARD,
    'edgeloop board pi@board run bundle -p "Once upon a time" -n 100': BOARD,
    "edgeloop bench bundle --device adb:SERIAL": "a phone; tests/apps/test_device_native.py has a stand-in",
    "edgeloop bench bundle --device ssh://pi@board --save runs/": BOARD,
    "edgeloop bench bundle --device ssh://pi@board:2222 --engine onnx --depths": BOARD,
    "java -Dedgeloop.library=build/jni/libedgeloop_jni.so -cp classes Hello bundle/native/model.lanes": JNI,
    "javac -d classes apps/android/engine/src/main/java/edgeloop/*.java Hello.java": JNI,
    "lm_eval --model hf --model_args pretrained=checkpoint --tasks arc_easy,hellaswag --limit 200": HARNESS,
    "make -C apps/board/native": RUNNER,
    "openssl pkeyutl -verify -pubin -inkey key.pem.pub -rawin -in bundle/SHA256SUMS -sigfile "
    "bundle/SHA256SUMS.sig": CHECKED,
    "sha256sum --check SHA256SUMS": CHECKED,
    "make android": TESTS,
    "make app-hosts": TESTS,
    "make swift": TESTS,
    "make docs": "builds the site into the checkout; tests/test_site.py does it elsewhere",
    "make install": INSTALLS,
    "make lint": "a part of make test",
    "make native": COMPILES,
    "make native-bench": MEASURES,
    'make native-bench ARGUMENTS="avx512 attention"': MEASURES,
    'make native-bench-pass ARGUMENTS="bundle/native/model.lanes behind=512 kv=8 1 3"': MEASURES,
    'make native-bench-pass ARGUMENTS="build/demo/native/model.lanes 1 2 4 8"': MEASURES,
    "make test": TESTS,
    'pip install "edgeloop[cli,export,executorch]"': INSTALLS,
    'pip install "edgeloop[lm-eval,onnx]"': INSTALLS,
    'pip install "edgeloop[onnx,export,peers]"': INSTALLS,
    "python -m edgeloop.apps.demo.ablate -o ablations --jobs 4": TRAINS,
    "python -m edgeloop.apps.demo.train -o my-checkpoint": TRAINS,
    "python -m edgeloop.apps.demo.train -o my-routed-checkpoint --routed": TRAINS,
    "python -m edgeloop.apps.lm_eval --model edgeloop --model_args bundle=bundle --tasks arc_easy,hellaswag "
    "--limit 200": HARNESS,
    "python -m edgeloop.apps.lm_eval --model edgeloop --model_args "
    "bundle=bundle,exit=depth:2,skipped_kv=exact --tasks arc_easy": HARNESS,
    "python -m edgeloop.runtime.engines.native.build": COMPILES,
    "make native-host": HOST,
    "python -m edgeloop.runtime.engines.native.programs": HOST,
    'runtime/engines/native/edgeloop-run build/demo --prompt "Once upon a time" -n 40': HOST,
    "runtime/engines/native/edgeloop-run build/demo --bench -p 32 -n 32 --runs 1 --json": HOST,
    "runtime/engines/native/edgeloop-run --help": HOST,
}
"""By command, why no page's test runs it. That make has the target, and pip the extras, is checked all the same."""

ELSEWHERE = {
    (
        "apps/ios/README.md",
        "swift",
    ): "tests/apps/test_swift.py compiles it, tests/apps/test_ios_native.py looks for the names in it",
    (
        "docs/in-your-app.md",
        "swift",
    ): "tests/apps/test_swift_loops.py compiles and runs it, on two engines",
    ("docs/android.md", "java"): "tests/apps/test_android.py compiles it, and runs what is a program",
    (
        "docs/android.md",
        "kotlin",
    ): "tests/apps/test_android_kotlin.py compiles it",
    ("docs/c-abi.md", "c"): "tests/apps/test_in_your_app.py compiles and runs it",
    ("docs/updates.md", "c"): "tests/runtime/engines/native/test_update.py compiles and runs it",
    ("docs/in-your-app.md", "c"): "tests/apps/test_in_your_app.py compiles and runs it",
    ("docs/in-your-app.md", "java"): "tests/apps/test_app_hosts.py compiles and runs it",
    ("docs/in-your-app.md", "py"): "tests/apps/test_in_your_app.py runs it, in a process of its own",
    ("docs/predict.md", "toml"): "tests/apps/test_predict.py predicts it",
    ("docs/quantization.md", "toml"): "tests/quant/test_recipe_file.py reads it",
    ("docs/sampling.md", "json"): "what a command writes; tests/apps/test_verbs.py knows the keys",
}
"""By page and language, which test has the blocks that are neither commands, Python nor output."""
PEER = "a peer that make install leaves out"
NOT_WRITTEN = {
    "llama.cpp": PEER,
    "native, avx2": "a processor with more than AVX2",
    "onnxruntime-genai": PEER,
    "other programs disturbed": "other programs",
    "÷ the best peer": PEER,
}
"""By how it begins, what a line of output needs that may not be here; it is not looked for."""


def smaller(command: str) -> list[str]:
    """The words of ``command``, at the size of a test."""
    words = shlex.split(INSTEAD.get(command, command).removeprefix("/usr/bin/time -v "))
    bounds = AT_MOST.get(words[1], {}) if words[0] == "edgeloop" else {}
    for i, word in enumerate(words[:-1]):
        if word in bounds:
            words[i + 1] = f"{min(bounds[word], float(words[i + 1])):g}"
    absent = [flag for flag in ADDED.get(words[1], ()) if flag not in words]
    return [*words, *(word for flag in absent for word in (flag, str(bounds[flag])))]
