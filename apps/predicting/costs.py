"""What the lane engine makes of a processor: a few numbers, fitted by tests/prediction_table.py, and their error."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

FILE = Path(__file__).with_name("lane_engine.toml")


class Fitted(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Numbers of the model (docs/predict.md). Operations are those that a profile's rates count.

    ``read``: the share of a profile's read rate that is reached. ``unpack4``, ``unpack8``: operations of int8 for each
    stored number of a matrix, whatever rows there are; ``row``: for each product of a row; ``scale``: for each scale
    and row, and once more. ``float_row``: of a float matrix, and ``number`` (what norms and the like write), of float.
    ``attention``: of float for each product of a row, and ``key`` once for all rows. ``overlap``: how much of the
    shorter of reading and computing is added to the longer. ``wait_us``: µs of a meeting of all threads.
    """

    read: float
    unpack4: float
    unpack8: float
    row: float
    scale: float
    float_row: float
    attention: float
    key: float
    number: float
    overlap: float
    wait_us: float

    def unpack(self, bits: int) -> float:
        """Operations for each number of ``bits`` bits."""
        return self.unpack4 if bits == 4 else self.unpack8


class Error(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far predictions were from what was measured, on points that nothing was fitted to."""

    points: int
    median: float
    worst: float
    machine: str
    date: str


class Published(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Predicted over published speeds of other engines on some devices: from ``least`` to ``most``."""

    points: int
    devices: int
    least: float
    most: float


class Costs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    fitted: Fitted
    error: Error | None = None
    published: Published | None = None


@cache
def lane_engine() -> Costs:
    """Return what is in the file."""
    return msgspec.toml.decode(FILE.read_bytes(), type=Costs)


def text(costs: Costs) -> str:
    """Return the file's text."""
    lines = ["# Written by tests/prediction_table.py, which says what each number is fitted to."]
    for section, found in msgspec.structs.asdict(costs).items():
        if found is None:
            continue
        lines.append(f"[{section}]")
        for name, value in msgspec.structs.asdict(found).items():
            shown = msgspec.json.encode(value).decode() if isinstance(value, str) else f"{value:.4g}"
            lines.append(f"{name} = {shown}")
        lines.append("")
    return "\n".join(lines)
