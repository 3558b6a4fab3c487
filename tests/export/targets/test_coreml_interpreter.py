"""The interpreter's parts by themselves: operators, the rule of states, and the numbers in weight.bin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeloop.runtime.engines.coreml.operators import OPERATORS
from edgeloop.runtime.engines.coreml.states import check_states
from edgeloop.runtime.errors import ExportError

UNARY = {
    "exp": torch.exp,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


@dataclass
class Step:
    kind: str
    uses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    makes: tuple[str, ...] = ()


def read(value: str) -> Step:
    return Step("read_state", {"input": ("keys",)}, (value,))


def update(old: str, new: str) -> Step:
    return Step("slice_update", {"x": (old,), "update": ("rows",)}, (new,))


def write(value: str) -> Step:
    return Step("write_state", {"input": ("keys",), "data": (value,)})


def check(*steps: Step) -> None:
    check_states("decode", steps, ["keys"])


def test_a_state_is_read_updated_and_written_in_one_line() -> None:
    look = Step("slice_by_index", {"x": ("b",)}, ("row",))
    check(read("a"), update("a", "b"), write("b"), look, read("c"), update("c", "d"), write("d"))


def broken() -> Iterator[tuple[str, list[Step]]]:
    # What the pass remove_redundant_ops makes of two reads: the second update starts from the first read.
    yield (
        "uses a, a state's value that was updated",
        [read("a"), update("a", "b"), write("b"), update("a", "c")],
    )
    yield "read before its update is written", [read("a"), update("a", "b"), read("c")]
    yield "never written", [read("a"), update("a", "b")]
    yield (
        "not its newest value",
        [read("a"), update("a", "b"), Step("write_state", {"input": ("keys",), "data": ("x",)})],
    )
    yield "takes the whole state keys", [read("a"), Step("reshape", {"x": ("a",)}, ("b",))]


@pytest.mark.parametrize(("message", "steps"), list(broken()))
def test_other_orders_are_refused(message: str, steps: list[Step]) -> None:
    with pytest.raises(ExportError, match=message):
        check(*steps)


def test_operators_are_those_of_torch() -> None:
    torch.manual_seed(0)
    q, k, v, mask = (
        torch.randn(1, 2, 6, 8),
        torch.randn(1, 2, 5, 8),
        torch.randn(1, 2, 5, 8),
        torch.randn(1, 1, 6, 5),
    )
    x, w, b = torch.randn(1, 3, 8), torch.randn(4, 8), torch.randn(4)
    given = {"query": q.numpy(), "key": k.numpy(), "value": v.numpy(), "attn_mask": mask.numpy()}
    for found, wanted in (
        (OPERATORS["scaled_dot_product_attention"](given), F.scaled_dot_product_attention(q, k, v, mask)),
        (OPERATORS["linear"]({"x": x.numpy(), "weight": w.numpy(), "bias": b.numpy()}), F.linear(x, w, b)),
        (
            OPERATORS["scaled_dot_product_attention"](
                {name: x for name, x in given.items() if name != "attn_mask"}
            ),
            F.scaled_dot_product_attention(q, k, v),
        ),
        (
            OPERATORS["matmul"](
                {"x": q.numpy(), "y": k.numpy(), "transpose_x": np.False_, "transpose_y": np.True_}
            ),
            q @ k.mT,
        ),
        (OPERATORS["softmax"]({"x": mask.numpy(), "axis": np.int32(-1)}), mask.softmax(-1)),
        (OPERATORS["gelu"]({"x": x.numpy(), "mode": "EXACT"}), F.gelu(x)),
        (OPERATORS["gelu"]({"x": x.numpy(), "mode": "TANH_APPROXIMATION"}), F.gelu(x, approximate="tanh")),
        (OPERATORS["real_div"]({"x": x.numpy(), "y": np.float32(3)}), x / 3),
        *((OPERATORS[name]({"x": x.numpy()}), function(x)) for name, function in UNARY.items()),
    ):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_blocks_and_tables_of_weights() -> None:
    data, scale = np.arange(8, dtype=np.int8).reshape(2, 4), np.array([[1, 2], [3, 4]], np.float16)
    found = OPERATORS["constexpr_blockwise_shift_scale"]({"data": data, "scale": scale})
    np.testing.assert_array_equal(found, [[0, 1, 4, 6], [12, 15, 24, 28]])
    lut = np.array([[0, 10], [20, 30]], np.float16).reshape(2, 1, 2, 1)
    indices = np.array([[0, 1], [1, 1], [0, 1], [0, 0]], np.uint8)
    found = OPERATORS["constexpr_lut_to_dense"]({"indices": indices, "lut": lut})
    np.testing.assert_array_equal(found, [[0, 10], [10, 10], [20, 30], [20, 20]])


def test_rows_outside_a_tensor_are_refused() -> None:
    x = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match=r"slice_update of \[3, 5\) in a dimension of 4"):
        OPERATORS["slice_update"]({"x": x, "update": np.ones((1, 2)), "begin": [0, 3], "end": [1, 5]})
    with pytest.raises(ValueError, match="gather of"):
        OPERATORS["gather"]({"x": x, "indices": np.array([-1]), "axis": 1})


def test_a_split_into_unequal_parts() -> None:
    sizes = np.array([1, 3], np.int32)
    first, second = OPERATORS["split"](
        {"x": np.arange(8).reshape(2, 4), "split_sizes": sizes, "axis": np.int32(-1)}
    )
    np.testing.assert_array_equal(first, [[0], [4]])
    np.testing.assert_array_equal(second, [[1, 2, 3], [5, 6, 7]])
