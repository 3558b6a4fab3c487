"""``edgeloop show``: what a checkpoint or a bundle holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.manifest import MANIFEST, Constant, Flat, Manifest, Package, Parity
from ..runtime.model import facts
from ..runtime.model.program import Program
from .console import Console
from .quantities import (
    bits_per_weight,
    bundle_bytes,
    byte_count,
    count,
    deltas,
    layout,
    thresholds,
    unrolled_bytes,
)

if TYPE_CHECKING:
    from ..runtime.bundle import Bundle

EXAMPLES = """\
examples:
  edgeloop show checkpoint
  edgeloop show bundle
  edgeloop show bundle --json
"""
_NAMED = 10  # unused tensors that are listed before "and more"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What a checkpoint or a bundle holds: layers × repeats, shared weights, parameters, bytes."
    )
    parser.usage = "edgeloop show PATH [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="checkpoint or bundle folder, or a model in the Hugging Face cache",
    )

    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT LoRA on the checkpoint PATH")


def main(args: argparse.Namespace, console: Console) -> None:
    if args.adapter is None and is_bundle(args.path):
        show_bundle(args.path, console)
    else:
        show_checkpoint(args.path, args.adapter, console)


def is_bundle(path: Path) -> bool:
    """Has the folder a manifest? What cannot be looked at has none."""
    try:
        return (path / MANIFEST).is_file()
    except (OSError, ValueError):
        return False


def show_bundle(path: Path, console: Console) -> None:
    """A bundle, from its manifest and the names of its heads."""
    from ..runtime.bundle import Bundle

    bundle = Bundle.open(path, verify=False)
    manifest, probes = bundle.manifest, has_probes(bundle)
    unrolled = unrolled_bytes(manifest)
    if console.json:
        facts = model_facts(manifest.program, manifest.parameters, manifest.unrolled_parameters)
        sizes = {
            "bytes": bundle_bytes(manifest),
            "unrolled_bytes_estimated": unrolled,
            "bits_per_weight": bits_per_weight(manifest),
        }
        console.result(
            {"kind": "bundle", "path": str(path), **facts, **sizes, "probes": probes, "manifest": manifest}
        )
        return
    console.facts(
        [
            ("bundle", f"{path}, made by edgeloop {manifest.edgeloop}"),
            *model_rows(manifest.program, manifest.parameters, manifest.unrolled_parameters),
            ("quantization", quantization(manifest)),
            (
                "bytes",
                f"{byte_count(bundle_bytes(manifest))}; unrolled about {byte_count(unrolled)} (estimated)",
            ),
            ("tokenizer", manifest.text.tokenizer or "none"),
            ("chat templates", ", ".join(sorted(manifest.text.chat_templates)) or "none"),
            ("probes", "one for each depth but the last" if probes else "none"),
        ]
    )
    if manifest.exits:
        console.table(
            ("exit rule", "thresholds", "goal", "#mean depth", "#agreement", "#perplexity"), exits(manifest)
        )
    targets = [
        (
            name,
            byte_count(manifest.files[target.weights].bytes),
            byte_count(sum(manifest.files[graph].bytes for graph in target.graphs.values())),
            " ".join(f"{x:.1e}" for x in target.parity.per_depth) or "–",
            f"{target.parity.logits:.1e}",
            f"{target.parity.shipped:.1e}" + held_to(target.parity),
        )
        for name, target in manifest.targets.items()
    ]
    columns = ("target", "#weights", "#graphs", "error after each depth", "#of the logits", "#as shipped")
    console.table(columns, targets)
    for target in manifest.targets.values():
        if target.package is not None:
            show_package(target.package, console)
        if target.flat is not None:
            show_flat(target.flat, manifest.program, console)


def held_to(parity: Parity) -> str:
    """What the difference as shipped was allowed to be, where a bundle says so."""
    return "" if parity.bound is None else f" of {parity.bound:.0e}"


def show_package(package: Package, console: Console) -> None:
    """The functions of a Core ML package and the states that serve them all."""
    weights = (
        "4-bit indices into tables of 16 values"
        if package.palettized
        else "as the bundle's quantization says"
    )
    console.facts(
        [
            ("package", package.path),
            ("its weights", weights),
            (
                "its sizes",
                f"{package.chunk} tokens a prefill call, room for {package.capacity} in its states",
            ),
        ]
    )
    console.table(("function", "compute unit"), list(package.functions.items()))
    rows = [
        (name, " × ".join(map(str, shape)), byte_count(2 * prod(shape)))
        for name, shape in package.states.items()
    ]
    console.table(("state", "layers × KV heads × tokens × head size", "#float16"), rows)


def show_flat(flat: Flat, program: Program, console: Console) -> None:
    """What a stock runner reads from a flat program, and the memory of its caches."""
    caches = program.kv_bytes_per_token * flat.rows
    rows = [("forward", f"tokens, input_pos → logits; caches of {flat.rows} tokens, {byte_count(caches)}")]
    rows += [(name, _constant(value)) for name, value in flat.constants.items()]
    console.table(("method of the flat program", "gives"), rows)


def _constant(value: Constant) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def has_probes(bundle: Bundle) -> bool:
    """Did `edgeloop calibrate` fit probes? BundleError when the file of the heads is damaged."""
    if bundle.manifest.heads is None:
        return False  # numpy is not imported for most bundles
    from ..runtime.heads import read_heads

    return "probe.weight" in read_heads(bundle)


def exits(manifest: Manifest) -> list[tuple[str, ...]]:
    """The calibrated exit rules, as rows."""
    return [
        (
            name,
            thresholds(rule.thresholds),
            rule.goal,
            f"{rule.mean_depth:.2f}",
            f"{rule.agreement:.1%}",
            f"{rule.perplexity / rule.full_perplexity - 1:+.2%}",
        )
        for name, rule in manifest.exits.items()
    ]


def quantization(manifest: Manifest) -> str:
    """How the weights are stored, in words."""
    stored = manifest.quantization
    groups = f", groups of {stored.group_size}" if stored.group_size else ""
    return f"{stored.scheme}{groups}, {bits_per_weight(manifest):.2f} bits a parameter"


def show_checkpoint(path: Path, adapter: Path | None, console: Console) -> None:
    """A checkpoint, from its configs and the headers of its weight files."""
    from ..export.checkpoint import Checkpoint
    from ..export.families import read_checkpoint, unused
    from ..export.heads import count_heads
    from ..export.text.templates import chat_templates
    from ..runtime.model.facts import count_parameters

    checkpoint = Checkpoint.open(path, adapter)
    reading = read_checkpoint(checkpoint)
    left, templates = unused(checkpoint, reading), sorted(chat_templates(checkpoint.folder))
    size = sum(file.stat().st_size for file in checkpoint.folder.iterdir() if file.is_file())
    unique, unrolled = count_parameters(reading.program, count_heads(reading))
    if console.json:
        facts = model_facts(reading.program, unique, unrolled)
        console.result(
            {
                "kind": "checkpoint",
                "path": str(checkpoint.folder),
                **facts,
                "bytes": size,
                "unused": left,
                "chat_templates": templates,
                "program": reading.program,
            }
        )
        return
    console.facts(
        [
            ("checkpoint", str(checkpoint.folder)),
            *model_rows(reading.program, unique, unrolled),
            ("bytes", byte_count(size)),
            ("chat templates", ", ".join(templates) or "none"),
            ("unused tensors", unused_names(left)),
        ]
    )


def unused_names(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more if names else "none"


def model_facts(program: Program, parameters: int, unrolled: int) -> dict[str, Any]:
    """The architecture's numbers, for machines."""
    return {
        "family": program.family,
        "layout": layout(program),
        "segments": facts.runs(program),
        "depths": program.depths,
        "open_ended": program.loop.open_ended,
        "layers": facts.stored_layers(program),
        "applied_layers": program.applied_layers,
        "parameters": parameters,
        "unrolled_parameters": unrolled,
        "delta_parameters": facts.delta_parameters(program),
        "ops": facts.op_kinds(program),
        "tied_embedding": program.tied_embedding,
        "kv_bytes_per_token": program.kv_bytes_per_token,
        "kv": "shared" if program.shares_kv else "per-depth",
        "sliding_window": program.window,
        "routing": program.routing,
        "exit_gate": program.exit_gate,
        "context_length": program.context_length,
    }


def model_rows(program: Program, parameters: int, unrolled: int) -> list[tuple[str, str]]:
    """The architecture's numbers, for people."""
    layers = facts.stored_layers(program)
    loop = f"{program.depths} depths" if program.depths > 1 else "no depth loop on the host"
    if program.loop.open_ended:
        loop += " or any other number (--depth)"
    carries = program.loop.carries
    width = " + ".join(str(carry.width) for carry in carries)
    if len(carries) > 1:
        width += f" ({', '.join(carry.name for carry in carries)})"
    head = "the head is the embedding" if program.tied_embedding else "the head has weights of its own"
    head = head if program.head.ops else "no head"
    return [
        ("family", program.family),
        ("layers", f"{layout(program)}: {layers} stored, {program.applied_layers} applied, {loop}"),
        ("width", f"{width}, MLP {facts.mlp_size(program)}"),
        ("attention", attention_of(program)),
        ("ops", ", ".join(facts.op_kinds(program))),
        ("vocabulary", f"{program.vocab_size} tokens; {head}"),
        (
            "parameters",
            f"{count(parameters)}; unrolled {count(unrolled)}, {unrolled / parameters:.2f} times as many",
        ),
        ("deltas", f"{deltas(program)}{_delta_share(program, parameters)}"),
        (
            "context",
            f"{program.context_length} tokens, {byte_count(program.kv_bytes_per_token)} of KV cache a token",
        ),
        ("depth", depth_rules(program)),
    ]


def attention_of(program: Program) -> str:
    """The sizes of attention, in words; of the first one."""
    found = facts.attention(program)
    return f"{found.heads} heads, {found.kv_heads} KV heads of {found.head_dim}" if found else "none"


def depth_rules(program: Program) -> str:
    """KV slots, window, gate and router, in words."""
    parts = ["the depths share K and V" if program.shares_kv else "K and V for each depth"]
    if program.encoder:
        parts = ["an encoder: tokens see the whole text, and nothing is kept"]
    if program.window is not None:
        parts.append(f"a window of {program.window} tokens")
    if program.exit_gate:
        parts.append("an exit gate")
    if (routing := program.routing) is not None:
        shares = ", ".join(f"{share:.0%}" for share in routing.capacity)
        parts.append(f"{routing.kind}-choice router{f' ({shares} of the tokens)' if shares else ''}")
    return "; ".join(parts)


def _delta_share(program: Program, parameters: int) -> str:
    numbers = facts.delta_parameters(program)
    return f"; {count(numbers)} parameters, {numbers / parameters:.1%}" if numbers else ""
