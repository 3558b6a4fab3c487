"""A training run that can be killed at any moment: what it needs to go on, in one safetensors file.

What is random at a step depends on the seed and the step alone (``seeded``), so the file holds no state of a random
generator: weights, the optimizers' averages, the number of steps done and the log. It is written beside the old one and
renamed over it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

NAME = "unfinished.safetensors"

Log = list[dict[str, Any]]


def seeded(seed: int, step: int) -> torch.Generator:
    """Seed torch for a step, whose dropout draws from it, and return the generator of the step's windows."""
    torch.manual_seed((seed << 32) + 2 * step)
    return torch.Generator().manual_seed((seed << 32) + 2 * step + 1)


def save(
    folder: Path,
    recipe: str,
    step: int,
    log: Log,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Replace the folder's unfinished run. ``recipe`` says what it may be continued with."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": torch.as_tensor(t) for name, t in state.items()}
    about = {"recipe": recipe, "step": str(step), "log": json.dumps(log)}
    partial = folder / f".{NAME}"
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, about)
    os.replace(partial, folder / NAME)


def load(
    folder: Path, recipe: str, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, Log]:
    """(steps done, log) of the folder's unfinished run, put into model and optimizers; (0, []) where there is none.

    ValueError for a run of another recipe.
    """
    path = folder / NAME
    if not path.is_file():
        return 0, []
    with safe_open(path, "pt") as file:
        about = file.metadata()
        if about["recipe"] != recipe:
            raise ValueError(
                f"{path} is of another recipe ({about['recipe']}; wanted {recipe}): continue with its options, or "
                "remove it"
            )
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for number, optimizer in enumerate(optimizers):
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer" and rest.startswith(f"{number}."):
                _, index, entry = rest.split(".")
                found.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": found})
    return int(about["step"]), json.loads(about["log"])


def finish(folder: Path) -> None:
    """The run is done: nothing is left to continue."""
    (folder / NAME).unlink(missing_ok=True)
