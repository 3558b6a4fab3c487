"""The recipe: train the demo model on the tales and write a checkpoint folder.

    python -m edgeloop.apps.demo.train -o apps/demo/checkpoint

    python -m edgeloop.apps.demo.train --routed -o apps/demo/routed_checkpoint

The loss is the mean next-token cross-entropy of **every** depth; that of the routed twin is the cross-entropy
after the depths that its routers chose, and the routers' auxiliary loss. Hidden matrices are trained by Muon,
the rest (embedding, norms, LoRA) by AdamW; bfloat16 arithmetic, fp32 weights, float16 checkpoint.
Takes about half an hour on 2 quiet cores with AVX-512 BF16; uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import DemoConfig, DemoModel
from .routed import RoutedConfig, RoutedModel
from .texts import encode, split_texts, train_tokenizer


def learning_rate_factor(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then linear to zero: with so little text the decay gains more than further epochs."""
    return min((step + 1) / warmup, (steps - step) / (steps - warmup))


def windows(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """``batch`` random windows [B, S + 1] of the token stream."""
    starts = torch.randint(0, len(tokens) - length - 1, (batch,), generator=generator)
    return torch.stack([tokens[s : s + length + 1] for s in starts])


@torch.no_grad()
def validation_loss(model: DemoModel, tokens: Tensor, length: int, limit: int | None = None) -> list[float]:
    """Mean cross-entropy (nats a token) of each read-out, over disjoint windows in order."""
    model.eval()
    device = model.embed_tokens.weight.device
    count = (len(tokens) - 1) // length if limit is None else limit
    total: list[list[float]] = []
    for i in range(count):
        ids = tokens[i * length : (i + 1) * length + 1].to(device)[None]
        total.append([float(x) for x in model.losses(ids[:, :-1], ids[:, 1:])[0]])
    model.train()
    return [float(x) for x in np.mean(total, axis=0)]


def save_checkpoint(model: DemoModel, folder: Path) -> None:
    """config.json and model.safetensors (float16), as any user's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.as_json(), indent=2) + "\n", encoding="utf-8")


def finish(
    model: DemoModel, out: Path, log: list[dict[str, object]], validation: Tensor, length: int
) -> None:
    """Evaluate the best checkpoint, as saved, on all of the validation text; write training.json."""
    model.load_state_dict(load_file(out / "model.safetensors"))
    loss = validation_loss(model, validation, length)
    best = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_tokens": len(validation),
        "validation_loss": [round(x, 4) for x in loss],
        "validation_perplexity": [round(math.exp(x), 2) for x in loss],
    }
    (out / "training.json").write_text(
        json.dumps({"best": best, "log": log}, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(best), flush=True)


def train(
    out: Path, routed: bool, steps: int, batch: int, length: int, dropout: float, seed: int, every: int
) -> None:
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = RoutedConfig() if routed else DemoConfig()
    train_text, valid_text = split_texts()
    tokenizer = train_tokenizer(train_text, config.vocab_size)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    training = torch.from_numpy(encode(tokenizer, train_text))
    validation = torch.from_numpy(encode(tokenizer, valid_text))
    print(f"{len(training)} training tokens, {len(validation)} validation tokens", flush=True)

    model = RoutedModel(config, dropout) if isinstance(config, RoutedConfig) else DemoModel(config, dropout)
    model.to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n.endswith("proj.weight")]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_factor(s, steps)) for o in optimizers
    ]
    generator = torch.Generator().manual_seed(seed)
    best, start = math.inf, time.monotonic()
    log: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        ids = windows(training, batch, length, generator).to(device)
        with torch.autocast(device, torch.bfloat16):
            losses, objective = model.losses(ids[:, :-1], ids[:, 1:])
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if step % every == 0 or step == steps:
            valid = validation_loss(model, validation, length, limit=24)
            row = {
                "step": step,
                "minutes": round((time.monotonic() - start) / 60, 1),
                "training_loss": [round(x.item(), 4) for x in losses],
                "validation_loss": [round(x, 4) for x in valid],
            }
            log.append(row)
            print(json.dumps(row), flush=True)
            if valid[-1] < best:
                best = valid[-1]
                save_checkpoint(model, out)
    finish(model.cpu(), out, log, validation, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--routed", action="store_true", help="train the twin that routes its tokens")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="steps between validations")
    a = parser.parse_args()
    train(a.out, a.routed, a.steps, a.batch, a.length, a.dropout, a.seed, a.every)


if __name__ == "__main__":
    main()
