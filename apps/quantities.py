"""Sizes of a bundle in bytes, and how sizes and shapes are written for people."""

from __future__ import annotations

from itertools import groupby

from msgspec import structs

from ..runtime.bundle.manifest import NEVER, Manifest
from ..runtime.model import facts
from ..runtime.model.facts import runs
from ..runtime.model.ops import AttendLearned, Norm, Scale, weight_fields
from ..runtime.model.program import Program


def byte_count(n: float) -> str:
    """``n`` bytes in decimal units, three digits: 11.4 MB."""
    return _scaled(n, ("B", "kB", "MB", "GB", "TB"))


def count(n: float) -> str:
    """``n`` things, three digits: 7.68 M."""
    return _scaled(n, ("", "k", "M", "G", "T")).rstrip()


def digits(n: float, most: int = 3) -> str:
    """``n`` rounded to ``most`` digits, without an exponent: 11000, 36.3, 0.485."""
    return f"{float(f'{n:.{most}g}'):.15g}"


def _scaled(n: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(n) >= 999.5 and power < len(units) - 1:
        n, power = n / 1000, power + 1
    digits = f"{n:.0f}" if power == 0 or abs(n) >= 99.95 else f"{n:.3g}"
    return f"{digits} {units[power]}"


def layout(program: Program) -> str:
    """The runs of layers as layers × repeats: ``1 + 3×3 + 1``; equal ones in a row once, ``15 of 1×2``."""
    parts = []
    drawn = (f"{r.layers}×{r.repeats}" if r.repeats > 1 else str(r.layers) for r in runs(program))
    for text, run in groupby(drawn):
        times = len(list(run))
        parts.append(text if times == 1 else f"{times} of {text}")
    return " + ".join(parts)


def thresholds(values: tuple[float, ...]) -> str:
    """Thresholds of an exit rule, three digits; a depth that nobody leaves after is a dash."""
    return ", ".join("–" if abs(value) >= NEVER else f"{value:.3g}" for value in values)


def deltas(program: Program) -> str:
    """What differs between the depths, in words."""
    parts, found = [], facts.deltas(program)
    if found:
        ranks = sorted({delta.rank for delta in found.values()})
        names = dict.fromkeys(name.rpartition(".")[2].removesuffix("_proj") for name in found)
        kind = "DoRA" if any(delta.rescaled for delta in found.values()) else "LoRA"
        parts.append(f"{kind} of rank {'/'.join(map(str, ranks))} on {', '.join(names)}")
    if program.own_matrices:
        parts.append("own attention")
    ops = [op for block in program.loop.blocks for op in block.ops]
    for op_type, name in ((Norm, "norms"), (Scale, "encodings")):
        used = (program.weights[w] for op in ops if isinstance(op, op_type) for _, w in weight_fields(op))
        if any(weight.per_depth for weight in used):
            parts.append(f"own {name}")
    if len(program.loop.blocks) > 1 and any(isinstance(op, AttendLearned) for op in ops):
        parts.append("own prompts")
    return "; ".join(parts) or "none"


def with_target(manifest: Manifest, name: str) -> Manifest:
    """The bundle with that target alone; the files of targets lie in folders of their names.

    Without ``text.lanes`` where the target's own file has the text.
    """
    target, text = manifest.targets[name], manifest.text
    away = [f"{other}/" for other in manifest.targets if other != name]
    if target.weights.endswith(".lanes") and text.lanes:
        away.append(text.lanes)
        text = structs.replace(text, lanes=None)
    files = {file: said for file, said in manifest.files.items() if not file.startswith(tuple(away))}
    return structs.replace(manifest, targets={name: target}, text=text, files=files)


def bundle_bytes(manifest: Manifest) -> int:
    """Bytes of the files that the manifest lists."""
    return sum(file.bytes for file in manifest.files.values())


def table_bytes(manifest: Manifest) -> int:
    """Bytes of what targets store for every position of the context."""
    program, said = manifest.program, (target.details for target in manifest.targets.values())
    return program.context_length * sum(each.position_bytes(program) for each in said if each)


def shorter_context(manifest: Manifest, share: float = 0.1) -> tuple[int, int] | None:
    """(a context, bytes that it saves) where tables of positions are more than ``share`` of the bundle; else None.

    The context is the longest power of two with which they are no more than that of the rest.
    """
    tables, total = table_bytes(manifest), bundle_bytes(manifest)
    if tables <= share * total:
        return None
    fits = int(share * (total - tables) / tables * manifest.program.context_length)
    context = 1 << max(fits, 1).bit_length() - 1
    return context, tables - tables * context // manifest.program.context_length


def unrolled_bytes(manifest: Manifest) -> int:
    """An estimate: what the bundle would weigh with every applied layer stored and the deltas merged into it.

    It is on the low side: graphs, which would grow too, are counted as they are.
    """
    stored = manifest.quantization
    is_float = stored.bits >= 16
    a_weight = stored.bits / 8
    a_weight += 0 if is_float else 2 / (stored.group_size or manifest.program.width)
    repeated = (manifest.unrolled_parameters - manifest.parameters) * a_weight
    merged = facts.delta_parameters(manifest.program) * (stored.deltas or 16) // 8
    return bundle_bytes(manifest) + round(repeated) - merged
