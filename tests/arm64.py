"""The lane engine on 64-bit Arm, without such a computer: .venv/bin/python tests/arm64.py (``make arm64``).

Debian's cross-compiler makes the library and the programs, and qemu runs them as processors that have more and more:
the tests of every kernel on each of them, and whole models, whose logits must have the bits that they have here. A
model runs once with each table of kernels, on the processor with the least that has it, and with the one that the
library chooses there. Each line of what it says begins with the time that has gone by; the last one has what all of
it took of processors, which is the same on a computer that has other work, too.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from native_programs import TESTS, Target, compiled, here, lanes_files

log = logging.getLogger("arm64")
ROOT = Path(__file__).resolve().parents[1]
OBJECTS = ROOT / "build" / "arm64"
COMPILER, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
SYSTEM = Path("/usr/aarch64-linux-gnu")
"""Where Debian's cross-compiler has that system's libraries."""
PACKAGES = "apt install g++-aarch64-linux-gnu qemu-user-static"
CPUS = {
    "cortex-a57": ("portable", "neon"),
    "neoverse-n1": ("portable", "neon", "dotprod"),
    "max": ("portable", "neon", "dotprod", "i8mm"),
}
"""Processors that qemu knows, and the kernels that they run: ARMv8.0, with dot products, with all."""
BEST = "best"
"""To the program ``model``: the table that the library chooses on the processor."""
FIXTURES = ("tests/fixtures/parity/*/config.json", "apps/demo/*/config.json")
IDS, STEPS = ("1", "5", "7", "3", "2", "11", "4"), "8"


def missing() -> str:
    """Why nothing of this can run here, or nothing."""
    if here() is None:
        return "no C++ compiler"
    if not (shutil.which(COMPILER) and shutil.which(QEMU) and SYSTEM.is_dir()):
        return f"no {COMPILER} and {QEMU} ({PACKAGES})"
    return ""


def arm64() -> Target:
    """What is compiled for."""
    return Target((COMPILER,), "linux", "aarch64")


@cache
def program(name: str) -> Path:
    """The program ``name`` for Arm, or ``model``, which runs with the library."""
    from build import NAMES, build

    OBJECTS.mkdir(parents=True, exist_ok=True)
    library = OBJECTS / NAMES["linux"]
    build(library, OBJECTS, arm64())
    return compiled(name, OBJECTS, target=arm64(), link=_with(library) if name == "model" else ())


def own_model(folder: Path) -> Path:
    """The program ``model`` for this computer, in ``folder``; with its library."""
    from build import LIBRARY, build

    build()
    return compiled("model", folder, link=_with(LIBRARY))


def _with(library: Path) -> tuple[str, ...]:
    return (str(library), f"-Wl,-rpath,{library.parent}")


def run(cpu: str, binary: Path, *arguments: str) -> str:
    """What ``binary`` prints on a processor that has what ``cpu`` has; AssertionError with it where it fails."""
    command = [QEMU, "-L", str(SYSTEM), "-cpu", cpu, str(binary), *arguments]
    return _printed(command, f"{binary.name} on {cpu}")


def _printed(command: list[str], name: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "EDGELOOP_KERNELS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    if done.returncode:
        raise AssertionError(f"{name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def bits(printed: str) -> dict[str, set[str]]:
    """Of what a model printed: by table of kernels, its lines for each width of K and V."""
    found: dict[str, set[str]] = {}
    for line in printed.splitlines():
        table, _, rest = line.partition(" ")
        found.setdefault(table, set()).add(rest.strip())
    return found


def first_of(cpu: str) -> tuple[str, ...]:
    """The tables of kernels that no processor before ``cpu`` has; the last of them is the best that it has."""
    before = list(CPUS)[: list(CPUS).index(cpu)]
    return tuple(table for table in CPUS[cpu] if all(table not in CPUS[other] for other in before))


def compare(file: Path, own: Path, cpu: str) -> None:
    """Run the model in ``file`` here and as ``cpu``, with the tables that it is the first to have.

    AssertionError where logits have other bits, or where the library chooses another table than the last of these.
    """
    arguments = (STEPS, str(file), *IDS)
    wanted = bits(_printed([str(own), "portable", *arguments], f"{file} here"))["portable"]
    tables = first_of(cpu)
    given = bits(run(cpu, program("model"), ",".join((*tables[:-1], BEST)), *arguments))
    if tuple(given) != tables:
        raise AssertionError(f"{file}: {cpu} runs {', '.join(given)}, wanted {', '.join(tables)}")
    for table, found in given.items():
        if found != wanted:
            raise AssertionError(f"{file}: {table} gives {sorted(found)}, portable here {sorted(wanted)}")


def checkpoints() -> list[Path]:
    """The folder of every family's checkpoint, and those of the demo."""
    return [config.parent for pattern in FIXTURES for config in sorted(ROOT.glob(pattern))]


def exported(checkpoint: Path, folder: Path) -> Path:
    """model.lanes of ``checkpoint``, as ``edgeloop export`` writes it."""
    from edgeloop.export.pipeline import export_bundle

    return (
        export_bundle(checkpoint, folder / checkpoint.name, targets=("native",)).bundle
        / "native"
        / "model.lanes"
    )


def run_programs() -> None:
    """Run the C++ tests on every processor; AssertionError where one does not hold."""
    for cpu, tables in CPUS.items():
        log.info("%s has %s", cpu, ", ".join(tables))
        for name in TESTS:
            for line in run(cpu, program(name)).splitlines():
                log.info("%s: %s", cpu, line)


def run_models(folder: Path) -> None:
    """Run whole models, those of the tests and all checkpoints; AssertionError where one has other bits than here."""
    own = own_model(folder)
    models = (*lanes_files(folder / "programs"), *checkpoints())
    for number, each in enumerate(models, 1):
        file = exported(each, folder) if each.is_dir() else each
        for cpu in CPUS:
            compare(file, own, cpu)
        name = file.relative_to(folder)
        log.info("%d of %d: %s has the bits of %s", number, len(models), name, platform.machine())


def main() -> int:
    """Everything, on every processor; exit status 1 after the first that does not hold."""
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)8d ms  %(message)s", stream=sys.stdout)
    if reason := missing():
        log.info("arm64 is skipped: %s", reason)
        return 0
    try:
        run_programs()
        with tempfile.TemporaryDirectory(prefix="edgeloop-arm64-") as name:
            run_models(Path(name))
    except AssertionError as error:
        log.error("%s", error)
        return 1
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    log.info("all hold; %.0f s of processor time", sum(each.ru_utime + each.ru_stime for each in spent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
