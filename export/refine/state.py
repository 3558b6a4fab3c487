"""Training that was ended and goes on: the numbers that it is about, and Adam's, in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

EVERY = 60.0
"""Seconds between what is kept."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class State:
    """A file with all that a step changes; it gets its name when it is whole and on the disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._saved = path, time.monotonic()
        self.resumed = 0
        """The steps that an earlier run had done."""

    def load(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Set ``parameters`` and the optimizer to what was kept; return the number of steps that it is from.

        0, and nothing is changed, where nothing was kept, or the file is damaged, which then goes.
        """
        if not self._path.exists():
            return 0
        try:
            with safe_open(self._path, "pt") as file:
                steps = int(file.metadata()["steps"])
                kept = {name: file.get_tensor(name) for name in list(file.keys())}
            found = [[kept[f"{n}.{what}"] for what in ("value", *_MOMENTS)] for n in range(len(parameters))]
            if any(one.shape != p.shape for p, each in zip(parameters, found, strict=True) for one in each):
                raise ValueError("of another model")
        except (SafetensorError, KeyError, ValueError, TypeError):
            self._path.unlink()
            return 0
        for parameter, (value, *moments) in zip(parameters, found, strict=True):
            with torch.no_grad():
                parameter.copy_(value)
            optimizer.state[parameter] = {
                what: moment.to(parameter.device) for what, moment in zip(_MOMENTS, moments, strict=True)
            }
            optimizer.state[parameter]["step"] = torch.tensor(float(steps))
        self.resumed = steps
        return steps

    def save(self, steps: int, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Keep what there is after so many steps, if it is time to."""
        if time.monotonic() - self._saved < EVERY:
            return
        kept = {}
        for n, parameter in enumerate(parameters):
            kept[f"{n}.value"] = parameter.detach().contiguous()
            for what in _MOMENTS:
                kept[f"{n}.{what}"] = optimizer.state[parameter][what].contiguous()
        fresh = self._path.with_name(f"{self._path.name}.new")
        save_file(kept, fresh, metadata={"steps": str(steps)})
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._saved = time.monotonic()
