"""What targets declare of themselves is what the command line and the pipeline take, whoever made the target."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeloop.apps import export as verb
from edgeloop.export import targets
from edgeloop.export.options import ExportRequest, Options, option
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.target import Target
from edgeloop.export.targets import declared_options, read_options
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.errors import ExportError, UsageError


@dataclass(frozen=True)
class Woven(Options):
    """Of a target that nobody knows."""

    threads_per_row: int = option(3, "target onnx: how closely it is woven")
    dyed: bool = option(False, "target onnx: in a colour")
    colour: str = option("red", "target onnx: in which")

    def check(self, request: ExportRequest) -> None:
        if self.dyed and request.quant == "none":
            raise UsageError("floats take no dye")

    def recipe(self, asked: Recipe) -> Recipe:
        return Recipe.named("int8", 64) if self.dyed else asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """A target with options of its own in the table, which keeps what it is opened with and writes nothing."""
    found: list[Options] = []

    class Refusing:
        name = "onnx"

        def check(self, program: object, recipe: Recipe) -> None:
            raise ExportError(f"the loom is broken, in {recipe.name}")

    def load(options: Options) -> Target:
        found.append(options)
        return Refusing()  # type: ignore[return-value]

    entry = replace(targets.TARGETS["onnx"], load=load, options=Woven)
    monkeypatch.setitem(targets.TARGETS, "onnx", entry)
    return found


def test_an_option_of_a_new_target_is_a_flag(asked: list[Options]) -> None:
    parser = argparse.ArgumentParser()
    verb.arguments(parser)
    usual = parser.parse_args(["checkpoint", "-o", "bundle"])
    assert (usual.threads_per_row, usual.dyed, usual.colour) == (3, False, "red")
    words = ["--threads-per-row", "5", "--dyed", "--colour", "blue"]
    given = parser.parse_args(["checkpoint", "-o", "bundle", *words])
    assert (given.threads_per_row, given.dyed, given.colour) == (5, True, "blue")
    assert "how closely it is woven" in parser.format_help()


def test_it_reaches_its_target_unseen(asked: list[Options], checkpoint: object, tmp_path: Path) -> None:
    source = checkpoint("ouro")  # type: ignore[operator]
    for given, wanted, recipe in (
        ({}, Woven(), "int4"),
        ({"dyed": True, "colour": "blue"}, Woven(3, True, "blue"), "int8"),
    ):
        with pytest.raises(ExportError, match=f"the loom is broken, in {recipe}"):
            export_bundle(source, tmp_path / "bundle", options=given)
        assert asked.pop() == wanted
    with pytest.raises(UsageError, match="floats take no dye"):
        export_bundle(source, tmp_path / "bundle", quant="none", options={"dyed": True})
    assert not asked


def test_a_name_has_one_target() -> None:
    names = [each.name for each in declared_options()]
    assert names == ["split_weights", "coreml_ane"]
    assert [each.flag for each in declared_options()] == ["--split-weights", "--coreml-ane"]
    # What a target is not told it has of itself.
    found = read_options({}, ExportRequest(("onnx",), ("staged",), "int4"))
    assert all(options == type(options)() for options in found.values())
