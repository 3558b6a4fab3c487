"""Memory that is not there is one line: how much was wanted, and what there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeloop.apps.cli import describe
from edgeloop.apps.memory import memory_line
from edgeloop.runtime.bundle.manifest import read_manifest, write_manifest
from edgeloop.runtime.errors import BundleError, EngineError


def raised(error: BaseException, behind: BaseException | None = None) -> BaseException:
    try:
        raise error from behind
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), "more was wanted"),
        (MemoryError("std::bad_alloc"), "more was wanted"),
        (
            MemoryError("Unable to allocate 128. GiB for an array with shape (17179869184,)"),
            "137 GB more were",
        ),
        (OSError(12, "Cannot allocate memory"), "more was wanted"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "68.7 GB more were",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:82] data. not enough memory: you tried to allocate 8 bytes."
            ),
            "8e-06 MB more were",
        ),
        (
            EngineError(
                "onnxruntime failed in block: [ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 AllocateRawInternal "
                "Failed to allocate memory for requested buffer of size 68719476736"
            ),
            "68.7 GB more were",
        ),
        (EngineError("onnxruntime 1.32 cannot load block.onnx: std::bad_alloc"), "more was wanted"),
        (EngineError("executorch cannot run model.pte: Error::MemoryAllocationFailed"), "more was wanted"),
        (
            raised(BundleError("x: no embedding in it"), OSError(12, "Cannot allocate memory")),
            "more was wanted",
        ),
    ],
)
def test_every_way_to_say_it(error: BaseException, wanted: str) -> None:
    line, code = describe(error)
    assert line.startswith(f"out of memory: {wanted}")
    assert "a bug" not in line
    assert code == 1


def test_what_there_is_is_told() -> None:
    line = memory_line(MemoryError())
    assert line is not None
    if sys.platform == "linux":
        assert "this computer has " in line
        assert "free are " in line


@pytest.mark.parametrize(
    "error",
    [BundleError("weights.safetensors is missing"), RuntimeError("mat1 and mat2"), KeyError("memory")],
)
def test_other_failures_are_not_memory(error: Exception) -> None:
    assert memory_line(error) is None


def test_numpy_says_it_so() -> None:
    with pytest.raises(MemoryError) as caught:
        np.zeros(1 << 59)
    assert "out of memory: 4.61e+09 GB more were wanted" in describe(caught.value)[0]


LIMITED = """
import resource, sys
from edgeloop.apps.cli import main
code = (
    "import edgeloop.runtime.session, edgeloop.runtime.engines.onnx.engine, "
    "edgeloop.runtime.engines.reference.engine"
)
exec(code)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the address space")
@pytest.mark.parametrize("engine", ["onnx", "reference"])
def test_a_cache_that_does_not_fit(bundle: Path, tmp_path: Path, engine: str) -> None:
    """A context of a million tokens in 256 MB."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = read_manifest(folder)
    program = msgspec.structs.replace(manifest.program, context_length=1 << 20)
    write_manifest(folder, msgspec.structs.replace(manifest, program=program))
    command = [
        sys.executable,
        "-c",
        LIMITED,
        "run",
        str(folder),
        "-p",
        "Once",
        "-n",
        "1000000",
        "--engine",
        engine,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("edgeloop: out of memory: ")
    assert done.stderr.count("\n") == 1
    assert "this process may have" in done.stderr
