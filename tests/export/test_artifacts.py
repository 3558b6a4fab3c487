"""Several targets in one export: their order, and what is said when one of them fails."""

from __future__ import annotations

from typing import Any

import pytest

from edgeloop.export.artifacts import make_artifacts
from edgeloop.export.targets import LAYOUTS
from edgeloop.runtime.bundle import manifest
from edgeloop.runtime.errors import ExportError, ParityError

WRITTEN = manifest.Target({}, "weights", manifest.Parity((), 0.0, 0.0))


class Fake:
    """A target that says when it ran, and may fail."""

    def __init__(self, name: str, ran: list[str], error: Exception | None = None) -> None:
        self.name, self.ran, self.error = name, ran, error

    def check(self, program: object, recipe: object) -> None: ...

    def export(self, job: Any) -> manifest.Target:
        self.ran.append(self.name)
        if self.error:
            raise self.error
        return WRITTEN


def made(failing: dict[str, Exception], *pairs: tuple[str, str]) -> tuple[list[str], list[str]]:
    ran: list[str] = []
    names = {pair: pair[0] + ("-flat" if pair[1] == "flat" else "") for pair in pairs}
    targets = {pair: Fake(name, ran, failing.get(name)) for pair, name in names.items()}
    return list(make_artifacts(targets, lambda target: None)), ran  # type: ignore[arg-type, return-value]


STAGED, FLAT = ("executorch", "staged"), ("executorch", "flat")


def test_the_quickest_runs_first() -> None:
    """And the bundle has them as they were asked for."""
    found, ran = made({}, STAGED, FLAT, ("coreml", "staged"), ("onnx", "staged"), ("native", "staged"))
    assert ran == ["native", "onnx", "coreml", "executorch-flat", "executorch"]
    assert found == ["executorch", "executorch-flat", "coreml", "onnx", "native"]
    assert {
        f"{name}-flat" if layout == "flat" else name for layout, names in LAYOUTS.items() for name in names
    } == set(ran)


def test_what_succeeded_is_told() -> None:
    failing = {"executorch": ParityError("it disagrees, report it")}
    told = (
        "it disagrees, report it; onnx and executorch-flat succeeded: to keep that, export with --target onnx "
        "--layout staged, and again with --target executorch --layout flat"
    )
    with pytest.raises(ParityError) as caught:
        made(failing, STAGED, FLAT, ("onnx", "staged"))
    assert str(caught.value) == told


def test_a_first_one_that_fails() -> None:
    with pytest.raises(ExportError) as caught:
        made({"onnx": ExportError("no")}, STAGED, ("onnx", "staged"))
    assert str(caught.value) == "no"
