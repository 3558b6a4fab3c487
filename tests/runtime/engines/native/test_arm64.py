"""64-bit Arm: the kernels' tests and whole models under qemu give the bits of this computer.

``make arm64`` runs more: every test on every processor, the checkpoints of all families and the demo.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from arm64 import CPUS, compare, missing, own_model, program, run
from native_programs import KERNEL_TESTS, lanes_files

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


@pytest.mark.parametrize("part", KERNEL_TESTS[1:])
def test_kernels_with_every_instruction(part: str) -> None:
    assert f"{part}: all hold" in run("max", program("kernels"), part)


@pytest.mark.parametrize("cpu", list(CPUS)[:-1])
def test_a_processor_that_has_less_runs_what_it_has(cpu: str) -> None:
    printed = run(cpu, program("kernels"), "products")
    assert "products: all hold" in printed
    skipped = {line.split()[1].rstrip(",") for line in printed.splitlines() if "skipped" in line}
    assert skipped == set(CPUS["max"]) - set(CPUS[cpu])


def test_models_have_the_same_bits(tmp_path: Path) -> None:
    own = own_model(tmp_path)
    for number, file in enumerate(lanes_files(tmp_path / "files")):
        compare(file, own, list(CPUS)[number % len(CPUS)])
