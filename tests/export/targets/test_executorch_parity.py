"""What the parity step of ExecuTorch finds: faults in a program, on any processor; and nothing in a right one."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from editing import read
from safetensors.torch import load_file, save_file
from tiny import VOCAB, demo_model
from torch import Tensor

from edgeloop.apps.demo.model import DemoConfig
from edgeloop.export.bounds import EXACT, difference
from edgeloop.export.parity import Expected
from edgeloop.export.reference import mapped, reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle.manifest import Parity
from edgeloop.runtime.engines.backend import F32
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ParityError
from edgeloop.runtime.model.activations import ACTIVATIONS, Activations, Rounding, rowwise_asymmetric

pytest.importorskip("executorch")
from executorch.exir import EdgeProgramManager
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir.lowered_backend_module import LoweredBackendModule, get_lowered_backend_modules

from edgeloop.export.targets.executorch.exact import EXACT_PROGRAM
from edgeloop.export.targets.executorch.lower import lower, serialize
from edgeloop.export.targets.executorch.methods import build_methods
from edgeloop.export.targets.executorch.target import check_parity, place_tables
from edgeloop.runtime.engines.executorch.engine import ExecutorchBackend
from edgeloop.runtime.engines.executorch.layout import Layout, Shapes, Sizes

SHAPES = Shapes(1, 8)
RANGES = ACTIVATIONS["XNNPACK"]


@dataclass
class Made:
    """One lowered model, whose delegates can be given back what they were serialized as."""

    folder: Path
    layout: Layout
    edge: EdgeProgramManager
    oracle: ReferenceBackend
    serialized: list[tuple[LoweredBackendModule, bytes, NamedDataStoreOutput]]

    def check(self) -> Parity:
        """The parity step; ``edge`` is as it was afterwards."""
        try:
            return check_parity(self.oracle, self.edge, self.folder, self.layout, RANGES)
        finally:
            for delegate, processed, stored in self.serialized:
                delegate._processed_bytes, delegate._named_data_store_output = processed, stored

    def plant(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Change a constant in every delegate: that whose bytes are the stored tensor ``name``."""
        wanted = constant(self.weights[name], name)
        found = 0
        for delegate, processed, stored in self.serialized:
            buffers = [change(data) if data == wanted else data for data in stored.buffers]
            found += buffers != list(stored.buffers)
            delegate._processed_bytes = processed
            delegate._named_data_store_output = replace(stored, buffers=buffers)
        assert found

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "w.safetensors")


def constant(tensor: Tensor, name: str) -> bytes:
    """A stored tensor as a delegate holds it."""
    if name.endswith("scales"):
        tensor = tensor.float().bfloat16()
    elif name.endswith("lora_a"):
        tensor = tensor.float().flatten(0, 1)
    elif name.endswith("norm.weight") and tensor.ndim == 2:
        tensor = tensor.t().contiguous()
    data: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A layer that is run twice, with norms and deltas of each depth: 6 methods in int4."""
    folder = tmp_path_factory.mktemp("parity")
    config = DemoConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, prologue_layers=0, block_layers=1, num_recursions=2, epilogue_layers=0, lora_rank=4,
        max_position_embeddings=64,
    )  # fmt: skip
    (folder / "checkpoint").mkdir()
    save_file(demo_model(config).state_dict(), folder / "checkpoint" / "model.safetensors")
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config.as_json()))
    reading = read(folder / "checkpoint")
    write_weights(reading, Recipe.named("int4", 32), folder / "w.safetensors")
    weights = load_file(folder / "w.safetensors")
    edge = lower(build_methods(reading.program, weights, SHAPES), lambda step: None)
    delegates = [
        delegate
        for name in sorted(edge.methods)
        for delegate in get_lowered_backend_modules(edge.exported_program(name).graph_module)
    ]
    kept = [(d, d.processed_bytes, d.named_data_store_output) for d in delegates]
    (folder / "model.pte").write_bytes(serialize(edge).buffer)
    (table,) = place_tables(reading.program, weights, folder, "model.pte")
    layout = Layout("1", "model.pte", Sizes.of(reading.program), SHAPES, table)
    oracle = reference_engine(reading.program, folder / "w.safetensors", Recipe.named("int4", 32))
    return Made(folder, layout, edge, oracle, kept)


def test_a_right_program(made: Made) -> None:
    """Float arithmetic is held to what it is elsewhere; int8 activations to a bound that is told."""
    parity = made.check()
    assert 0 < max(*parity.per_depth, parity.logits) < EXACT
    assert parity.bound is not None
    assert parity.shipped <= parity.bound
    assert EXACT < parity.bound < 0.5
    assert {path.name for path in made.folder.iterdir()} == {"checkpoint", "w.safetensors", "model.pte"}


def one_scale(data: bytes) -> bytes:
    """One group's scale of 128, and only by a sixteenth or so."""
    scales = np.frombuffer(data, np.uint16).copy()
    scales[5] += 8
    return scales.tobytes()


def two_rows(data: bytes) -> bytes:
    rows = np.frombuffer(data, np.uint8).reshape(64, -1).copy()
    rows[[4, 5]] = rows[[5, 4]]
    return rows.tobytes()


def two_depths(data: bytes) -> bytes:
    half = len(data) // 2
    return data[half:] + data[:half]


def one_weight(data: bytes) -> bytes:
    values = np.frombuffer(data, np.float32).copy()
    values[7] *= 1.01
    return values.tobytes()


LAYER = "segments.0.layers.0."


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{LAYER}o_proj.scales", one_scale),
        (f"{LAYER}down_proj.codes", two_rows),
        (f"{LAYER}q_proj.lora_a", two_depths),
        (f"{LAYER}mlp_norm.weight", one_weight),
    ],
)
def test_faults_are_found(made: Made, name: str, change: Callable[[bytes], bytes]) -> None:
    """Faults in what was serialized, smaller than int8 activations would show."""
    made.plant(name, change)
    with pytest.raises(
        ParityError, match="executorch with float activations disagrees with the reference engine"
    ):
        made.check()
    assert not (made.folder / EXACT_PROGRAM).exists()


def test_another_program_is_found(made: Made) -> None:
    """One whose kernels, in the end, compute something else: here, a program of other weights."""
    weights = mapped(made.folder / "w.safetensors")
    weights[f"{LAYER}o_proj.scales"] = weights[f"{LAYER}o_proj.scales"] * 2
    wanted = Expected.of(ReferenceBackend(made.oracle.program, weights, 32), RANGES)
    backend = ExecutorchBackend(made.oracle.program, made.folder, made.layout, threads=1)
    with pytest.raises(
        ParityError, match="kernels disagrees .*; the bundle was not written, export on another"
    ):
        wanted.check("kernels", backend, advice="export on another")
    backend.close()


@pytest.fixture(scope="module")
def wanted(made: Made) -> Expected:
    """What XNNPACK's activations give, with what chance may do to them."""
    return Expected.of(made.oracle, RANGES)


def four_bits(x: F32, group_size: int, whole: Rounding) -> F32:
    step = np.abs(x).max(-1, keepdims=True) / 7
    return whole(x / step) * step


def no_zero_point(x: F32, group_size: int, whole: Rounding) -> F32:
    """As if every row's values were as far above zero as below."""
    return rowwise_asymmetric(x - (x.max(-1, keepdims=True) + x.min(-1, keepdims=True)) / 2, 0, whole)


@pytest.mark.parametrize("kernels", [four_bits, no_zero_point])
def test_kernels_that_round_in_another_way_are_found(
    made: Made, wanted: Expected, kernels: Callable[[F32, int, Rounding], F32]
) -> None:
    """What chance may do is not what other kernels may do."""
    with pytest.raises(ParityError, match="kernels disagrees"):
        wanted.check("kernels", made.oracle.with_activations(Activations(kernels)))


@pytest.mark.parametrize("size", [2.0**-23, 2.0**-20, 2.0**-16])
def test_any_order_of_adding_is_right(made: Made, wanted: Expected, size: float) -> None:
    """Differences of ``size`` of a row's largest value are what other kernels make before they round."""
    for seed in range(4):
        random = np.random.default_rng(seed)

        def other(x: F32, group_size: int, whole: Rounding, random: np.random.Generator = random) -> F32:
            noise = (2 * random.random(x.shape) - 1).astype(np.float32)
            return rowwise_asymmetric(
                x + np.float32(size) * np.abs(x).max(-1, keepdims=True) * noise, 0, whole
            )

        model = made.oracle.with_activations(Activations(other))
        replace(wanted, bounds=[bound / 1.5 for bound in wanted.bounds]).check("others", model)


# Kernel families of XNNPACK on x86-64, by what a processor does not have. Later ones have less and less.
LESS = {
    "AVX-512 without VNNI": ["gfni", "avx512vnni", "avx512vbmi", "avxvnni"],
    "AVX2": ["avx512f", "avx512cd", "avx512dq", "avx512bw", "avx512vl"],
    "SSE4.1": ["avx", "fma3", "f16c", "avx2"],
}
# The fields of struct cpuinfo_x86_isa up to the last that is wanted here (pytorch/cpuinfo, include/cpuinfo.h).
FIELDS = """
rdtscp rdpid sysenter msr clzero clflush clflushopt mwait mwaitx fxsave xsave three_d_now three_d_now_plus
prefetch prefetchw prefetchwt1 sse3 ssse3 sse4_1 sse4_2 sse4a misaligned_sse avx avxvnni fma3 fma4 xop f16c
avx2 avx512f avx512pf avx512er avx512cd avx512dq avx512bw avx512vl avx512ifma avx512vbmi avx512vbmi2
avx512bitalg avx512vpopcntdq avx512vnni avx512bf16 avx512fp16 avx512vp2intersect avx512_4vnniw avx512_4fmaps
avx10_1 avx10_2 amx_bf16 amx_tile amx_int8 amx_fp16 amx_fp8 avx_vnni_int8 avx_vnni_int16 avx_ne_convert hle
rtm xtest mpx cmpxchg16b clwb movbe lahf_sahf fs_gs_base lzcnt popcnt tbm bmi bmi2 adx aes vaes pclmulqdq
vpclmulqdq gfni
""".split()  # noqa: SIM905
RUN = """
import ctypes, json, sys
from pathlib import Path
import msgspec
import numpy as np
from edgeloop.export.parity import trace, trace_packed
from edgeloop.runtime.engines.executorch.engine import ExecutorchBackend
from edgeloop.runtime.engines.executorch.compiled import wheel
from edgeloop.runtime.engines.executorch.layout import Layout
from edgeloop.runtime.model.program import Program
folder, out, masked = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
program, layout = msgspec.json.decode(sys.stdin.read(), type=tuple[Program, Layout])
library = ctypes.CDLL(str(wheel() / "lib/libexecutorch_threadpool.so"))
library.cpuinfo_initialize()
has = (ctypes.c_uint8 * 100).in_dll(library, "cpuinfo_isa")
for i in masked:
    has[i] = 0
backend = ExecutorchBackend(program, folder, layout, threads=1)
np.savez(out, *trace(backend).arrays, *trace_packed(backend))
"""


@pytest.fixture(scope="module")
def processors() -> dict[str, list[int]]:
    """Which fields to clear for each family; skipped where this wheel's cpuinfo has others."""
    flags = Path("/proc/cpuinfo")
    if sys.platform != "linux" or "avx2" not in flags.read_text().split():
        pytest.skip("kernels of several processors can be chosen on x86-64 with Linux and AVX2")
    from edgeloop.runtime.engines.executorch.compiled import wheel

    library = ctypes.CDLL(str(wheel() / "lib" / "libexecutorch_threadpool.so"))
    library.cpuinfo_initialize()
    has = (ctypes.c_uint8 * 100).in_dll(library, "cpuinfo_isa")
    words = set(flags.read_text().split())
    names = {
        "sse4_1": "sse4_1",
        "avx": "avx",
        "fma3": "fma",
        "avx2": "avx2",
        "avx512f": "avx512f",
        "gfni": "gfni",
    }
    if any(bool(has[FIELDS.index(field)]) != (flag in words) for field, flag in names.items()):
        pytest.skip("this wheel's cpuinfo has other fields")
    found: dict[str, list[int]] = {"as it is": []}
    masked: list[int] = []
    for name, fields in LESS.items():
        masked = masked + [FIELDS.index(field) for field in fields]
        found[name] = masked
    return found


@pytest.fixture(scope="module")
def traces(made: Made, processors: dict[str, list[int]]) -> dict[str, list[Any]]:
    """What the program gives on the kernels of each."""
    found = {}
    given = msgspec.json.encode((made.oracle.program, made.layout))
    for name, masked in processors.items():
        out = made.folder / "trace.npz"
        command = [sys.executable, "-c", RUN, str(made.folder), str(out), json.dumps(masked)]
        subprocess.run(command, check=True, timeout=120, capture_output=True, input=given)
        with np.load(out) as arrays:
            found[name] = [arrays[key] for key in arrays.files]
        out.unlink()
    return found


def test_a_right_program_passes_on_every_processor(wanted: Expected, traces: dict[str, list[Any]]) -> None:
    for name, found in traces.items():
        errors = list(map(difference, found, [*wanted.trace.arrays, *wanted.packed]))
        assert all(error < bound for error, bound in zip(errors, wanted.bounds, strict=True)), name
    first, *others = traces.values()
    assert any(not np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))
