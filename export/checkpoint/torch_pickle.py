"""Reads the pickle in a ``.bin`` before torch does.

``torch.load(weights_only=True)`` runs no code, but it allocates what the pickle asks for: ``bytearray(10**10)`` is 10
GB. A state_dict needs a dozen opcodes and a handful of names; anything else is refused by its name. What is left is
unpickled with stand-ins that allocate nothing, which gives the storages: torch then gets only a file whose claims fit
the bytes that it has.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 8 << 20  # of pickle: 50,000 tensors
OPCODES = frozenset(
    [
        "PROTO",
        "GLOBAL",
        "REDUCE",
        "BUILD",
        "BINPERSID",
        "MARK",
        "STOP",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "SETITEM",
        "SETITEMS",
        "APPEND",
        "APPENDS",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "BINUNICODE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
    ]
)
ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "UntypedStorage": 1,
}
DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64")
"""Dtypes without a storage class of their own; they are read only so that they can be named."""


class PickleRefusedError(Exception):
    """The pickle holds something that a state_dict does not need; the message follows "it"."""


@dataclass(frozen=True)
class Storage:
    """Bytes that the pickle refers to, by their key in the file."""

    key: str
    items: int
    item_bytes: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.items * self.item_bytes


class StateDict(dict[Any, Any]):
    """Stands in for collections.OrderedDict, whose attributes (``_metadata``) are not needed."""

    def __init__(self, *pairs: Any) -> None:
        # With entries, one list could be copied any number of times; torch.save writes none.
        if pairs:
            raise PickleRefusedError("builds an OrderedDict from a list, which torch.save does not")
        super().__init__()


def _parts(*parts: Any) -> tuple[Any, ...]:
    """Stands in for a tensor: returns its parts."""
    return parts


GLOBALS: dict[tuple[str, str], Callable[..., Any] | int | str] = {
    ("collections", "OrderedDict"): StateDict,
    ("torch._utils", "_rebuild_tensor"): _parts,
    ("torch._utils", "_rebuild_tensor_v2"): _parts,
    ("torch._utils", "_rebuild_tensor_v3"): _parts,
    ("torch._utils", "_rebuild_parameter"): _parts,
    ("torch.storage", "UntypedStorage"): 1,
    **{("torch", name): size for name, size in ITEM_BYTES.items()},
    **{("torch", name): name for name in DTYPES},
}
"""What a pickled state_dict may name, and what stands in for it."""


def read_pickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Return the next pickle of the stream as plain data, and the storages that it refers to.

    PickleRefusedError for an opcode or a name that a state_dict does not need, and for a damaged pickle.
    """
    start = stream.tell()
    _check_opcodes(stream)
    end = stream.tell()
    stream.seek(start)
    reader = _Unpickler(io.BytesIO(stream.read(end - start)))
    try:
        value = reader.load()
    except PickleRefusedError:
        raise
    except Exception as error:  # damaged pickles raise anything
        raise PickleRefusedError(f"is damaged ({type(error).__name__})") from error
    return value, reader.storages


def _check_opcodes(stream: io.BytesIO) -> None:
    count = 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream), 1):
            if opcode.name not in OPCODES:
                raise PickleRefusedError(f"has the pickle operation {opcode.name}, which no state_dict needs")
            # The memo is a list: one far index would make it as long as that.
            if opcode.name == "LONG_BINPUT" and not 0 <= int(str(argument)) <= count:
                raise PickleRefusedError(f"remembers entry {argument} of {count}")
    except PickleRefusedError:
        raise
    except Exception as error:  # damaged pickles raise anything
        raise PickleRefusedError(f"is damaged ({type(error).__name__})") from error


class _Unpickler(pickle.Unpickler):
    """Unpickles with stand-ins, and collects the storages."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name; PickleRefusedError for one that a state_dict does not need."""
        try:
            return GLOBALS[module, name]
        except KeyError:
            raise PickleRefusedError(f"names {module}.{name}, which no state_dict needs") from None

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that ``pid`` describes; PickleRefusedError when it is none, or contradicts an earlier
        one."""
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise PickleRefusedError(f"refers to {pid!r:.80}, which is no storage")
        _, item_bytes, key, _, items, *view = pid
        if not isinstance(item_bytes, int) or not isinstance(key, str) or view not in ([], [None]):
            raise PickleRefusedError(f"refers to a storage {key!r:.80} that is not understood")
        if isinstance(items, bool) or not isinstance(items, int) or items < 0:
            raise PickleRefusedError(f"says that storage {key!r:.80} has {items!r:.80} numbers")
        storage = Storage(key, items, item_bytes)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleRefusedError(f"says two sizes of storage {key!r:.80}")
        return storage
