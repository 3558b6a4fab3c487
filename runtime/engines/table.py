"""The engines by name. A new engine is one file, one entry here, one test."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..bundle.folder import Bundle
from ..checks import whole_number
from ..errors import BundleError, EngineError, UsageError
from . import coreml, executorch, native, onnx, reference
from .backend import Backend
from .capabilities import Capabilities

MAX_THREADS = 1024
"""More than any engine has use for; some would start a hundred thousand."""
MAX_CPU = 1023
"""The largest number of a processor that a thread can be pinned to."""


USUAL = ("native", "onnx")
"""The engines that run a bundle unless another one is named: the first that can, else the last."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is opened with; see ``open_backend``."""

    threads: int | None = None
    packed: bool = False
    kv_bits: int = 32
    cpus: tuple[int, ...] = ()


def _reference(bundle: Bundle, options: EngineOptions) -> Backend:
    from .reference.engine import ReferenceBackend

    return ReferenceBackend.open(bundle)  # numpy's own threads, and any lanes: there is nothing to set


def _onnx(bundle: Bundle, options: EngineOptions) -> Backend:
    from .onnx.engine import OnnxBackend

    return OnnxBackend.open(bundle, options.threads, options.packed)


def _native(bundle: Bundle, options: EngineOptions) -> Backend:
    from .native.engine import NativeBackend

    return NativeBackend.open(bundle, options.threads, options.kv_bits, options.cpus)  # any lanes


def _executorch(bundle: Bundle, options: EngineOptions) -> Backend:
    from .executorch.engine import ExecutorchBackend

    return ExecutorchBackend.open(bundle, options.threads)  # any lanes


def _coreml(bundle: Bundle, options: EngineOptions) -> Backend:
    from .coreml.engine import CoremlBackend

    return CoremlBackend.open(bundle)


def _coreml_reference(bundle: Bundle, options: EngineOptions) -> Backend:
    from .coreml.engine import CoremlBackend

    return CoremlBackend.open(bundle, interpreted=True)


def _native_kernels() -> str:
    from .native.library import kernels

    return f"kernels {kernels()}"


def _native_unfit() -> str:
    from .native.library import unavailable_reason

    return unavailable_reason()


def _native_asked_for() -> bool:
    return bool(os.environ.get("EDGELOOP_KERNELS"))


def _executorch_unfit() -> str:
    from .executorch.compiled import unavailable_reason

    return unavailable_reason()


def _coreml_unfit() -> str:
    from .coreml.engine import unavailable_reason

    return unavailable_reason()


@dataclass(frozen=True)
class EngineEntry:
    """``module`` must be importable (``package`` brings it), and the bundle must hold ``target``.

    ``unavailable_reason`` says why the engine cannot run on this computer, whatever is installed; empty where it can.
    ``can`` is what its folder declares. ``made_of``: targets that do instead of its own. ``described``: more
    for `edgeloop doctor`, of an engine that can run. ``asked_for``: the environment asks for something of this engine,
    so that an error is better than another engine in its place.
    """

    module: str
    package: str
    target: str
    load: Callable[[Bundle, EngineOptions], Backend]
    install: str
    can: Capabilities
    unavailable_reason: Callable[[], str] = str  # str() is empty
    made_of: tuple[str, ...] = ()
    described: Callable[[], str] = str
    asked_for: Callable[[], bool] = bool  # bool() is False

    def runs(self, bundle: Bundle) -> bool:
        """Return whether ``bundle`` holds a target that the engine can open."""
        return not bundle.manifest.targets.keys().isdisjoint((self.target, *self.made_of))


ENGINES: dict[str, EngineEntry] = {
    "reference": EngineEntry(
        "numpy", "numpy", "onnx", _reference, "pip install edgeloop", reference.CAPABILITIES
    ),
    "onnx": EngineEntry(
        "onnxruntime", "onnxruntime", "onnx", _onnx, 'pip install "edgeloop[onnx]"', onnx.CAPABILITIES
    ),
    "native": EngineEntry(
        "edgeloop",
        "edgeloop",
        "native",
        _native,
        "pip install edgeloop",
        native.CAPABILITIES,
        _native_unfit,
        made_of=("onnx",),
        described=_native_kernels,
        asked_for=_native_asked_for,
    ),
    "executorch": EngineEntry(
        "executorch",
        "executorch",
        "executorch",
        _executorch,
        'pip install "edgeloop[executorch]"',
        executorch.CAPABILITIES,
        _executorch_unfit,
    ),
    "coreml": EngineEntry(
        "coremltools",
        "coremltools",
        "coreml",
        _coreml,
        'pip install "edgeloop[coreml]"',
        coreml.CAPABILITIES,
        _coreml_unfit,
    ),
    "coreml-reference": EngineEntry(
        "coremltools",
        "coremltools",
        "coreml",
        _coreml_reference,
        'pip install "edgeloop[coreml]"',
        coreml.CAPABILITIES,
    ),
}


@dataclass(frozen=True)
class EngineStatus:
    """One row of ``edgeloop doctor``: ``version`` is None when the engine cannot run, ``install`` says what to do."""

    name: str
    version: str | None
    install: str
    described: str = ""


def available() -> list[EngineStatus]:
    """Return every known engine, with the version of its package where it can run. Imports none of them."""
    return [
        EngineStatus(name, None, reason)
        if (reason := engine.unavailable_reason())
        else EngineStatus(name, _version(engine), engine.install, engine.described())
        for name, engine in ENGINES.items()
    ]


def usual_engine(bundle: Bundle) -> str:
    """Return the engine that runs ``bundle`` unless another one is named."""
    for name in USUAL[:-1]:
        engine = ENGINES[name]
        fit = engine.asked_for() or not engine.unavailable_reason()
        if engine.target in bundle.manifest.targets and fit:
            return name
    return USUAL[-1]


def open_backend(
    name: str | None,
    bundle: Bundle,
    threads: int | None = None,
    packed: bool = False,
    kv_bits: int = 32,
    cpus: Sequence[int] = (),
) -> Backend:
    """Return the engine ``name`` with the model of ``bundle`` loaded; None: the usual engine for ``bundle`` here.

    ``packed``: for calls with packed lanes. ``kv_bits``: of a number of K/V. ``cpus``: processors for its threads.
    Raises what ``check_engine`` does.
    """
    options = check_engine(name := name or usual_engine(bundle), bundle, threads, kv_bits, cpus)
    return ENGINES[name].load(bundle, replace(options, packed=packed))


def check_engine(
    name: str, bundle: Bundle, threads: int | None = None, kv_bits: int = 32, cpus: Sequence[int] = ()
) -> EngineOptions:
    """Return the options with which the engine ``name`` can open ``bundle`` here.

    UsageError: no such engine, or ``threads``, ``kv_bits`` or ``cpus`` out of range. EngineError: its package is not
    installed. BundleError: the bundle was not exported for it.
    """
    engine = ENGINES.get(name)
    if engine is None:
        raise UsageError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    if threads is not None:
        threads = whole_number(threads, "threads", 1, MAX_THREADS)
    if reason := engine.unavailable_reason():
        raise EngineError(f"engine {name} {reason}; choose another with --engine")
    if importlib.util.find_spec(engine.module) is None:
        raise EngineError(f"engine {name} needs {engine.package}, which is not installed: {engine.install}")
    if not engine.runs(bundle):
        found = ", ".join(bundle.manifest.targets) or "none"
        if f"{engine.target}-flat" in bundle.manifest.targets:
            raise BundleError(
                f"{bundle.folder} holds {engine.target} in the flat layout, for {engine.target}'s own runners, and "
                f"engine {name} runs the depth loop itself; export with --target {engine.target} --layout staged,flat"
            )
        others = [
            other for other, each in ENGINES.items() if each.runs(bundle) and not each.unavailable_reason()
        ]
        choice = f"choose --engine {' or '.join(others)}, or " if others else ""
        raise BundleError(
            f"{bundle.folder} holds no {engine.target} target (only: {found}), which engine {name} needs; "
            f"{choice}export with --target {engine.target}"
        )
    if kv_bits not in engine.can.kv_bits:
        known = " or ".join(map(str, engine.can.kv_bits))
        raise UsageError(
            f"K/V in {kv_bits} bits, and engine {name} keeps them in {known}; choose other --kv-bits or --engine"
        )
    pinned = tuple(whole_number(cpu, "a processor of cpus", 0, MAX_CPU) for cpu in cpus)
    if pinned and not engine.can.pinned:
        raise UsageError(f"engine {name} pins no threads; leave out --cpus, or choose --engine native")
    if not (engine.can.any_depth or bundle.own_depth):
        raise UsageError(
            f"depth is {bundle.program.depths}, and engine {name} runs a bundle at the depth that it was exported for, "
            f"{bundle.manifest.program.depths}; leave it out, or choose --engine onnx"
        )
    return EngineOptions(threads, False, kv_bits, pinned)


def _version(engine: EngineEntry) -> str | None:
    if importlib.util.find_spec(engine.module) is None:
        return None
    try:
        return importlib.metadata.version(engine.package)
    except importlib.metadata.PackageNotFoundError:  # importable all the same: a vendored or nightly build
        return "unknown"
