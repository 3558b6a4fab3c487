"""A PEFT LoRA on the fixture of every family: the logits are those of the model with W + s · B A in each matrix.

The sum is made here, on the checkpoint's own tensors. Where layers are written out, so that each has its own adapter,
transformers computes what is wanted; where they are stored once, the merged folder is the model that the family's own
test holds against its authors.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from editing import edit_weights, read
from family_runs import full
from safetensors.torch import save_file

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import read_checkpoint, unused
from edgeloop.export.family import Reading
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.decode.encoding import EncoderText, encode
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.weights import Matrix

State = dict[str, torch.Tensor]
RANK, ALPHA = 3, 6
LINEAR = r".*\.\d+\..*(proj|query|key|value|dense|dense_h_to_4h|dense_4h_to_h|Wqkv|fc|ffn|ffn_output|c_\w+)"
"""The modules of layers that target_modules "all-linear" finds."""
WRITTEN_OUT = {
    "fold_pythia": "GPTNeoXForCausalLM",
    "fold_qwen2": "Qwen2ForCausalLM",
    "fold_gemma1": "GemmaForCausalLM",
    "fold_gemma3": "Gemma3ForCausalLM",
    "fold_olmo2": "Olmo2ForCausalLM",
}
STORED_ONCE = (
    "nanbeige_losswts_qknorm_bias",
    "iquestloopcoder_w5",
    "iquestpltcoder_hgate",
    "huginn_tiny",
    "retrofit_llama32",
    "retrofit_olmo2_skip_adapter",
    "parcae_diag",
    "hrm_text_h1l4_noprefix",
    "albert_tiny",
)


def matrices(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names, without .weight, and shapes of a checkpoint's matrices in its layers."""
    checkpoint = Checkpoint.open(folder)
    for name in sorted(checkpoint.names):
        shape = checkpoint.shape(name)
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and len(shape) == 2 and re.fullmatch(LINEAR, module):
            yield module, shape


def adapter_of(folder: Path, path: Path, **config: object) -> State:
    """Write an adapter on every matrix of the layers of ``folder``, its ``A`` and ``B`` as PEFT names them."""
    torch.manual_seed(4)
    made: State = {}
    for module, (d_out, d_in) in matrices(folder):
        made[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, d_in) / d_in**0.5
        made[f"base_model.model.{module}.lora_B.weight"] = torch.randn(d_out, RANK) * 0.1
    path.mkdir()
    save_file(made, path / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "init_lora_weights": True,
    }
    (path / "adapter_config.json").write_text(json.dumps(settings | config))
    return made


def merge(state: State, adapter: State, scale: Callable[[str], float] = lambda module: ALPHA / RANK) -> None:
    """W + s · B A in every matrix that has an adapter."""
    for name, a in adapter.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = adapter[name.replace("lora_A", "lora_B")]
            state[f"{module}.weight"] = state[f"{module}.weight"] + scale(module) * b @ a


def with_adapter(folder: Path, adapter: Path) -> Reading:
    checkpoint = Checkpoint.open(folder, adapter)
    reading = read_checkpoint(checkpoint)
    assert not [name for name in unused(checkpoint, reading) if "lora" in name]
    return reading


def computed(reading: Reading, path: Path, ids: np.ndarray) -> np.ndarray:
    """What the reference engine computes of a reading: logits [S, V], or an encoder's states [S, D]."""
    write_weights(reading, Recipe.named("none", 32), path)
    engine = reference_engine(reading.program, path, Recipe.named("none", 32))
    if reading.program.encoder:
        return encode(engine, [EncoderText(ids, np.zeros_like(ids))]).states[0]
    return full(engine, ids)


def some_ids(reading: Reading) -> np.ndarray:
    return np.random.default_rng(5).integers(0, reading.program.vocab_size, 14)


def in_transformers(name: str, folder: Path, adapter: State, ids: np.ndarray, **scale: object) -> np.ndarray:
    kind = getattr(transformers, WRITTEN_OUT[name])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    state = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    merge(state, adapter, **scale)  # type: ignore[arg-type]
    model.load_state_dict(state)
    with torch.no_grad():
        return model(torch.from_numpy(ids[None])).logits[0].numpy()


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_layers_that_are_written_out(parity_folder: Path, tmp_path: Path, name: str) -> None:
    """Each depth has a delta of its own, in every part of a matrix, fused or not."""
    folder = parity_folder / name
    adapter = adapter_of(folder, tmp_path / "adapter")
    reading = with_adapter(folder, tmp_path / "adapter")
    deltas = {
        part: delta
        for weight in reading.program.weights.values()
        if isinstance(weight, Matrix)
        for part, delta in weight.deltas.items()
    }
    wanted_parts = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    assert deltas.keys() - {"gate_proj"} == wanted_parts
    assert {delta.rank for delta in deltas.values()} == {RANK}
    ids = some_ids(reading)
    plain = in_transformers(name, folder, {}, ids)
    wanted = in_transformers(name, folder, adapter, ids)
    assert np.abs(wanted - plain).max() > 0.05
    found = computed(reading, tmp_path / "weights.safetensors", ids)
    assert np.abs(found - wanted).max() <= 3e-5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("name", STORED_ONCE)
def test_layers_that_are_stored_once(parity_folder: Path, tmp_path: Path, name: str) -> None:
    """The adapter is merged, and the program is as it was."""
    folder = Path(shutil.copytree(parity_folder / name, tmp_path / "model"))
    adapter = adapter_of(folder, tmp_path / "adapter")
    assert len(adapter) >= 8
    plain, reading = read(folder), with_adapter(folder, tmp_path / "adapter")
    assert reading.program == plain.program
    ids = some_ids(reading)
    before = computed(plain, tmp_path / "plain.safetensors", ids)
    found = computed(reading, tmp_path / "found.safetensors", ids)
    edit_weights(folder, lambda state: merge(state, adapter))
    wanted = computed(read(folder), tmp_path / "merged.safetensors", ids)
    assert np.abs(wanted - before).max() > 0.01
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


def test_settings_of_a_fused_matrix(parity_folder: Path, tmp_path: Path) -> None:
    """rsLoRA, and an alpha and a rank of their own for some modules, in one matrix of q, k and v."""
    folder, fused = parity_folder / "fold_pythia", "attention.query_key_value"
    adapter = adapter_of(
        folder, tmp_path / "adapter", use_rslora=True, alpha_pattern={fused: 4},
        rank_pattern={"gpt_neox.layers.2.attention.query_key_value": 5},
    )  # fmt: skip
    wide = f"base_model.model.gpt_neox.layers.2.{fused}.lora_{{}}.weight"
    adapter[wide.format("A")] = torch.randn(5, adapter[wide.format("A")].shape[1]) * 0.1
    adapter[wide.format("B")] = torch.randn(len(adapter[wide.format("B")]), 5) * 0.1
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")

    def scale(module: str) -> float:
        rank = 5 if module.endswith(f"layers.2.{fused}") else RANK
        return (4 if module.endswith(fused) else ALPHA) / math.sqrt(rank)

    reading = with_adapter(folder, tmp_path / "adapter")
    ids = some_ids(reading)
    wanted = in_transformers("fold_pythia", folder, adapter, ids, scale=scale)
    found = computed(reading, tmp_path / "weights.safetensors", ids)
    assert np.abs(found - wanted).max() <= 3e-5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("name", ["fold_qwen2", "huginn_tiny", "hrm_text_h1l4_noprefix", "albert_tiny"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora is True, which is not supported; wanted plain LoRA"),
        ({"r": 8}, f"rank of .* is 8, its weights have {RANK}"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
    ],
)
def test_refusals(
    parity_folder: Path, tmp_path: Path, name: str, config: dict[str, object], message: str
) -> None:
    adapter_of(parity_folder / name, tmp_path / "adapter", **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        with_adapter(parity_folder / name, tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_adapter_on_what_is_no_layer(parity_folder: Path, tmp_path: Path) -> None:
    """A head that the embedding is cannot change alone."""
    folder = parity_folder / "fold_qwen2"
    made = adapter_of(folder, tmp_path / "adapter")
    head = {"lora_A": (RANK, 48), "lora_B": (64, RANK)}
    made |= {f"base_model.model.lm_head.{side}.weight": torch.ones(shape) for side, shape in head.items()}
    save_file(made, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.lora_A\..* changes nothing that .*fold_qwen2 has"):
        with_adapter(folder, tmp_path / "adapter")
