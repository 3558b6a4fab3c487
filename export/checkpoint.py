"""A checkpoint folder: its configs, and its weights read one tensor at a time.

Files are memory mapped; the memory needed is that of the largest tensor, not of the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import CheckpointError
from .weight_files import DTYPES, WeightFile, read_json, read_yaml, weight_files


class Checkpoint:
    """A checkpoint folder, opened. Build it with ``open``.

    ``config`` is config.json; ``training_config`` conf.yaml and ``adapter_config`` adapter_config.json, or
    None where the folder has none; ``names`` are the tensors that the weight files hold.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        training_config: dict[str, Any] | None,
        adapter_config: dict[str, Any] | None,
        files: Mapping[str, WeightFile],
    ) -> None:
        self.folder = folder
        self.config = config
        self.training_config = training_config
        self.adapter_config = adapter_config
        self.names = frozenset(files)
        self._files = files
        self._hashes: dict[str, bytes] = {}
        self._samples: dict[str, bytes] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the configs and the headers of the weight files; CheckpointError where one is missing or damaged."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give a checkpoint folder with a config.json")
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json; give the folder that save_pretrained wrote")
        return cls(
            folder,
            read_json(folder / "config.json"),
            read_yaml(folder / "conf.yaml") if (folder / "conf.yaml").is_file() else None,
            read_json(folder / "adapter_config.json") if (folder / "adapter_config.json").is_file() else None,
            dict(weight_files(folder)),
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the file's header; CheckpointError if it is missing."""
        return self._file(name).shape(name)

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Check presence, shape and dtype from the headers alone; CheckpointError names the tensor."""
        found = self.shape(name)
        if found != shape:
            raise CheckpointError(
                f"{self.folder}: {name} has shape {list(found)}, but config.json asks for {list(shape)}; "
                "config.json and weights do not belong together"
            )
        self._dtype(name)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The tensor, a contiguous float32 copy of its own.

        CheckpointError if it is missing, of another shape than ``shape``, of an unsupported dtype, or has
        values that are not finite.
        """
        if shape is not None:
            self.require(name, shape)
        self._dtype(name)
        # A copy, so that nobody writes through to a tied tensor or to the mapped file.
        tensor = self._file(name).read(name).to(torch.float32, copy=True).contiguous()
        if tensor.numel():
            low, high = torch.aminmax(tensor)
            if not bool(torch.isfinite(low) and torch.isfinite(high)):
                raise CheckpointError(
                    f"{self.folder}: {name} holds NaN or infinite values; export a checkpoint from before "
                    "training diverged"
                )
        return tensor

    def same(self, a: str, b: str) -> bool:
        """Do two tensors hold the same weights: one storage, or equal shape, dtype and bytes?

        CheckpointError if one is missing, or of a dtype that is not read.
        """
        if a == b:
            return True
        left, right = self._file(a), self._file(b)
        if left.shape(a) != right.shape(b) or left.dtype(a) != right.dtype(b):
            return False
        self._dtype(a)
        if left is right and left.storage(a) == right.storage(b):
            return True
        # The first row tells most different tensors apart without reading the rest.
        return self._sample(a) == self._sample(b) and self._hash(a) == self._hash(b)

    def _file(self, name: str) -> WeightFile:
        try:
            return self._files[name]
        except KeyError:
            raise CheckpointError(
                f"{self.folder} has no tensor {name}; the checkpoint is incomplete"
            ) from None

    def _dtype(self, name: str) -> torch.dtype:
        found = self._file(name).dtype(name)
        if found not in DTYPES:
            raise CheckpointError(
                f"{self.folder}: {name} is stored as {found}; fp32, fp16 and bf16 are read: export the "
                "checkpoint from before it was quantized"
            )
        return DTYPES[found]

    def _hash(self, name: str) -> bytes:
        if name not in self._hashes:
            self._hashes[name] = _digest(self._file(name).read(name))
        return self._hashes[name]

    def _sample(self, name: str) -> bytes:
        if name not in self._samples:
            self._samples[name] = _digest(self._file(name).first_row(name))
        return self._samples[name]


def _digest(tensor: torch.Tensor) -> bytes:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=16).digest()
