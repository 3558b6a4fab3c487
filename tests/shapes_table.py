"""The table in docs/models.md of real shapes with random weights: .venv/bin/python tests/shapes_table.py FOLDER [SHAPE]

Of each shape a checkpoint is written into FOLDER and exported, which takes minutes; the checkpoint is removed, the
bundle stays. Of a bundle that is there only decoding is timed anew.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops_table import parts

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
EDGELOOP = Path(sys.executable).with_name("edgeloop")
COLUMNS = (
    "shape",
    "depths",
    "parameters, stored / unrolled",
    "K/V bytes a token",
    "bundle, MB",
    "export, s",
    "memory, MB: at most / anonymous",
    "decode, ms a token",
)
DEPTHS = {"huginn-3.5b": 4, "retrofit-tinyllama-4-8-4": 4}
"""Of models that run any number of times, how often here."""
ROWS = (
    "mor-360m-r3",
    "rrt-tinyllama-2x11",
    "retrofit-tinyllama-4-8-4",
    "rrt-pythia-1b-2x8",
    "ouro-1.4b",
    "rrt-gemma-2b-2x9",
    "nanbeige-4.2-3b",
    "huginn-3.5b",
)
EXPORT = ("--target", "native", "--quant", "int4", "--group-size", "128")
TOKENS = ("--context", "512", "--prompt-tokens", "8", "--tokens", "16", "--runs", "3")
BENCH = ("--engine", "native", "--threads", "2", *TOKENS)
_SAMPLED_S = 0.05


def edgeloop(*words: str, watch: Callable[[int], object] = lambda pid: None) -> dict[str, Any]:
    """What a command prints as JSON; ``watch`` is called with its process while it runs, again and again."""
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen([EDGELOOP, *words, "--json"], stdout=told) as process,
    ):
        while process.poll() is None:
            watch(process.pid)
            time.sleep(_SAMPLED_S)
        if process.returncode:
            raise SystemExit(f"edgeloop {' '.join(words)} failed")
        told.seek(0)
        found: dict[str, Any] = json.load(told)
    return found


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file is behind, which a system cannot drop without swapping; 0 where it does not
    say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"(?m)^RssAnon:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def exported(name: str, folder: Path) -> list[str]:
    """Write the checkpoint of the shape ``name``, export it into ``folder``, remove it; return what an export tells."""
    checkpoint, bundle, anonymous = folder / f"{name}-checkpoint", folder / name, [0]
    if not checkpoint.is_dir():
        edgeloop("synth", "--shape", name, "-o", str(checkpoint))
    depth = ("--depth", str(DEPTHS[name])) if name in DEPTHS else ()
    report = edgeloop(
        *("export", str(checkpoint), "-o", str(bundle), *EXPORT, *depth),
        watch=lambda pid: anonymous.append(max(anonymous.pop(), anonymous_bytes(pid))),
    )
    shutil.rmtree(checkpoint)
    shown = edgeloop("show", str(bundle))
    return [
        str(shown["depths"]),
        f"{shown['parameters'] / 1e6:,.0f} M / {shown['unrolled_parameters'] / 1e6:,.0f} M",
        f"{shown['kv_bytes_per_token']:,}",
        f"{report['bytes'] / 1e6:,.0f}",
        f"{report['seconds']:,.0f}",
        f"{report['peak_rss_bytes'] / 1e6:,.0f} / {anonymous[0] / 1e6:,.0f}",
    ]


def decode_ms(bundle: Path) -> str:
    """The milliseconds that a token takes."""
    return f"{1000 / edgeloop('bench', str(bundle), *BENCH)['decode_tokens_per_s']:,.1f}"


def written(table: str) -> dict[str, list[str]]:
    """The cells of each row of ``table``, by its shape."""
    rows = re.findall(r"(?m)^\| `([\w.-]+)` \| (.*) \|$", table)
    return {name: cells.split(" | ") for name, cells in rows}


def put(name: str, cells: list[str]) -> None:
    """Replace the last cells of the row of the shape ``name`` in the page as it is there, or all of them."""
    before, table, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
    rows = written(table)
    rows[name] = [*rows.get(name, [])[: len(COLUMNS) - 1 - len(cells)], *cells]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([f"`{each}`", *rows[each]] for each in ROWS if each in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    PAGE.write_text(before + table + after, encoding="utf-8")


def main(folder: Path, names: list[str]) -> None:
    """Measure the shapes ``names``, or all, and put what is found into the page at once."""
    for name in names or ROWS:
        if not (folder / name).is_dir():
            put(name, [*exported(name, folder), "not measured"])
        put(name, [decode_ms(folder / name)])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("wanted: tests/shapes_table.py FOLDER [SHAPE]")
    main(Path(sys.argv[1]), sys.argv[2:])
