"""The stored weights of a bundle, read with numpy: names, shapes, values.

A matrix X [N, K] is stored as ``X.weight`` (float), or in groups of G along K (``model/codec.py``): ``X.scales``
[N, K/G] float16 and ``X.codes`` uint8, [N, K/G, G] of 8 bits or [N, K/G, G/2] of 4. The shape says which of the two a
matrix is. G 0 means that a row is one group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import BundleError
from .model.codec import ALL, Grouped, code_shape, group_of
from .spec import PROJECTIONS, Segment, Spec

Array = npt.NDArray[np.generic]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

MATRICES: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""The stored matrices of a layer, and the projections whose rows each one concatenates."""

ATTENTION = ("qkv_proj", "o_proj")
"""Those of attention, which a segment may have for each repeat: the rows of repeat 0, then those of repeat 1 …"""


def layer_norms(spec: Spec) -> tuple[str, ...]:
    """The norms that each layer has."""
    sandwich = ("attention_out_norm", "mlp_out_norm") if spec.sandwich_norms else ()
    return ("attention_norm", "mlp_norm", *sandwich)


def projection_shapes(spec: Spec) -> dict[str, tuple[int, int]]:
    """[out, in] of each projection of a layer."""
    d, f = spec.hidden_size, spec.intermediate_size
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes = ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f))
    return dict(zip(PROJECTIONS, shapes, strict=True))


def copies(segment: Segment, matrix: str) -> int:
    """How many matrices, one a repeat, are stored one under the other as ``matrix``."""
    return segment.repeats if segment.per_repeat_attention and matrix in ATTENTION else 1


def matrix_shapes(spec: Spec) -> dict[str, tuple[int, int]]:
    """[N, K] of every stored matrix of the model, by name without ``.weight`` or ``.codes``."""
    projections = projection_shapes(spec)
    shapes = {"embed": (spec.vocab_size, spec.hidden_size)}
    if not spec.tied_embedding:
        shapes["head"] = shapes["embed"]
    for prefix, segment in layers(spec):
        for matrix, parts in MATRICES.items():
            rows = sum(projections[p][0] for p in parts) * copies(segment, matrix)
            shapes[f"{prefix}.{matrix}"] = (rows, projections[parts[0]][1])
    return shapes


def small_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Shapes of every stored norm and delta, by full name."""
    projections = projection_shapes(spec)
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (spec.hidden_size,)}
    for prefix, segment in layers(spec):
        rows = (segment.repeats,) if segment.per_repeat_norms else ()
        for norm in layer_norms(spec):
            shapes[f"{prefix}.{norm}.weight"] = (*rows, spec.hidden_size)
        for projection, rank in segment.lora.items():
            out, width = projections[projection]
            shapes[f"{prefix}.{projection}.lora_a"] = (segment.repeats, rank, width)
            shapes[f"{prefix}.{projection}.lora_b"] = (segment.repeats, out, rank)
    return shapes


def layers(spec: Spec) -> Iterator[tuple[str, Segment]]:
    """Prefix and segment of every physical layer, in order."""
    for s, segment in enumerate(spec.segments):
        for j in range(segment.layers):
            yield f"segments.{s}.layers.{j}", segment


def read_tensors(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file; BundleError when it is damaged or has types that numpy has not."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    # The library looks for numpy's type by its name, and numpy has no bfloat16 and no float8.
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error


_FLOATS = ("float32", "float16")


class Weights:
    """A model's stored tensors, checked against its spec; matrices are dequantized when asked for.

    Only the most recently used ``cache_bytes`` of dequantized matrices are kept, so that a large quantized
    model can be read on a small machine.
    """

    def __init__(
        self, spec: Spec, tensors: Mapping[str, Array], group_size: int, cache_bytes: int = 512 << 20
    ) -> None:
        self._tensors = tensors
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, F32] = OrderedDict()
        self._grouped: dict[str, Grouped] = {}
        for name, shape in small_shapes(spec).items():
            self._check(name, _FLOATS, shape)
        for name, (n, k) in matrix_shapes(spec).items():
            if f"{name}.codes" not in tensors:
                self._check(f"{name}.weight", _FLOATS, (n, k))
                continue
            group = group_of(k, group_size)
            if group < 2 or group % 2:
                raise BundleError(
                    f"{name} is quantized in groups of {group_size}; export the checkpoint again"
                )
            shapes = {bits: code_shape(n, k, group_size, bits) for bits in (8, 4)}
            self._check(f"{name}.codes", ("uint8",), *shapes.values())
            self._check(f"{name}.scales", _FLOATS, shapes[8][:2])
            codes = tensors[f"{name}.codes"].astype(np.uint8, copy=False)
            scales = tensors[f"{name}.scales"].astype(np.float16, copy=False)
            self._grouped[name] = Grouped(codes, scales, 8 if codes.shape == shapes[8] else 4, k)

    def _check(self, name: str, types: tuple[str, ...], *wanted: tuple[int, ...]) -> None:
        if name not in self._tensors:
            raise BundleError(f"the weights have no {name} {list(wanted[0])}; export the checkpoint again")
        found, kind = self._tensors[name].shape, self._tensors[name].dtype.name
        if kind not in types:
            raise BundleError(f"{name} is {kind}, wanted {' or '.join(types)}; export the checkpoint again")
        if found not in wanted:
            shapes = " or ".join(str(list(w)) for w in wanted)
            raise BundleError(f"{name} has shape {list(found)}, wanted {shapes}; export the checkpoint again")

    def small(self, name: str) -> F32:
        """A norm or delta stack, by full name, as float32."""
        return self._tensors[name].astype(np.float32, copy=False)

    def matrix(self, name: str) -> F32:
        """The matrix ``name`` as [N, K] float32 (read only: it may be the stored tensor itself)."""
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        values = self.rows(name, None)
        if name in self._grouped:
            self._cache[name] = values
            while sum(m.nbytes for m in self._cache.values()) > self._cache_bytes and len(self._cache) > 1:
                self._cache.popitem(last=False)
        return values

    def rows(self, name: str, ids: I64 | None) -> F32:
        """Rows ``ids`` [n] of the matrix ``name`` (None: all of them) as [n, K] float32."""
        pick = ALL if ids is None else ids
        if name in self._grouped:
            return self._grouped[name].values(pick)
        return self._tensors[f"{name}.weight"][pick].astype(np.float32, copy=False)
