"""What the manifest says of a program of the flat layout, which ExecuTorch's own LLM runners load."""

from __future__ import annotations

from collections.abc import Iterator

from ...bundle.details import ByteCount, Details, DetailsTable
from ...model.limits import MAX_SIZE, within
from ...model.program import Program

Constant = bool | int | tuple[int, ...]


class Flat(Details, frozen=True, forbid_unknown_fields=True, tag="executorch-flat"):
    """What a flat program tells its host beside logits, and how many tokens its caches hold."""

    constants: dict[str, Constant]
    rows: int

    def problems(self, place: str) -> Iterator[str]:
        """Yield a problem for each size that no cache has."""
        yield from within(f"{place}.rows", self.rows, 1, MAX_SIZE)

    def describe(self, program: Program, byte_count: ByteCount) -> Iterator[DetailsTable]:
        """Yield what a stock runner reads from the program, and the memory of its caches."""
        caches = byte_count(program.kv_bytes_per_token * self.rows)
        rows: list[tuple[str, ...]] = [
            ("forward", f"tokens, input_pos → logits; caches of {self.rows} tokens, {caches}")
        ]
        rows += [(name, _written(value)) for name, value in self.constants.items()]
        yield DetailsTable(rows, ("method of the flat program", "gives"))


def _written(value: Constant) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
