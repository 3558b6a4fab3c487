"""A record of ``edgeloop bench`` that nothing was measured for."""

from __future__ import annotations

from typing import Any

import msgspec

from edgeloop.apps.measure.record import Machine, Measure, Record, Subject


def record(*measures: Measure, **changes: Any) -> Record:
    made = Record(
        mode="speed",
        date="2026-11-27T03:00:00Z",
        edgeloop="0",
        python="3",
        versions={"numpy": "2"},
        machine=Machine("Linux", "a | processor", ("AVX2",), 2, 1, False),
        bundle=Subject("b<i>", "0" * 64, 1000, 10, 3, "int4", 4, 32),
        engine="onnx",
        settings={"tokens": "4"},
        foreign=0.01,
        disturbed=1,
        turns=9,
        measures=measures,
    )
    return msgspec.structs.replace(made, **changes)
