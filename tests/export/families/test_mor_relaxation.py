"""DoRA, prompts and recursion encodings of the Mixture-of-Recursions code, against a plain forward of what is stored.

The checkpoints have the keys that the authors' code gives them (PEFT's DoRA, its own wrapped attention and layer). The
forward knows of no loop: every layer is computed with the tensors that are stored for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dora import DORA, SCALE, dora
from editing import edit, edit_weights, read
from family_runs import F32, decoded, greedy, stopped

from edgeloop.apps.quantities import deltas, layout
from edgeloop.export.bounds import difference
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, unused
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.facts import stored_layers
from edgeloop.runtime.model.ops import AttendLearned, Scale
from edgeloop.runtime.model.weights import Matrix
from edgeloop.runtime.session import Session

IDS = np.array([5, 260, 3, 3, 99, 0, 41, 7, 12, 300, 1, 8])
HEADS, KV_HEADS, HEAD_DIM, DEPTHS = 4, 2, 16, 3
PROMPT = 5
BOUND = 2e-5  # of logits up to 8: measured 4e-6
EXECUTORCH = 1e-4
COREML = 5e-3  # all of it float16, in parts of the largest logit

State = dict[str, torch.Tensor]


def encodings(folder: Path) -> None:
    """The last layer of each recursion wrapped, or every layer where neighbours are shared."""
    sharing = read_sharing(folder)

    def change(state: State) -> None:
        torch.manual_seed(5)
        for layer in range(1, 7):
            if sharing == "middle_cycle" and layer % 2:
                continue
            for name in [n for n in state if n.startswith(f"model.layers.{layer}.")]:
                state[name.replace(f".{layer}.", f".{layer}.block.", 1)] = state.pop(name)
            state[f"model.layers.{layer}.recursion_encoding"] = 1 + 0.3 * torch.randn(64)

    edit_weights(folder, change)
    edit(folder / "conf.yaml", relaxation={"enable": True, "method": "recursion_encoding"})


def prompts(folder: Path) -> None:
    """Every attention wrapped, with a prompt and a gate of its own."""

    def change(state: State) -> None:
        torch.manual_seed(6)
        for layer in range(8):
            at = f"model.layers.{layer}.self_attn."
            for name in [n for n in state if n.startswith(at)]:
                state[name.replace(".self_attn.", ".self_attn.model.")] = state.pop(name)
            state[f"{at}adaption_prompt"] = torch.randn(1, PROMPT, 64)
            state[f"{at}adaption_gate"] = torch.randn(1)

    edit_weights(folder, change)
    edit(
        folder / "conf.yaml",
        relaxation={"enable": True, "method": "adaption_prompt", "prompt": {"len": PROMPT}},
    )
    adapter = {"peft_type": "ADAPTION_PROMPT", "adapter_len": PROMPT, "adapter_layers": 8}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


def read_sharing(folder: Path) -> str:
    return str((Checkpoint.open(folder).training_config or {})["recursive"]["sharing"])


MADE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "dora": ("mor-middle-cycle", dora),
    "encodings": ("mor-middle-cycle", encodings),
    "encodings-sequence": ("mor-middle-sequence", encodings),
    "prompts": ("mor-middle-cycle", prompts),
    "prompts-sequence": ("mor-middle-sequence", prompts),
}


class Plain:
    """The model as it is stored, layer by layer: no sharing, no cache."""

    def __init__(self, folder: Path, added: bool = True) -> None:
        """``added``: with what recursions have of their own."""
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        self.state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
        config = json.loads((folder / "config.json").read_text())
        self.added = added
        self.eps, self.theta = config["rms_norm_eps"], config["rope_theta"]

    def logits(self, layers: list[int]) -> F32:
        x = self.state["model.embed_tokens.weight"][torch.from_numpy(IDS)]
        for layer in layers:
            x = self.layer(f"model.layers.{layer}.", x)
        head = self.state.get("lm_head.weight", self.state["model.embed_tokens.weight"])
        found: F32 = (self.norm(x, "model.norm.weight") @ head.T).numpy()
        return found

    def layer(self, at: str, x: torch.Tensor) -> torch.Tensor:
        vector = self.state.get(f"{at}recursion_encoding")
        at = at if vector is None else f"{at}block."
        x = x + self.attention(at, self.norm(x, f"{at}input_layernorm.weight"))
        h = self.norm(x, f"{at}post_attention_layernorm.weight")
        gate, up, down = (self.matrix(f"{at}mlp.{part}_proj") for part in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
        return x if vector is None or not self.added else x * vector

    def attention(self, at: str, h: torch.Tensor) -> torch.Tensor:
        prompt, inner = self.state.get(f"{at}self_attn.adaption_prompt"), f"{at}self_attn."
        inner = inner if prompt is None else f"{inner}model."
        q, k, v, o = (self.matrix(f"{inner}{part}_proj") for part in "qkvo")
        turned = self.rotate((h @ q.T).view(len(h), HEADS, HEAD_DIM))
        keys = self.rotate((h @ k.T).view(len(h), KV_HEADS, HEAD_DIM))
        seen = torch.ones(len(h), len(h), dtype=torch.bool).tril()
        out = self.mix(turned, keys, (h @ v.T).view(len(h), KV_HEADS, HEAD_DIM), seen) @ o.T
        if prompt is None or not self.added:
            return out
        keys, values = ((prompt[0] @ w.T).view(PROMPT, KV_HEADS, HEAD_DIM) for w in (k, v))
        every = torch.ones(len(h), PROMPT, dtype=torch.bool)
        return out + self.state[f"{at}self_attn.adaption_gate"] * self.mix(turned, keys, values, every) @ o.T

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1)

    def matrix(self, stem: str) -> torch.Tensor:
        if f"{stem}.lora_A.default.weight" not in self.state:
            return self.state[f"{stem}.weight"]
        a, b = (self.state[f"{stem}.lora_{side}.default.weight"] for side in "AB")
        if not self.added:
            return self.state[f"{stem}.base_layer.weight"]
        whole = self.state[f"{stem}.base_layer.weight"] + SCALE * b @ a
        lengths = self.state[f"{stem}.lora_magnitude_vector.default.weight"]
        return lengths[:, None] * whole / whole.norm(dim=1, keepdim=True)

    def norm(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.state[weight]

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(len(x))[:, None] * self.theta ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        cos, sin = (torch.cat((t, t), -1)[:, None] for t in (angle.cos(), angle.sin()))
        half = HEAD_DIM // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


@pytest.fixture(scope="module")
def made(tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``made("dora")``, written once. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("relaxed")

    def get(name: str) -> Path:
        kind, change = MADE[name]
        if not (root / name).exists():
            shutil.copytree(tiny_once(kind), root / name)
            change(root / name)
        return root / name

    return get


def wanted(folder: Path, depth: int) -> F32:
    """The logits where the loop ends after ``depth``: its last layer follows."""
    return Plain(folder).logits([*range(1 + 2 * depth), 7])


@pytest.mark.parametrize("name", MADE)
def test_logits(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """At once, cached, and after every depth; what was added changes more than the bound."""
    folder, out = made(name), tmp_path / "bundle"
    opened = Checkpoint.open(folder)
    reading = find_family(opened).read(opened)
    assert not list(problems(reading.program))
    assert unused(opened, reading) == []
    full = wanted(folder, DEPTHS)
    assert np.abs(full - Plain(folder, added=False).logits(list(range(8)))).max() > 1e4 * BOUND
    export_bundle(folder, out, targets=["onnx", "native"], quant="none")
    for engine in ("reference", "onnx", "native"):
        with Session.open(out, engine=engine) as session:
            assert np.abs(session.logits(IDS) - full).max() <= BOUND
            assert np.abs(decoded(session.backend, IDS) - full).max() <= BOUND
            plain = greedy(session, IDS)
        for depth in range(1, reading.program.depths):
            assert np.abs(stopped(out, engine, depth, IDS) - wanted(folder, depth)).max() <= BOUND
        if reading.program.depths > 1:
            with Session.open(out, engine=engine, decode="pipelined") as session:
                assert greedy(session, IDS) == plain


@pytest.mark.parametrize("name", ["dora", "encodings", "prompts"])
@pytest.mark.parametrize("target", ["executorch", "coreml"])
def test_other_targets(made: Callable[[str], Path], tmp_path: Path, target: str, name: str) -> None:
    """In float, after every depth; Core ML's is float16."""
    pytest.importorskip("executorch" if target == "executorch" else "coremltools")
    folder, out = made(name), tmp_path / "bundle"
    export_bundle(folder, out, targets=[target], quant="none")
    engine = "executorch" if target == "executorch" else "coreml-reference"
    for depth in range(1, DEPTHS + 1):
        with Session.open(
            out, engine=engine, exit="never" if depth == DEPTHS else f"depth:{depth}"
        ) as session:
            found = session.logits(IDS)
        if target == "executorch":
            assert np.abs(found - wanted(folder, depth)).max() <= EXECUTORCH
        else:
            assert difference(found, wanted(folder, depth)) <= COREML


def test_each_way_is_an_op(made: Callable[[str], Path]) -> None:
    """DoRA is a row scale of its depth, an encoding a vector of it; prompts are blocks over the same matrices."""
    program = read(made("dora")).program
    deltas = [
        d for weight in program.weights.values() if isinstance(weight, Matrix) for d in weight.deltas.items()
    ]
    assert {part for part, delta in deltas if delta.rescaled} == {module.split(".")[1] for module in DORA}
    (block,) = read(made("encodings")).program.loop.blocks
    assert isinstance(block.ops[-1], Scale)
    program = read(made("prompts")).program
    assert program.loop.schedule == (0, 1, 2)
    plain = read(made("encodings")).program.weights
    added = [name for name in program.weights if name not in plain]
    assert len(added) == 2 * 8  # K and V of each layer that is applied
    assert all(sum(isinstance(op, AttendLearned) for op in b.ops) == 2 for b in program.loop.blocks)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("dora", "DoRA of rank 4 on q, v, o, up"),
        ("encodings", "own encodings"),
        ("encodings-sequence", "own encodings"),
        ("prompts", "own prompts"),
    ],
)
def test_what_is_shown(made: Callable[[str], Path], name: str, own: str) -> None:
    """Layers are counted by their matrices, and what recursions have of their own is named."""
    program = read(made(name)).program
    assert deltas(program) == own
    assert layout(program) == ("1 + 2 of 1×3 + 1" if name.endswith("sequence") else "1 + 2×3 + 1")
    assert stored_layers(program) == 4


def test_lengths_in_the_layout_of_an_older_peft(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("dora"), tmp_path / "old"))

    def rename(state: State) -> None:
        for name in [n for n in state if "magnitude" in n]:
            state[name.removesuffix(".weight")] = state.pop(name)

    edit_weights(folder, rename)
    name = "segments.1.layers.1.up_proj.lora_scale"
    assert torch.equal(read(folder).tensors[name](), read(made("dora")).tensors[name]())
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_dora": True}))
    assert torch.equal(read(folder).tensors[name](), read(made("dora")).tensors[name]())


def test_dora_that_is_the_same_at_every_depth_is_merged(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a layer outside of the loop: its rows have the lengths that are stored."""
    folder = Path(shutil.copytree(made("dora"), tmp_path / "edge"))
    stem = "base_model.model.model.layers.0.mlp.down_proj"

    def change(state: State) -> None:
        state[f"{stem}.base_layer.weight"] = state.pop(f"{stem}.weight")
        state[f"{stem}.lora_A.default.weight"] = torch.randn(4, 96)
        state[f"{stem}.lora_B.default.weight"] = torch.randn(64, 4)
        state[f"{stem}.lora_magnitude_vector.default.weight"] = torch.arange(1.0, 65)

    edit_weights(folder, change)
    merged = read(folder).tensors["segments.0.layers.0.down_proj.weight"]()
    torch.testing.assert_close(merged.norm(dim=1), torch.arange(1.0, 65))


def _drop(part: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        del state[min(name for name in state if part in name)]

    return change


REFUSALS: list[tuple[str, dict[str, Any], Callable[[State], Any] | None, str]] = [
    ("dora", {"relaxation__method": "lora"}, None, "'lora', and the weights have .*; wanted dora"),
    (
        "dora",
        {"relaxation__method": "ia3"},
        None,
        "method is 'ia3'; wanted lora, dora, adaption_prompt, recursion",
    ),
    ("dora", {"relaxation__lora__use": 1}, None, r"relaxation\.lora\.use is not understood"),
    (
        "dora",
        {},
        lambda s: [v.zero_() for n, v in s.items() if "base_layer" in n or "lora_B" in n],
        "one is zero",
    ),
    ("encodings", {}, _drop("recursion_encoding"), r"no tensor model\.layers\.2\.recursion_encoding"),
    ("encodings", {"relaxation__enable": False}, None, r"no tensor model\.layers\.\d\.self_attn"),
    ("prompts", {"relaxation__prompt__len": 6}, None, r"adaption_prompt has shape \[1, 5, 64\]"),
    ("prompts", {"relaxation__prompt": {}}, None, "has no len"),
    ("prompts", {}, _drop("adaption_gate"), r"no tensor model\.layers\.0\.self_attn\.adaption_gate"),
    (
        "prompts",
        {"mor": {"enable": True, "type": "token"}},
        None,
        "adaption_prompt with mor enabled; wanted lora or",
    ),
]


@pytest.mark.parametrize(("name", "keys", "change", "message"), REFUSALS)
def test_refusals(
    made: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    keys: dict[str, Any],
    change: Callable[[State], Any] | None,
    message: str,
) -> None:
    folder = Path(shutil.copytree(made(name), tmp_path / "model"))
    edit(folder / "conf.yaml", **keys)
    if change:
        edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        [load() for load in read(folder).tensors.values()]
    assert "\n" not in str(caught.value)
