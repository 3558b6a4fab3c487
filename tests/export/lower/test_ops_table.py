"""docs/ops.md says of each target what its code says."""

from __future__ import annotations

from typing import get_args

import pytest

pytest.importorskip("coremltools")
pytest.importorskip("executorch")
import ops_table

from edgeloop.export.lower.onnx import LOWERINGS
from edgeloop.runtime.model.ops import Embed, Op


def test_the_table_in_the_docs_is_what_the_code_says() -> None:
    _, found, _ = ops_table.parts(ops_table.PAGE.read_text(encoding="utf-8"), ops_table.__file__)
    assert found == ops_table.table(), f"docs/ops.md is not what the targets say: {ops_table.COMMAND}"


def test_a_row_for_each_op_and_kind_of_attention() -> None:
    lines = ops_table.table().splitlines()
    assert len(lines) == 2 + len(get_args(Op)) + len(ops_table.VARIANTS)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1  # no reason breaks the table


def test_an_op_that_is_refused_from_now_on_changes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Embed in LOWERINGS
    before = ops_table.table().splitlines()
    refused = {**ops_table.REFUSED, "onnx": {Embed: "it is not wanted"}}
    monkeypatch.setattr(ops_table, "REFUSED", refused)
    after = ops_table.table().splitlines()
    changed = [
        row for row, old in zip(after, before, strict=True) if row != old and row.startswith("| `embed`")
    ]
    assert len(changed) == 1
    assert "no: it is not wanted" in changed[0]
