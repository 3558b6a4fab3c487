"""ExecuTorch: one .pte of methods for XNNPACK, and layout.json, which says what is in it."""

from __future__ import annotations

import importlib.metadata
import mmap
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from executorch.exir import EdgeProgramManager
from msgspec import structs
from safetensors.torch import load_file
from torch import Tensor

from ....quant.recipe import Recipe
from ....runtime.bundle import manifest
from ....runtime.engines.executorch.engine import ExecutorchBackend
from ....runtime.engines.executorch.kinds import lookups
from ....runtime.engines.executorch.layout import EmbeddingTable, Layout, Shapes, Sizes, checksum
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ExportError
from ....runtime.model.activations import Activations
from ....runtime.model.codec import around_zero
from ....runtime.model.ops import Linear
from ....runtime.model.program import Program
from ...bounds import EXACT, KERNELS, REPORT, activations_of
from ...lower import xnnpack
from ...lower.xnnpack_weights import bits_of
from ...parity import Expected
from ...reference import reference_engine
from ...target import Job, check_deltas, check_shared, check_tables
from .exact import EXACT_PROGRAM, exact_activations
from .lower import lower, serialize
from .methods import build_methods
from .options import ExecutorchOptions
from .split import delta_keys, split_weights, write_data

FOLDER, PROGRAM, LAYOUT, EMBEDDING = "executorch", "model.pte", "layout.json", "embedding.bin"


@dataclass(frozen=True)
class ExecutorchTarget:
    """The staged layout for the executorch engine. ``shapes``: rows of the methods, by default those of the model."""

    shapes: Shapes | None = None
    options: ExecutorchOptions = field(default_factory=ExecutorchOptions)
    name = "executorch"

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError for what XNNPACK gets wrong or does not take."""
        check_shared(program, "executorch")
        xnnpack.check(program)
        check_recipe(program, recipe)

    def export(self, job: Job) -> manifest.Target:
        """Write executorch/model.pte, its weights if they are split from it, and layout.json, checked after every
        depth."""
        folder = job.folder / FOLDER
        folder.mkdir()
        weights = load_file(job.weights)
        shapes = self.shapes or Shapes.of(job.program)
        methods = build_methods(job.program, weights, shapes)
        done = 0

        def step(name: str) -> None:
            nonlocal done
            job.progress(f"executorch: {name}", 0.9 * done / (2 * len(methods)))
            done += 1

        edge = lower(methods, step)
        if self.options.split_weights:
            edge = split_weights(edge, delta_keys(methods))
        program = serialize(edge)
        (folder / PROGRAM).write_bytes(program.buffer)
        data = write_data(program, folder)
        table, *further = place_tables(job.program, weights, folder, data[0] if data else PROGRAM)
        version = importlib.metadata.version("executorch")
        layout = Layout(version, PROGRAM, Sizes.of(job.program), shapes, table, data, tuple(further))
        (folder / LAYOUT).write_bytes(msgspec.json.format(msgspec.json.encode(layout), indent=1))
        job.progress("executorch: parity after every depth", 0.9)
        reference = reference_engine(job.program, job.weights, job.recipe)
        parity = check_parity(reference, edge, folder, layout, activations_of(job.recipe, self.name))
        job.progress("executorch: done", 1.0)
        files = {"layout": LAYOUT, "program": PROGRAM, "embedding": table.file}
        files |= {f"table{number}": other.file for number, other in enumerate(further, start=1)}
        files |= {name.removesuffix(".ptd"): name for name in data}
        weights_in = data[0] if data else PROGRAM
        graphs = {key: f"{FOLDER}/{name}" for key, name in files.items() if name != weights_in}
        return manifest.Target(graphs, f"{FOLDER}/{weights_in}", parity)


def check_recipe(program: Program, recipe: Recipe) -> None:
    """Raise ExportError for quantized matrices and deltas that XNNPACK does not take."""
    check_tables(recipe, "executorch")
    check_deltas(program, recipe, "executorch")
    for name, storage in recipe.formats(program.weights).items():
        columns, group = program.matrix(name).columns, storage.group_size
        if storage.bits == 8 and group:
            raise ExportError(
                f"{name} is stored as {storage}, and XNNPACK has no groups for 8-bit weights; export for target "
                "executorch with --quant int8-channel"
            )
        if storage.bits == 16:
            raise ExportError(
                f"recipe {recipe.name} stores {name} as {storage}, and XNNPACK multiplies by float32 or codes; "
                "give it one of those"
            )
        if storage.bits == 4 and not group:
            raise ExportError(
                f"{name} is stored as {storage}, and XNNPACK wants groups of 4-bit weights; give it groups"
            )
        if storage.bits == 4 and columns % group:
            raise ExportError(
                f"{name} has {columns} columns, not a multiple of the group size {group}, which "
                "XNNPACK wants; choose a smaller --group-size, or --quant int8-channel"
            )


def check_parity(
    reference: ReferenceBackend,
    edge: EdgeProgramManager,
    folder: Path,
    layout: Layout,
    activations: Activations | None,
) -> manifest.Parity:
    """Check that the program equals the reference engine with float activations, and as it ships with ``activations``.

    ``edge``, of which the program was made, is used up. ParityError where they differ.
    """

    def check(found: Layout, wanted: Expected, what: str, advice: str) -> tuple[tuple[float, ...], float]:
        backend = ExecutorchBackend(reference.program, folder, found, threads=1)
        try:
            return wanted.check(what, backend, advice=advice)
        finally:
            backend.close()

    wanted, rounded = Expected.both(reference, activations)
    if rounded is None:
        per_depth, logits = check(layout, wanted, "executorch", REPORT)
        return manifest.Parity(per_depth, logits, logits, EXACT)
    path = folder / EXACT_PROGRAM
    try:
        path.write_bytes(serialize(exact_activations(edge)).buffer)
        exact = structs.replace(layout, program=path.name, data=())
        per_depth, logits = check(exact, wanted, "executorch with float activations", REPORT)
    finally:
        path.unlink(missing_ok=True)
    _, shipped = check(layout, rounded, "executorch with int8 activations", KERNELS)
    return manifest.Parity(per_depth, logits, shipped, rounded.logits)


def place_tables(
    program: Program, weights: dict[str, Tensor], folder: Path, weights_in: str
) -> list[EmbeddingTable]:
    """Return where the tables are that the host looks rows up in: one that is the head's matrix too in
    ``weights_in``."""
    multiplied = {op.weight for op in program.head.ops if isinstance(op, Linear)}
    found = dict.fromkeys(op.table for op in lookups(program))
    names = [EMBEDDING, *(f"table{number}.bin" for number in range(1, len(found)))]
    files = {
        table: place_table(
            table,
            weights,
            bits_of(program, weights, table),
            folder,
            weights_in if table in multiplied else name,
            table in multiplied,
        )
        for table, name in zip(found, names, strict=True)
    }
    return [files[op.table] for op in lookups(program)]


def place_table(
    table: str, weights: dict[str, Tensor], bits: int, folder: Path, name: str, there: bool
) -> EmbeddingTable:
    """Return where ``table`` is in the file ``name``, to which it is written unless it is ``there``."""
    if bits == 32:
        parts, kind, scales = [weights[f"{table}.weight"]], "float32", "float32"
    else:
        codes, scale = weights[f"{table}.codes"], weights[f"{table}.scales"]
        kind, scales = ("int4", "bfloat16") if bits == 4 else ("int8", "float32")
        values = codes if bits == 4 else torch.from_numpy(around_zero(codes.numpy(), bits))
        parts = [values, scale.bfloat16() if bits == 4 else scale.float()]
    data = [bytes(part.contiguous().view(torch.uint8).numpy().data) for part in parts]
    if not there:
        (folder / name).write_bytes(b"".join(data))
    with (folder / name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        offsets = [memory.find(part) for part in data]
    if min(offsets) < 0:
        raise ExportError(
            f"{table}'s {kind} values are not in {name} as they were stored; this version of executorch packs "
            "them in another way"
        )
    groups = 0 if bits == 32 else weights[f"{table}.scales"].shape[1]
    return msgspec.convert(
        {
            "file": name,
            "kind": kind,
            "values": offsets[0],
            "check": checksum(data),
            "scales": offsets[-1] if groups else 0,
            "scale_type": scales,
            "groups": groups,
        },
        EmbeddingTable,
    )
