"""The table of targets: by name, what must be installed, what its options are, and how to load it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from ...runtime.errors import ExportError, UsageError
from ..options import DeclaredOption, ExportRequest, Options
from ..quiet import quiet
from ..target import Target
from .coreml.options import CoremlOptions
from .executorch.options import ExecutorchOptions

OptionsT = TypeVar("OptionsT", bound=Options)


def _onnx(options: Options) -> Target:
    from .onnx.target import OnnxTarget

    return OnnxTarget()


def _native(options: Options) -> Target:
    from .native.target import NativeTarget

    return NativeTarget()


def _no_lane_engine() -> str:
    from ...runtime.engines.native.library import unavailable_reason

    return unavailable_reason()


def _executorch(options: ExecutorchOptions) -> Target:
    with quiet():  # torchao looks for CUDA
        from .executorch.target import ExecutorchTarget

    return ExecutorchTarget(options=options)


def _executorch_flat(options: Options) -> Target:
    with quiet():
        from .executorch.flat_target import ExecutorchFlatTarget

    return ExecutorchFlatTarget()


def _coreml(options: CoremlOptions) -> Target:
    with quiet():  # coremltools looks for what only a Mac has
        from .coreml.target import CoremlTarget

    return CoremlTarget()


@dataclass(frozen=True)
class TargetEntry(Generic[OptionsT]):
    """One target: the modules it needs, the extra that installs them, its loader, and its options.

    ``unavailable_reason`` says what else is missing on this computer; empty where nothing is. ``has_text``: its file
    has the tokenizer for hosts without Python (``host_text.py``).
    """

    modules: tuple[str, ...]
    extra: str
    load: Callable[[OptionsT], Target]
    options: type[OptionsT]
    unavailable_reason: Callable[[], str] = str  # str() is empty
    has_text: bool = False

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [m for m in self.modules if find_spec(m) is None]

    @property
    def available(self) -> bool:
        """Whether this computer can export to it."""
        return not self.missing and not self.unavailable_reason()


TARGETS: dict[str, TargetEntry[Any]] = {
    "onnx": TargetEntry(("torch", "onnx", "onnx_ir", "onnxruntime"), "export", _onnx, Options),
    "native": TargetEntry(("torch",), "export", _native, Options, _no_lane_engine, has_text=True),
    "executorch": TargetEntry(
        ("torch", "executorch", "torchao"), "export,executorch", _executorch, ExecutorchOptions
    ),
    "coreml": TargetEntry(("torch", "coremltools"), "export,coreml", _coreml, CoremlOptions),
}


# staged: graphs of the stages and a loop on the host. flat: one graph that hosts run which know no loop.
LAYOUTS: dict[str, dict[str, TargetEntry[Any]]] = {
    "staged": TARGETS,
    "flat": {
        "executorch": TargetEntry(
            ("torch", "executorch", "torchao"), "export,executorch", _executorch_flat, Options
        )
    },
}


def declared_options() -> Iterator[DeclaredOption]:
    """Yield the options of the targets, in the order of the table."""
    for entries in LAYOUTS.values():
        for entry in entries.values():
            yield from entry.options.declared()


def read_options(given: Mapping[str, object], request: ExportRequest) -> dict[tuple[str, str], Options]:
    """Return the options of every (target, layout), where ``given`` are those that the caller set, by name.

    UsageError for one that no target has, that is of another type, or that does not go with ``request``.
    """
    known = [each.name for each in declared_options()]
    if strange := sorted(set(given) - set(known)):
        raise UsageError(f"no target has an option {strange[0]!r}: choose from {', '.join(known)}")
    found = {
        (name, layout): entry.options.of(given)
        for layout, entries in LAYOUTS.items()
        for name, entry in entries.items()
    }
    for options in found.values():
        options.check(request)
    return found


def open_target(name: str, layout: str = "staged", options: Options | None = None) -> Target:
    """Return the target ``name`` in ``layout``, with its usual ``options`` unless some are given.

    UsageError when unknown, ExportError when its packages are missing.
    """
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
    if reason := entry.unavailable_reason():
        raise ExportError(f"target {name} is checked by its engine, which {reason}")
    return entry.load(options or entry.options())
