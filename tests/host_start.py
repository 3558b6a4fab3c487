"""Time to first text and memory of edgeloop-run beside the Python host: .venv/bin/python tests/host_start.py [BUNDLE].

Both write 16 tokens behind the same prompt, in processes of their own that take turns, with files that are in memory
already. The first text is the first byte that a process writes behind its prompt. By default on build/demo.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from edgeloop.runtime.engines.native.programs import host

ROOT = Path(__file__).resolve().parents[1]
RUNS = 11
PROMPT = "Once upon a time there was a king"
ANSWER = ("-n", "16", "--threads", "1")


def once(command: Sequence[str]) -> tuple[float, float, int]:
    """Milliseconds to the first text and to the end, and the most bytes that were in memory."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    seen, first = 0, 0.0
    while piece := os.read(process.stdout.fileno(), 4096):
        seen += len(piece)
        if not first and seen > len(PROMPT):
            first = time.perf_counter() - begin
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return 1e3 * first, 1e3 * (time.perf_counter() - begin), used.ru_maxrss * 1024


def main(bundle: Path) -> None:
    """Print medians of both, and the size of the program."""
    with tempfile.TemporaryDirectory(prefix="edgeloop-host-") as folder:
        program = host(Path(folder) / "edgeloop-run")
        commands = {
            "edgeloop-run": (str(program), str(bundle), "-p", PROMPT, *ANSWER),
            "edgeloop run": (
                str(Path(sys.executable).with_name("edgeloop")),
                *("run", str(bundle), "-p", PROMPT, "--engine", "native", *ANSWER),
            ),
        }
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
        for number in range(RUNS + 1):
            for name, command in commands.items():
                told = once(command)
                if number:  # the first ones bring files into memory
                    found[name].append(told)
        sys.stdout.write(f"edgeloop-run has {program.stat().st_size} bytes\n")
    for name, runs in found.items():
        first, end, peak = (statistics.median(each) for each in zip(*runs, strict=True))
        sys.stdout.write(f"{name}: first text {first:.1f} ms, end {end:.1f} ms, peak {peak / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "demo")
