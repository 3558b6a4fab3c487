"""Core ML: one .mlpackage for iOS 18 and macOS 15, with a function for each thing that a host calls."""

from __future__ import annotations

import logging
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import load_file as load_arrays

from ....quant.recipe import Recipe
from ....runtime.bundle import manifest
from ....runtime.bundle.folder import sha256_of
from ....runtime.bundle.heads import HEADS
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ExportError
from ....runtime.model.program import Program
from ....runtime.model.stored import Array
from ....runtime.model.transform import windowed
from ....runtime.version import VERSION
from ...reference import mapped
from ...target import Job, check_deltas

# It warns of every version that it has not been tried with, and of what only a Mac has.
logging.getLogger("coremltools").setLevel(logging.ERROR)

from ....runtime.engines.coreml.description import specification  # noqa: E402
from ....runtime.engines.coreml.exits import exit_metadata  # noqa: E402
from ....runtime.engines.coreml.interpreter import MODEL, WEIGHTS  # noqa: E402
from ....runtime.engines.coreml.package import Package  # noqa: E402
from ...lower.mil import check as check_lowered  # noqa: E402
from ...lower.mil import halved as halved_numbers  # noqa: E402
from .constants import Store  # noqa: E402
from .package import write_package  # noqa: E402
from .parity import check_parity  # noqa: E402
from .plan import PackagePlan  # noqa: E402

FOLDER = "coreml"
PACKAGE = f"{FOLDER}/model.mlpackage"
MAX_STATE_BYTES = 4 << 30


class CoremlTarget:
    """The package for Swift hosts, and for the coreml engine on a Mac."""

    name = "coreml"

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError for routers, whose rows depend on the data, and for states larger than a device holds."""
        if program.routing is not None:
            raise ExportError(
                f"a router chooses which tokens run a depth ({program.routing.kind} choice), and a function of Core ML "
                "has fixed rows; target coreml takes models without router, of any family, or export to onnx"
            )
        check_lowered(program)
        check_deltas(program, recipe, self.name)
        size = state_bytes(PackagePlan(program))
        if size > MAX_STATE_BYTES:
            raise ExportError(
                f"K/V of {program.context_length} tokens are {size / 2**30:.1f} GiB of Core ML states, which are "
                f"allocated whole; at most {MAX_STATE_BYTES >> 30} GiB wanted, shorten with --context"
            )

    def export(self, job: Job) -> manifest.Target:
        """Write the package under coreml/, with every function of what was saved checked against the reference
        engine."""
        path = job.folder / PACKAGE
        path.parent.mkdir()
        plan = PackagePlan(job.program)
        described = describe(plan, job.recipe)
        write_package(
            plan,
            Store(job.weights, job.recipe, job.program),
            path,
            metadata(job, described),
            lambda name, part: job.progress(f"coreml: {name}", 0.6 * part),
        )
        weights, sizes = halved(job.weights), job.recipe.group_sizes(job.program.weights)
        program = halved_numbers(job.program)
        reference = ReferenceBackend(program, weights, sizes, tables_as=np.float16)
        filler = None
        if plan.fills and program.window is not None:
            filler = ReferenceBackend(windowed(program, None), weights, sizes, tables_as=np.float16)
        steps = {"the reference": 0.6, "float32": 0.7, "float16": 0.85}
        parity = check_parity(
            reference, plan, path, lambda step: job.progress(f"coreml: parity, {step}", steps[step]), filler
        )
        job.progress("coreml: done", 1.0)
        return manifest.Target(
            graphs={"model": f"{PACKAGE}/{MODEL}"},
            weights=f"{PACKAGE}/{WEIGHTS}",
            parity=parity,
            details=described,
        )


def describe(plan: PackagePlan, recipe: Recipe) -> Package:
    """Return the manifest's description of the package."""
    return Package(
        path=PACKAGE,
        functions={name: unit(name, recipe.palettized) for name in plan.functions},
        states=plan.states,
        chunk=plan.most,
        capacity=plan.capacity,
        palettized=recipe.palettized,
    )


def unit(function: str, palettized: bool) -> str:
    """Return the compute unit that a function is meant for: a look-up gains nothing from leaving the CPU.

    Weights in blocks are the GPU's format, those in tables the Neural Engine's.
    """
    if function == "embed":
        return "cpuOnly"
    return "cpuAndNeuralEngine" if palettized else "cpuAndGPU"


def metadata(job: Job, package: Package) -> dict[str, str]:
    """Return what a Swift host reads from the package itself; all but the version is JSON."""
    heads = job.folder / HEADS
    return {
        "edgeloop.version": VERSION,
        "edgeloop.spec": msgspec.json.encode(specification(job.program)).decode(),
        "edgeloop.package": msgspec.json.encode(package).decode(),
        "edgeloop.quantization": msgspec.json.encode(
            {"scheme": job.recipe.name, "group_size": job.recipe.group_size}
        ).decode(),
        "edgeloop.tokenizer": msgspec.json.encode(
            {"sha256": sha256_of(job.tokenizer)} if job.tokenizer else None
        ).decode(),
        **exit_metadata(load_arrays(heads) if heads.is_file() else {}, {}),
    }


def state_bytes(plan: PackagePlan) -> int:
    """Return the bytes of all states of one sequence, float16."""
    return sum(2 * prod(shape) for shape in plan.states.values())


def halved(weights: Path) -> dict[str, Array]:
    """Return the stored tensors as the package has them: codes and tables as they are, floats as float16 numbers."""
    return {
        name: tensor.astype(np.float16).astype(np.float32) if tensor.dtype == np.float32 else tensor
        for name, tensor in mapped(weights).items()
    }
