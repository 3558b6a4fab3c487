"""Sizes of a bundle in bytes, and how sizes and shapes are written for people."""

from __future__ import annotations

from itertools import groupby

from ..runtime.manifest import NEVER, Manifest
from ..runtime.spec import Spec


def byte_count(n: float) -> str:
    """``n`` bytes in decimal units, three digits: 11.4 MB."""
    return _scaled(n, ("B", "kB", "MB", "GB", "TB"))


def count(n: float) -> str:
    """``n`` things, three digits: 7.68 M."""
    return _scaled(n, ("", "k", "M", "G", "T")).rstrip()


def _scaled(n: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(n) >= 999.5 and power < len(units) - 1:
        n, power = n / 1000, power + 1
    digits = f"{n:.0f}" if power == 0 or abs(n) >= 99.95 else f"{n:.3g}"
    return f"{digits} {units[power]}"


def layout(spec: Spec) -> str:
    """The segments as layers × repeats: ``1 + 3×3 + 1``; equal ones in a row once, ``15 of 1×2``."""
    parts = []
    drawn = (f"{s.layers}×{s.repeats}" if s.repeats > 1 else str(s.layers) for s in spec.segments)
    for text, run in groupby(drawn):
        times = len(list(run))
        parts.append(text if times == 1 else f"{times} of {text}")
    return " + ".join(parts)


def thresholds(values: tuple[float, ...]) -> str:
    """Thresholds of an exit rule, three digits; a depth that nobody leaves after is a dash."""
    return ", ".join("–" if abs(value) >= NEVER else f"{value:.3g}" for value in values)


def delta_parameters(spec: Spec) -> int:
    """Numbers in the LoRA deltas of all depths."""
    d, f, q, kv = (
        spec.hidden_size,
        spec.intermediate_size,
        spec.heads * spec.head_dim,
        spec.kv_heads * spec.head_dim,
    )
    # A has as many numbers a rank as the projection has inputs, B as many as it has outputs.
    ends = {"q": d + q, "k": d + kv, "v": d + kv, "o": q + d, "gate": d + f, "up": d + f, "down": f + d}
    return sum(
        s.layers * s.repeats * sum(rank * ends[name.removesuffix("_proj")] for name, rank in s.lora.items())
        for s in spec.segments
    )


def deltas(spec: Spec) -> str:
    """What differs between the depths, in words."""
    parts = []
    for segment in spec.segments:
        ranks = sorted(set(segment.lora.values()))
        if ranks:
            names = ", ".join(name.removesuffix("_proj") for name in segment.lora)
            parts.append(f"LoRA of rank {'/'.join(map(str, ranks))} on {names}")
        if segment.per_repeat_attention:
            parts.append("own attention")
        if segment.per_repeat_norms:
            parts.append("own norms")
    return "; ".join(dict.fromkeys(parts)) or "none"


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the bundle's weights, each file once."""
    return sum(manifest.files[name].bytes for name in {t.weights for t in manifest.targets.values()})


def bundle_bytes(manifest: Manifest) -> int:
    """Bytes of the files that the manifest lists."""
    return sum(file.bytes for file in manifest.files.values())


def table_bytes(manifest: Manifest) -> int:
    """Bytes of what is stored for every position of the context, which Core ML packages alone do.

    cos and sin as float16, and its number as int32.
    """
    packages = sum(target.package is not None for target in manifest.targets.values())
    return packages * manifest.spec.context_length * (2 * manifest.spec.head_dim + 4)


def shorter_context(manifest: Manifest, share: float = 0.1) -> tuple[int, int] | None:
    """(a context, bytes that it saves) where tables of positions are more than ``share`` of the bundle; else None.

    The context is the longest power of two with which they are no more than that of the rest.
    """
    tables, total = table_bytes(manifest), bundle_bytes(manifest)
    if tables <= share * total:
        return None
    fits = int(share * (total - tables) / tables * manifest.spec.context_length)
    context = 1 << max(fits, 1).bit_length() - 1
    return context, tables - tables * context // manifest.spec.context_length


def bits_per_weight(manifest: Manifest) -> float:
    """Stored bits of a parameter, scales and tables included."""
    one_copy = weight_bytes(manifest) / len({t.weights for t in manifest.targets.values()})
    return 8 * one_copy / manifest.parameters


def unrolled_bytes(manifest: Manifest) -> int:
    """An estimate: what the bundle would weigh with every applied layer stored and the deltas merged into it.

    It is on the low side: graphs, which would grow too, are counted as they are.
    """
    stored = manifest.quantization
    is_float = stored.bits == 32
    a_weight = 4.0 if is_float else stored.bits / 8 + 2 / (stored.group_size or manifest.spec.hidden_size)
    repeated = (manifest.unrolled_parameters - manifest.parameters) * a_weight
    merged = delta_parameters(manifest.spec) * (4 if is_float else 2)
    return bundle_bytes(manifest) + round(repeated) - merged
