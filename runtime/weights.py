"""The stored matrices of a model of Llama layers: what each one concatenates, and its sizes."""

from __future__ import annotations

from .spec import PROJECTIONS, Spec

MATRICES: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""The stored matrices of a layer, and the projections whose rows each one concatenates."""

SPLIT = {"q_proj": ("q_proj",), "kv_proj": ("k_proj", "v_proj")}
"""What some programs use of the stored qkv_proj by itself, and the projections of each."""


def projection_shapes(spec: Spec) -> dict[str, tuple[int, int]]:
    """[out, in] of each projection of a layer."""
    d, f = spec.hidden_size, spec.intermediate_size
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes = ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f))
    return dict(zip(PROJECTIONS, shapes, strict=True))


def split_rows(spec: Spec) -> dict[str, tuple[int, int]]:
    """First row, and the one behind the last, of each part of qkv_proj in ``SPLIT``."""
    shapes = projection_shapes(spec)
    queries, keys, values = (shapes[p][0] for p in ("q_proj", "k_proj", "v_proj"))
    return {"q_proj": (0, queries), "kv_proj": (queries, queries + keys + values)}
