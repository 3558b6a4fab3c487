"""ExecuTorch's C++ runtime through ctypes: a program, its methods, and bindings of them to arrays."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import EngineError
from .compiled import compile_bridge

_ROOM = 512
F32 = npt.NDArray[np.float32]


class Bridge:
    """An opened program. EngineError when it, a method or a call fails."""

    def __init__(self, program: Path, data: list[Path], threads: int, profiled: bool = False) -> None:
        """``data``: .ptd files with the program's weights. ``profiled``: calls are traced for ``write_profiles``.

        ``threads``: 1 is the calling thread. All others share one pool in a process, whose size the first program
        decides; another size while it is open is an EngineError, or if negative it is ignored.
        """
        self._program: int | None = None
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
            where = " and ".join(self._data or [self.name])
            reason = f"it wants weights that are not in {where}; they are of another export"
        return EngineError(f"executorch cannot run {self.name}: {reason}")

    def method(self, name: str) -> tuple[int, int, int]:
        """Return (handle, inputs, outputs) of the method ``name``, which is loaded when it is first used."""
        if name not in self._methods:
            if not self._program:
                raise EngineError(f"{self.name} was closed; open it again")
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
        """Return the largest sizes of an input, or of an output."""
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
    ) -> PteBinding:
        """Bind the method ``name`` to the memory of these arrays, each contiguous.

        ``caches``: [K, C, hd] of each layer's key and value, of each lane in turn. ``fresh``: the outputs [M,
        K, hd] that are written into them.
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
        return PteBinding(self, handle, [*inputs, *outputs, *caches], len(outputs[0]))

    def run(self, plan: PteBinding, rows: int) -> None:
        """Run a bound method; K/V of its first ``rows`` rows go to rows ``plan.at`` of their caches."""
        if not self._program:
            raise EngineError(f"{self.name} was closed; open it again")
        if self._lib.edgeloop_run(plan.handle, rows, plan.at_address, self._message, _ROOM):
            raise self._error()

    def write_profiles(self, folder: Path) -> None:
        """Write METHOD.etdp for each method: an ETDump of its calls since it was loaded, or since the last time."""
        for name in self._methods:
            path = folder / f"{name}.etdp"
            if self._lib.edgeloop_profile(ctypes.c_void_p(self._program), name.encode(), str(path).encode()):
                raise EngineError(f"{path} cannot be written; choose another folder")

    def free(self, plan: PteBinding) -> None:
        """Release a binding."""
        if self._program:
            self._lib.edgeloop_free(plan.handle)

    def close(self) -> None:
        """Release the program, its bindings and its packed weights; nothing of it can be run any more."""
        program, self._program = self._program, None
        self._methods = {}
        if program:
            self._lib.edgeloop_close(ctypes.c_void_p(program))

    def __del__(self) -> None:
        self.close()  # plans refer to the bridge: the last of them is gone


class PteBinding:
    """A bound method; ``memory`` keeps the arrays that its addresses point to alive. ``at``: see ``Bridge.run``."""

    def __init__(self, bridge: Bridge, handle: int, memory: list[F32], rows: int) -> None:
        self._bridge, self.handle, self._memory = bridge, ctypes.c_void_p(handle), memory
        self.at = np.zeros(rows, np.int32)
        self.at_address = ctypes.c_void_p(self.at.ctypes.data)

    def __del__(self) -> None:
        self._bridge.free(self)


def _pointers(arrays: list[F32]) -> Any:
    return (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
