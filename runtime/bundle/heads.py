"""The small heads that the host computes itself: exit gate, routers, probes; one safetensors file a bundle.

They are a few thousand numbers that decide whether the engine is called at all, so every engine shares them.
Names and shapes: ``Program``, and for the probes that ``edgeloop calibrate`` fits ``probe.weight`` [R − 1, D] and
``probe.bias`` [R − 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import BundleError
from ..model.program import Program
from ..model.stored import read_tensors
from .folder import Bundle

F32 = npt.NDArray[np.float32]
HEADS = "heads.safetensors"


def head_shapes(program: Program) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of the heads that a model with ``program`` has; None is a size that the file may choose."""
    d, r = program.loop.carries[0].width, program.depths
    shapes: dict[str, tuple[int | None, ...]] = {}
    if program.exit_gate:
        shapes |= {"gate.weight": (d,), "gate.bias": (1,)}
    if (routing := program.routing) is not None:
        for prefix in ("router", "auxiliary") if routing.auxiliary else ("router",):
            shapes[f"{prefix}.weight"] = (r, None if routing.hidden else d)
            if routing.hidden:
                shapes[f"{prefix}.hidden"] = (None, None, d)
        if routing.kind == "token":
            shapes["router.bias"] = (r,)
    return shapes


def probe_shapes(program: Program) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of the fitted probes."""
    return {
        "probe.weight": (program.depths - 1, program.loop.carries[0].width),
        "probe.bias": (program.depths - 1,),
    }


def read_heads(bundle: Bundle) -> dict[str, F32]:
    """Return every head of ``bundle``, float32; BundleError when one is missing or of another shape.

    At another number of depths than the probes were fitted for there are no probes.
    """
    name = bundle.manifest.heads
    tensors = {} if name is None else read_tensors(bundle.path(name))
    wanted = head_shapes(bundle.manifest.program)
    if any(key.startswith("probe.") for key in tensors):
        wanted |= probe_shapes(bundle.manifest.program)
    heads = check_heads(tensors, wanted, str(bundle.folder))
    return {key: head for key, head in heads.items() if bundle.own_depth or not key.startswith("probe.")}


def check_heads(
    tensors: Mapping[str, npt.NDArray[np.generic]], wanted: Mapping[str, tuple[int | None, ...]], where: str
) -> dict[str, F32]:
    """Return ``tensors`` as float32, exactly those that are ``wanted``; BundleError names the first wrong one."""
    if strange := min(set(tensors) - set(wanted), default=None):
        raise BundleError(f"{where}: a head {strange}, which the model does not have; export it again")
    for key, shape in wanted.items():
        found = tensors[key].shape if key in tensors else None
        sized = found is not None and len(found) == len(shape)
        if not sized or any(w not in (None, f) for f, w in zip(found or (), shape, strict=True)):
            size = "×".join("?" if n is None else str(n) for n in shape)
            raise BundleError(
                f"{where}: {_described(key, found)}, wanted {size}; export the checkpoint again"
            )
        if tensors[key].dtype.kind != "f" or not np.isfinite(tensors[key]).all():
            raise BundleError(f"{where}: head {key} is not finite floats; export the checkpoint again")
    return {key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()}


def _described(key: str, shape: tuple[int, ...] | None) -> str:
    """Return name and shape of a head for a message."""
    return (
        f"there is no head {key}"
        if shape is None
        else f"head {key} is {'×'.join(map(str, shape)) or 'a number'}"
    )
