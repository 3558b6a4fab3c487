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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime" / "engines" / "native"))

from build import COMPILERS, SOURCES, flags, sources  # by its place: there may be no edgeloop yet

KERNEL_TESTS = ("main", "models", "products", "functions", "tables", "attention")


@dataclass(frozen=True)
class Way:
    """Programs to compile with ``options`` beside the flags of the library, and to run one after the other."""

    programs: tuple[str, ...]
    options: tuple[str, ...] = ()
    compilers: tuple[str, ...] = COMPILERS
    environment: tuple[tuple[str, str], ...] = ()


_CHECKED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
WAYS = {
    "test": Way(("kernels", "threads", "blocks")),
    "bench": Way(("bench",)),
    "bench-threads": Way(("bench_threads",)),
    "asan": Way(("kernels", "threads", "blocks", "fuzz"), (*_CHECKED, "-fsanitize=address")),
    "ubsan": Way(("kernels", "threads", "blocks", "fuzz"), (*_CHECKED, "-fsanitize=undefined")),
    "tsan": Way(("threads", "blocks", "fuzz"), (*_CHECKED, "-fsanitize=thread")),
    "fuzz": Way(
        ("fuzz",), (*_CHECKED, "-fsanitize=fuzzer,address,undefined", "-DEDGELOOP_LIBFUZZER"), ("clang++",)
    ),
}


def program(name: str) -> list[Path]:
    """What the program ``name`` is compiled from."""
    kernels = [path for path in sources() if path.parent.name == "kernels"]
    team = SOURCES / "threads.cpp"
    return {
        "kernels": [*(SOURCES / f"test_{part}.cpp" for part in KERNEL_TESTS), *kernels],
        "binding": [SOURCES / "test_binding.cpp", *kernels],
        "threads": [SOURCES / "test_threads.cpp", team],
        "blocks": [SOURCES / f"{part}.cpp" for part in ("test_blocks", "block", "cache")],
        "bench": [SOURCES / "bench.cpp", *kernels],
        "bench_threads": [SOURCES / "bench_threads.cpp", *kernels, team],
        "fuzz": [SOURCES / "fuzz.cpp", *sources()],
    }[name]


def compiler(names: Sequence[str] = COMPILERS) -> str | None:
    """The first of ``names`` that is there."""
    for name in names:
        try:
            subprocess.run([name, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return name
    return None


def compiled(
    name: str, folder: Path, options: Sequence[str] = (), with_: str | None = None, shared: bool = False
) -> Path:
    """The program ``name``, or a library of it, made of the objects in ``folder`` or new ones; warnings are errors."""
    command = with_ or compiler()
    assert command is not None

    def compile_one(source: Path) -> Path:
        goal = folder / f"{'-'.join(source.relative_to(SOURCES).with_suffix('').parts)}.o"
        if not goal.exists():
            run = [command, *flags(source), "-Werror", *options, "-c", str(source), "-o", str(goal)]
            subprocess.run(run, check=True)
        return goal

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        objects = list(pool.map(compile_one, program(name)))
    goal = folder / (f"{name}.so" if shared else name)
    link = ("-shared",) if shared else ()
    subprocess.run([command, *map(str, objects), *options, *link, "-pthread", "-o", str(goal)], check=True)
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


def main(how: str, arguments: Sequence[str]) -> int:
    """Compile and run what ``how`` names; the exit status of the first program that fails."""
    way = WAYS[how]
    found = compiler(way.compilers)
    if found is None:
        sys.exit(f"native-{how} is skipped: it wants {' or '.join(way.compilers)}")
    with tempfile.TemporaryDirectory(prefix="edgeloop-native-") as folder:
        for name in way.programs:
            binary = compiled(name, Path(folder), way.options, found)
            given = [*arguments]
            if name == "fuzz":
                files = lanes_files(Path(folder) / "files")
                given = given or (["-max_total_time=60"] if how == "fuzz" else ["2000"])
                given += [str(files[0].parent)] if how == "fuzz" else map(str, files)
            status = subprocess.run([str(binary), *given], env={**os.environ, **dict(way.environment)})
            if status.returncode:
                return status.returncode
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in WAYS:
        sys.exit(f"usage: native_programs.py {'|'.join(WAYS)} [arguments of the program]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
