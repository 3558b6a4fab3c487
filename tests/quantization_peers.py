"""Other people's 4- and 3-bit weights on the demo, in docs/quantization.md: tests/quantization_peers.py FOLDER [ROW]

A peer quantizes and dequantizes each matrix by its own code; the values go back into a checkpoint, which is exported in
floats and measured as the rows of tests/quantization_table.py are, whose FOLDER it needs. So every depth can be read,
and inputs stay floats. torchao and onnxruntime are installed with the exporter; ggml, in which llama.cpp's formats are,
comes with `pip install gguf==0.19.0 pywhispercpp==1.5.1`. The first rows are of what `int4` is without a text.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import quantization_table
import torch
from ops_table import parts
from quantization_table import FLOATS, MODELS, PAGE, change, edgeloop, result
from safetensors.torch import load_file, save_file

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import read_checkpoint
from edgeloop.export.fitted import TOKENS, WINDOW, text_ids
from edgeloop.export.stored import write_weights
from edgeloop.export.text.vocabulary import read_vocabulary
from edgeloop.quant.pack import Scales, full_range, quantize
from edgeloop.quant.recipe import Recipe
from edgeloop.quant.scales import searched
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.windows import perplexity
from edgeloop.runtime.engines.backend import F32
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model.stored import map_tensors
from edgeloop.runtime.model.weights import Matrix, sibling

Quantized = tuple[F32, int]
"""Values [N, K], and the bytes that the peer stores for them."""
Peer = Callable[[F32, F32], Quantized]
"""Called with a matrix [N, K] and the mean square of each column's inputs [K]."""
SEGMENTS = {"prologue": "segments.0.layers", "block": "segments.1.layers", "epilogue": "segments.2.layers"}


def edgeloop_codes(weight: F32, importance: F32, scales: Scales, group: int) -> Quantized:
    """The nearest codes, with scales of this repository."""
    made = quantize(torch.from_numpy(weight), 4, group, scales)
    return made.values(), made.codes.nbytes + made.scales.nbytes


def onnxruntime(weight: F32, importance: F32, config: str, group: int) -> Quantized:
    """What MatMulNBits multiplies by: its product with the unit matrix. The bytes are those of its initializers."""
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

    from edgeloop.runtime.engines.onnx.session import use_threads

    rows, columns = weight.shape
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [columns, size])
        for name, size in (("x", columns), ("y", rows))
    ]
    graph = helper.make_graph(
        [node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight.T.copy(), "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = quantizer.MatMulNBitsQuantizer(model, algo_config=getattr(quantizer, config)(block_size=group))
    made.process()
    proto = made.model.model
    use_threads(None)
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    stored = sum(numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer)
    return np.ascontiguousarray(values.T), stored


def torchao(weight: F32, importance: F32, algorithm: str, group: int) -> Quantized:
    """Its weight-only codes around zero, with scales of 16 bits."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    choose = importlib.import_module("torchao.quantization.quantize_.workflows").IntxChooseQParamsAlgorithm
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(torch.from_numpy(weight).bfloat16(), requires_grad=False)
    config = IntxWeightOnlyConfig(
        torch.int4, PerGroup(group), intx_choose_qparams_algorithm=getattr(choose, algorithm)
    )
    quantize_(linear, config)
    values: F32 = linear.weight.dequantize().float().numpy()
    return values, weight.size // 2 + 2 * weight.size // group


@cache
def ggml() -> ctypes.CDLL:
    """The library of llama.cpp's formats."""
    found = [path for path in files("pywhispercpp") or () if re.search(r"libggml-base[^/]*$", str(path))]
    library = ctypes.CDLL(str(found[-1].locate()))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def llama(weight: F32, importance: F32, kind: str, matrix: bool) -> Quantized:
    """As ``llama-quantize --pure`` does, by the importance ``matrix`` or without. Rows that are no multiple of 256 take
    the format that it takes then."""
    gguf: Any = importlib.import_module("gguf")
    fallback = {"Q4_K": "Q5_0", "Q3_K": "IQ4_NL"}
    chosen = gguf.GGMLQuantizationType[fallback[kind] if weight.shape[1] % 256 and kind in fallback else kind]
    block, size = gguf.GGML_QUANT_SIZES[chosen]
    made = np.empty((len(weight), weight.shape[1] // block * size), np.uint8)
    pointer = ctypes.POINTER(ctypes.c_float)
    given = np.ascontiguousarray(importance, np.float32)
    ggml().ggml_quantize_chunk(
        ctypes.c_int(chosen.value),
        np.ascontiguousarray(weight).ctypes.data_as(pointer),
        ctypes.c_void_p(made.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(len(weight)),
        ctypes.c_int64(weight.shape[1]),
        given.ctypes.data_as(pointer) if matrix else None,
    )
    values: F32 = gguf.quants.dequantize(made, chosen)
    return values, made.nbytes


PEERS: dict[str, Peer] = {
    **{
        f"edgeloop {words}, groups of {group}": partial(edgeloop_codes, scales=scales, group=group)
        for words, scales in (("nearest", full_range), ("searched scales", searched))
        for group in (32, 128)
    },
    **{
        f"onnxruntime {words}, blocks of {group}": partial(onnxruntime, config=config, group=group)
        for words, config in (
            ("default", "DefaultWeightOnlyQuantConfig"),
            ("HQQ", "HQQWeightOnlyQuantConfig"),
        )
        for group in (32, 128)
    },
    **{
        f"torchao{words}, groups of {group}": partial(torchao, algorithm=algorithm, group=group)
        for words, algorithm in (("", "AFFINE"), (" HQQ", "HQQ_SCALE_ONLY"))
        for group in (32, 128)
    },
    **{
        f"llama.cpp {kind}{words}": partial(llama, kind=kind, matrix=matrix)
        for kind in ("Q4_0", "Q4_K", "Q3_K")
        for words, matrix in (("", False), (" with an importance matrix", True))
    },
}


def importances(folder: Path) -> dict[str, F32]:
    """The mean square of each matrix's inputs [K] at all depths, by its parts' canonical names; kept in ``folder``."""
    path = folder / "importances.npz"
    if path.is_file():
        with np.load(path) as kept:
            return dict(kept)
    source = Checkpoint.open(MODELS["demo"])
    reading = read_checkpoint(source)
    program = reading.program
    vocabulary = read_vocabulary(source.folder, source.config, program.vocab_size)
    text = (folder / "calibration.txt").read_text(encoding="ascii")
    ids = text_ids(reading, vocabulary, text, TOKENS, folder)
    write_weights(reading, Recipe.named("none", 32), folder / "floats")
    found: dict[str, list[F32]] = {}

    def keep(name: str, first: int, x: F32) -> None:
        found.setdefault(name, []).append(np.square(x).mean(0))

    backend = ReferenceBackend(program, map_tensors(folder / "floats"), 0, inputs=keep)
    perplexity(SequentialDecoder(backend, backend.new_cache(1, WINDOW)), ids, WINDOW)
    (folder / "floats").unlink()
    means = {
        sibling(name, part): np.mean(found[name], 0)
        for name, weight in program.weights.items()
        if isinstance(weight, Matrix)
        for part in weight.parts
    }
    np.savez(path, **means)
    return means


def canonical(name: str) -> str | None:
    """The canonical name of a matrix of the demo's checkpoint; None for what stays as it is."""
    if name == "embed_tokens.weight":
        return "embed"
    segment, _, rest = name.partition(".")
    kept = segment not in SEGMENTS or not rest.endswith("_proj.weight")
    return None if kept else f"{SEGMENTS[segment]}.{rest.removesuffix('.weight')}"


def measured(folder: Path, made: Callable[[str, F32], Quantized]) -> dict[str, Any]:
    """The demo with every matrix as ``made`` says of its canonical name and its numbers, beside its floats."""
    stored, checkpoint, bundle = 0, folder / "peer", folder / "peer-bundle"
    shutil.copytree(MODELS["demo"], checkpoint, dirs_exist_ok=True)
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    weights = 0
    for name, tensor in tensors.items():
        if (matrix := canonical(name)) is None:
            continue
        values, size = made(matrix, tensor.numpy())
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        stored, weights = stored + size, weights + tensor.numel()
    save_file(tensors, checkpoint / "model.safetensors")
    edgeloop(
        *("export", checkpoint, "-o", bundle, "--target", "native", "--quant", "none", "--force"),
        folder=folder,
    )
    words = "eval", bundle, "--text", "validation.txt", *quantization_table.MEASURED
    found = edgeloop(*words, "--against", folder / "demo" / FLOATS, folder=folder)
    shutil.rmtree(checkpoint)
    shutil.rmtree(bundle)
    return {"bits_a_matrix_weight": 8 * stored / weights, **found}


def table(rows: Mapping[str, Mapping[str, Any]], of: str = "peer") -> str:
    """A line for each of ``rows``; ``of``: what they are."""
    depths = range(len(next(iter(rows.values()))["change_per_depth"])) if rows else ()
    places = [f"depth {depth + 1}, %" for depth in depths] if len(depths) != 1 else ["as routed, %"]
    columns = [of, "bits a weight", *places, "KL, 10⁻³ nats"]
    columns += ["drafts kept, points"] if len(depths) != 1 else []
    lines = [columns, ["---"] * len(columns)]
    for name, found in rows.items():
        kl = ", ".join(f"{1000 * nats:.2f}" for nats in found["divergence_per_depth"])
        drafts = ", ".join(change(found, "drafts", depth) for depth in depths[:-1])
        changes = (change(found, "change", depth) for depth in depths)
        lines.append(
            [name, f"{found['bits_a_matrix_weight']:.2f}", *changes, kl, *([drafts] if drafts else [])]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(folder: Path) -> None:
    """Put the rows that are there into the page."""
    paths = {name: result(folder, "peers", name) for name in PEERS}
    rows = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()}
    before, _, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
    PAGE.write_text(before + table(rows) + after, encoding="utf-8")


def main(folder: Path, names: list[str]) -> None:
    """Measure the rows ``names``, or all that are not there yet."""
    if unknown := set(names) - set(PEERS):
        raise SystemExit(f"there are no rows {unknown}; choose from {', '.join(map(repr, PEERS))}")
    folder = folder.absolute()
    if not (folder / "demo" / FLOATS).is_dir():
        raise SystemExit(f"{folder} has no floats to measure against: run tests/quantization_table.py first")
    (folder / "peers").mkdir(exist_ok=True)
    importance = importances(folder)
    for name, peer in PEERS.items():
        path = result(folder, "peers", name)
        if name in names or not (names or path.is_file()):
            path.write_text(
                json.dumps(measured(folder, partial(by, peer, importance)), indent=1), encoding="utf-8"
            )
            write(folder)
    write(folder)


def by(peer: Peer, importance: Mapping[str, F32], name: str, weight: F32) -> Quantized:
    """What ``peer`` makes of the matrix ``name``."""
    return peer(weight, importance[name])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("wanted: tests/quantization_peers.py FOLDER [ROW]")
    main(Path(sys.argv[1]), sys.argv[2:])
