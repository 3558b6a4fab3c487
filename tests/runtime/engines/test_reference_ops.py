"""Every op of the reference engine against torch's functions, or transformers' modules where they have one."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as in_pairs
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from edgeloop.runtime.engines.reference.lane import Lane, Slot
from edgeloop.runtime.engines.reference.ops import FUNCTIONS, OPS, run
from edgeloop.runtime.model.codec import code_shape
from edgeloop.runtime.model.ops import (
    Act,
    Add,
    Attend,
    AttendLearned,
    AttendTwice,
    Concat,
    Embed,
    Experts,
    Linear,
    Mul,
    Norm,
    Op,
    Rotate,
    Scale,
    Shift,
    Slice,
    Softcap,
    kind,
    reads,
    writes,
)
from edgeloop.runtime.model.rotation import Interpolated, Llama3, Rotation, Yarn
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.weights import Delta, Matrix, Vector, tensors

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
N = 5
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def stored(**weights):
    """Random tensors of the weights, and the weights themselves."""
    found = {name: normal(*tensor.shape) for name, tensor in tensors(weights)}
    return found, StoredWeights(weights, found, 0)


def lane(weights=None, n=N, **changes):
    cached = changes.get("cached", 0)
    return Lane(weights or stored()[1], np.arange(cached, cached + n), **changes)


def out(op, where=None, **values):
    """The one value that ``op`` writes, or all of them."""
    run(op, where or lane(), values)
    found = [values[name] for name in writes(op)]
    assert all(value.dtype == np.float32 for value in found)
    return found[0] if len(found) == 1 else found


def near(found, wanted, atol=1e-5):
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else wanted
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=atol)


def tt(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def test_every_op_has_a_function():
    assert {op.__struct_config__.tag for op in get_args(Op)} == OPS.keys()
    assert kind(Add("a", "b", "y")) in OPS
    assert reads(AttendTwice("q", "k", "v", "g", "y", 1, 1, 1, 1.0, 0, 1)) == ("q", "k", "v", "g")


def test_embed():
    found, weights = stored(embed=Matrix({"embed": 11}, 6))
    ids = np.array([3, 0, 10, 3, 1])
    near(out(Embed("ids", "y", "embed", 2.5), lane(weights), ids=ids), 2.5 * tt(found["embed.weight"])[ids])


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("given", ["", "w", "wb"])
def test_norms(groups, given):
    size = 12 // groups
    found, weights = stored(w=Vector(size), b=Vector(size))
    x = 3 + normal(N, 12)
    names = {name: name[0] if name[0] in given else None for name in ("weight", "bias")}
    w, b = (tt(found[f"{name}.weight"]) if name in given else None for name in "wb")
    parts = tt(x).reshape(N, groups, size)
    layer = out(Norm("x", "y", "layer", 1e-2, names["weight"], names["bias"], groups), lane(weights), x=x)
    near(layer, F.layer_norm(parts, (size,), w, b, 1e-2).reshape(N, 12))
    rms = out(Norm("x", "y", "rms", 1e-2, names["weight"], None, groups), lane(weights), x=x)
    near(rms, F.rms_norm(parts, (size,), w, 1e-2).reshape(N, 12))


def test_a_norm_with_a_row_a_depth():
    found, weights = stored(w=Vector(8, 3))
    x = normal(N, 8)
    for op, depth in ((Norm("x", "y", "rms", 1e-5, "w"), 2), (Norm("x", "y", "rms", 1e-5, "w", at=1), 1)):
        near(
            out(op, lane(weights, depth=2), x=x), F.rms_norm(tt(x), (8,), tt(found["w.weight"][depth]), 1e-5)
        )


def test_linear_in_parts():
    found, weights = stored(**{"a.qkv": Matrix({"q": 6, "k": 3, "v": 2}, 8, bias=True)})
    x, where = normal(N, 8), lane(weights)
    whole = F.linear(tt(x), tt(found["a.qkv.weight"]), tt(found["a.qkv.bias"]))
    for y, part in zip(
        out(Linear("x", ("q", "k", "v"), "a.qkv"), where, x=x), whole.split((6, 3, 2), 1), strict=True
    ):
        near(y, part)
    near(out(Linear("x", ("k",), "a.qkv", first=1), where, x=x), whole[:, 6:9])
    near(np.concatenate(out(Linear("x", ("k", "v"), "a.qkv", first=1), where, x=x), 1), whole[:, 6:])


def test_linear_with_a_copy_a_depth():
    found, weights = stored(**{"a.qk": Matrix({"q": 4, "k": 3}, 8, bias=True, copies=3)})
    x = normal(N, 8)
    for op, depth in ((Linear("x", ("q", "k"), "a.qk"), 2), (Linear("x", ("q", "k"), "a.qk", at=1), 1)):
        own = slice(7 * depth, 7 * depth + 7)
        wanted = F.linear(tt(x), tt(found["a.qk.weight"][own]), tt(found["a.qk.bias"][own]))
        near(np.concatenate(out(op, lane(weights, depth=2), x=x), 1), wanted)


@pytest.mark.parametrize("rescaled", [False, True])
def test_linear_with_deltas(rescaled):
    matrix = Matrix({"q": 4, "k": 3}, 8, bias=True, deltas={"k": Delta(2, rescaled)}, depths=3)
    found, weights = stored(**{"a.qk": matrix})
    x = normal(N, 8)
    changed = tt(found["a.qk.weight"]).clone()
    changed[4:] += tt(found["a.k.lora_b"][2]) @ tt(found["a.k.lora_a"][2])
    if rescaled:
        changed[4:] *= tt(found["a.k.lora_scale"][2])[:, None]
    wanted = F.linear(tt(x), changed, tt(found["a.qk.bias"]))
    near(np.concatenate(out(Linear("x", ("q", "k"), "a.qk"), lane(weights, depth=2), x=x), 1), wanted)
    near(out(Linear("x", ("k",), "a.qk", first=1, at=2), lane(weights), x=x), wanted[:, 4:])


@pytest.mark.parametrize("bits", [8, 4, None])
def test_inputs_of_quantized_matrices_are_what_an_engine_makes_of_them(bits):
    matrix = Matrix({"q": 6}, 8, deltas={"q": Delta(2)}, depths=1)
    given = {name: normal(*tensor.shape) for name, tensor in tensors({"w": matrix})}
    if bits:
        del given["w.weight"]
        given["w.codes"] = RANDOM.integers(0, 256, code_shape(6, 8, 4, bits), dtype=np.uint8)
        given["w.scales"] = np.abs(normal(6, 2)).astype(np.float16)
    weights = StoredWeights({"w": matrix}, given, 4)
    x, asked = normal(N, 8), []

    def activations(x, group_size):
        asked.append(group_size)
        return np.round(x)

    found = out(Linear("x", ("y",), "w"), lane(weights, activations=activations), x=x)
    product = np.round(x) if bits else x
    delta = (x @ given["q.lora_a"][0].T) @ given["q.lora_b"][0].T  # is stored as floats, so it takes floats
    near(found, product @ weights.rows("w", np.arange(6)).T + delta)
    assert asked == ([4] if bits else [])


ROTATIONS = [
    (None, {"rope_type": "default"}),
    (Interpolated(4.0), {"rope_type": "linear", "factor": 4.0}),
    (
        Llama3(8.0, 1.0, 4.0, 64),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    (
        Yarn(4.0, 64, 0.1 * np.log(4.0) + 1),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    (
        Yarn(4.0, 64, 1.5, 8.0, 2.0),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.5,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
        },
    ),
]


@pytest.mark.parametrize(("scaling", "parameters"), ROTATIONS)
def test_rotation_of_halves_with_scaled_frequencies(scaling, parameters):
    positions = np.array([0, 1, 7, 63, 200])
    config = LlamaConfig(
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 500.0, **parameters},
    )
    x = normal(N, 3 * 16)
    cos, sin = LlamaRotaryEmbedding(config)(tt(x), tt(positions)[None])
    heads = tt(x).reshape(1, N, 3, 16).transpose(1, 2)
    wanted, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    where = Lane(stored()[1], positions)
    found = out(Rotate("x", "y", 3, Rotation(16, 500.0, scaling)), where, x=x)
    near(found, wanted.transpose(1, 2).reshape(N, 48), atol=1e-4)


def test_partial_rotation_of_pairs():
    positions = np.array([0, 1, 7, 63, 200])
    x = normal(N, 2 * 16)
    angle = tt(positions).float()[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    both = torch.cat((angle, angle), -1)[None]
    heads = tt(x).reshape(1, N, 2, 16).transpose(1, 2)
    wanted, _ = in_pairs(heads, heads, both.cos(), both.sin())
    where = Lane(stored()[1], positions)
    found = out(Rotate("x", "y", 2, Rotation(8, 100.0), pairs=True), where, x=x)
    near(found, wanted.transpose(1, 2).reshape(N, 32))


def test_tables_of_another_type():
    x, by = normal(N, 8), Rotation(8, 100.0)
    cos = np.cos(np.arange(N)[:, None] * 100.0 ** (-np.arange(0, 8, 2) / 8)).astype(np.float16)
    assert (lane(tables_as=np.float16).cos_sin(by)[0] == cos).all()
    assert (lane().cos_sin(by)[0] != cos).any()
    assert (out(Rotate("x", "y", 1, by), lane(tables_as=np.float16), x=x) != x)[1:].any()


def attention(q, k, v, mask, *, scale=0.3, cap=None, window=None, prefix=0):
    """Torch's flex_attention of q [n, H, d] at the end of k, v [T, K, d]: [n, H · d]."""
    first = len(k) - len(q)

    def allowed(batch, head, i, j):
        age = first + i - j
        free = {"causal": age >= 0, "both": age == age, "prefix": (age >= 0) | (j < prefix)}[mask]
        return free if window is None else free & (age < window)

    def changed(score, batch, head, i, j):
        score = score if cap is None else cap * torch.tanh(score / cap)
        return torch.where(allowed(batch, head, i, j), score, -torch.inf)

    q, k, v = (tt(x).transpose(0, 1)[None] for x in (q, k, v))
    found = flex_attention(q, k, v, score_mod=changed, scale=scale, enable_gqa=True)
    return found[0].transpose(0, 1).flatten(1)


def slots(count, rows, window=None):
    return [Slot(normal(2, rows, 8), normal(2, rows, 8), window) for _ in range(count)]


@pytest.mark.parametrize(
    ("mask", "pieces"),
    [("both", (9,)), ("causal", (9,)), ("causal", (4, 1, 4)), ("prefix", (9,)), ("prefix", (4, 1, 4))],
)
@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 3])
def test_attention(mask, pieces, cap, window):
    q, k, v = normal(9, 4 * 8), normal(9, 2 * 8), normal(9, 2 * 8)
    op = Attend("q", "k", "v", "y", 4, 2, 8, 0.3, 1, mask, window, cap)
    own, found, start = slots(2, 12), [], 0
    for n in pieces:
        part = slice(start, start + n)
        where = lane(n=n, cached=start, own=own, block=4)
        found.append(out(op, where, q=q[part], k=k[part], v=v[part]))
        start += n
    heads = q.reshape(9, 4, 8), k.reshape(9, 2, 8), v.reshape(9, 2, 8)
    near(np.concatenate(found), attention(*heads, mask, cap=cap, window=window, prefix=4))
    np.testing.assert_array_equal(own[1].keys[:, :9], heads[1].transpose(1, 0, 2))
    if len(pieces) == 1:
        alone = Attend("q", "k", "v", "y", 4, 2, 8, 0.3, None, mask, window, cap)
        near(out(alone, lane(n=9, block=4), q=q, k=k, v=v), found[0])


@pytest.mark.parametrize("window", [None, 5, 2])
def test_slots_that_keep_a_window(window):
    """A layer may see less than what the slots keep."""
    q, k, v = normal(17, 4 * 8), normal(17, 2 * 8), normal(17, 2 * 8)
    op = Attend("q", "k", "v", "y", 4, 2, 8, 0.3, 0, window=5 if window is None else window)
    own, found, start = slots(1, 7, 5), [], 0
    for n in (4, 1, 1, 6, 1, 3, 1):
        part = slice(start, start + n)
        found.append(out(op, lane(n=n, cached=start, own=own), q=q[part], k=k[part], v=v[part]))
        start += n
    heads = q.reshape(17, 4, 8), k.reshape(17, 2, 8), v.reshape(17, 2, 8)
    near(np.concatenate(found), attention(*heads, "causal", window=op.window))


def test_attention_to_what_depth_0_wrote():
    own, first = slots(1, 9), slots(1, 9)
    q, k, v = normal(3, 4 * 8), normal(3, 2 * 8), normal(3, 2 * 8)
    op = Attend("q", "k", "v", "y", 4, 2, 8, 0.3, 0, slot="first")
    at_0 = lane(n=3, cached=6, own=first, first=first)
    one = out(op, at_0, q=q, k=k, v=v)
    reading = Attend("q", None, None, "y", 4, 2, 8, 0.3, 0, slot="first")
    other = out(reading, lane(n=3, cached=6, depth=1, own=own, first=first), q=q)
    keys, values = first[0].keys.transpose(1, 0, 2), first[0].values.transpose(1, 0, 2)
    near(one, attention(q.reshape(3, 4, 8), keys, values, "causal"))
    np.testing.assert_array_equal(one, other)


def test_two_attentions_and_a_gate():
    own, first = slots(1, 9), slots(1, 9)
    q, k, v, gate = normal(3, 4 * 8), normal(3, 2 * 8), normal(3, 2 * 8), normal(3, 4)
    op = AttendTwice("q", "k", "v", "gate", "y", 4, 2, 8, 0.3, 0, 4)
    zero = out(op, lane(n=3, cached=6, own=first, first=first), q=q, k=k, v=v, gate=gate)
    keys = [slot[0].keys.transpose(1, 0, 2) for slot in (first, own)]
    far = attention(q.reshape(3, 4, 8), keys[0], first[0].values.transpose(1, 0, 2), "causal")
    near(zero, far)
    one = out(op, lane(n=3, cached=6, depth=1, own=own, first=first), q=q, k=k, v=v, gate=gate)
    keys = [slot[0].keys.transpose(1, 0, 2) for slot in (first, own)]
    close = attention(q.reshape(3, 4, 8), keys[1], own[0].values.transpose(1, 0, 2), "causal", window=4)
    g = tt(gate).repeat_interleave(8, 1)
    near(one, g * far + (1 - g) * close)


def test_learned_keys():
    found, weights = stored(k=Vector(2 * 8, 6), v=Vector(2 * 8, 6))
    q = normal(N, 4 * 8)
    heads = [found[f"{name}.weight"].reshape(6, 2, 8) for name in "kv"]
    op = AttendLearned("q", "y", "k", "v", 4, 2, 8, 0.3)
    near(out(op, lane(weights), q=q), attention(q.reshape(N, 4, 8), *heads, "both"))


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_activations(function):
    x = np.concatenate((8 * normal(N, 9), [[-80, -30, 0, 30, 80, 1e-3, -1e-3, 3, -3]]), dtype=np.float32)
    named = {"exp": torch.exp, "softplus": F.softplus, "gelu_tanh": ACT2FN["gelu_pytorch_tanh"]}
    wanted = named.get(function) or ACT2FN[function]
    near(out(Act("x", "y", function), x=x), wanted(tt(x)), atol=1e-6)


def test_sums_and_products():
    a, b, heads = normal(N, 12), normal(N, 12), normal(N, 3)
    near(out(Add("a", "b", "y"), a=a, b=b), tt(a) + tt(b))
    near(out(Mul("a", "b", "y"), a=a, b=b), tt(a) * tt(b))
    near(out(Mul("a", "h", "y"), a=a, h=heads), tt(a) * tt(heads).repeat_interleave(4, 1))
    near(out(Mul("a", "h", "y"), a=a, h=heads[:, :1]), tt(a) * tt(heads[:, :1]))
    near(out(Softcap("a", "y", 0.7), a=a), 0.7 * torch.tanh(tt(a) / 0.7))
    near(out(Concat(("a", "h", "b"), "y"), a=a, b=b, h=heads), torch.cat([tt(a), tt(heads), tt(b)], 1))
    near(out(Slice("a", "y", 3, 7), a=a), tt(a)[:, 3:7])


def test_scales():
    found, weights = stored(w=Vector(12), r=Vector(12, 3))
    x = normal(N, 12)
    where = lane(weights, depth=2)
    near(out(Scale("x", "y", -0.5, 1.0), where, x=x), 1 - tt(x) / 2)
    near(out(Scale("x", "y", 2.0, 0.5, "w"), where, x=x), 2 * tt(x) * tt(found["w.weight"]) + 0.5)
    near(out(Scale("x", "y", weight="r"), where, x=x), tt(x) * tt(found["r.weight"][2]))
    near(out(Scale("x", "y", weight="r", at=1), where, x=x), tt(x) * tt(found["r.weight"][1]))


def test_shift_by_a_token():
    x, rows = normal(9, 12), {}
    wanted = F.pad(tt(x), (0, 0, 1, 0))[:-1]
    near(out(Shift("x", "y", 0), lane(n=9), x=x), wanted)
    pieces = [out(Shift("x", "y", 0), lane(last_rows=rows), x=part) for part in np.split(x, (4, 5))]
    near(np.concatenate(pieces), wanted)


@pytest.mark.parametrize("renormalised", [False, True])
def test_experts(renormalised):
    config = Qwen3MoeConfig(
        hidden_size=12,
        moe_intermediate_size=6,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=renormalised,
    )
    block = Qwen3MoeSparseMoeBlock(config).eval()
    found, weights = stored(
        up=Matrix({"gate": 6, "up": 6}, 12, copies=5), down=Matrix({"d": 12}, 6, copies=5)
    )
    router = normal(5, 12)
    state = {
        "gate.weight": router,
        "experts.gate_up_proj": found["up.weight"].reshape(5, 12, 12),
        "experts.down_proj": found["down.weight"].reshape(5, 12, 6),
    }
    block.load_state_dict({name: tt(value) for name, value in state.items()})
    x = normal(N, 12)
    op = Experts("x", "scores", "y", "up", "down", 2, "silu", gated=True, renormalised=renormalised)
    with torch.no_grad():
        wanted = block(tt(x)[None])
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    near(out(op, lane(weights), x=x, scores=x @ router.T), wanted.reshape(N, 12), atol=1e-4)


def test_experts_without_gates():
    found, weights = stored(up=Matrix({"up": 6}, 12, copies=3), down=Matrix({"d": 12}, 6, copies=3))
    x, scores = normal(N, 12), normal(N, 3)
    p = torch.softmax(tt(scores), 1)
    up, down = tt(found["up.weight"]).unflatten(0, (3, 6)), tt(found["down.weight"]).unflatten(0, (3, 12))
    wanted = [p[t].max() * down[e] @ F.gelu(up[e] @ tt(x[t])) for t, e in enumerate(p.argmax(1).tolist())]
    op = Experts("x", "s", "y", "up", "down", 1, "gelu", renormalised=False)
    near(out(op, lane(weights), x=x, s=scores), torch.stack(wanted), atol=1e-4)
