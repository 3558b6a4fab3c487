"""The files of a checkpoint folder: weights (safetensors or .bin, whole or sharded) and text configs.

Nothing in them is trusted: sizes come from the files that are really there, names stay in the folder, and a
``.bin``, which is a pickle, is opened only with ``weights_only=True``, so that no code in it is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from safetensors import SafetensorError, safe_open

from ..runtime.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
MAX_TEXT_BYTES = 64 << 20  # a config or shard index; the largest in the wild are a few MB


class WeightFile(Protocol):
    """One file of weights; tensors are in their stored dtype and may be views of the mapped file."""

    names: frozenset[str]

    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def read(self, name: str) -> torch.Tensor: ...
    def first_row(self, name: str) -> torch.Tensor: ...
    def storage(self, name: str) -> object: ...


class SafetensorsFile:
    """A ``.safetensors`` file. Names that were dropped as ties (``save_model`` notes them) are kept as aliases."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # A file whose header and size disagree is refused here, before any tensor is touched.
            self._file: Any = safe_open(path, framework="pt")
            stored = frozenset(self._file.keys())  # type: ignore[no-untyped-call]
            notes: dict[str, str] = self._file.metadata() or {}  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({_first_line(error)}); copy or download it again"
            ) from error
        self._alias = {a: b for a, b in notes.items() if a not in stored and b in stored}
        self.names = stored | self._alias.keys()

    def _slice(self, name: str) -> Any:
        return self._file.get_slice(self._alias.get(name, name))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return str(self._slice(name).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self._alias.get(name, name))
        return tensor

    def first_row(self, name: str) -> torch.Tensor:
        row: torch.Tensor = self._slice(name)[:1] if self.shape(name) else self.read(name)
        return row

    def storage(self, name: str) -> object:
        return (self._path, self._alias.get(name, name))


class TorchFile:
    """A ``.bin`` saved by ``torch.save``: a dict of tensors, tied ones sharing their storage."""

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        for name, tensor in _load_bin(path).items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    f"{path}: entry {name!r} is a {type(tensor).__name__}, not a named tensor; "
                    "save the model's state_dict() alone"
                )
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
                raise CheckpointError(f"{path}: {name} is not a dense tensor; save it as fp32, fp16 or bf16")
            # A stride of 0 lets a few bytes claim to be any size.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise CheckpointError(
                    f"{path}: {name} claims shape {list(tensor.shape)} but holds fewer bytes; save it contiguous"
                )
            self._tensors[name] = tensor.detach()
        self.names = frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        dtype = self._tensors[name].dtype
        return next((short for short, known in DTYPES.items() if known is dtype), str(dtype))

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def first_row(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor[:1] if tensor.dim() else tensor

    def storage(self, name: str) -> object:
        t = self._tensors[name]
        return (t.data_ptr(), tuple(t.stride()))


def weight_files(folder: Path) -> Iterator[tuple[str, WeightFile]]:
    """(tensor name, file) of every tensor; safetensors before .bin, a whole file before shards."""
    for whole in WEIGHT_FILES:
        kind = SafetensorsFile if whole.endswith(".safetensors") else TorchFile
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            file = kind(folder / whole)
            yield from ((name, file) for name in file.names)
            return
        if index.is_file():
            shards = _shard_names(index)
            opened = {shard: kind(folder / shard) for shard in sorted(set(shards.values()))}
            for name, shard in shards.items():
                if name not in opened[shard].names:
                    raise CheckpointError(
                        f"{folder / shard} has no tensor {name}, though {index.name} places it there; "
                        "download the checkpoint again"
                    )
                yield name, opened[shard]
            return
    raise CheckpointError(
        f"{folder} has no weights: wanted model.safetensors or pytorch_model.bin, whole or with its .index.json"
    )


def _shard_names(index: Path) -> dict[str, str]:
    """tensor name → shard file name, each a plain name of a file in the folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; download it again")
    for shard in {str(value) for value in shards.values()}:
        # An index is data from elsewhere: it may not point out of the checkpoint's own folder.
        if any(c in shard for c in "/\\:\0") or shard in ("", ".", ".."):
            raise CheckpointError(f"{index} names the file {shard!r}; wanted a plain file name in the folder")
        if not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index.parent} lacks {shard}, which {index.name} names; download it again"
            )
    return {str(name): str(shard) for name, shard in shards.items()}


def _load_bin(path: Path) -> dict[Any, Any]:
    loaded: object = None
    for mmap in (True, False):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            break
        except Exception as error:  # damaged pickles raise anything
            if mmap and "mmap" in str(error):  # the format before torch 1.6 cannot be mapped
                continue
            raise CheckpointError(
                f"{path} cannot be opened as plain weights ({type(error).__name__}): it is damaged, or holds "
                "code that weights_only refuses; save the state_dict as safetensors"
            ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; wanted a state_dict: name → tensor")
    return loaded


def read_text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; no config is larger than {MAX_TEXT_BYTES}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text ({_first_line(error)})") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; wanted an object")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid YAML ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a YAML {type(value).__name__}; wanted a mapping")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
