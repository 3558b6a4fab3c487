"""Tiny models, one for each trait that a way of decoding may meet, and bundles of them with random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import structs
from programs import HEADS, PLAIN, RMS, WIDTH, adapted, hierarchical, parallel_loop, stack
from programs import program as written
from safetensors.numpy import save_file

from edgeloop.export.families.llama_program import program_of
from edgeloop.export.families.llama_spec import Segment, Spec
from edgeloop.export.target import Job
from edgeloop.export.targets import open_target
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle.heads import head_shapes
from edgeloop.runtime.bundle.manifest import (
    FORMAT,
    File,
    Manifest,
    Parity,
    Quantization,
    Target,
    Text,
    write_manifest,
)
from edgeloop.runtime.model.blocks import Writer
from edgeloop.runtime.model.ops import Act, Add
from edgeloop.runtime.model.program import Program, Routing
from edgeloop.runtime.model.rotation import Rotation
from edgeloop.runtime.model.weights import Matrix, tensors

Tensors = dict[str, npt.NDArray[np.generic]]
WINDOW = 4
HEADS_SEED = 8
LOOP, LAYER = Segment(layers=1, repeats=3), Segment(layers=1)
DELTAS = Segment(layers=1, repeats=3, per_repeat_norms=True, lora={"q_proj": 2, "down_proj": 2})
OWN = Segment(layers=1, repeats=3, per_repeat_attention=True)
EXPERT = Routing(kind="expert", squash="sigmoid", alpha=0.5, temperature=0.8, capacity=(1.0, 0.5, 0.25))
PICKY = Routing(kind="expert", squash="tanh", alpha=0.5, capacity=(0.75, 0.5, 0.25), auxiliary=True)
TOKEN = Routing(kind="token", squash="softmax", alpha=1.0)


def llama(*segments: Segment, **changes: object) -> Program:
    """A model of Llama's layers whose heads are as wide as onnxruntime's attention wants them."""
    values: dict[str, object] = {
        "family": "test", "segments": segments, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "heads": 2, "kv_heads": 1, "head_dim": 8, "norm_eps": 1e-5, "rope_theta": 10000.0, "context_length": 32,
        "tied_embedding": True,
    }  # fmt: skip
    return program_of(Spec(**{**values, **changes}))  # type: ignore[arg-type]


def some_windows() -> Program:
    """One layer of the block sees the last tokens only, the other all of them."""
    near = replace(PLAIN, attention=replace(HEADS, window=WINDOW))
    return written({}, lambda w: "embedded", [lambda w: (stack(w, "state", "b", [near, PLAIN]),)])


def without_attention() -> Program:
    """A loop that keeps no K and V, behind a layer that does."""

    def block(w: Writer) -> tuple[str, ...]:
        w.enter_layer("state")
        w.linear(w.norm("state", "normed", "b.norm", WIDTH, RMS), ("up",), "b.up", Matrix({"up": 12}, WIDTH))
        w.add(Act("up", "acted", "silu"))
        w.linear("acted", ("down",), "b.down", Matrix({"down": WIDTH}, 12))
        w.add(Add("state", "down", "next"))
        return ("next",)

    return written({}, lambda w: stack(w, "embedded", "a", [PLAIN]), [block])


def two_blocks_that_share() -> Program:
    """Two blocks in turn, of which the second reads the K and V of the first."""
    heads = replace(HEADS, slot="first", head_dim=8, rotation=Rotation(8, 10000.0))
    layer = replace(PLAIN, attention=heads, depths=4)

    def block(name: str) -> Callable[[Writer], tuple[str, ...]]:
        return lambda w: (stack(w, "state", name, [layer]),)

    return written({}, lambda w: "embedded", [block("low"), block("high")], schedule=(0, 1, 0, 1))


def prompts_that_see_themselves() -> Program:
    """Layers in all stages whose mask is made for prompts."""
    layer = replace(PLAIN, attention=replace(HEADS, mask="prefix"))
    return written(
        {},
        lambda w: stack(w, "embedded", "a", [layer]),
        [lambda w: (stack(w, "state", "b", [layer]),)],
        epilogue=lambda w: stack(w, "state", "c", [layer]),
    )


MODELS: Mapping[str, Callable[[], Program]] = {
    "layers around the loop": lambda: llama(LAYER, LOOP, LAYER),
    "norms and deltas of each depth": lambda: llama(LAYER, DELTAS, LAYER),
    "nothing around the loop": lambda: llama(LOOP),
    "an exit gate": lambda: llama(LOOP, exit_gate=True),
    "one depth": lambda: llama(LAYER, LAYER),
    "attention of each depth": lambda: llama(LAYER, OWN),
    "two carries": adapted,
    "several blocks": hierarchical,
    "no attention in the loop": without_attention,
    "shared K/V": lambda: llama(LAYER, LOOP, LAYER, kv="shared"),
    "shared K/V, nothing around": lambda: llama(LOOP, kv="shared"),
    "shared K/V, deltas": lambda: llama(DELTAS, kv="shared"),
    "shared K/V, several blocks": two_blocks_that_share,
    "shared K/V, two depths": lambda: llama(Segment(layers=1, repeats=2), kv="shared"),
    "a window": lambda: llama(LAYER, LOOP, LAYER, sliding_window=WINDOW),
    "a window, nothing around": lambda: llama(LOOP, sliding_window=WINDOW),
    "a window in some layers": some_windows,
    "shared K/V, a window": lambda: llama(LOOP, LAYER, kv="shared", sliding_window=WINDOW),
    "expert choice": lambda: llama(LAYER, LOOP, LAYER, routing=EXPERT),
    "expert choice, attention of each depth": lambda: llama(OWN, routing=PICKY),
    "expert choice, a window": lambda: llama(LOOP, routing=EXPERT, sliding_window=WINDOW),
    "expert choice, shared K/V": lambda: llama(LAYER, LOOP, LAYER, routing=PICKY, kv="shared"),
    "expert choice, shared K/V, a window": lambda: llama(
        LOOP, LAYER, routing=PICKY, kv="shared", sliding_window=WINDOW
    ),
    "token choice": lambda: llama(LAYER, LOOP, LAYER, routing=TOKEN),
    "token choice, shared K/V": lambda: llama(LOOP, LAYER, routing=TOKEN, kv="shared"),
    "the row before": parallel_loop,
    "prompts that see themselves": prompts_that_see_themselves,
}
"""By the trait that is new in them."""


def model(name: str) -> Program:
    """The program; texts in it do not end by themselves."""
    return structs.replace(MODELS[name](), eos_token_ids=())


def random_tensors(program: Program) -> Tensors:
    """Stored tensors of ``program``, float: norms near 1, matrices that keep the size of what they get."""
    random = np.random.default_rng(1)
    made: Tensors = {}
    for name, tensor in tensors(program.weights):
        noise = random.standard_normal(tensor.shape)
        made[name] = {
            "vector": lambda noise: (1 + 0.1 * noise).astype(np.float32),
            "delta": lambda noise: (0.3 * noise).astype(np.float16),
            "matrix": lambda noise: (noise * 1.5 / np.sqrt(noise.shape[-1])).astype(np.float32),
        }[tensor.kind](noise)
    return made


def random_heads(program: Program) -> dict[str, npt.NDArray[np.float32]]:
    """The heads that the host computes, such that they do not say the same of every token."""
    random = np.random.default_rng(HEADS_SEED)
    shapes = {name: [n or program.width for n in shape] for name, shape in head_shapes(program).items()}
    return {name: (0.3 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def write_bundle(folder: Path, program: Program, targets: tuple[str, ...] = ()) -> Path:
    """A bundle that the reference engine can run, and what it is exported for: ``targets``."""
    folder.mkdir(parents=True)
    weights = folder / "weights.tmp"
    save_file(random_tensors(program), weights)
    made: dict[str, Target] = {}
    heads = random_heads(program)
    if heads:
        save_file(
            heads, folder / "heads.safetensors"
        )  # as an export does, before the targets, which may hold them too
    for name in targets:
        job = Job(program, Recipe.named("none", 32), weights, folder, lambda step, part: None)
        target = open_target(name)
        target.check(program, job.recipe)
        made[name] = target.export(job)
    if "onnx" not in made:
        (folder / "onnx").mkdir()
        (folder / "onnx" / "weights.safetensors").write_bytes(weights.read_bytes())
        graphs = {stage: f"onnx/{stage}.onnx" for stage in ("prologue", "block", "epilogue")}
        for name in graphs.values():
            (folder / name).write_bytes(b"")
        made["onnx"] = Target(graphs, "onnx/weights.safetensors", Parity((0.0,) * program.depths, 0.0, 0.0))
    weights.unlink()
    files = {
        path.relative_to(folder).as_posix(): File(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        format=FORMAT, edgeloop="0.1.0", program=program, quantization=Quantization("none", 32, 0), targets=made,
        heads="heads.safetensors" if heads else None, text=Text(), parameters=1, unrolled_parameters=1, files=files,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder
