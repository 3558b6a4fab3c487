"""The table in docs/models.md of real shapes with random weights: .venv/bin/python tests/shapes_table.py FOLDER [SHAPE]

Of each shape a checkpoint is written into FOLDER and exported, which takes minutes; the checkpoint is removed, the
bundle stays. Of a bundle that is there only decoding is timed anew. ``--estimate SHAPE`` in FOLDER's place: a shape for
which there is no room gets a row that nothing was run for.
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
from statistics import median
from typing import Any

import torch
from ops_table import parts

from edgeloop.export.synth import FORMATS, SHAPES
from edgeloop.export.synth_shapes import WRITTEN_OUT
from edgeloop.export.synth_weights import ROOM, SynthWeights

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
BITS = 4 + 16 / 128
"""Of a stored weight: its code, and its share of a scale."""
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


def estimated(name: str, measured: dict[str, list[str]]) -> list[str]:
    """Cells of the shape ``name`` that follow from it; a token's time as if it read as many weights in a millisecond as
    the rows that were ``measured``.
    """
    shape, half = SHAPES[name], torch.float16
    depths = DEPTHS.get(name, shape.repeats)
    weights = FORMATS.get(shape.family, SynthWeights)(shape, torch.Generator(), half, 0)
    stored = (weights.bytes_wanted() - ROOM) / half.itemsize
    looped, around = len(set(shape.stored_layers)) - 2 * shape.edges, 2 * shape.edges
    if shape.family in WRITTEN_OUT and shape.sharing.startswith("middle_"):
        looped, around = looped - 2, 2
    adapter = 2 * shape.hidden_size**2 if shape.edges else 0
    again = looped * sum(a * b for a, b in weights.linears.values()) + adapter
    unrolled = stored + (depths - 1) * again
    kv = (looped * depths + around) * 2 * shape.kv_heads * shape.head_dim * 4
    speeds = [
        number(cells[1].split(" / ")[1]) / number(cells[-1]) for cells in measured.values() if _timed(cells)
    ]
    return [
        str(depths),
        f"{stored / 1e6:,.0f} M / {unrolled / 1e6:,.0f} M",
        f"{kv:,}",
        f"about {stored * BITS / 8e6:,.0f}",
        "not run",
        "not run",
        f"about {unrolled / 1e6 / median(speeds):,.0f}" if speeds else "not measured",
    ]


def _timed(cells: list[str]) -> bool:
    return re.fullmatch(r"[\d,.]+", cells[-1]) is not None


def number(cell: str) -> float:
    """The number of a cell, of which millions are."""
    return float(cell.removesuffix(" M").replace(",", ""))


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
    match sys.argv[1:]:
        case ["--estimate", *shapes] if shapes:
            for each in shapes:
                put(each, estimated(each, written(parts(PAGE.read_text(encoding="utf-8"), __file__)[1])))
        case [place, *shapes]:
            main(Path(place), shapes)
        case _:
            raise SystemExit("wanted: tests/shapes_table.py FOLDER [SHAPE …], or --estimate SHAPE …")
