"""DoRA as PEFT stores it, for a tiny checkpoint of the Mixture-of-Recursions code."""

from __future__ import annotations

from pathlib import Path

import torch
from editing import edit, edit_weights

DORA = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
SCALE = 2.0


def dora(folder: Path, layers: range = range(1, 7)) -> None:
    """PEFT's LoRA on some matrices of ``layers``, those in the loop, with a length for each row."""

    def change(state: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(4)
        for layer in layers:
            for module in DORA:
                stem = f"model.layers.{layer}.{module}"
                weight = state.pop(f"{stem}.weight")
                rank = 4
                a, b = torch.randn(rank, weight.shape[1]) * 0.1, torch.randn(weight.shape[0], rank) * 0.1
                lengths = (weight + SCALE * b @ a).norm(dim=1) * (0.7 + 0.6 * torch.rand(len(weight)))
                state |= {
                    f"{stem}.base_layer.weight": weight,
                    f"{stem}.lora_A.default.weight": a,
                    f"{stem}.lora_B.default.weight": b,
                    f"{stem}.lora_magnitude_vector.default.weight": lengths,
                }
        for name in list(state):
            state[f"base_model.model.{name}"] = state.pop(name)

    edit_weights(folder, change)
    lora = {"r": 4, "alpha": 8, "alpha_pattern": SCALE, "target_modules": [m.split(".")[1] for m in DORA]}
    edit(folder / "conf.yaml", relaxation={"enable": True, "method": "dora", "lora": lora})
