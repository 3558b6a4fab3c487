"""ExecuTorch's C++ runtime through ctypes.

The Python bindings of the executorch wheel import torch and copy what they return. Its C++ libraries need neither, so
``bridge.cpp`` beside this file is compiled against them once for each version, some seconds with g++, and kept.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("bridge.cpp")
LIBRARIES = ("executorch_backend_xnnpack", "executorch_threadpool", "executorch")
_ROOM = 512
F32 = npt.NDArray[np.float32]


def wheel() -> Path:
    """The folder of the installed executorch; EngineError when there is none, or not all of it."""
    found = importlib.util.find_spec("executorch")
    places = list(found.submodule_search_locations or ()) if found else []
    for place in places:
        if (Path(place) / "lib").is_dir():
            for name in LIBRARIES:
                if not (Path(place) / "lib" / f"lib{name}.so").is_file():
                    raise EngineError(
                        f"{place}/lib has no lib{name}.so, which engine executorch needs; install the wheel again: "
                        'pip install --force-reinstall "edgeloop[executorch]"'
                    )
            return Path(place)
    raise EngineError(
        'engine executorch needs the executorch wheel with its libraries: pip install "edgeloop[executorch]"'
    )


def compile_bridge(profiled: bool = False) -> Path:
    """The compiled bridge, made if it is not there yet; EngineError without a C++ compiler.

    ``profiled``: with ExecuTorch's tracer, which takes time and memory.
    """
    home, version = wheel(), importlib.metadata.version("executorch")
    libraries = (*LIBRARIES, "executorch_etdump") if profiled else LIBRARIES
    key = hashlib.sha256(SOURCE.read_bytes() + f"{version} {home} {libraries}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeloop"
    library = cache / f"executorch-{key}.so"
    if library.is_file():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise EngineError(
            "engine executorch compiles a small bridge to the wheel's libraries once and found no C++ compiler; "
            "install g++ or set CXX"
        )
    log.info("compiling %s", library)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / library.name
        lib = home / "lib"
        command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", str(SOURCE), "-o", str(made)]
        command += [f"-I{home / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed"]
        command += ["-DC10_USING_CUSTOM_GENERATED_MACROS"]
        command += [f"-I{home / 'include/executorch/runtime/core/portable_type/c10'}"]
        command += ["-DEDGELOOP_PROFILE"] if profiled else []
        done = subprocess.run(
            [*command, *(f"-l{name}" for name in libraries)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise EngineError(f"{compiler} cannot compile the bridge to executorch {version}: {reason}")
        made.replace(library)  # two processes may have made the same
    return library


class Bridge:
    """An opened program. EngineError when it, a method or a call fails."""

    def __init__(self, program: Path, data: list[Path], threads: int, profiled: bool = False) -> None:
        """``data``: .ptd files with the program's weights. ``profiled``: calls are traced for ``write_profiles``."""
        try:
            self._lib = ctypes.CDLL(str(compile_bridge(profiled)))
        except OSError as error:
            raise EngineError(f"the bridge to executorch does not load: {error}") from error
        for name in ("open", "method", "plan"):
            getattr(self._lib, f"edgeloop_{name}").restype = ctypes.c_void_p
        self.name, self._data = program.name, [path.name for path in data]
        self._message = ctypes.create_string_buffer(_ROOM)
        files = (ctypes.c_char_p * len(data))(*(str(path).encode() for path in data))
        self._program = self._lib.edgeloop_open(
            str(program).encode(), files, len(data), threads, self._message, _ROOM
        )
        if not self._program:
            raise self._error()
        self._methods: dict[str, tuple[int, int, int]] = {}

    def _error(self) -> EngineError:
        reason = self._message.value.decode()
        if "InvalidExternalData" in reason:
            reason = (
                f"it wants weights that are not in {' and '.join(self._data)}; they are of another export"
            )
        return EngineError(f"executorch cannot run {self.name}: {reason}")

    def method(self, name: str) -> tuple[int, int, int]:
        """(handle, inputs, outputs) of the method ``name``, which is loaded when it is first wanted."""
        if name not in self._methods:
            counts = (ctypes.c_int(), ctypes.c_int())
            found = self._lib.edgeloop_method(
                ctypes.c_void_p(self._program),
                name.encode(),
                *map(ctypes.byref, counts),
                self._message,
                _ROOM,
            )
            if not found:
                raise self._error()
            self._methods[name] = (found, counts[0].value, counts[1].value)
        return self._methods[name]

    def sizes(self, name: str, index: int, output: bool = False) -> list[int]:
        """Sizes of an input or output, at the largest."""
        found = (ctypes.c_int32 * 8)()
        rank = self._lib.edgeloop_sizes(ctypes.c_void_p(self.method(name)[0]), int(output), index, found)
        return list(found[: max(rank, 0)])

    def plan(
        self,
        name: str,
        inputs: list[F32],
        outputs: list[F32],
        caches: list[F32],
        lanes: int,
        fresh: list[F32],
    ) -> Plan:
        """The method ``name`` on the memory of these arrays, each contiguous.

        ``caches``: [K, C, hd] of each layer's key and value, of each lane in turn. ``fresh``: the outputs [M, K, hd]
        that are written into them.
        """
        method, wanted, given = self.method(name)
        if (wanted, given) != (len(inputs), len(outputs)):
            raise EngineError(
                f"{self.name} has a method {name} of {wanted} inputs and {given} outputs, wanted {len(inputs)} and "
                f"{len(outputs)}; it is from another bundle, copy the bundle again"
            )
        kv_heads, capacity, head_dim = caches[0].shape if caches else (0, 0, 0)
        handle = self._lib.edgeloop_plan(
            ctypes.c_void_p(self._program),
            ctypes.c_void_p(method),
            len(inputs),
            _pointers(inputs),
            np.array([a.ndim for a in inputs], np.int32).ctypes,
            np.array([n for a in inputs for n in a.shape], np.int32).ctypes,
            len(outputs),
            _pointers(outputs),
            np.array([a.nbytes for a in outputs], np.int64).ctypes,
            len(caches),
            _pointers(caches),
            lanes,
            len(fresh),
            _pointers(fresh),
            kv_heads,
            capacity,
            head_dim,
        )
        return Plan(self, handle, [*inputs, *outputs, *caches], len(outputs[0]))

    def run(self, plan: Plan, rows: int) -> None:
        """Run a plan; its first ``rows`` rows' K and V go to rows ``plan.at`` of their caches."""
        if self._lib.edgeloop_run(plan.handle, rows, plan.at_address, self._message, _ROOM):
            raise self._error()

    def write_profiles(self, folder: Path) -> None:
        """METHOD.etdp of each method: an ETDump of its calls since it was loaded, or since the last time."""
        for name in self._methods:
            path = folder / f"{name}.etdp"
            if self._lib.edgeloop_profile(ctypes.c_void_p(self._program), name.encode(), str(path).encode()):
                raise EngineError(f"{path} cannot be written; choose another folder")

    def free(self, plan: Plan) -> None:
        """Let go of a plan."""
        if self._program:
            self._lib.edgeloop_free(plan.handle)

    def close(self) -> None:
        """Let go of the program; its plans must be gone."""
        if self._program:
            self._lib.edgeloop_close(ctypes.c_void_p(self._program))
        self._program = None


class Plan:
    """A bound method; ``memory`` keeps what its addresses point to. ``at``: see ``Bridge.run``."""

    def __init__(self, bridge: Bridge, handle: int, memory: list[F32], rows: int) -> None:
        self._bridge, self.handle, self._memory = bridge, ctypes.c_void_p(handle), memory
        self.at = np.zeros(rows, np.int32)
        self.at_address = ctypes.c_void_p(self.at.ctypes.data)

    def __del__(self) -> None:
        self._bridge.free(self)


def _pointers(arrays: list[F32]) -> Any:
    return (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
