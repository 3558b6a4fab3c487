"""Each choice of the recipe against its alternatives, at a tenth of the length, as a table.

    python -m edgeloop.apps.demo.ablate -o ablations --jobs 8
    python -m edgeloop.apps.demo.ablate -o ablations --only recipe --only "rank 0"

Variants that are in the folder already are not run again. They run side by side, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .model import DemoConfig
from .objective import Objective
from .recipe import TrainingRecipe
from .report import measure
from .texts import read_tokens
from .train import train

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "weights 1 1 1, no distillation": {"objective": {"weights": (1.0, 1.0, 1.0), "distillation": 0.0}},
    "no distillation": {"objective": {"distillation": 0.0}},
    "weights 0 0 1, no distillation": {"objective": {"weights": (0.0, 0.0, 1.0), "distillation": 0.0}},
    "weights 0 0.2 1": {"objective": {"weights": (0.0, 0.2, 1.0)}},
    "weights 0.3 0.5 1": {"objective": {"weights": (0.3, 0.5, 1.0)}},
    "total variation 0.1": {"objective": {"distillation": 0.1}},
    "total variation 1": {"objective": {"distillation": 1.0}},
    "total variation at temperature 0.5": {"objective": {"temperature": 0.5}},
    "total variation from the start": {"objective": {"turn": (-1.0, 0.0)}},
    "KL": {"objective": {"distance": "kl"}},
    "rank 0": {"config": {"lora_rank": 0}},
    "rank 8": {"config": {"lora_rank": 8}},
    "rank 32": {"config": {"lora_rank": 32}},
    "one set of norms for all depths": {"recipe": {"own_norms": False}},
    "MLP 1408 in the block, 896 around it": {
        "config": {"intermediate_size": 896, "block_intermediate_size": 1408}
    },
    "MLP 1664 in the block, 640 around it": {
        "config": {"intermediate_size": 640, "block_intermediate_size": 1664}
    },
    "block of 1, MLP 1664": {"config": {"block_layers": 1, "intermediate_size": 1664}},
    "block of 3, MLP 832": {"config": {"block_layers": 3, "intermediate_size": 832}},
    "learning rate 0.003": {"recipe": {"rate": 3e-3}},
    "learning rate 0.006": {"recipe": {"rate": 6e-3}},
    "dropout 0.1": {"recipe": {"dropout": 0.1}},
    "dropout 0.2": {"recipe": {"dropout": 0.2}},
    "batch 8": {"recipe": {"batch": 8}},
}
"""Name -> what differs from the recipe."""


def run(name: str, steps: int, device: str, out: Path) -> None:
    """Train one variant and write ``out``/NAME.json."""
    changes = VARIANTS[name]
    config = replace(DemoConfig(), **changes.get("config", {}))
    objective = replace(Objective(), **changes.get("objective", {}))
    recipe = replace(
        TrainingRecipe(steps=steps, objective=objective, every=steps), **changes.get("recipe", {})
    )
    text = read_tokens(config.vocab_size)
    folder = out / "unfinished" / name
    folder.mkdir(parents=True, exist_ok=True)
    model, log = train(config, recipe, text, folder, device, lambda step, row: None)
    found = {"minutes": log[-1]["minutes"], **measure(model, text, recipe.length)}
    (out / f"{name}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def table(out: Path) -> str:
    """The variants that were run, as Markdown."""
    lines = [
        "| | parameters | perplexity after depth 0, 1, 2 | depth 0 ÷ last | drafts, greedy | at 0.8 | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        path = out / f"{name}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        depths = found["validation_perplexity"]
        cells = (
            name,
            f"{found['parameters'] / 1e6:.2f} M",
            " ".join(f"{p:.1f}" for p in depths),
            f"{depths[0] / depths[-1]:.3f}",
            f"{found['drafts_greedy'][0]:.2f}",
            f"{found['drafts_sampled'][0]:.2f}",
            f"{found['minutes']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train every variant that has no result yet, and write the table; exit code 1 when one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--steps", type=int, default=TrainingRecipe.steps // 10)
    parser.add_argument("--jobs", type=int, default=1, help="variants at a time")
    parser.add_argument(
        "--only", action="append", choices=VARIANTS, metavar="NAME", help="this variant; may be repeated"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--one", choices=VARIANTS, help=argparse.SUPPRESS
    )  # what the processes are started with
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.one:
        run(a.one, a.steps, a.device, a.out)
        return
    names = a.only or list(VARIANTS)
    waiting = [name for name in names if not (a.out / f"{name}.json").is_file()]
    running: list[subprocess.Popen[bytes]] = []
    shared = ["--out", str(a.out), "--steps", str(a.steps), "--device", a.device]
    failed = 0
    while waiting or running:
        while waiting and len(running) < a.jobs:
            command = [sys.executable, "-m", __spec__.name, *shared, "--one", waiting.pop(0)]
            running.append(subprocess.Popen(command))
        failed += running.pop(0).wait() != 0
    print(table(a.out), end="", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
