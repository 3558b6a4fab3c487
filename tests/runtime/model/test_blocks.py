"""Layers as blocks write them, against the formulas of the papers, written here once more, head by head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import erf

import numpy as np
import numpy.typing as npt
import pytest
from model_run import Tensors, canonical, random_tensors, slots, values

from edgeloop.runtime.engines.reference.lane import Lane
from edgeloop.runtime.model.blocks import (
    Attention,
    Layer,
    Mlp,
    NormKind,
    Writer,
    llama,
    output_norm,
    parallel,
    post_norm,
)
from edgeloop.runtime.model.rotation import Rotation
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.weights import Delta, Matrix, Vector, Weight

F64 = npt.NDArray[np.float64]
N, WIDTH, EPS = 6, 12, 1e-5
ATTENTION = Attention(heads=4, kv_heads=2, head_dim=6, rotation=Rotation(6, 100.0))
LLAMA = Layer(WIDTH, ATTENTION, Mlp(20), NormKind(EPS))
NEOX = Layer(
    WIDTH,
    replace(ATTENTION, rotation=Rotation(4, 100.0), bias=True, out_bias=True),
    Mlp(20, "gelu", gated=False, bias=True),
    NormKind(EPS, "layer", bias=True),
)
Block = Callable[[Writer, str, str, Layer, int | None], str]


def sandwich(w: Writer, x: str, prefix: str, layer: Layer, at: int | None) -> str:
    return llama(w, x, prefix, layer, at, sandwich=True)


def written(block: Block, layer: Layer, depth: int = 0) -> tuple[F64, F64, Tensors]:
    """Rows, what ``block`` makes of them at ``depth``, and the canonical weights."""
    weights: dict[str, Weight] = {}
    w = Writer(weights, "x")
    stage = w.stage(block(w, "x", "p", layer, None))
    stored = random_tensors(weights)
    x = np.random.default_rng(2).standard_normal((N, WIDTH)).astype(np.float32)
    own = slots(stage)
    lane = Lane(StoredWeights(weights, stored, 0), np.arange(N), depth, 0, own, own, {}, N)
    found = values(stage, lane, x)[stage.outputs[0]].astype(np.float64)
    return x.astype(np.float64), found, canonical(weights, stored)


class Formula:
    """The parts of a layer, for the weights of one depth."""

    def __init__(self, layer: Layer, tensors: Tensors, depth: int = 0) -> None:
        self.layer, self.depth = layer, depth
        self.tensors = {name.removeprefix("p."): value.astype(np.float64) for name, value in tensors.items()}

    def project(self, x: F64, name: str) -> F64:
        weight = self.tensors[f"{name}.weight"]
        weight = weight[self.depth] if weight.ndim == 3 else weight
        if f"{name}.lora_a" in self.tensors:
            a, b = (self.tensors[f"{name}.lora_{side}"][self.depth] for side in "ab")
            weight = weight + b @ a
        if f"{name}.lora_scale" in self.tensors:
            weight = self.tensors[f"{name}.lora_scale"][self.depth][:, None] * weight
        bias = self.tensors.get(f"{name}.bias", np.zeros(len(weight)))
        return x @ weight.T + bias

    def norm(self, x: F64, name: str) -> F64:
        weight = self.tensors[f"{name}.weight"]
        weight = weight[self.depth] if weight.ndim == 2 else weight
        if self.layer.norm.kind == "layer":
            centred = x - x.mean(-1, keepdims=True)
            return (
                centred / np.sqrt(x.var(-1, keepdims=True) + EPS) * weight
                + self.tensors[f"{name}_bias.weight"]
            )
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight

    def attention(self, x: F64) -> F64:
        a = self.layer.attention
        q, k, v = (self.project(x, f"{side}_proj") for side in "qkv")
        if a.qk_norm == "width":
            q, k = self.norm(q, "q_norm"), self.norm(k, "k_norm")
        queries, keys, vectors = (np.split(y, y.shape[1] // a.head_dim, axis=1) for y in (q, k, v))
        out = []
        for head in range(a.heads):
            shared = head // (a.heads // a.kv_heads)
            one, other, value = queries[head], keys[shared], vectors[shared]
            if a.qk_norm == "heads":
                one, other = self.norm(one, "q_norm"), self.norm(other, "k_norm")
            if a.rotation is not None:
                one, other = (self.turned(y) for y in (one, other))
            scores = one @ other.T * (a.head_dim**-0.5 if a.scale is None else a.scale)
            scores = scores if a.cap is None else a.cap * np.tanh(scores / a.cap)
            mixed = np.zeros((N, a.head_dim))
            for row in range(N):
                oldest = 0 if a.window is None else max(row - a.window + 1, 0)
                seen = range(N) if a.mask == "both" else range(oldest, row + 1)
                shares = np.exp(scores[row, list(seen)])
                mixed[row] = shares @ value[list(seen)] / shares.sum()
            out.append(mixed)
        return self.project(np.concatenate(out, axis=1), "o_proj")

    def turned(self, x: F64) -> F64:
        """Pairs as complex numbers, times e^(i · position · frequency)."""
        a = self.layer.attention
        assert a.rotation is not None
        dims = a.rotation.dims
        one, two = (
            (slice(0, dims, 2), slice(1, dims, 2)) if a.pairs else (slice(dims // 2), slice(dims // 2, dims))
        )
        angles = np.outer(np.arange(N), a.rotation.theta ** (-np.arange(dims // 2) * 2 / dims))
        pairs = (x[:, one] + 1j * x[:, two]) * np.exp(1j * angles)
        y = x.copy()
        y[:, one], y[:, two] = pairs.real, pairs.imag
        return y

    def mlp(self, x: F64) -> F64:
        m = self.layer.mlp
        up = self.project(x, "up_proj")
        if m.function == "gelu":
            return self.project(up * (1 + np.vectorize(erf)(up / np.sqrt(2))) / 2, "down_proj")
        gate = self.project(x, "gate_proj")
        return self.project(gate / (1 + np.exp(-gate)) * up, "down_proj")


def _llama(f: Formula, x: F64) -> F64:
    x = x + f.attention(f.norm(x, "attention_norm"))
    return x + f.mlp(f.norm(x, "mlp_norm"))


def _sandwich(f: Formula, x: F64) -> F64:
    x = x + f.norm(f.attention(f.norm(x, "attention_norm")), "attention_out_norm")
    return x + f.norm(f.mlp(f.norm(x, "mlp_norm")), "mlp_out_norm")


def _parallel(f: Formula, x: F64) -> F64:
    return x + f.attention(f.norm(x, "attention_norm")) + f.mlp(f.norm(x, "mlp_norm"))


def _post_norm(f: Formula, x: F64) -> F64:
    x = f.norm(x + f.attention(x), "attention_norm")
    return f.norm(x + f.mlp(x), "mlp_norm")


def _output_norm(f: Formula, x: F64) -> F64:
    x = x + f.norm(f.attention(x), "attention_out_norm")
    return x + f.norm(f.mlp(x), "mlp_out_norm")


@pytest.mark.parametrize("layer", [LLAMA, NEOX], ids=["llama", "neox"])
@pytest.mark.parametrize(
    ("block", "formula"),
    [
        (llama, _llama),
        (sandwich, _sandwich),
        (parallel, _parallel),
        (post_norm, _post_norm),
        (output_norm, _output_norm),
    ],
    ids=["llama", "sandwich", "parallel", "post_norm", "output_norm"],
)
def test_where_norms_and_residuals_are(
    block: Block, formula: Callable[[Formula, F64], F64], layer: Layer
) -> None:
    x, found, tensors = written(block, layer)
    assert np.allclose(found, formula(Formula(layer, tensors), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 3},
        {"cap": 2.0, "scale": 0.7},
        {"qk_norm": "heads"},
        {"qk_norm": "width"},
        {"rotation": None},
        {"rotation": Rotation(2, 50.0), "pairs": True},
        {"mask": "both", "cached": False},
        {"mask": "prefix"},
        {"bias": True},
        {"out_bias": True},
        {"kv_heads": 4},
        {"kv_heads": 1, "window": N + 5},
    ],
    ids=str,
)
def test_rules_of_attention(changes: dict[str, object]) -> None:
    layer = replace(LLAMA, attention=replace(ATTENTION, **changes))  # type: ignore[arg-type]
    x, found, tensors = written(llama, layer)
    prefix = layer.attention.mask == "prefix"  # of one call, which is the first block: every row
    if prefix:
        layer = replace(layer, attention=replace(layer.attention, mask="both"))
    wanted = _llama(Formula(layer, tensors), x)
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    if changes.keys() <= {"window", "rotation", "pairs", "mask", "cached"}:  # the weights are those of LLAMA
        assert not np.allclose(found, written(llama, LLAMA)[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("depth", range(3))
def test_what_differs_between_depths(depth: int) -> None:
    deltas = {"q_proj": Delta(2), "o_proj": Delta(1, rescaled=True), "up_proj": Delta(3, rescaled=True)}
    layer = replace(LLAMA, depths=3, norm_rows=True, own_attention=True, deltas=deltas)
    x, found, tensors = written(llama, layer, depth)
    assert np.allclose(found, _llama(Formula(layer, tensors, depth), x), rtol=1e-4, atol=1e-4)
    assert not np.allclose(found, _llama(Formula(layer, tensors, (depth + 1) % 3), x), rtol=1e-2, atol=1e-2)


def test_an_op_names_a_depth_only_for_weights_that_differ() -> None:
    weights: dict[str, Weight] = {}
    w = Writer(weights, "x")
    layer = replace(LLAMA, depths=2, deltas={"k_proj": Delta(2)})
    stage = w.stage(llama(w, "x", "p", layer, 1))
    assert {op.weight: op.at for op in stage.ops if getattr(op, "at", None) is not None} == {"p.qkv_proj": 1}
    assert weights["p.attention_norm"] == Vector(WIDTH)
    assert weights["p.o_proj"] == Matrix({"o_proj": WIDTH}, 24)


def test_two_weights_of_one_name_are_a_mistake() -> None:
    w = Writer({}, "x")
    llama(w, "x", "p", LLAMA)
    with pytest.raises(ValueError, match="the weight p.attention_norm is"):
        llama(w, "0.out", "p", replace(LLAMA, depths=2, norm_rows=True), 0)
