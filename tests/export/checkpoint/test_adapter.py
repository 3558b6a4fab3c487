"""A PEFT LoRA beside its model: the logits are those of the model with the adapter merged into each layer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import edit, edit_weights
from forward import logits
from safetensors.torch import load_file, save_file

from edgeloop.apps.cli import main
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import read_checkpoint, unused
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.session import Session

IDS = torch.tensor([5, 260, 3, 3, 99, 0, 41, 7])
PARTS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.v_proj": (32, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
PAIR = "base_model.model.model.layers.{}.{}.lora_{}.weight"
State = dict[str, torch.Tensor]


def weights_of(folder: Path) -> State:
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))


def adapter_of(
    path: Path, layers: range, ranks: Mapping[int, int] | None = None, name: str = PAIR, **config: Any
) -> State:
    """Write an adapter of rank 4 on ``PARTS`` of ``layers``, as PEFT's save_pretrained does; its tensors."""
    torch.manual_seed(2)
    tensors: State = {}
    for layer in layers:
        rank = (ranks or {}).get(layer, 4)
        for part, (d_out, d_in) in PARTS.items():
            tensors[name.format(layer, part, "A")] = torch.randn(rank, d_in) * 0.1
            tensors[name.format(layer, part, "B")] = torch.randn(d_out, rank) * 0.1
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "base_model_name_or_path": "me/base", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], "bias": "none", "task_type": "CAUSAL_LM",
        "init_lora_weights": True, "fan_in_fan_out": False, "use_dora": False, "modules_to_save": None,
        "inference_mode": True, "peft_version": "0.18.0", "megatron_core": "megatron.core", "qalora_group_size": 16,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(settings | config))
    return tensors


def merge(state: State, tensors: State, scale: Callable[[int, int], float], name: str = PAIR) -> None:
    """W + scale · B · A, as PEFT's merge_and_unload does; ``scale``: (layer, rank) → factor."""
    for layer in range(16):
        for part in PARTS:
            pair = [tensors.get(name.format(layer, part, side)) for side in "AB"]
            if pair[0] is not None and pair[1] is not None:
                key = f"model.layers.{layer}.{part}.weight"
                state[key] = state[key] + scale(layer, len(pair[0])) * pair[1] @ pair[0]


def transformers_logits(folder: Path, state: State) -> torch.Tensor:
    """Of Llama with the layers written out, each with weights of its own."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(folder)).eval()
    model.load_state_dict({k: v.clone() for k, v in state.items()}, strict=False)
    with torch.no_grad():
        found: torch.Tensor = model(IDS[None]).logits[0]
    return found


def with_adapter(folder: Path, adapter: Path) -> Reading:
    checkpoint = Checkpoint.open(folder, adapter)
    reading = read_checkpoint(checkpoint)
    assert unused(checkpoint, reading) == []
    return reading


@pytest.mark.parametrize("kind", ["llama", "mor-cycle", "mor-middle-cycle", "mor-norms", "mor-sequence"])
def test_logits_are_those_of_the_merged_model(tiny: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    folder = tiny(kind)
    tensors = adapter_of(tmp_path / "adapter", range(8))
    layers = len({name.split(".")[2] for name in weights_of(folder) if name.startswith("model.layers.")})
    own = {n: t for n, t in tensors.items() if int(n.split(".")[4]) < layers}
    save_file(own, tmp_path / "adapter" / "adapter_model.safetensors")
    state = weights_of(folder)
    plain = transformers_logits(folder, state)
    merge(state, own, lambda layer, rank: 8 / 4)
    wanted = transformers_logits(folder, state)
    assert (wanted - plain).abs().max() > 0.1
    reading = with_adapter(folder, tmp_path / "adapter")
    assert (logits(reading, IDS) - wanted).abs().max() < 2e-5
    assert [bool(s.lora) for s in spec_of(reading.program).segments] == [
        s.repeats > 1 for s in spec_of(reading.program).segments
    ]


def test_an_export_with_an_adapter(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Through the graphs of ONNX, from the command line."""
    folder = tiny("llama")
    state = weights_of(folder)
    merge(state, adapter_of(tmp_path / "adapter", range(6)), lambda layer, rank: 8 / 4)
    out = tmp_path / "bundle"
    assert (
        main(
            ["export", str(folder), "--adapter", str(tmp_path / "adapter"), "-o", str(out), "--quant", "none"]
        )
        == 0
    )
    with Session.open(out) as session:
        ours = torch.from_numpy(session.logits(IDS.tolist()))
    assert (ours - transformers_logits(folder, state)).abs().max() < 1e-4


VARIANTS: list[tuple[dict[str, Any], range, dict[int, int], Callable[[int, int], float]]] = [
    ({}, range(3, 5), {}, lambda layer, rank: 2.0),  # the second depth only
    ({"use_rslora": True}, range(6), {}, lambda layer, rank: 8 / math.sqrt(rank)),
    ({"rank_pattern": {"layers.1.self_attn.q_proj": 4}}, range(6), {}, lambda layer, rank: 2.0),
    (
        {"rank_pattern": {f"layers.3.{part}": 7 for part in PARTS}},
        range(6),
        {3: 7},
        lambda layer, rank: 8 / rank,
    ),
    (
        {"alpha_pattern": {f"model.layers.2.{part}": 3 for part in PARTS}},
        range(6),
        {},
        lambda layer, rank: (3 if layer == 2 else 8) / rank,
    ),
    ({"init_lora_weights": "gaussian", "exclude_modules": ["lm_head"]}, range(6), {}, lambda layer, rank: 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("config", "layers", "ranks", "scale"), VARIANTS)
def test_settings_of_peft(
    tiny: Callable[[str], Path],
    tmp_path: Path,
    config: dict[str, Any],
    layers: range,
    ranks: dict[int, int],
    scale: Callable[[int, int], float],
) -> None:
    folder = tiny("llama")
    state = weights_of(folder)
    merge(state, adapter_of(tmp_path / "adapter", layers, ranks, **config), scale)
    reading = with_adapter(folder, tmp_path / "adapter")
    assert (logits(reading, IDS) - transformers_logits(folder, state)).abs().max() < 2e-5


@pytest.mark.parametrize("how", ["named", "bin", "wrapped model", "whole"])
def test_ways_to_save_it(tiny: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    folder, adapter = tiny("llama"), tmp_path / "adapter"
    name = PAIR.replace(".weight", ".default.weight") if how == "named" else PAIR
    tensors = adapter_of(adapter, range(6), name=name)
    state = weights_of(folder)
    merge(state, tensors, lambda layer, rank: 2.0, name)
    wanted = transformers_logits(folder, state)
    if how == "bin":
        (adapter / "adapter_model.safetensors").unlink()
        torch.save(tensors, adapter / "adapter_model.bin")
    if how == "wrapped model":
        edit_weights(folder, lambda t: [t.update({f"module._orig_mod.{n}": t.pop(n)}) for n in list(t)])
    if how == "whole":  # the state_dict of PEFT's model, base and adapter in one file
        save_file(
            {f"base_model.model.{n}": t for n, t in weights_of(folder).items()} | tensors,
            folder / "model.safetensors",
        )
        (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    checkpoint = Checkpoint.open(folder, None if how == "whole" else adapter)
    assert (logits(read_checkpoint(checkpoint), IDS) - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("kind", ["ouro", "mobilellm"])
def test_a_layer_that_is_stored_once_has_the_adapter_merged(
    tiny: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """It is the same at every depth, so that nothing differs between them."""
    folder = tiny(kind)
    plain = read_checkpoint(Checkpoint.open(folder))
    tensors = adapter_of(tmp_path / "adapter", range(2))
    if kind == "ouro":  # whose V is as wide as Q
        for layer in range(2):
            tensors[PAIR.format(layer, "self_attn.v_proj", "B")] = torch.randn(64, 4) * 0.1
        save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    reading = with_adapter(folder, tmp_path / "adapter")
    assert reading.program == plain.program
    merged = shutil.copytree(folder, tmp_path / "merged")
    edit_weights(merged, lambda state: merge(state, tensors, lambda layer, rank: 2.0))
    wanted = logits(read_checkpoint(Checkpoint.open(merged)), IDS)
    assert (logits(reading, IDS) - wanted).abs().max() < 2e-5
    assert (logits(plain, IDS) - wanted).abs().max() > 0.1


def _only_config(folder: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def _without_config(folder: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def _more(name: str, shape: tuple[int, ...] = (4, 64)) -> Callable[[Path, Path], None]:
    def add(folder: Path, adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        save_file(load_file(file) | {f"base_model.model.{name}": torch.ones(shape)}, file)

    return add


def _all(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, Path], None]:
    def apply(folder: Path, adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)

    return apply


def _setting(**config: Any) -> Callable[[Path, Path], None]:
    return lambda folder, adapter: edit(adapter / "adapter_config.json", **config)


def _second(folder: Path, adapter: Path) -> None:
    edit_weights(
        folder,
        lambda t: t.update({"model.layers.1.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 64)}),
    )


def _pointer(folder: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


REFUSALS: list[tuple[Callable[[Path, Path], None], str]] = [
    (_only_config, "adapter has no adapter_model.safetensors|is a PEFT adapter"),
    (_without_config, "adapter has no adapter_config.json"),
    (_pointer, "adapter_model.safetensors is a git-lfs pointer"),
    (_second, r"has a LoRA of its own \(model\.layers\.1\.self_attn\.q_proj\.lora_A"),
    (_more("model.embed_tokens.weight", (320, 64)), r"model\.embed_tokens\.weight is no A or B"),
    (_more("model.layers.1.self_attn.q_proj.lora_magnitude_vector.weight"), "magnitude_vector.weight is no A or B"),
    (_more("model.embed_tokens.lora_embedding_A"), "lora_embedding_A is no A or B"),
    (_more("model.layers.9.self_attn.q_proj.lora_A.weight"), r"layers\.9\.self_attn\.q_proj\.lora_A.* changes nothing"),
    (_more("lm_head.lora_A.weight"), r"lm_head\.lora_A\.default\.weight changes nothing that .*llama has"),
    (_more("model.embed_tokens.lora_A.weight"), r"embed_tokens\.lora_A\..* changes model\.embed_tokens\.weight"),
    (_more("model.layers.0.self_attn.k_proj.lora_A.weight"), r"adapter has .*k_proj\.lora_A.* and no .*lora_B"),
    (_more("model.layers.0.self_attn.k_proj.lora_B.weight"), r"adapter has .*k_proj\.lora_B.* and no .*lora_A"),
    (_all(torch.Tensor.double), r"adapter: .*lora_.* is stored as F64"),
    (_all(lambda tensor: tensor / 0), r"adapter: .*lora_.* holds NaN"),
    (_setting(use_dora=True), "use_dora is True"),
    (_setting(modules_to_save=["lm_head"]), "modules_to_save"),
    (_setting(peft_type="IA3"), "peft_type is 'IA3'"),
    (_setting(bias="lora_only"), "bias is 'lora_only'"),
    (_setting(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
    (_setting(layer_replication=[[0, 4], [2, 6]]), "layer_replication"),
    (_setting(a_new_setting=1), "a_new_setting is 1"),
    (_setting(r=8), "rank of .* is 8.*, its weights have 4"),
    (_setting(rank_pattern={r".*\.q_proj": 4}), "rank_pattern has the pattern"),
    (_setting(lora_alpha=0), "lora_alpha is 0"),
    (_setting(lora_alpha=10**400), "lora_alpha is a number of more than 77 digits; wanted a positive"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_adapters_that_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, change: Callable[[Path, Path], None], message: str
) -> None:
    folder, adapter = tiny("llama"), tmp_path / "adapter"
    adapter_of(adapter, range(6))
    change(folder, adapter)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(folder, tmp_path / "bundle", adapter=adapter)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_a_scale_beyond_float32(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A sum that is infinite would be cut off at the largest code, and look like weights."""
    adapter_of(tmp_path / "adapter", range(3), lora_alpha=1e300)
    with pytest.raises(CheckpointError, match="makes values that are infinite or NaN, with a scale of 2.5e"):
        export_bundle(tiny("mobilellm"), tmp_path / "bundle", adapter=tmp_path / "adapter")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("kind", ["ouro", "edgeloop-no-lora", "edgeloop"])
def test_an_adapter_of_another_model(tiny: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    adapter_of(tmp_path / "adapter", range(6))
    with pytest.raises(
        CheckpointError, match="give the model that the adapter was trained on|a LoRA of its own"
    ):
        with_adapter(tiny(kind), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "adapter/adapter_model.safetensors",
            "is a file, not a folder; give the one with adapter_config.json, such as",
        ),
        ("gone", "gone is not a folder; give one with adapter_config.json"),
    ],
)
def test_a_path_that_is_no_adapter(
    tiny: Callable[[str], Path], tmp_path: Path, path: str, message: str
) -> None:
    adapter_of(tmp_path / "adapter", range(6))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tiny("llama"), tmp_path / path)


def test_base_and_adapter_in_one_folder(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is meant is not guessed: the message says how to say so."""
    folder = tiny("llama")
    adapter_of(tmp_path / "adapter", range(6))
    for file in (tmp_path / "adapter").iterdir():
        file.rename(folder / file.name)
    assert main(["show", str(folder)]) == 1
    assert f"--adapter {folder} applies the adapter" in capsys.readouterr().err
    assert main(["show", str(folder), "--adapter", str(folder)]) == 0
    assert "LoRA" in capsys.readouterr().out
