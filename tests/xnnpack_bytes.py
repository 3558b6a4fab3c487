"""Stored tensors as the bytes that XNNPACK has of them, to be looked for in a program or its .ptd files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def code_bytes(codes: Array, scales: Array, bits: int) -> tuple[bytes, bytes]:
    """Codes of 4 bits as they are, with scales in bfloat16; of 8 bits around zero, with scales in float32."""
    wide = scales.astype(np.float32)
    if bits == 4:
        return codes.tobytes(), (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return (codes.astype(np.int16) - 128).astype(np.int8).tobytes(), wide.tobytes()


def delta_bytes(name: str, value: Array) -> bytes:
    """A side of a delta, of all depths at once: A [R, r, K] as [R·r, K], B [R, N, r] as [N, R·r], factors [R, N] as
    [N, R]."""
    sides = {
        "lora_a": lambda a: a.reshape(-1, a.shape[-1]),
        "lora_b": lambda b: b.transpose(1, 0, 2).reshape(b.shape[1], -1),
        "lora_scale": lambda scale: scale.T,
    }
    stacked = sides[name.rpartition(".")[2]](value)
    return np.ascontiguousarray(stacked, np.float32).tobytes()
