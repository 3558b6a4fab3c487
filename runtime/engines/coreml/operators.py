"""MIL operators in numpy: those that edgeloop's packages use, as coremltools' documentation defines them.

Floats are float32 here; the interpreter rounds what an operator returns where it stands for a float16 device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.erf import erf

Array = npt.NDArray[Any]
Inputs = dict[str, Any]
Operator = Callable[[Inputs], Array | tuple[Array, ...]]

WIDE: dict[str, type[Any]] = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}


def blockwise(i: Inputs) -> Array:
    """Return constexpr_blockwise_shift_scale: data · scale, each scale for a block of the data."""
    data, scale = i["data"], i["scale"]
    rows, columns = (d // s for d, s in zip(data.shape, scale.shape, strict=True))
    blocks = data.astype(np.float32).reshape(scale.shape[0], rows, scale.shape[1], columns)
    out: Array = blocks * scale.astype(np.float32)[:, None, :, None]
    return out.reshape(data.shape)


def lookup(i: Inputs) -> Array:
    """Return constexpr_lut_to_dense: each index stands for an entry of its block's table, lut [N/n, K/k, entries,
    1]."""
    indices, lut = i["indices"], i["lut"].astype(np.float32)
    rows, columns = (d // s for d, s in zip(indices.shape, lut.shape[:2], strict=True))
    blocks = indices.reshape(lut.shape[0], rows, lut.shape[1], columns).transpose(0, 2, 1, 3)
    flat = blocks.reshape(*lut.shape[:2], -1).astype(np.intp)
    found = np.take_along_axis(lut[..., 0], flat, axis=-1).reshape(blocks.shape)
    return found.transpose(0, 2, 1, 3).reshape(indices.shape)


def linear(i: Inputs) -> Array:
    """Return x [..., K] times weight [N, K], plus bias [N] where there is one."""
    out: Array = i["x"] @ i["weight"].T
    return out + i["bias"] if "bias" in i else out


def attention(i: Inputs) -> Array:
    """Return scaled_dot_product_attention, with a mask that is added or without one."""
    q, k, v = i["query"], i["key"], i["value"]
    scores = q @ np.swapaxes(k, -1, -2) * np.float32(q.shape[-1] ** -0.5)
    out: Array = softmax({"x": scores + i["attn_mask"] if "attn_mask" in i else scores, "axis": -1}) @ v
    return out


def softmax(i: Inputs) -> Array:
    """Return the softmax over ``axis``."""
    x, axis = i["x"], int(i["axis"])
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    out: Array = e / e.sum(axis=axis, keepdims=True)
    return out


def matmul(i: Inputs) -> Array:
    """Return x times y, either transposed where the operator says so."""
    x, y = (np.swapaxes(i[side], -1, -2) if i[f"transpose_{side}"] else i[side] for side in "xy")
    out: Array = x @ y
    return out


def slice_by_index(i: Inputs) -> Array:
    """Return a copy of the slice, because the value of a state is updated in place."""
    out: Array = i["x"][
        tuple(slice(int(b), int(e)) for b, e in zip(i["begin"], i["end"], strict=True))
    ].copy()
    return out


def slice_update(i: Inputs) -> Array:
    """Update x in place and return it: ``states.check_states`` has made sure that the old value is not used."""
    x: Array = i["x"]
    region = tuple(slice(int(b), int(e)) for b, e in zip(i["begin"], i["end"], strict=True))
    for part, size in zip(region, x.shape, strict=True):
        if not 0 <= part.start < part.stop <= size:
            raise ValueError(f"slice_update of [{part.start}, {part.stop}) in a dimension of {size}")
    x[region] = i["update"]
    return x


def gather(i: Inputs) -> Array:
    """Return the entries of x at ``indices`` along ``axis``."""
    x, indices, axis = i["x"], i["indices"], int(i["axis"])
    if indices.size and not 0 <= indices.min() <= indices.max() < x.shape[axis]:
        raise ValueError(f"gather of {indices.tolist()} from a dimension of {x.shape[axis]}")
    out: Array = np.take(x, indices, axis=axis)
    return out


def split(i: Inputs) -> tuple[Array, ...]:
    """Return the parts of x along ``axis``."""
    sizes = i.get("split_sizes")
    parts = int(i["num_splits"]) if sizes is None else np.cumsum(sizes)[:-1]
    return tuple(np.split(i["x"], parts, axis=int(i["axis"])))


def sigmoid(i: Inputs) -> Array:
    """Return the sigmoid of x, by a tanh, which does not overflow."""
    out: Array = np.tanh(i["x"] * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    return out


def gelu(i: Inputs) -> Array:
    """Return x · Φ(x), with the normal distribution or a tanh approximation of it."""
    x = i["x"]
    if i["mode"] == "EXACT":
        below = erf(x * np.float32(0.5**0.5)).astype(np.float32)
    elif i["mode"] == "TANH_APPROXIMATION":
        below = np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3))
    else:
        raise ValueError(f"gelu of mode {i['mode']}")
    out: Array = x * (below + 1) * np.float32(0.5)
    return out


def _over(function: Callable[..., Any]) -> Operator:
    """Return the operator that reduces over ``axes`` with ``function``."""

    def run(i: Inputs) -> Array:
        out: Array = function(i["x"], axis=tuple(int(a) for a in i["axes"]), keepdims=bool(i["keep_dims"]))
        return out

    return run


def _both(function: Callable[..., Any]) -> Operator:
    return lambda i: np.asarray(function(i["x"], i["y"]))


OPERATORS: dict[str, Operator] = {
    "abs": lambda i: np.abs(i["x"]),
    "add": _both(np.add),
    "cast": lambda i: i["x"].astype(WIDE[i["dtype"]]),
    "concat": lambda i: np.concatenate([np.atleast_1d(v) for v in i["values"]], axis=int(i["axis"])),
    "constexpr_blockwise_shift_scale": blockwise,
    "constexpr_lut_to_dense": lookup,
    "exp": lambda i: np.exp(i["x"]),
    "expand_dims": lambda i: np.expand_dims(i["x"], tuple(int(a) for a in i["axes"])),
    "gather": gather,
    "gelu": gelu,
    "greater_equal": _both(np.greater_equal),
    "identity": lambda i: i["x"],
    "inverse": lambda i: 1 / (i["x"] + i["epsilon"]),
    "less": _both(np.less),
    "linear": linear,
    "logical_or": _both(np.logical_or),
    "matmul": matmul,
    "maximum": _both(np.maximum),
    "minimum": _both(np.minimum),
    "mul": _both(np.multiply),
    "real_div": _both(np.divide),
    "reduce_max": _over(np.max),
    "reduce_mean": _over(np.mean),
    "relu": lambda i: np.maximum(i["x"], 0),
    "reshape": lambda i: i["x"].reshape([int(n) for n in i["shape"]]),
    "rsqrt": lambda i: 1 / np.sqrt(i["x"] + i["epsilon"]),
    "scaled_dot_product_attention": attention,
    "sigmoid": sigmoid,
    "silu": lambda i: i["x"] * sigmoid(i),
    "slice_by_index": slice_by_index,
    "slice_update": slice_update,
    "softmax": softmax,
    "softplus": lambda i: np.logaddexp(i["x"], np.float32(0)),
    "split": split,
    "square": lambda i: np.square(i["x"]),
    "sub": _both(np.subtract),
    "tanh": lambda i: np.tanh(i["x"]),
    "tile": lambda i: np.tile(i["x"], [int(n) for n in i["reps"]]),
    "transpose": lambda i: i["x"].transpose([int(n) for n in i["perm"]]),
}
"""By MIL operator, its function of named inputs. ``const``, ``read_state`` and ``write_state`` are the
interpreter's."""
