"""What ``edgeloop compare --target native`` compares, and the tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .console import Console
from .quantities import byte_count

COLUMNS = (
    "int4, full depth",
    "#group",
    "#threads",
    "#bytes",
    "#first token",
    "#memory",
    "#prefill",
    "#tokens/s",
    "#from – to",
)
AGAINST = ("÷ the best peer", "#group", "#threads", "#speed", "#prefill", "#memory", "#speed ÷ ONNX engine")
WORK = ("groups", "#file ÷ tensors", "#bytes a token reads", "#operations a prompt's token")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """A file on an engine, of which it reads ``bytes``, with so many threads; ``kernels``: forced ones of ours."""

    name: str
    kind: str
    path: Path
    group: int
    bytes: int
    threads: int
    kernels: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list, compare=False)


def tables(
    console: Console,
    prompt: int,
    rows: Rows,
    ratios: Rows,
    sizes: dict[str, dict[str, float]],
    perplexity: dict[str, dict[str, list[float]]],
) -> None:
    """Speeds and memory, ours over the best peer's, passes by their rows, sizes and work, perplexities."""
    console.table(COLUMNS, [speeds(row, prompt) for row in rows])
    if any("token_ms" in row for row in ratios):
        console.table(AGAINST, [against(row) for row in ratios if "token_ms" in row])
    passes = [row for row in rows if row["pass_ms"]]
    if passes:
        counts = list(passes[0]["pass_ms"])
        head = ("a block pass of n rows ÷ 1", "#group", "#threads", *(f"#{n}" for n in counts))
        console.table(head, [block_pass(row) for row in passes])
    console.table(WORK, [work(group, found) for group, found in sizes.items()])
    for group, found in perplexity.items():
        depths = range(1, len(found["int8"]) + 1)
        console.table(
            (f"perplexity, groups of {group}", *(f"#depth {n}" for n in depths)),
            [(name, *(f"{value:.4f}" for value in values)) for name, values in found.items()],
        )


def speeds(row: dict[str, Any], prompt: int) -> tuple[str, ...]:
    """A row of the first table."""
    slowest, median, fastest = row["tokens_per_s"]
    return (
        row["name"],
        str(row["group_size"]),
        str(row["threads"]),
        byte_count(row["bytes"]),
        f"{row['first_ms']:.1f} ms",
        byte_count(row["memory_bytes"]),
        f"{1000 * prompt / row['prefill_ms']:.0f}",
        f"{median:.1f}",
        f"{slowest:.1f} – {fastest:.1f}",
    )


def against(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of ratios, speeds upside down: more is faster."""
    where = (row["name"], str(row["group_size"]), str(row["threads"]))
    faster = (1 / row["token_ms"], 1 / row["prefill_ms"], row["memory_bytes"], 1 / row["onnx_token_ms"])
    return (*where, *(f"{ratio:.2f}×" for ratio in faster))


def block_pass(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the passes: milliseconds of one row, and the others over it."""
    one = row["pass_ms"]["1"]
    cells = [f"{one:.2f} ms" if n == "1" else f"{ms / one:.2f}×" for n, ms in row["pass_ms"].items()]
    return (row["name"], str(row["group_size"]), str(row["threads"]), *cells)


def work(group: str, found: dict[str, float]) -> tuple[str, ...]:
    """A row of sizes."""
    return (
        f"of {group}",
        f"{found['file_ratio']:.4f}",
        byte_count(found["token_bytes"]),
        f"{found['token_ops'] / 1e9:.3f} G",
    )


def labels(found: Sequence[Contender]) -> tuple[dict[Contender, str], dict[str, str]]:
    """What a record calls each of ``found``, and ours beside each: of the same group size and threads."""
    names = {}
    for one in found:
        kernels = f" with {one.kernels}" if one.kernels else ""
        names[one] = (
            f"{one.name}{kernels}, groups of {one.group}, {one.threads} thread{'s' * (one.threads > 1)}"
        )
    ours = {(one.group, one.threads): names[one] for one in reversed(found) if one.kind == "native"}
    return names, {names[one]: ours.get((one.group, one.threads), names[one]) for one in found}
