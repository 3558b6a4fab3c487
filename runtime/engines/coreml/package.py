"""The manifest's description of a Core ML package."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ...bundle.details import ByteCount, Details, DetailsTable
from ...model.limits import MAX_SIZE, within
from ...model.program import Program


class Package(Details, frozen=True, forbid_unknown_fields=True, tag="coreml"):
    """What is in a Core ML package, beside what the program says: it has one file of all its functions.

    ``functions``: the compute unit that each one is meant for, as Swift calls it. ``states``: the shape of each, the
    same in all functions. ``chunk``: tokens of a prefill call. ``capacity``: tokens that a state has room for.
    ``palettized``: its matrices are indices into tables of 16 values, whatever the bundle's other targets have.
    """

    path: str
    functions: dict[str, str]
    states: dict[str, tuple[int, ...]]
    chunk: int
    capacity: int
    palettized: bool = False

    def problems(self, place: str) -> Iterator[str]:
        """Yield a problem for each size that no package has."""
        yield from within(f"{place}.chunk", self.chunk, 1, MAX_SIZE)
        yield from within(f"{place}.capacity", self.capacity, 1, MAX_SIZE)
        for state, shape in self.states.items():
            for size in shape:
                yield from within(f"{place}.states.{state}", size, 1, MAX_SIZE)

    def describe(self, program: Program, byte_count: ByteCount) -> Iterator[DetailsTable]:
        """Yield the functions of the package and the states that serve them all."""
        weights = (
            "4-bit indices into tables of 16 values"
            if self.palettized
            else "as the bundle's quantization says"
        )
        sizes = f"{self.chunk} tokens a prefill call, room for {self.capacity} in its states"
        yield DetailsTable([("package", self.path), ("its weights", weights), ("its sizes", sizes)])
        yield DetailsTable(list(self.functions.items()), ("function", "compute unit"))
        states: list[tuple[str, ...]] = [
            (name, " × ".join(map(str, shape)), byte_count(2 * prod(shape)))
            for name, shape in self.states.items()
        ]
        yield DetailsTable(states, ("state", "layers × KV heads × tokens × head size", "#float16"))

    def position_bytes(self, program: Program) -> int:
        """Return the bytes of a position: cos and sin as float16, and its number as int32."""
        return 2 * sum(turns.dims for turns in program.rotations) + 4
