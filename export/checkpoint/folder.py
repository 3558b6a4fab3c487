"""A checkpoint folder: its configs, and its weights read one tensor at a time.

Files are memory mapped; the memory needed is that of the largest tensor, not of the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import CheckpointError
from .adapter import ADAPTER_CONFIG, Adapter, open_adapter
from .hub_cache import find_model, is_repository, not_there, snapshot
from .situations import strange_companion, what_folder, what_path
from .weight_file import DTYPES, WeightFile
from .weight_files import read_json, read_yaml, weight_files

WRAPPERS = frozenset(
    ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "base_layer"]
)
"""Parts of a tensor's name that torch.compile, FSDP, activation checkpointing, DDP and PEFT put around a module."""

PEFT_PREFIX = "base_model.model."
_PIECE = 1 << 20
"""Numbers that are read at a time."""
_UNNAMED = re.compile(r"(\.lora_[AB])\.weight$")  # as PEFT saves an adapter; in a whole model it has a name


class Checkpoint:
    """A checkpoint folder, opened. Build it with ``open``.

    ``config`` is config.json; ``training_config`` conf.yaml and ``adapter_config`` adapter_config.json, or
    None where the folder has none; ``names`` are the tensors that the weight files hold, without what wrappers add
    to their names. With an adapter, its config and its tensors are there as if the model had been saved with it;
    ``adapter_names`` are those.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        training_config: dict[str, Any] | None,
        adapter_config: dict[str, Any] | None,
        files: Mapping[str, WeightFile],
        adapter: Adapter | None = None,
    ) -> None:
        self.folder = folder
        self.adapter_folder = adapter.folder if adapter else folder
        self.config = config
        self.training_config = training_config
        self.adapter_config = adapter.config if adapter else adapter_config
        self._stored = _plain_names(files, folder)
        self._files = {name: files[stored] for name, stored in self._stored.items()}
        self.adapter_names: frozenset[str] = frozenset()
        if adapter:
            self._add(adapter)
        self.names = frozenset(self._stored)
        self._hashes: dict[str, bytes] = {}
        self._samples: dict[str, bytes] = {}

    @classmethod
    def open(cls, given: Path, adapter: Path | None = None) -> Checkpoint:
        """Read the configs and the headers of the weight files; CheckpointError where one is missing or damaged.

        ``given`` is a folder, or the name of a model in the Hugging Face cache; ``adapter`` likewise, of a PEFT LoRA
        that was trained on it.
        """
        folder = locate(Path(given))
        try:
            if not (folder / "config.json").is_file():
                raise CheckpointError(
                    what_folder(folder, "has no config.json; give the folder that save_pretrained wrote")
                )
            if line := strange_companion(folder):
                raise CheckpointError(line)
            return cls(
                folder,
                read_json(folder / "config.json"),
                read_yaml(folder / "conf.yaml") if (folder / "conf.yaml").is_file() else None,
                read_json(folder / ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).is_file() else None,
                dict(weight_files(folder)),
                open_adapter(locate(Path(adapter), ADAPTER_CONFIG)) if adapter is not None else None,
            )
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the file's header; CheckpointError if it is missing."""
        file, stored = self._file(name)
        return file.shape(stored)

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Check presence, shape and dtype from the headers alone; CheckpointError names the tensor."""
        found = self.shape(name)
        if found != shape and name in self.adapter_names:
            raise CheckpointError(
                f"{self._home(name)}: {name} has shape {list(found)}, and {self.folder} needs {list(shape)}; "
                "give the model that the adapter was trained on"
            )
        if found != shape:
            raise CheckpointError(
                f"{self.folder}: {name} has shape {list(found)}, but config.json says {list(shape)}; "
                "config.json and weights do not belong together"
            )
        self._dtype(name)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return the tensor, a contiguous float32 copy of its own.

        CheckpointError if it is missing, of another shape than ``shape``, of an unsupported dtype, or has
        values that are not finite.
        """
        if shape is not None:
            self.require(name, shape)
        self._dtype(name)
        file, stored = self._file(name)
        return self._floats(name, file.read(stored))

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Yield the rows of the tensor, which has some, in their order: each piece as ``tensor`` gives it whole, 4 MB
        or a row."""
        self.require(name, shape)
        file, stored = self._file(name)
        for piece in file.read(stored).split(max(1, _PIECE // max(1, math.prod(shape[1:])))):
            yield self._floats(name, piece)

    def _floats(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        # A copy, so that nobody writes through to a tied tensor or to the mapped file.
        tensor = stored.to(torch.float32, copy=True).contiguous()
        if tensor.numel():
            low, high = torch.aminmax(tensor)
            if not bool(torch.isfinite(low) and torch.isfinite(high)):
                raise CheckpointError(
                    f"{self._home(name)}: {name} holds NaN or infinite values; export a checkpoint from before "
                    "training diverged"
                )
        return tensor

    def same(self, a: str, b: str) -> bool:
        """Return whether two tensors hold the same weights: one storage, or equal shape, dtype and bytes.

        CheckpointError if one is missing, or of a dtype that is not read.
        """
        if a == b:
            return True
        (left, x), (right, y) = self._file(a), self._file(b)
        if left.shape(x) != right.shape(y) or left.dtype(x) != right.dtype(y):
            return False
        self._dtype(a)
        if left is right and left.storage(x) == right.storage(y):
            return True
        # The first row tells most different tensors apart without reading the rest.
        return self._sample(a) == self._sample(b) and self._hash(a) == self._hash(b)

    def first_same(self, names: Sequence[str]) -> list[int]:
        """Return for each name the index in ``names`` of the first one with the same weights; errors as in ``same``."""
        alike: dict[object, list[int]] = {}  # most that differ are in lists of their own: no pair is compared
        first: list[int] = []
        for place, name in enumerate(names):
            file, stored = self._file(name)
            self._dtype(name)
            earlier = alike.setdefault((file.shape(stored), file.dtype(stored), self._sample(name)), [])
            found = next((p for p in earlier if self.same(names[p], name)), place)
            if found == place:
                earlier.append(place)
            first.append(found)
        return first

    def _add(self, adapter: Adapter) -> None:
        """Add the adapter's tensors to the model's own."""
        stored = _plain_names(adapter.files, adapter.folder)
        if own := min((name for name in self._stored if ".lora_" in name), default=None):
            raise CheckpointError(
                f"{self.folder} has a LoRA of its own ({own}), and {adapter.folder} would be a second one; merge one "
                "of them into the model"
            )
        self._stored |= stored
        self._files |= {name: adapter.files[there] for name, there in stored.items()}
        self.adapter_names = frozenset(stored)

    def _home(self, name: str) -> Path:
        """Return the folder that a tensor comes from."""
        return self.adapter_folder if name in self.adapter_names else self.folder

    def _file(self, name: str) -> tuple[WeightFile, str]:
        """Return the file that has a tensor, and the tensor's name there."""
        try:
            stored = self._stored[name]
        except KeyError:
            raise CheckpointError(
                f"{self.folder} has no tensor {name}; the checkpoint is incomplete"
            ) from None
        return self._files[name], stored

    def _dtype(self, name: str) -> torch.dtype:
        file, stored = self._file(name)
        found = file.dtype(stored)
        if found not in DTYPES:
            raise CheckpointError(
                f"{self._home(name)}: {name} is stored as {found}; fp32, fp16 and bf16 are read: export the "
                "checkpoint from before it was quantized"
            )
        return DTYPES[found]

    def _hash(self, name: str) -> bytes:
        if name not in self._hashes:
            file, stored = self._file(name)
            self._hashes[name] = _digest(file.read(stored))
        return self._hashes[name]

    def _sample(self, name: str) -> bytes:
        if name not in self._samples:
            file, stored = self._file(name)
            self._samples[name] = _digest(file.first_row(stored))
        return self._samples[name]


def locate(given: Path, config: str = "config.json") -> Path:
    """Return the folder that ``given`` means: itself, or a snapshot in the Hugging Face cache.

    CheckpointError says what ``given`` is if it is neither; ``config`` is the file by which to know the folder.
    """
    try:
        str(given).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(given).decode("utf-8", "backslashreplace")
        raise CheckpointError(f"the name {shown} is not UTF-8; rename the folder") from None
    try:
        if given.is_dir():
            return snapshot(given) if is_repository(given) else given
        if not given.exists() and not given.is_symlink():
            if cached := find_model(str(given)):
                return cached
            if line := not_there(str(given)):
                raise CheckpointError(line)
        raise CheckpointError(what_path(given, config))
    except OSError as error:
        raise CheckpointError(f"{str(given)[:200]} cannot be read: {error.strerror}") from error


def _plain_names(files: Mapping[str, WeightFile], folder: Path) -> dict[str, str]:
    """Return for each tensor's name without wrappers its name in the file; CheckpointError where two become one."""
    plain: dict[str, str] = {}
    for stored in sorted(files):
        name = ".".join(part for part in stored.split(".") if part not in WRAPPERS)
        name = _UNNAMED.sub(r"\1.default.weight", name.removeprefix(PEFT_PREFIX))
        if (other := plain.setdefault(name, stored)) != stored:
            raise CheckpointError(
                f"{folder}: {other} and {stored} are both {name} without the names of wrappers; save the state_dict of "
                "the model that is inside of them"
            )
    return plain


def _digest(tensor: torch.Tensor) -> bytes:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=16).digest()
