"""What `show` says of a checkpoint and of the bundle made from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]


def test_a_checkpoint(checkpoint: Path, command: Command, command_json: CommandJson) -> None:
    found = command_json("show", checkpoint)
    stored = load_file(checkpoint / "model.safetensors")
    assert found["kind"] == "checkpoint"
    assert found["family"] == "edgeloop"
    assert found["layout"] == "1 + 2×3 + 1"
    assert (found["layers"], found["applied_layers"], found["depths"]) == (4, 8, 3)
    assert found["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert found["delta_parameters"] == sum(t.numel() for name, t in stored.items() if ".lora_" in name)
    assert found["kv_bytes_per_token"] == 8 * 2 * 2 * 16 * 4
    assert found["unused"] == []
    assert found["loop_said_by"] == "config.json: num_recursions"
    code, out, err = command("show", checkpoint)
    assert (code, err) == (0, "")
    assert "loop found in" in out
    assert "1 + 2×3 + 1: 4 stored, 8 applied, 3 depths" in out
    assert "LoRA of rank 4 on q, k, v, o; own norms" in out
    assert "act (silu), add, attend (causal), embed, linear, mul, norm (rms), rotate" in out


def test_unused_tensors_are_named(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {f"extra.{i:02}[x].weight": torch.zeros(2) for i in range(12)}
    save_file({**tensors, **extra}, tmp_path / "model.safetensors")
    code, out, _ = command("show", tmp_path)
    assert code == 0
    assert "extra.00[x].weight, extra.01[x].weight" in out
    assert "and 2 more" in out


def test_a_bundle(checkpoint: Path, bundle: Path, command: Command, command_json: CommandJson) -> None:
    source, found = command_json("show", checkpoint), command_json("show", bundle)
    assert found["kind"] == "bundle"
    for key in (
        "family",
        "layout",
        "segments",
        "parameters",
        "unrolled_parameters",
        "kv_bytes_per_token",
        "loop_said_by",
    ):
        assert found[key] == source[key]
    on_disk = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    assert found["bytes"] == on_disk - (bundle / "manifest.json").stat().st_size
    (kind,) = found["storage"]
    assert kind["storage"] == "4 bits in groups of 32"
    assert found["bits_per_weight"] == kind["bits_per_weight"] == 4.5
    # int4 in groups of 32 is 4.5 bits; LoRA, which is merged where every layer is stored, is float16.
    matrices = found["unrolled_parameters"] - found["parameters"]
    assert found["unrolled_bytes_estimated"] == round(
        found["bytes"] + matrices * 4.5 / 8 - 2 * found["delta_parameters"]
    )
    code, out, err = command("show", bundle)
    assert (code, err) == (0, "")
    assert "int4, groups of 32" in out
    assert "config.json: num_recursions" in out


def test_what_is_neither(tmp_path: Path, command: Command) -> None:
    code, out, err = command("show", tmp_path)
    assert (code, out) == (1, "")
    assert "config.json" in err


def test_a_core_ml_package(
    checkpoint: Path, tmp_path: Path, command: Command, command_json: CommandJson
) -> None:
    out = tmp_path / "bundle"
    assert command("export", checkpoint, "-o", out, "--target", "coreml")[0] == 0
    package = command_json("show", out)["manifest"]["targets"]["coreml"]["details"]
    assert package["functions"]["embed"] == "cpuOnly"
    code, text, _ = command("show", out)
    assert code == 0
    for name in (*package["functions"], *package["states"]):
        assert name in text
    assert "6 × 2 × 96 × 16" in text  # 2 layers at each of 3 depths
