"""The table of targets: name → what must be installed, and how to load it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from ...runtime.errors import ExportError, UsageError
from ..quiet import quiet
from ..target import Target


def _onnx() -> Target:
    from .onnx.target import OnnxTarget

    return OnnxTarget()


def _executorch() -> Target:
    with quiet():  # torchao looks for CUDA
        from .executorch.target import ExecutorchTarget

    return ExecutorchTarget()


def _executorch_flat() -> Target:
    with quiet():
        from .executorch.flat_target import ExecutorchFlatTarget

    return ExecutorchFlatTarget()


def _coreml() -> Target:
    with quiet():  # coremltools looks for what only a Mac has
        from .coreml.target import CoremlTarget

    return CoremlTarget()


@dataclass(frozen=True)
class Entry:
    """One target: the modules it needs, the extra that installs them, and its loader."""

    modules: tuple[str, ...]
    extra: str
    load: Callable[[], Target]

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [m for m in self.modules if find_spec(m) is None]


TARGETS: dict[str, Entry] = {
    "onnx": Entry(("torch", "onnx", "onnx_ir", "onnxruntime"), "export", _onnx),
    "executorch": Entry(("torch", "executorch", "torchao"), "export,executorch", _executorch),
    "coreml": Entry(("torch", "coremltools"), "export,coreml", _coreml),
}


# staged: graphs of the stages and a loop on the host. flat: one graph that hosts run which know no loop.
LAYOUTS: dict[str, dict[str, Entry]] = {
    "staged": TARGETS,
    "flat": {"executorch": Entry(("torch", "executorch", "torchao"), "export,executorch", _executorch_flat)},
}


def open_target(name: str, layout: str = "staged") -> Target:
    """The target ``name`` in ``layout``; UsageError when unknown, ExportError when its packages are missing."""
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}: choose from {', '.join(LAYOUTS)}")
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}: choose from {', '.join(TARGETS)}")
    if name not in LAYOUTS[layout]:
        raise UsageError(f"target {name} has no {layout} layout, only {', '.join(LAYOUTS[layout])}")
    entry = LAYOUTS[layout][name]
    if entry.missing:
        raise ExportError(
            f"target {name} needs {', '.join(entry.missing)}: pip install 'edgeloop[{entry.extra}]'"
        )
    return entry.load()
