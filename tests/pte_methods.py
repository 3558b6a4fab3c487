"""Run a .pte's methods for another process, with ExecuTorch's runtime: ``python pte_methods.py CALLS PROGRAM [DATA]``.

Of Java's DataOutputStream it reads the name of a method and its inputs, and writes the outputs; no name asks for all
names. CALLS becomes a list of what was called, with the shapes of its inputs, a line each.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
from executorch.runtime import Runtime
from java_streams import number, text


def tensor(source: BinaryIO) -> torch.Tensor:
    """Return the next tensor, float32."""
    shape = [number(source) for _ in range(number(source))]
    count = torch.Size(shape).numel()
    return torch.tensor(struct.unpack(f">{count}f", source.read(4 * count))).reshape(shape)


def main(calls: Path, program_path: Path, data: Path | None = None) -> None:
    """Answer until there is no more to read. ``data``: a .ptd with the program's weights; this runtime takes one."""
    source, goal = sys.stdin.buffer, sys.stdout.buffer
    program = Runtime.get().load_program(program_path, data_path=data)
    methods: dict[str, Any] = {}
    with calls.open("w", encoding="utf-8") as called:
        while (name := text(source)) is not None:
            if not name:
                names = sorted(program.method_names)
                goal.write(struct.pack(">i", len(names)))
                goal.write(b"".join(struct.pack(">H", len(each)) + each.encode() for each in names))
            else:
                inputs = [tensor(source) for _ in range(number(source))]
                print(name, *("x".join(map(str, each.shape)) for each in inputs), file=called, flush=True)
                method = methods.setdefault(name, program.load_method(name))
                outputs = method.execute(inputs)
                goal.write(struct.pack(">i", len(outputs)))
                for each in outputs:
                    flat = each.flatten().tolist()
                    goal.write(struct.pack(f">{1 + each.dim()}i", each.dim(), *each.shape))
                    goal.write(struct.pack(f">{len(flat)}f", *flat))
            goal.flush()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
