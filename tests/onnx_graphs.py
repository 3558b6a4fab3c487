"""Run a graph for another process, with ONNX Runtime: ``python onnx_graphs.py GRAPH``.

It writes, for Java's DataInputStream, names and sizes of inputs and outputs, -1 for a size that is free; then for each
set of inputs that it reads, in that order, all outputs.
"""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from java_streams import number, text


def main(graph: str) -> None:
    """Answer until there is no more to read."""
    source, goal = sys.stdin.buffer, sys.stdout.buffer
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options)
    for values in (session.get_inputs(), session.get_outputs()):
        goal.write(struct.pack(">i", len(values)))
        for each in values:
            sizes = [size if isinstance(size, int) else -1 for size in each.shape]
            goal.write(struct.pack(">H", len(each.name)) + each.name.encode())
            goal.write(struct.pack(f">{1 + len(sizes)}i", len(sizes), *sizes))
    goal.flush()
    while True:
        given: dict[str, Any] = {}
        for each in session.get_inputs():
            if (name := text(source)) is None:
                return
            kind = np.dtype(name)
            shape = [number(source) for _ in range(number(source))]
            data = source.read(kind.itemsize * int(np.prod(shape)))
            given[each.name] = np.frombuffer(data, kind).reshape(shape)
        for found in session.run(None, given):
            goal.write(struct.pack(f">{1 + found.ndim}i", found.ndim, *found.shape))
            goal.write(struct.pack(">i", found.nbytes) + found.tobytes())
        goal.flush()


if __name__ == "__main__":
    main(sys.argv[1])
