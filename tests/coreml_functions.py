"""Run functions of an .mlpackage for another process, by the interpreter: ``python coreml_functions.py PACKAGE``.

Strings and numbers are those of Java's DataOutputStream, as in ``pte_methods.py``; arrays are little-endian. It writes
the metadata and the names of the functions; then, for each name that it reads, with the number of a state and inputs,
why it cannot be run, or nothing and the outputs; no name asks for a new state.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from java_streams import number, text

from edgeloop.runtime.engines.coreml.interpreter import Interpreter
from edgeloop.runtime.errors import ExportError


def array(source: BinaryIO) -> Any:
    """Return the next array."""
    kind = np.dtype(text(source))
    shape = [number(source) for _ in range(number(source))]
    return np.frombuffer(source.read(kind.itemsize * int(np.prod(shape))), kind).reshape(shape)


def main(package: Path) -> None:
    """Answer until there is no more to read."""
    source, goal = sys.stdin.buffer, sys.stdout.buffer

    def tell(*values: str | int | bytes) -> None:
        for value in values:
            if isinstance(value, int):
                goal.write(struct.pack(">i", value))
            elif isinstance(value, str):
                goal.write(struct.pack(">H", len(value.encode())) + value.encode())
            else:
                goal.write(struct.pack(">i", len(value)) + value)

    interpreter = Interpreter(package, rounding=True)
    tell(len(interpreter.metadata))
    for key, value in interpreter.metadata.items():
        tell(key, value.encode())
    tell(len(interpreter.functions), *interpreter.functions)
    states: list[Any] = []
    goal.flush()
    while (name := text(source)) is not None:
        if not name:
            states.append(interpreter.new_states())
            tell(len(states) - 1)
        else:
            state = states[number(source)]
            given = {str(text(source)): array(source) for _ in range(number(source))}
            try:
                outputs = interpreter.run(name, given, state)
            except ExportError as error:
                tell(str(error))
            else:
                tell("", len(outputs))
                for key, found in outputs.items():  # rounded: no number changes
                    half = found.astype(np.float16)
                    tell(key, half.dtype.name, half.ndim, *half.shape, half.tobytes())
        goal.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
