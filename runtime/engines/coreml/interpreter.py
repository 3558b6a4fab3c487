"""Runs the functions of a saved .mlpackage in numpy: what the package computes, without a Mac.

It reads the files that ship, model.mlmodel and weight.bin, and nothing of the program in memory that they came from.
Every result must have the shape and type that the program declares. With ``rounding`` each operator's result is rounded
to float16, as a device computes (sums inside an operator stay in float32); without, float16 stands for float32, and the
result shows what is wrong with the program rather than with the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf.message import DecodeError

from ...errors import ExportError
from .blobs import Blobs
from .operators import OPERATORS, WIDE
from .states import check_states

Array = npt.NDArray[Any]
DATA = "Data/com.apple.CoreML"
MODEL, WEIGHTS = f"{DATA}/model.mlmodel", f"{DATA}/weights/weight.bin"
"""The files inside a package."""
_TYPES = {
    MIL_pb2.FLOAT16: "fp16",
    MIL_pb2.FLOAT32: "fp32",
    MIL_pb2.INT32: "int32",
    MIL_pb2.BOOL: "bool",
    MIL_pb2.STRING: "string",
    MIL_pb2.INT4: "int4",
    MIL_pb2.UINT4: "uint4",
    MIL_pb2.INT8: "int8",
    MIL_pb2.UINT8: "uint8",
}
_BYTES = {"fp16": np.float16, "int8": np.int8, "uint8": np.uint8}
"""Types whose literals are bytes."""
_MOVES = frozenset(
    {
        "concat",
        "expand_dims",
        "gather",
        "identity",
        "reshape",
        "slice_by_index",
        "slice_update",
        "split",
        "tile",
        "transpose",
    }
)
"""Operators that only move numbers, which were rounded before."""
_STATE_KINDS = frozenset({"read_state", "write_state"})


@dataclass(frozen=True)
class Type:
    """Shape and element type of a value."""

    shape: tuple[int, ...]
    element: str


@dataclass(frozen=True)
class Operation:
    """An operator as the program states it: values by input name, literals read already, and its declared outputs."""

    kind: str
    uses: dict[str, tuple[str, ...]]
    literals: dict[str, Any]
    makes: tuple[str, ...]
    types: tuple[Type, ...]


@dataclass(frozen=True)
class Function:
    """A function of the package."""

    inputs: dict[str, Type]
    states: dict[str, Type]
    outputs: tuple[str, ...]
    operations: list[Operation]


class Interpreter:
    """A loaded package. Decompressed weights are kept, as on a device."""

    def __init__(self, package: Path, rounding: bool) -> None:
        """ExportError for a package that is not whole, and for an operator that is not known."""
        self.rounding = rounding
        self._blobs = Blobs(package / WEIGHTS)
        self._arrays: dict[int, Array] = {}
        self._constants: dict[str, Array] = {}
        model = read_model(package)
        self.metadata = dict(model.description.metadata.userDefined)
        self.functions = {name: self._function(name, f) for name, f in model.mlProgram.functions.items()}

    def new_states(self) -> dict[str, Array]:
        """Return zeroed states, for any function."""
        function = next(iter(self.functions.values()))
        return {name: np.zeros(t.shape, np.float32) for name, t in function.states.items()}

    def run(self, name: str, inputs: dict[str, Array], states: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs of the function ``name``; ``states`` are updated. Inputs that it does not have are
        ignored."""
        function = self.functions[name]
        values: dict[str, Array] = {}
        for key, wanted in function.inputs.items():
            if key not in inputs:
                raise ExportError(f"{name} has an input {key} {list(wanted.shape)}, which was not given")
            values[key] = self._checked(
                name, key, np.asarray(inputs[key]).astype(WIDE[wanted.element]), wanted
            )
        left = {
            used: i
            for i, op in enumerate(function.operations)
            for names in op.uses.values()
            for used in names
        }
        for i, operation in enumerate(function.operations):
            self._step(name, operation, values, states)
            for used in {used for names in operation.uses.values() for used in names}:
                if left[used] == i and used not in function.outputs:
                    values.pop(used, None)
        return {key: values[key] for key in function.outputs}

    def read_state(self, states: dict[str, Array], name: str) -> Array:
        """Return the state ``name`` of ``states``."""
        return states[name]

    def write_state(self, states: dict[str, Array], name: str, value: Array) -> None:
        """Make ``value``, of as many numbers, the state ``name``."""
        states[name] = value.astype(np.float32).reshape(states[name].shape)

    def _step(self, name: str, op: Operation, values: dict[str, Array], states: dict[str, Array]) -> None:
        if op.kind == "read_state":
            values[op.makes[0]] = self._checked(
                name, op.makes[0], states[op.uses["input"][0]], op.types[0], False
            )
            return
        if op.kind == "write_state":
            states[op.uses["input"][0]] = values[op.uses["data"][0]]
            return
        if op.kind == "const":
            values[op.makes[0]] = op.literals["val"]
            return
        source = op.literals.get("source")
        if source in self._constants:
            values[op.makes[0]] = self._constants[source]
            return
        inputs = dict(op.literals)
        for argument, names in op.uses.items():
            found = [values[n] for n in names]
            inputs[argument] = found if argument == "values" else found[0]
        try:
            made = OPERATORS[op.kind](inputs)
        except (ValueError, IndexError) as error:
            raise ExportError(f"{name}: {op.kind} {op.makes[0]}: {error}") from error
        results = made if isinstance(made, tuple) else (made,)
        for result, value, declared in zip(op.makes, results, op.types, strict=True):
            values[result] = self._checked(name, result, value, declared, op.kind not in _MOVES)
        if source is not None:
            self._constants[source] = values[op.makes[0]]

    def _checked(self, function: str, name: str, value: Array, declared: Type, rounded: bool = True) -> Array:
        """Return ``value``, rounded; ExportError when its shape or type is not the declared one."""
        if value.shape != declared.shape or value.dtype != WIDE[declared.element]:
            raise ExportError(
                f"{function}: {name} is {value.dtype} {list(value.shape)}, declared as {declared.element} "
                f"{list(declared.shape)}"
            )
        if self.rounding and rounded and declared.element == "fp16":
            with np.errstate(over="ignore"):
                return value.astype(np.float16).astype(np.float32)
        return value

    def _function(self, name: str, proto: Any) -> Function:
        inputs: dict[str, Type] = {}
        states: dict[str, Type] = {}
        for value in proto.inputs:
            if value.type.WhichOneof("type") == "stateType":
                states[value.name] = _type(value.type.stateType.wrappedType)
            else:
                inputs[value.name] = _type(value.type)
        block = proto.block_specializations[proto.opset]
        operations = [self._operation(name, op) for op in block.operations]
        check_states(name, operations, states)
        return Function(inputs, states, tuple(block.outputs), operations)

    def _operation(self, function: str, proto: Any) -> Operation:
        if proto.type not in OPERATORS and proto.type != "const" and proto.type not in _STATE_KINDS:
            raise ExportError(
                f"{function}: the operator {proto.type} is not known to edgeloop's check of packages"
            )
        uses: dict[str, tuple[str, ...]] = {}
        literals: dict[str, Any] = {}
        for argument, bindings in proto.inputs.items():
            if bindings.arguments[0].WhichOneof("binding") == "value":
                literals[argument] = self._value(bindings.arguments[0].value)
            else:
                uses[argument] = tuple(b.name for b in bindings.arguments)
        if proto.type == "const":
            literals["val"] = self._value(proto.attributes["val"])
        if proto.type.startswith("constexpr_"):
            offsets = ((key, b.arguments[0].value.blobFileValue.offset) for key, b in proto.inputs.items())
            literals["source"] = str(sorted(offsets))
        makes = tuple(o.name for o in proto.outputs)
        return Operation(proto.type, uses, literals, makes, tuple(_type(o.type) for o in proto.outputs))

    def _value(self, proto: Any) -> Any:
        """Return a literal: numbers as an array (floats as float32), or a text."""
        declared = _type(proto.type)
        if proto.WhichOneof("value") == "blobFileValue":
            offset = int(proto.blobFileValue.offset)  # functions share arrays
            if offset not in self._arrays:
                value = self._blobs.read(offset, declared.shape)
                self._arrays[offset] = value.astype(WIDE.get(declared.element, value.dtype), copy=False)
            return self._arrays[offset]
        tensor = proto.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind == "strings":
            return tensor.strings.values[0]
        if kind == "bytes":
            value = np.frombuffer(tensor.bytes.values, _BYTES[declared.element]).reshape(declared.shape)
        else:
            value = np.array(getattr(tensor, kind).values).reshape(declared.shape)
        return value.astype(WIDE[declared.element]) if declared.element in WIDE else value


def read_model(package: Path) -> Any:
    """Return model.mlmodel of ``package``; ExportError when it is missing or damaged."""
    path = package / MODEL
    try:
        return Model_pb2.Model.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} cannot be read ({error}); export the package again") from error


def _type(proto: Any) -> Type:
    if proto.WhichOneof("type") == "stateType":
        return _type(proto.stateType.wrappedType)
    tensor = proto.tensorType
    shape = tuple(int(d.constant.size) for d in tensor.dimensions)
    return Type(shape, _TYPES.get(tensor.dataType, str(tensor.dataType)))
