"""A ``.bin`` saved by ``torch.save``, checked before it is opened.

Two formats: a zip archive, whose records are mapped as they lie in the file, and the one from before torch 1.6,
pickles and then the storages one after another. Both are compared with what their pickle says (``torch_pickle.py``).
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import CheckpointError
from ...runtime.wording import reason
from .situations import what_file
from .torch_pickle import MAX_BYTES, PickleRefusedError, Storage, read_pickle
from .weight_file import DTYPES

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
LOCAL_MAGIC = b"PK\x03\x04"
LOCAL_HEADER = 30  # bytes, before the name and the extra field
TAIL = struct.Struct("<4s44xQ4s4xQ4x16xIH")
"""The end of an archive: zip64's end of the directory, its locator, and the end of the directory."""
LONG_MAGIC, LOCATOR_MAGIC = b"PK\x06\x06", b"PK\x06\x07"
OTHER_BYTES = "is a zip archive with other bytes around it, no file of torch.save"
REMEDY = "save the state_dict as safetensors"


class TorchFile:
    """A dict of tensors, tied ones sharing their storage."""

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        for name, tensor in _load(path).items():
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
        """Return the shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """Return the stored dtype of a tensor, as safetensors names it."""
        dtype = self._tensors[name].dtype
        return next((short for short, known in DTYPES.items() if known is dtype), str(dtype))

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor in its stored dtype."""
        return self._tensors[name]

    def first_row(self, name: str) -> torch.Tensor:
        """Return the first row of a tensor, or a scalar, in its stored dtype."""
        tensor = self._tensors[name]
        return tensor[:1] if tensor.dim() else tensor

    def storage(self, name: str) -> object:
        """Return what is equal for tensors that share their storage."""
        t = self._tensors[name]
        return (t.data_ptr(), tuple(t.stride()))


def _load(path: Path) -> dict[Any, Any]:
    try:
        if found := what_file(path):
            raise CheckpointError(found)
        zipped = _is_zip(path)
        _check_zip(path) if zipped else _check_legacy(path)
        loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except PickleRefusedError as error:
        raise CheckpointError(f"{path} cannot be opened as plain weights: it {error}; {REMEDY}") from error
    except Exception as error:  # damaged files raise anything
        raise CheckpointError(
            f"{path} cannot be opened as plain weights ({type(error).__name__}: {reason(error)}): it is "
            f"damaged; download it again, or {REMEDY}"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; wanted a state_dict: name → tensor")
    return loaded


def _is_zip(path: Path) -> bool:
    """Return whether it is a zip archive for torch, which looks at the first bytes, not for a directory at the end."""
    with path.open("rb") as file:
        return file.read(4) == LOCAL_MAGIC


def _check_zip(path: Path) -> None:
    """Raise PickleRefusedError unless each record is stored by itself, uncompressed, with the size that the pickle
    says."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if archive.comment or _directory(file, size) != archive.start_dir:
            raise PickleRefusedError(OTHER_BYTES)
        records: dict[str, zipfile.ZipInfo] = {}
        spans: list[tuple[int, int]] = []
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                # Records are mapped, not unpacked: compressed bytes would be read as numbers.
                raise PickleRefusedError(
                    f"is a zip archive whose record {record.filename!r:.80} is compressed, which torch.save does not do"
                )
            _, _, name = record.filename.lower().partition("/")  # torch does not look at the case
            if name in records:
                raise PickleRefusedError(f"has two records {name!r:.80}")
            records[name] = record
            spans.append((record.header_offset, _end(file, record)))
        spans.sort()
        if not spans or spans[0][0]:
            raise PickleRefusedError(OTHER_BYTES)
        if any(stop > start for (_, stop), (start, _) in zip(spans, [*spans[1:], (size, 0)], strict=True)):
            raise PickleRefusedError("has records that overlap or are not wholly there")
        if "data.pkl" not in records:
            raise PickleRefusedError("is a zip archive without data.pkl, no file of torch.save")
        if records["data.pkl"].file_size > MAX_BYTES:
            raise PickleRefusedError(f"has a pickle of more than {MAX_BYTES} bytes")
        _, storages = read_pickle(io.BytesIO(archive.read(records["data.pkl"])))
    for storage in storages.values():
        found = records.get(f"data/{storage.key}")
        _check_size(storage, found.file_size if found else 0)


def _directory(file: io.BufferedReader, size: int) -> int | None:
    """Return the offset of the directory by the archive's last bytes, without a comment; None where they disagree.

    Python looks for it before those bytes, torch where they say: two readers would see two archives.
    """
    file.seek(max(0, size - TAIL.size))
    tail = file.read(TAIL.size)
    if len(tail) < TAIL.size:
        return None
    long_mark, long_start, mark, place, short_start, _ = TAIL.unpack(tail)
    if mark != LOCATOR_MAGIC:
        return int(short_start)
    agree = short_start in (long_start, 0xFFFFFFFF) and place == size - TAIL.size and long_mark == LONG_MAGIC
    return int(long_start) if agree else None


def _end(file: io.BufferedReader, record: zipfile.ZipInfo) -> int:
    """Return where the record's bytes end: they begin behind the names in its own header, not in the directory's."""
    file.seek(record.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != LOCAL_MAGIC or record.file_size != record.compress_size:
        raise PickleRefusedError(f"has a record {record.filename!r:.80} that is not there")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return record.header_offset + LOCAL_HEADER + names + record.file_size


def _check_legacy(path: Path) -> None:
    """Raise PickleRefusedError unless the storages behind the pickles have the sizes that these say."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        stream = io.BytesIO(file.read(MAX_BYTES))
        if read_pickle(stream)[0] != MAGIC:
            raise PickleRefusedError("is no file of torch.save")
        read_pickle(stream)  # the format's version
        read_pickle(stream)  # the computer's byte order
        _, storages = read_pickle(stream)
        keys, _ = read_pickle(stream)
        if not isinstance(keys, list) or set(keys) != set(storages) or len(keys) != len(storages):
            raise PickleRefusedError("lists other storages than its tensors are in")
        at = stream.tell()
        for key in keys:
            file.seek(at)
            items = int.from_bytes(file.read(8), "little", signed=True)
            if items != storages[key].items:
                raise PickleRefusedError(
                    f"says that storage {key!r:.80} has {storages[key].items} numbers, and stores {items}"
                )
            at += 8
            _check_size(storages[key], max(0, min(storages[key].size, size - at)))
            at += storages[key].size


def _check_size(storage: Storage, found: int) -> None:
    if storage.size != found:
        raise PickleRefusedError(
            f"says that storage {storage.key!r:.80} has {storage.size} bytes, and {found} are there"
        )
