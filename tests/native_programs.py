"""The C++ programs beside the lane engine's sources, compiled and run: .venv/bin/python tests/native_programs.py HOW.

HOW is a name of ``WAYS``; ``make native-test`` and its like call this. Flags of each file are those of the library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime" / "engines" / "native"))

from build import COMPILERS, SOURCES, Target, compile_object  # by its place: there may be no edgeloop yet

sys.path.pop(0)  # its neighbours have names that modules here have too

KERNEL_TESTS = ("main", "models", "products", "functions", "tables", "attention", "amx")
TESTS = ("kernels", "threads", "pace", "blocks", "drafts", "decode", "text")
"""Programs that test parts of the library, without one."""
PLATFORM = ("platform_posix", "platform_windows")
"""Sources that are empty on the other's systems."""


@dataclass(frozen=True)
class Way:
    """Programs to compile with ``options`` beside the flags of the library, and to run one after the other."""

    programs: tuple[str, ...]
    options: tuple[str, ...] = ()
    compilers: tuple[str, ...] = COMPILERS
    environment: tuple[tuple[str, str], ...] = ()


_CLANG = ("clang++", *(f"clang++-{version}" for version in range(21, 13, -1)))
_CHECKED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
WAYS = {
    "test": Way(TESTS),
    "bench": Way(("bench",)),
    "bench-threads": Way(("bench_threads",)),
    "bench-pass": Way(("bench_pass",)),
    "bench-deltas": Way(("bench_deltas",)),
    "asan": Way(
        (*TESTS, "fuzz", "fuzz_text", "fuzz_context", "fuzz_update"), (*_CHECKED, "-fsanitize=address")
    ),
    "ubsan": Way(
        (*TESTS, "fuzz", "fuzz_text", "fuzz_context", "fuzz_update"), (*_CHECKED, "-fsanitize=undefined")
    ),
    "tsan": Way(("threads", "blocks", "fuzz"), (*_CHECKED, "-fsanitize=thread")),
    "fuzz": Way(
        ("fuzz", "fuzz_text", "fuzz_update"),
        (*_CHECKED, "-fsanitize=fuzzer,address,undefined", "-DEDGELOOP_LIBFUZZER"),
        _CLANG,
    ),
    "million": Way(("fuzz_context", "fuzz_text", "fuzz_update"), (*_CHECKED, "-fsanitize=address,undefined")),
}


def program(name: str, target: Target) -> list[Path]:
    """What the program ``name`` is compiled from."""
    kernels = [path for path in target.sources() if path.parent.name == "kernels"]
    text = [path for path in target.sources() if path.parent.name == "text" and path.name != "text_api.cpp"]
    team = [SOURCES / "threads.cpp", SOURCES / "pace.cpp"]
    return {
        "kernels": [*(SOURCES / f"test_{part}.cpp" for part in KERNEL_TESTS), *kernels],
        "binding": [SOURCES / "test_binding.cpp", *kernels],
        "threads": [SOURCES / "test_threads.cpp", *team],
        "pace": [SOURCES / "test_pace.cpp", SOURCES / "pace.cpp"],
        "blocks": [
            SOURCES / f"{part}.cpp" for part in ("test_blocks", "block", "cache", "kv_layout", *PLATFORM)
        ],
        "drafts": [SOURCES / f"{part}.cpp" for part in ("test_drafts", "decode/drafts", "decode/lookup")],
        "decode": [
            SOURCES / f"{part}.cpp"
            for part in ("test_decode", "decode/sampler", "decode/rules", "decode/sequence")
        ],
        "model": [SOURCES / "test_model.cpp"],  # with the library
        "model_whole": [SOURCES / "test_model.cpp", *target.sources()],
        "update": [SOURCES / "test_update.cpp"],  # with the library
        "update_whole": [SOURCES / "test_update.cpp", *target.sources()],
        "bench": [SOURCES / "bench.cpp", SOURCES / "bench_roofs.cpp", *kernels],
        "bench_deltas": [SOURCES / "bench_deltas.cpp", *target.sources()],
        "bench_threads": [SOURCES / "bench_threads.cpp", *kernels, *team],
        "bench_pass": [SOURCES / "bench_pass.cpp", *target.sources()],
        "text": [SOURCES / "test_text.cpp", *text],
        "fuzz_text": [SOURCES / "fuzz_text.cpp", *text],
        "fuzz": [SOURCES / "fuzz.cpp", SOURCES / "fuzz_calls.cpp", *target.sources()],
        "fuzz_context": [SOURCES / "fuzz_context.cpp", *target.sources()],
        "fuzz_update": [SOURCES / "fuzz_update.cpp", SOURCES / "update/file.cpp"],
    }[name]


def here(compilers: Sequence[str] = COMPILERS) -> Target | None:
    """This computer with the first of ``compilers`` that is there."""
    for name in compilers:
        try:
            subprocess.run([name, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return Target((name,))
    return None


def compiled(
    name: str,
    folder: Path,
    options: Sequence[str] = (),
    target: Target | None = None,
    shared: bool = False,
    link: Sequence[str] = (),
) -> Path:
    """The program ``name``, or a library of it; objects that ``folder`` has of these sources are not compiled again."""
    target = target or here()
    assert target is not None

    def compile_one(source: Path) -> Path:
        return compile_object(target, source, folder, options)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        objects = list(pool.map(compile_one, program(name, target)))
    goal = folder / (f"{name}.so" if shared else name)
    link = ("-shared", *link) if shared else link
    command = [*target.compiler, *map(str, objects), *options, *link, "-pthread", "-o", str(goal)]
    subprocess.run(command, check=True)
    return goal


def lanes_files(folder: Path) -> list[Path]:
    """Files of the tests' programs, for a fuzzer to change."""
    from lanes_files import QUANTS, stored
    from programs import PROGRAMS

    from edgeloop.runtime.engines.native.file import write_lanes

    folder.mkdir()
    made = []
    for number, (name, make) in enumerate(PROGRAMS.items()):
        program = make()
        made.append(folder / f"{name}.lanes")
        write_lanes(made[-1], program, *stored(program, QUANTS[number % len(QUANTS)]))
    return made


def text_sections(folder: Path) -> list[Path]:
    """Text sections of tokenizers of every kind, for a fuzzer to change."""
    from native_tokenizers import tokenizer

    from edgeloop.export.targets.native.text.section import tokenizer_tables
    from edgeloop.runtime.engines.native.text_format import section

    folder.mkdir()
    made = []
    for name in (
        "llama3",
        "roberta",
        "qwen3",
        "llama2",
        "mistral",
        "xlmr",
        "albert",
        "bert",
        "suffix",
        "prefix",
    ):
        source = folder.parent / "tokenizer.json"
        tokenizer(name).save(str(source))
        made.append(folder / f"{name}.text")
        made[-1].write_bytes(section(tokenizer_tables(source, False)))
    return made


def update_files(folder: Path) -> list[Path]:
    """An update, and a list of hashes as it is signed, for a fuzzer to change."""
    from update_bundles import new_bundle, old_bundle

    from edgeloop.runtime.bundle.folder import Bundle, sha256_of
    from edgeloop.runtime.bundle.manifest import MANIFEST
    from edgeloop.runtime.bundle.signature import sums
    from edgeloop.runtime.update.diff import make_update

    with tempfile.TemporaryDirectory() as work:
        old, new = old_bundle(Path(work) / "old"), new_bundle(Path(work) / "new", b"more")
        folder.mkdir()
        made = [make_update(old, new, folder / "update").path, folder / "sums"]
        made[1].write_bytes(sums(Bundle.open(new).manifest, sha256_of(new / MANIFEST)))
    return made


def delta_files(folder: Path) -> list[Path]:
    """Files in the shape of mor-360m-r3's block, random int4 codes: without deltas, with rank 64 everywhere, twice."""
    import numpy as np

    from edgeloop.runtime.engines.native.file import write_lanes
    from edgeloop.runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama
    from edgeloop.runtime.model.codec import code_shape
    from edgeloop.runtime.model.decoder import decoder
    from edgeloop.runtime.model.rotation import Rotation
    from edgeloop.runtime.model.weights import Delta, tensors

    random, made = np.random.default_rng(0), list[Path]()
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    every = dict.fromkeys(names, Delta(64))
    for name, deltas in {"without": {}, "float16": every, "int8": every}.items():
        attention = Attention(15, 5, 64, Rotation(64, 10000.0))
        layer = Layer(960, attention, Mlp(2560), NormKind(1e-5), 3, norm_rows=True, deltas=deltas)
        program = decoder(
            "test", llama, [(layer,) * 10], layer.norm,
            width=960, vocab_size=512, context_length=2048, tied_embedding=True,
        )  # fmt: skip
        stored: dict[str, np.ndarray[Any, Any]] = {}
        for full, tensor in tensors(program.weights):
            delta = tensor.kind == "delta"
            if tensor.kind == "matrix" or (delta and name == "int8"):
                size, bits = (0, 8) if delta else (128, 4)
                rows = int(np.prod(tensor.shape[:-1]))
                shape, base = code_shape(rows, tensor.shape[-1], size, bits), full.removesuffix(".weight")
                stored[f"{base}.codes"] = random.integers(0, 256, shape, np.uint8)
                stored[f"{base}.scales"] = np.full(shape[:2], 0.01, np.float16)
            else:
                kind = np.float16 if delta else np.float32
                stored[full] = (0.02 * random.standard_normal(tensor.shape, np.float32)).astype(kind)
        made.append(folder / f"{name}.lanes")
        write_lanes(made[-1], program, stored, 128)
    return made


def main(how: str, arguments: Sequence[str]) -> int:
    """Compile and run what ``how`` names; the exit status of the first program that fails."""
    way = WAYS[how]
    target = here(way.compilers)
    if target is None:
        sys.exit(f"native-{how} is skipped: it wants {' or '.join(way.compilers[:2])}")
    with tempfile.TemporaryDirectory(prefix="edgeloop-native-") as folder:
        for name in way.programs:
            binary = compiled(name, Path(folder), ("-Werror", *way.options), target)
            given = [*arguments] or (["1000000"] if how == "million" else [])
            if name in ("fuzz", "fuzz_update"):
                files = (lanes_files if name == "fuzz" else update_files)(Path(folder) / f"files-{name}")
                given = given or (["-max_total_time=60"] if how == "fuzz" else ["2000"])
                given += [str(files[0].parent)] if how == "fuzz" else map(str, files)
            if name == "fuzz_text":
                texts = text_sections(Path(folder) / "texts")
                given = given or (["-max_total_time=60"] if how == "fuzz" else ["20000"])
                if how == "fuzz":  # libFuzzer's inputs end with a text and its size
                    words = "Once upon a time, ½ ﬁ e\u0301 他 [MASK]<s>".encode()
                    for path in texts:
                        path.write_bytes(path.read_bytes() + words + len(words).to_bytes(4, "little"))
                given += [str(texts[0].parent)] if how == "fuzz" else map(str, texts)
            if name == "fuzz_context":
                from context_files import context_files

                given = [*(given or ["20000"]), *map(str, context_files(Path(folder) / "contexts"))]
            if name == "bench_deltas":
                given = given or [*map(str, delta_files(Path(folder)))]
            status = subprocess.run([str(binary), *given], env={**os.environ, **dict(way.environment)})
            if status.returncode:
                return status.returncode
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in WAYS:
        sys.exit(f"usage: native_programs.py {'|'.join(WAYS)} [arguments of the program]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
