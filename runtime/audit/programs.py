"""Accounts for ExecuTorch's files: .pte programs, the .ptd data beside them, and the table of an embedding.

Program and data are FlatBuffers with segments behind them. The methods' own instructions are examined; what XNNPACK
runs is in segments of its format, of which only the extent is known: the account counts them as opaque.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..bundle.folder import Bundle
from ..engines.executorch.kinds import lookups
from ..engines.executorch.layout import read_layout
from .flatbuffers import FlatbufferTable, Reader, Schema
from .ledger import Ledger

_CALLS = "KernelCall|DelegateCall|MoveCall|JumpFalseCall|FreeCall"
_VALUES = "Null|Int|Bool|Double|Tensor|String|IntList|DoubleList|BoolList|TensorList|OptionalTensorList"
PROGRAM: Schema = {
    "Program": (
        "4",
        "[ExecutionPlan]",
        "[Bytes]",
        "[Bytes]",
        "[DataSegment]",
        "Subsegments",
        "[Subsegments]",
        "[NamedData]",
    ),
    "ExecutionPlan": (
        "text",
        "Container",
        "[EValue]",
        "[4]",
        "[4]",
        "[Chain]",
        "[Operator]",
        "[BackendDelegate]",
        "[8]",
        "[BufferDevice]",
    ),
    "Container": ("text", "text"),
    "EValue": (_VALUES,),
    "Null": (),
    "Int": ("8",),
    "Bool": ("1",),
    "Double": ("8",),
    "String": ("text",),
    "IntList": ("[8]",),
    "DoubleList": ("[8]",),
    "BoolList": ("[1]",),
    "TensorList": ("[4]",),
    "OptionalTensorList": ("[4]",),
    "Tensor": ("1", "4", "[4]", "[1]", "1", "4", "Allocation", "1", "1", "ExtraTensorInfo"),
    "Allocation": ("4", "4", "4"),
    "ExtraTensorInfo": ("8", "text", "1", "1", "1"),
    "Chain": ("[4]", "[4]", "[Instruction]", "[FrameList]"),
    "Instruction": (_CALLS,),
    "KernelCall": ("4", "[4]"),
    "DelegateCall": ("4", "[4]"),
    "MoveCall": ("4", "4"),
    "JumpFalseCall": ("4", "4"),
    "FreeCall": ("4",),
    "FrameList": ("[Frame]",),
    "Frame": ("text", "4", "text", "text"),
    "Operator": ("text", "text"),
    "BackendDelegate": ("text", "DataReference", "[CompileSpec]"),
    "DataReference": ("1", "4"),
    "CompileSpec": ("text", "[1]"),
    "BufferDevice": ("4", "1", "1"),
    "Bytes": ("[1]",),
    "DataSegment": ("8", "8"),
    "Subsegments": ("4", "[8]"),
    "NamedData": ("text", "4"),
}
"""program.fbs of executorch 1.5."""
DATA: Schema = {
    "FlatTensor": ("4", "[DataSegment]", "[NamedData]"),
    "DataSegment": ("8", "8"),
    "NamedData": ("text", "4", "TensorLayout"),
    "TensorLayout": ("1", "[4]", "[1]"),
}
"""flat_tensor.fbs of executorch 1.5."""
_NAME = re.compile("(scale_)?[0-9a-f]{64}")
"""The name of weights, the SHA-256 that ExecuTorch's exporter makes of them; shorter texts are in every program."""
_HEAD = 8
"""The offset of the header: behind the FlatBuffer's offset and its four letters."""
_OPAQUE = "program for XNNPACK, opaque"


def program(bundle: Bundle, ledger: Ledger) -> None:
    """Account for a .pte: every method, and the segments that they and their weights are in."""
    _parts(ledger, _program)


def data(bundle: Bundle, ledger: Ledger) -> None:
    """Account for a .ptd: weights by name, each of which a program of the bundle uses."""
    names = [name for name in bundle.manifest.files if name.endswith(".pte")]
    asked = [bundle.path(name).read_bytes() for name in names]

    def read(ledger: Ledger, at: int) -> None:
        start, size, base, length = (_word(ledger, at + 8 + 8 * i) for i in range(4))
        if ledger.data[at : at + 4] != b"FH01":
            raise ValueError("it has no header")
        ledger.take(at, at + 40, "program")
        end = min(
            start + size, ledger.size
        )  # offsets count from the file's beginning, the header is among them
        root = Reader(ledger, DATA, 0, end, "program").root("FlatTensor")
        _segments(ledger, root.all(1), base, base + length, _named(ledger, root.all(2), asked))
        ledger.padding(end, base)

    _parts(ledger, read)


def embedding(bundle: Bundle, ledger: Ledger) -> None:
    """Account for the table in which the host looks up rows, in a file of its own."""
    target = bundle.manifest.targets.get("executorch")
    if target is None:
        return  # a flat program has its own
    layout = read_layout(bundle.path(target.graphs["layout"]), bundle.program)
    for op, table in zip(lookups(bundle.program), layout.tables, strict=True):
        if ledger.file.rpartition("/")[2] == table.file:
            matrix = bundle.program.matrix(op.table)
            size = {"float32": 4 * matrix.columns, "int8": matrix.columns, "int4": matrix.columns // 2}[
                table.kind
            ]
            ledger.take(table.values, table.values + matrix.rows * size, "tensors")
            if table.groups:
                number = {"bfloat16": 2, "float32": 4}[table.scale_type]
                ledger.take(table.scales, table.scales + matrix.rows * table.groups * number, "tensors")
            return


def _parts(ledger: Ledger, read: Callable[[Ledger, int], None]) -> None:
    try:
        read(ledger, _HEAD)
    except (ValueError, RecursionError, KeyError, OverflowError) as error:
        ledger.refuse(0, ledger.size, f"no file of executorch: {error}")


def _program(ledger: Ledger, at: int) -> None:
    size, base, length = (_word(ledger, at + 8 + 8 * i) for i in range(3))
    if ledger.data[at : at + 4] != b"eh00":
        raise ValueError("it has no header")
    ledger.take(at, at + 32, "program")
    root = Reader(ledger, PROGRAM, 0, min(size, ledger.size), "program").root("Program")
    plans = root.all(1)
    delegates = [delegate for plan in plans for delegate in plan.all(7)]
    kinds = dict.fromkeys(
        (d.fields[1].fields.get(1, 0) for d in delegates if d.fields[1].fields.get(0) == 1), _OPAQUE
    )
    for part in (*([root.fields[5]] if 5 in root.fields else []), *root.all(6)):
        if len(part.all(1)) > 1:  # the first stands for none
            kinds[part.fields.get(0, 0)] = "constants"
    found = root.all(4)
    programs = [
        bytes(ledger.data[base + s.fields.get(0, 0) : base + s.fields.get(0, 0) + s.fields.get(1, 0)])
        for i, s in enumerate(found)
        if kinds.get(i) == _OPAQUE
    ]
    kinds |= _named(ledger, root.all(7), programs)
    _segments(ledger, found, base, base + length, kinds)
    for plan in plans:
        for chain in plan.all(5):
            if chain.all(3):
                ledger.refuse(0, 0, f"stack traces in the method {plan.fields.get(0, '')}")
    ledger.padding(size, base)


def _named(ledger: Ledger, named: list[FlatbufferTable], asked: list[bytes]) -> dict[int, str]:
    """Return the kinds of segments with weights: those whose name a method uses."""
    kinds = {}
    for entry in named:
        key, segment = str(entry.fields.get(0, "")), int(entry.fields.get(1, 0))
        text = len(key.encode()).to_bytes(4, "little") + key.encode() + b"\0"  # as a FlatBuffer has it
        wanted = _NAME.fullmatch(key) is not None and any(text in program for program in asked)
        kinds[segment] = "weights" if wanted else f"?weights {key[:40]}, which no method uses"
    return kinds


def _segments(
    ledger: Ledger, segments: list[FlatbufferTable], base: int, end: int, kinds: dict[int, str]
) -> None:
    """Account for each segment, and for the zeros between them."""
    for i, segment in enumerate(segments):
        start = base + segment.fields.get(0, 0)
        stop = start + segment.fields.get(1, 0)
        kind = kinds.get(i, "?a segment that nothing refers to")
        if kind.startswith("?"):
            ledger.refuse(start, stop, kind[1:])
        else:
            ledger.take(start, stop, kind)
    for first, last in ledger.gaps(base, min(end, ledger.size)):
        ledger.padding(first, last)


def _word(ledger: Ledger, at: int) -> int:
    return int.from_bytes(ledger.data[at : at + 8], "little")
