"""GPTQ in the loop: a model's matrices become codes one after the other, while a text goes through it layer by layer.

Two streams of the same windows run side by side: one through the float model, one through the model as far as it has
codes. A matrix is fitted when it is met the last time, a layer of the block therefore at the last depth, for the sum
over all depths of what it was given; from there on the second stream runs with its codes. What both streams then
differ by is known to every later matrix, which is fitted to undo it as far as a matrix can (``quant/gptq.py``). Of a
routed model a depth is given the tokens that the router sends there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..quant.gptq import gptq
from ..quant.pack import quantize
from ..quant.palette import fitted_palette, palettize
from ..quant.recipe import StorageFormat
from ..quant.scales import searched
from ..runtime.engines.backend import F32, I64
from ..runtime.model.codec import Grouped, Palette, rows_of_table
from ..runtime.model.ops import Linear
from ..runtime.model.program import Program
from ..runtime.model.stored import Array, map_tensors
from .choices import Choices
from .layerwise import Step, Stream, steps
from .stored import Coded, sides
from .sums import Sums
from .target import Progress

NO_HEADS: Mapping[str, F32] = {}


class Keeper(Protocol):
    """Keeps the codes of a fit that is under way, so that another process can go on with it."""

    def load(self, name: str) -> Coded | None:
        """Return the codes of a matrix, if they were kept."""
        ...

    def save(self, name: str, codes: Coded) -> None:
        """Keep the codes of a matrix."""
        ...


class LoopGPTQ:
    """The codes that a model has got so far."""

    def __init__(
        self,
        program: Program,
        floats: Path,
        formats: Mapping[str, StorageFormat],
        sum_bytes: int,
        keeper: Keeper,
        heads: Mapping[str, F32] = NO_HEADS,
    ) -> None:
        """``floats``: a file with every stored tensor of ``program`` as float32. ``formats``: of the matrices that
        become codes. ``heads``: of a routed model the router's (``runtime/decode/routing.py``). Sums beyond
        ``sum_bytes``, two for each matrix, lie beside ``floats`` meanwhile.
        """
        self._program, self._path, self._formats, self._keeper = program, floats, formats, keeper
        self._heads = heads
        self._inputs, self._drifts = (
            Sums(floats.with_name(f"sums-of-{name}"), sum_bytes // 2) for name in ("inputs", "drifts")
        )
        self._floats: Mapping[str, Array] = {}
        self._codes: dict[str, Coded] = {}

    def fit(self, windows: Sequence[I64], progress: Progress) -> dict[str, Coded]:
        """Return the codes of the matrices by name, for a text in ``windows`` of ids [n]."""
        known = {name: codes for name in self._formats if (codes := self._keeper.load(name))}
        if known.keys() == self._formats.keys():
            return known
        routed = self._program.routing is not None
        way = steps(self._program, routed)
        last = {name: number for number, step in enumerate(way) for name in step.matrices}
        sizes = {name: storage.group_size for name, storage in self._formats.items()}
        choices = [Choices(self._program, self._heads) for _ in windows if routed]
        exact, coded = (Stream(self._program, windows, sizes, choices) for _ in range(2))
        self._floats = map_tensors(self._path)
        for name in sorted(self._formats.keys() - last.keys()):  # tables that nothing is multiplied by
            self._codes[name] = known.get(name) or self._keep(name, self._nearest(name))
        self._hand_out(exact, coded)
        for number, step in enumerate(way):
            done = number / len(way)
            exact.enter(step)  # the float model's states say where tokens go
            progress(f"reading the text: {step.stage}, depth {step.depth + 1}", done)
            wanted = [name for name in step.matrices if name in self._formats]
            if any(name not in known for name in wanted):
                self._collect(step, exact, coded, len(windows))
            for name in wanted:
                if number == last[name]:
                    progress(f"fitting {name}", done)
                    self._codes[name] = known.get(name) or self._keep(name, self._fitted(name))
            if step.matrices:
                self._hand_out(exact, coded)
            for stream in (exact, coded):
                stream.run(step)
        return self._codes

    def _hand_out(self, exact: Stream, coded: Stream) -> None:
        """Give both streams their weights, mapped anew: so what was read of the file does not stay in memory."""
        self._floats = map_tensors(self._path)
        exact.use(self._floats)
        coded.use(self._stored())

    def _collect(self, step: Step, exact: Stream, coded: Stream, windows: int) -> None:
        """Add what the matrices of ``step`` are given. Rows that one stream has sent to an expert and the other one
        not have no drift."""
        with self._inputs.met(), self._drifts.met():
            for number in range(windows):
                for name, copy, given in coded.inputs(step, number):
                    x = torch.from_numpy(np.ascontiguousarray(given))
                    self._inputs.add((name, copy), x, x)
                    if isinstance(step.ops[0], Linear):
                        ((_, _, meant),) = exact.inputs(step, number)
                        self._drifts.add((name, copy), torch.from_numpy(meant - given), x)

    def _fitted(self, name: str) -> Coded:
        """Return the codes of a matrix; each of its copies has inputs of its own."""
        matrix, storage = self._program.matrix(name), self._formats[name]
        found: list[Coded] = []
        for copy, part in enumerate(self._weight(name).split(matrix.rows)):
            hessian, drift = self._inputs.take((name, copy)), self._drifts.take((name, copy))
            if hessian is None:  # an expert that was never chosen
                hessian = torch.eye(matrix.columns)
            if storage.palette:
                found.append(fitted_palette(part, rows_of_table(matrix.parts.values()), hessian, drift))
            else:
                found.append(gptq(part, hessian, storage.bits, storage.group_size, drift))
        floats, whole = (
            np.concatenate(each) for each in zip(*(sides(one).values() for one in found), strict=True)
        )
        if storage.palette:
            return Palette(whole, floats)
        return Grouped(whole, floats, storage.bits, matrix.columns)

    def _nearest(self, name: str) -> Coded:
        storage = self._formats[name]
        if storage.palette:
            rows = rows_of_table(self._program.matrix(name).parts.values())
            return palettize(self._weight(name), rows)
        return quantize(self._weight(name), storage.bits, storage.group_size, searched)

    def _keep(self, name: str, codes: Coded) -> Coded:
        self._keeper.save(name, codes)
        return codes

    def _weight(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self._floats[f"{name}.weight"]))

    def _stored(self) -> dict[str, Array]:
        """Return the tensors of the model as far as it has codes."""
        found = dict(self._floats)
        for name, codes in self._codes.items():
            del found[f"{name}.weight"]
            found |= {f"{name}.{side}": array for side, array in sides(codes).items()}
        return found
