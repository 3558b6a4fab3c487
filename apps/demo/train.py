"""The recipe: train the demo model on the tales and the dialogues, and write a checkpoint folder.

    python -m edgeloop.apps.demo.train -o my-checkpoint
    python -m edgeloop.apps.demo.train -o my-routed-checkpoint --routed

Hidden matrices are trained by Muon, the rest (embedding, norms, LoRA) by AdamW; bfloat16 arithmetic, fp32 weights,
float16 checkpoint. What is minimized: ``objective.py``; for the routed twin the cross-entropy after the depths that
its routers chose, and the routers' auxiliary loss. Killed at any moment, the same command goes on where it was and
ends with the same weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import state
from .model import DemoConfig, DemoModel, PerDepthNorm
from .recipe import TrainingRecipe, Watch, validation_loss
from .routed import RoutedConfig, RoutedModel
from .texts import Tokens, read_tokens


def learning_rate_factor(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then linear to zero: with so little text the decay gains more than further epochs."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def windows(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """``batch`` random windows [B, S + 1] of the token stream."""
    starts = torch.randint(0, len(tokens) - length - 1, (batch, 1), generator=generator)
    return tokens[(starts + torch.arange(length + 1)).to(tokens.device)]


def save_checkpoint(model: DemoModel, folder: Path) -> None:
    """config.json and model.safetensors (float16), as any user's checkpoint."""
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.as_json(), indent=2) + "\n", encoding="utf-8")


def optimizers_of(model: DemoModel, recipe: TrainingRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the projections, AdamW for all else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n.endswith("proj.weight")]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(
    config: DemoConfig,
    recipe: TrainingRecipe,
    text: Tokens,
    out: Path,
    device: str,
    watch: Watch,
) -> tuple[DemoModel, state.Log]:
    """Train from where ``out`` was left; the model and the log. ``watch`` is called at every step."""
    torch.manual_seed(recipe.seed)
    kind = RoutedModel if isinstance(config, RoutedConfig) else DemoModel
    model = kind(config, recipe.dropout, recipe.objective).to(device)  # type: ignore[arg-type]
    if not recipe.own_norms:
        for norm in (m for m in model.modules() if isinstance(m, PerDepthNorm)):
            norm.weight.register_hook(lambda gradient: gradient.mean(0, keepdim=True).expand_as(gradient))
    optimizers = optimizers_of(model, recipe)
    name = recipe.name(config, device)
    done, log = state.load(out, name, model, optimizers)
    training = text.training.to(device)
    began = time.monotonic() - (60 * log[-1]["minutes"] if log else 0.0)
    for step in range(done, recipe.steps):
        generator = state.seeded(recipe.seed, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * learning_rate_factor(step, recipe.steps)
        ids = windows(training, recipe.batch, recipe.length, generator)
        with torch.autocast(device, torch.bfloat16):
            losses, objective = model.losses(ids[:, :-1], ids[:, 1:], step / recipe.steps)
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        row = None
        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            valid = validation_loss(model, text.validation, recipe.length, limit=24)
            row = {
                "step": step + 1,
                "minutes": round((time.monotonic() - began) / 60, 2),
                "training_loss": [round(x.item(), 4) for x in losses],
                "validation_loss": [round(x, 4) for x in valid],
            }
            log.append(row)
            state.save(out, name, step + 1, log, model, optimizers)
        watch(step + 1, row)
    return model, log


def main() -> None:
    """Train the recipe, or go on where an earlier run stopped, and write checkpoint, tokens and report."""
    from .report import report
    from .show import progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--routed", action="store_true", help="train the twin that routes its tokens")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, help="windows a step")
    parser.add_argument("--seed", type=int, default=TrainingRecipe.seed)
    parser.add_argument("--every", type=int, help="steps between what is kept and validated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    given = {name: getattr(a, name) for name in ("steps", "batch", "every") if getattr(a, name) is not None}
    recipe = replace(TrainingRecipe(), seed=a.seed, **given)
    a.out.mkdir(parents=True, exist_ok=True)
    text = read_tokens(DemoConfig.vocab_size)
    with progress(recipe.steps) as watch:
        config = RoutedConfig() if a.routed else DemoConfig()
        model, log = train(config, recipe, text, a.out, a.device, watch)
    save_checkpoint(model, a.out)
    text.save(a.out)
    print(json.dumps(report(model, recipe, text, a.out, log)), flush=True)
    state.finish(a.out)


if __name__ == "__main__":
    main()
