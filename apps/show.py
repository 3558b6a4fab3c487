"""``edgeloop show``: what a checkpoint or a bundle holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.bundle.manifest import MANIFEST, Manifest, Parity
from .architecture import model_facts, model_rows
from .console import Console
from .quantities import bundle_bytes, byte_count, count, thresholds, unrolled_bytes

if TYPE_CHECKING:
    from ..runtime.bundle.folder import Bundle

EXAMPLES = """\
examples:
  edgeloop show checkpoint
  edgeloop show bundle
  edgeloop show bundle --json
"""
_NAMED = 10  # tensors that are listed before "and more"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder and an adapter."""
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
    """Print what the checkpoint or bundle holds; EdgeloopError when it is neither."""
    if args.adapter is None and is_bundle(args.path):
        show_bundle(args.path, console)
    else:
        show_checkpoint(args.path, args.adapter, console)


def is_bundle(path: Path) -> bool:
    """Return whether the folder has a manifest. What cannot be looked at has none."""
    try:
        return (path / MANIFEST).is_file()
    except (OSError, ValueError):
        return False


def show_bundle(path: Path, console: Console) -> None:
    """A bundle, from its manifest and the names of its heads."""
    from ..runtime.bundle.folder import Bundle
    from .storage import bits_per_weight, stored_kinds

    bundle = Bundle.open(path, verify=False)
    manifest, probes = bundle.manifest, has_probes(bundle)
    unrolled = unrolled_bytes(manifest)
    if console.json:
        facts = model_facts(manifest.program, manifest.parameters, manifest.unrolled_parameters)
        sizes = {
            "bytes": bundle_bytes(manifest),
            "unrolled_bytes_estimated": unrolled,
            "bits_per_weight": bits_per_weight(manifest),
            "storage": stored_kinds(manifest),
        }
        console.result(
            {
                "kind": "bundle",
                "path": str(path),
                **facts,
                "loop_said_by": manifest.loop_said_by,
                **sizes,
                "probes": probes,
                "manifest": manifest,
            }
        )
        return
    console.facts(
        [
            ("bundle", f"{path}, made by edgeloop {manifest.edgeloop}"),
            *model_rows(manifest.program, manifest.parameters, manifest.unrolled_parameters),
            ("loop found in", manifest.loop_said_by or "not said by the edgeloop that made it"),
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
    if manifest.quantization.others:
        rows = [
            (k.storage, first_names(k.matrices), count(k.weights), f"{k.bits_per_weight:.2f}")
            for k in stored_kinds(manifest)
        ]
        console.table(("stored as", "matrices", "#weights", "#bits a weight"), rows)
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
        for table in target.details.describe(manifest.program, byte_count) if target.details else ():
            if table.columns:
                console.table(table.columns, table.rows)
            else:
                console.facts([(name, value) for name, value in table.rows])


def held_to(parity: Parity) -> str:
    """What the difference as shipped was allowed to be, where a bundle says so."""
    return "" if parity.bound is None else f" of {parity.bound:.0e}"


def has_probes(bundle: Bundle) -> bool:
    """Return whether `edgeloop calibrate` fitted probes; BundleError when the file of the heads is damaged."""
    if bundle.manifest.heads is None:
        return False  # numpy is not imported for most bundles
    from ..runtime.bundle.heads import read_heads

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
    from .storage import bits_per_weight

    stored = manifest.quantization
    most = "mostly " if stored.others else ""
    groups = f", {most}groups of {stored.group_size}" if stored.group_size else ""
    deltas = ", deltas in 8 bits" if stored.deltas == 8 else ""
    return f"{stored.scheme}{groups}{deltas}, {bits_per_weight(manifest):.2f} bits a weight"


def show_checkpoint(path: Path, adapter: Path | None, console: Console) -> None:
    """A checkpoint, from its configs and the headers of its weight files."""
    from ..export.checkpoint import Checkpoint
    from ..export.families import loop_said_by, read_checkpoint, unused
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
                "loop_said_by": loop_said_by(reading.program.family),
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
            ("loop found in", loop_said_by(reading.program.family)),
            ("bytes", byte_count(size)),
            ("chat templates", ", ".join(templates) or "none"),
            ("unused tensors", first_names(left)),
        ]
    )


def first_names(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more if names else "none"
