"""The table in docs/ops.md of which target computes which op: .venv/bin/python tests/ops_table.py writes it anew.

It is made of the ops' docstrings and of what each target refuses, so it cannot say anything else than the code does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from msgspec import structs
from programs import PROGRAMS

from edgeloop.export.quiet import quiet
from edgeloop.export.targets import TARGETS
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.engines.native import tables
from edgeloop.runtime.engines.reference.ops import OPS
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.ops import Attend, Op
from edgeloop.runtime.model.program import Program, Stage

with quiet():  # coremltools looks for what only a Mac has
    from edgeloop.export.lower import mil, onnx, xnnpack

PAGE = Path(__file__).parents[1] / "docs" / "ops.md"
COMMAND = ".venv/bin/python tests/ops_table.py"
REFUSED: Mapping[str, Mapping[type, str]] = {
    "onnx": onnx.REFUSED,
    "native": {op: "the engine has no such op" for op in get_args(Op) if op not in tables.FIELDS},
    "executorch": xnnpack.REFUSED,
    "coreml": mil.REFUSED,
}
"""By target: its ops that it does not compute, and why."""
FLOAT = Recipe.named("none", 32)


def with_attend(name: str, **changed: object) -> Program:
    """The program ``name`` with other fields in each attention of its stages."""
    program = PROGRAMS[name]()

    def stage(old: Stage) -> Stage:
        ops = [structs.replace(op, **changed) if isinstance(op, Attend) else op for op in old.ops]
        return structs.replace(old, ops=tuple(ops))

    blocks = tuple(map(stage, program.loop.blocks))
    return structs.replace(
        program,
        prologue=stage(program.prologue),
        loop=structs.replace(program.loop, blocks=blocks),
        epilogue=stage(program.epilogue),
    )


VARIANTS: Mapping[str, Program] = {
    "without a cache": PROGRAMS["encoder"](),
    "mask `prefix`": with_attend("relaxed", mask="prefix"),
    "with a window, K/V shared by depths": with_attend("shared", head_dim=8),
    "with a cap": PROGRAMS["gemma"](),
}
"""Kinds of ``attend`` that not every target takes, each in a program."""


def table() -> str:
    """The Markdown between the markers."""
    rows = [("op", "what", "reference", *REFUSED), ("---",) * (3 + len(REFUSED)), *_ops(), *_variants()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ops() -> Iterator[tuple[str, ...]]:
    for op in get_args(Op):
        name = op.__struct_config__.tag
        first = op.__doc__.splitlines()[0].replace("``", "`").replace("|", "\\|")
        cells = [_no(refused[op]) if op in refused else "yes" for refused in REFUSED.values()]
        yield f"`{name}`", first, "yes" if name in OPS else "no", *cells


def _variants() -> Iterator[tuple[str, ...]]:
    for what, program in VARIANTS.items():
        cells = []
        for target in REFUSED:
            try:
                TARGETS[target].load(TARGETS[target].options()).check(program, FLOAT)
                cells.append("yes")
            except ExportError as error:
                cells.append(_no(str(error)))
        yield "`attend`", what, "yes", *cells


def _no(reason: str) -> str:
    return "no: " + re.sub(r"^target \w+ does not take [^:]+: |; (target|export) .*$", "", reason)


def parts(text: str, maker: str) -> tuple[str, str, str]:
    """``text`` before what the script ``maker`` writes, that, and what follows."""
    mark = f"<!-- made by tests/{Path(maker).name}: %s -->"
    before, begin, rest = text.partition(f"{mark % 'begin'}\n")
    found, end, after = rest.partition(f"{mark % 'end'}")
    assert begin, f"a page has no line {mark % 'begin'}"
    assert end, f"a page has no line {mark % 'end'}"
    return before + begin, found.removesuffix("\n"), f"\n{end}{after}"


def main() -> None:
    """Write the table into the page."""
    before, _, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
    PAGE.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
