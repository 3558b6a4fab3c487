"""``edgeloop predict --sweep``: the table and the picture of a sweep."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ...runtime.errors import UsageError
from ..console import Console
from ..quantities import byte_count, digits
from ..show import is_bundle
from .device import Device
from .sweep import Found, Grid, Task, sweep

SHOWN = 40
"""Rows of the table; JSON has all."""


def run_sweep(args: argparse.Namespace, device: Device, console: Console) -> None:
    """Predict every combination and print those that no other one beats; UsageError for what has no combinations."""
    if bundle := next((given for given in args.models if is_bundle(Path(given))), None):
        raise UsageError(f"{bundle} is a bundle, stored in one way; sweep its checkpoint, or a shape")
    if args.exit is not None or args.acceptance is not None:
        raise UsageError("--exit and --acceptance are for one model; a sweep takes --exit-share")
    if strange := next((bits for bits in args.kv_bits if bits not in (32, 16, 8)), None):
        raise UsageError(f"--kv-bits {strange}: wanted 32, 16 or 8")
    if args.svg is not None and args.svg.exists():
        raise UsageError(f"{args.svg} exists: choose another file")
    grid = Grid(
        quant=args.quant,
        group_size=args.group_size,
        kv_bits=args.kv_bits,
        context=args.context or (0,),
        shares=tuple(dict.fromkeys([(), *args.exit_share])),
        prompt=args.prompt_tokens or 0,
        threads=args.threads,
        lora_rank=args.lora_rank,
    )
    tasks = [Task(model, depths, grid, device) for model in args.models for depths in args.depths or (None,)]
    found = sweep(tasks, args.jobs, args.ray)
    best = [one for one in found if one.best]
    if args.svg is not None:
        from .sweep_plot import draw

        draw(args.svg, found, device.name)
    if console.json:
        console.result({"device": device, "combinations": [asdict(one) for one in found]})
        return
    columns = (
        "model",
        "#depths",
        "stored",
        "#K/V bits",
        "#behind",
        "exits",
        "#tokens/s",
        "#prefill",
        "#first token",
        "#memory",
        "#bits met",
        "block in cache",
    )
    console.table(columns, [row(one) for one in best[:SHOWN]])
    more = f", {SHOWN} of them shown" if len(best) > SHOWN else ""
    console.note(
        f"[{len(best)} of {len(found)} combinations that no other one beats in speed, memory and bits met{more}; "
        f"predicted, not measured, and no quality: docs/predict.md]"
    )


def row(one: Found) -> tuple[str, ...]:
    """A row of the table."""
    storage = one.quant if one.quant in ("none", "int8-channel") else f"{one.quant}, {one.group_size}"
    return (
        one.model,
        str(one.depths),
        storage,
        str(one.kv_bits),
        str(one.context),
        ",".join(f"{share:g}" for share in one.shares) or "–",
        digits(one.decode),
        digits(one.prefill),
        f"{one.first_s:.3g} s",
        byte_count(one.memory),
        f"{one.bits_met / 1e9:.3g} G",
        f"{one.block_kept:.0%}",
    )
