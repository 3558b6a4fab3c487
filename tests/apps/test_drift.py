"""``edgeloop drift`` from end to end."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]
PARITY = Path(__file__).parents[1] / "fixtures" / "parity"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drift") / "some.txt"
    path.write_text("Once upon a time there was a king, who had three daughters. " * 4)
    return path


def test_recipes_of_a_checkpoint_in_one_table(
    checkpoint: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    svg = tmp_path / "drift.svg"
    code, out, err = command("drift", checkpoint, "--text", text, "--quant", "int8,int4", "--svg", svg)
    assert code == 0, err
    rows = out.splitlines()
    assert rows[0].split() == [
        "model", "depths", "error", "95%", "growth", "injected", "carried", "amplified", "bound", "cosine", "KL",
        "flipped",
    ]  # fmt: skip
    assert [" ".join(row[:20].split()) for row in rows if "groups" in row] == [
        "int8 in groups of 32",
        "int4 in groups of 32",
    ]
    assert len(rows) == 1 + 2 * 4
    assert "relative to float" in err
    texts = {each.text for each in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"int8 in groups of 32", "int4 in groups of 32"} <= texts


def test_json_has_every_depth(checkpoint: Path, text: Path, command_json: CommandJson) -> None:
    found = command_json("drift", checkpoint, "--text", text, "--max-tokens", 40, "--context", 16)
    assert (found["against"], found["tokens"], found["window"], found["depths"]) == ("float", 40, 16, 3)
    eight, four = found["models"]
    assert [depth["depth"] for depth in four["depths"]] == [0, 1, 2, 3]
    for less, more in zip(eight["depths"], four["depths"], strict=True):
        assert less["error"] * 4 < more["error"] <= more["bound"]
    for depth in four["depths"][1:]:
        assert depth["kl"] > 0
        assert 0 < depth["injected"] < 1


def test_a_bundle_beside_its_checkpoint(
    bundle: Path, checkpoint: Path, text: Path, command_json: CommandJson
) -> None:
    """On the reference engine a bundle is what its recipe makes of the checkpoint."""
    words = "--text", text, "--max-tokens", 40
    found = command_json("drift", bundle, "--against", checkpoint, "--engine", "reference", *words)["models"]
    (wanted,) = command_json("drift", checkpoint, "--quant", "int4", *words)["models"]
    assert found[0]["name"] == "bundle: int4, reference"
    assert found[0]["depths"] == wanted["depths"]


def test_random_tokens_and_more_depths(command: Command, command_json: CommandJson) -> None:
    words = PARITY / "huginn_tiny", "--quant", "int8", "--random", 8, "--depth", 20
    found = command_json("drift", *words)
    assert (found["depths"], found["trained_depths"]) == (20, 5)
    assert len(found["models"][0]["depths"]) == 21
    code, out, err = command("drift", *words)
    assert code == 0
    shown = [int(row.split()[-11]) for row in out.splitlines()[2:]]
    assert shown == [1, 2, 3, 4, 5, 6, 8, 12, 16, 20]
    assert "int8 in groups of 32: a depth" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("BUNDLE", "--text", "TEXT"), "give --against"),
        (("BUNDLE", "--against", "CKPT", "--quant", "int4", "--text", "TEXT"), "quantized already"),
        (("CKPT", "--against", "BUNDLE", "--text", "TEXT"), "its own float twin"),
        (("CKPT", "BUNDLE", "--text", "TEXT"), "not all of them bundles"),
        (("CKPT", "--quant", "int5", "--text", "TEXT"), "unknown quantization 'int5'"),
        (("CKPT", "--quant", ",", "--text", "TEXT"), "names no recipe"),
        (("CKPT",), "one of the arguments --text --random is required"),
        (("CKPT", "--text", "TEXT", "--random", "3"), "not allowed with"),
        (("CKPT", "--text", "gone.txt"), "gone.txt"),
        (("CKPT", "--text", "TEXT", "--svg", "gone/d.svg"), "make gone first"),
        (("CKPT", "--text", "TEXT", "--svg", "."), "is a folder"),
        (("CKPT", "--text", "TEXT", "--depth", "4"), "no other number"),
        (("HUGINN", "--text", "TEXT"), "give --random N"),
        (("BUNDLE", "--against", "HUGINN", "--text", "TEXT"), "give two exports of one checkpoint"),
        (("nowhere", "--text", "TEXT"), "nowhere"),
    ],
)
def test_what_does_not_go_together(
    words: tuple[str, ...],
    told: str,
    bundle: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    places: dict[str, Path] = {
        "BUNDLE": bundle,
        "CKPT": checkpoint,
        "TEXT": text,
        "HUGINN": PARITY / "huginn_tiny",
    }
    code, out, err = command("drift", *(places.get(word, word) for word in words))
    assert code != 0
    assert out == ""
    complaint = [line for line in err.splitlines() if line.startswith("edgeloop: ") and "WARNING" not in line]
    assert len(complaint) == 1
    assert told in complaint[0]


def test_a_missing_library_is_told_before_anything_is_measured(
    checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = command("drift", checkpoint, "--text", text, "--svg", "d.svg")
    assert code == 1
    assert (
        err == "edgeloop: this needs matplotlib, which is not installed: pip install 'edgeloop[calibrate]'\n"
    )
