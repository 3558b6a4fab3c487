"""Kernels, threads, blocks, drafts, whole tokens: C++ tests of the lane engine, and a twin of its products in numpy.

Compiled here with -O1, which gives the same bits as the library's -O3 and is quicker. Without a compiler: skipped.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from native_programs import KERNEL_TESTS, TESTS, compiled, here
from native_twin import exp, float_product, folded, int8_product

from edgeloop.quant.pack import quantize
from edgeloop.runtime.engines.native.tiles import code_tiles, float_tiles
from edgeloop.runtime.model.codec import Grouped

TABLES = ("portable", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm")
F32 = npt.NDArray[np.float32]
FLOAT32, FLOAT16, INT8, INT4 = range(4)

pytestmark = pytest.mark.skipif(here() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("native")
    return {
        name: compiled(name, folder, ["-O1", "-Werror"], shared=name == "binding")
        for name in (*TESTS, "binding")
    }


@pytest.mark.parametrize("part", KERNEL_TESTS[1:])
def test_kernels(built: dict[str, Path], part: str) -> None:
    ran(built["kernels"], part)


def test_threads(built: dict[str, Path]) -> None:
    ran(built["threads"])


def test_how_many_threads(built: dict[str, Path]) -> None:
    ran(built["pace"])


def test_blocks(built: dict[str, Path]) -> None:
    ran(built["blocks"])


def test_drafts(built: dict[str, Path]) -> None:
    ran(built["drafts"])


def test_whole_tokens(built: dict[str, Path]) -> None:
    ran(built["decode"])


def ran(program: Path, *arguments: str) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_of_an_instruction_set_share_nothing(built: dict[str, Path]) -> None:
    """One linker symbol for a function of two files would let the one with AVX-512 run where there is none."""
    nm, target = shutil.which("nm"), here()
    if nm is None:
        pytest.skip("no nm")
    assert target is not None
    for source in target.sources():
        if source.parent.name == "kernels":
            (made,) = built["kernels"].parent.glob(f"kernels-{source.stem}-*.o")
            listed = subprocess.run([nm, made], capture_output=True, text=True, check=True)
            kinds = {line.split()[-2] for line in listed.stdout.splitlines()}
            assert not kinds & set("WwVu"), f"{source.name} has functions that the linker may merge"


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("bits", "group", "columns"), [(4, 32, 96), (4, 128, 200), (8, 64, 130), (8, 0, 100), (4, 0, 72)]
)
def test_int8_products_are_those_of_numpy(
    built: dict[str, Path], table: str, bits: int, group: int, columns: int
) -> None:
    """Quantized as bundles are, laid out as files are, multiplied as docs/native.md says: the same bits."""
    library = binding(built, table)
    random = np.random.default_rng(bits + group)
    n, rows = 37, 5
    weights = quantize(torch.from_numpy(random.standard_normal((n, columns), np.float32)), bits, group)
    x = random.standard_normal((rows, columns), np.float32)
    x[1] = 0
    x[2, 3] = 1e30
    x[3] *= np.float32(1e-39)
    size = group or columns
    groups, stride = -(-columns // size), -(-columns // 16) * 16
    codes, y = np.empty((rows, stride), np.int8), np.empty((rows, n), np.float32)
    scales, sums = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.int32)
    tiles, tile_scales = laid_out(weights, columns)
    library.int8_product(
        table.encode(), INT4 if bits == 4 else INT8, at(tiles), at(tile_scales), n, columns, size,
        at(x), rows, at(codes), at(scales), at(sums), at(y),
    )  # fmt: skip
    wanted = int8_product(x, weights, size)
    np.testing.assert_array_equal(y.view(np.uint32), wanted.view(np.uint32))

    if table == "portable":
        exact = x.astype(np.float64) @ weights.values().T.astype(np.float64)
        assert np.abs(y[0] - exact[0]).max() < 0.02 * np.abs(exact[0]).max()  # codes, not something else

    floats = np.empty_like(y)
    library.float_product(
        table.encode(), INT4 if bits == 4 else INT8, at(tiles), at(tile_scales), n, columns, size,
        at(x), rows, at(floats),
    )  # fmt: skip
    wanted = float_product(x, weights.values())
    np.testing.assert_array_equal(floats.view(np.uint32), wanted.view(np.uint32))

    dense, same = aligned(float_tiles(weights.values())), np.empty_like(y)
    library.float_product(table.encode(), FLOAT32, at(dense), None, n, columns, size, at(x), rows, at(same))
    np.testing.assert_array_equal(same.view(np.uint32), floats.view(np.uint32))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("dims", [64, 20])
def test_int8_attention_is_that_of_numpy(built: dict[str, Path], table: str, dims: int) -> None:
    """Whole numbers, and floats in the order of docs/native.md: the same bits."""
    library = binding(built, table)
    random = np.random.default_rng(dims)
    rows, tokens, scale = 7, 150, np.float32(0.25)
    q, k, v = (random.standard_normal((n, dims), np.float32) * 2 for n in (rows, tokens, tokens))
    k[3], v[5] = 0, 0
    y = np.empty_like(q)
    given = at(q), at(k), at(v), rows, tokens, dims, ctypes.c_float(scale), at(y)
    library.int8_attention(table.encode(), *given)
    wanted = np.stack(
        [attention_twin(row, k[:n], v[:n], scale) for n, row in enumerate(q, tokens - rows + 1)]
    )
    np.testing.assert_array_equal(y.view(np.uint32), wanted.view(np.uint32))
    scores = (q.astype(np.float64) @ k.T.astype(np.float64)) * float(scale)
    scores[np.arange(tokens) > np.arange(tokens - rows, tokens)[:, None]] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    exact = shares / shares.sum(-1, keepdims=True) @ v.astype(np.float64)
    assert np.abs(y - exact).max() < 0.05 * np.abs(exact).max()


def attention_twin(q: F32, k: F32, v: F32, scale: np.float32) -> F32:
    """y [dims] of q [dims] over k and v [tokens, dims]."""
    (q_codes, q_scale), (k_codes, k_scales), (v_codes, v_scales) = map(codes_of, (q[None], k, v))
    sums = (k_codes @ q_codes[0]).astype(np.float32)
    scores = sums * (k_scales * (q_scale[0] * scale))
    shares = exp(scores - scores.max())
    lanes = np.zeros(16, np.float32)
    for each in np.pad(shares, (0, -len(shares) % 16)).reshape(-1, 16):
        lanes = lanes + each
    weighed = np.pad(shares * v_scales, (0, -len(shares) % 16)).reshape(-1, 16)
    codes, steps = codes_of(weighed)
    values = np.pad(v_codes, ((0, -len(v) % 16), (0, 0))).reshape(-1, 16, v.shape[1])
    y = np.zeros(v.shape[1], np.float32)
    for block in range(len(codes)):
        y = y + (codes[block] @ values[block]).astype(np.float32) * steps[block]
    found: F32 = y * (np.float32(1) / folded(lanes))
    return found


def codes_of(x: F32) -> tuple[npt.NDArray[np.int32], F32]:
    """Codes [rows, n] and scale [rows] of each row of x."""
    peak = np.abs(x).max(-1)
    with np.errstate(divide="ignore"):
        per_step = np.where(peak > 0, np.float32(127) / peak, np.float32(0))
    return np.rint(x * per_step[:, None]).astype(np.int32), peak / np.float32(127)


def binding(built: dict[str, Path], table: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(built["binding"]))
    if not library.kernels_run(table.encode()):
        pytest.skip(f"{table}: this processor does not run it")
    return library


def laid_out(weights: Grouped, columns: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    tiles = aligned(code_tiles(weights.codes, weights.bits, columns))
    return tiles, aligned(float_tiles(weights.scales))


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of ``array`` that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
