"""``edgeloop sensitivity``: a recipe that an export takes, of as many bits as it says; refusals of one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
Json = Callable[..., Any]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "tale.txt"
    path.write_text("There was once a king who had three sons, and the youngest was a fool. " * 2)
    return path


def test_a_recipe_that_an_export_takes(
    checkpoint: Path, text: Path, tmp_path: Path, command: Command, command_json: Json
) -> None:
    out = tmp_path / "mine.toml"
    words = ("sensitivity", checkpoint, "--text", text, "--max-tokens", 40, "--bits", 5, "-o", out)
    found = command_json(*words)
    assert found["recipe"]["name"] == "measured"
    assert 4 < found["bits_per_weight"] <= 5
    report = command_json(
        "export", checkpoint, "-o", tmp_path / "bundle", "--recipe", out, "--calibrate", text
    )
    assert report["quantization"]["scheme"] == "measured"
    shown = command_json("show", tmp_path / "bundle")["storage"]
    weights = sum(kind["weights"] for kind in shown)
    bits = sum(kind["weights"] * kind["bits_per_weight"] for kind in shown) / weights
    assert bits == pytest.approx(found["bits_per_weight"], rel=1e-6)
    for matrix in found["matrices"]:
        assert {len(option["divergence_per_depth"]) for option in matrix["options"]} == {3}
        assert matrix["gets"] in {option["storage"] for option in matrix["options"]}
    assert command(*words)[0] == 2
    code, told, err = command(*words, "--force")
    assert code == 0, err
    assert len(told.splitlines()) >= len(found["matrices"]) + 1
    assert f"--recipe {out}" in told


def test_what_is_refused(
    checkpoint: Path, bundle: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "empty.txt").write_text("")
    out = tmp_path / "mine.toml"
    for words, told in (
        ((checkpoint, "--text", text, "--bits", "4", "--max-tokens", "20"), "the smallest formats take"),
        ((checkpoint, "--text", text, "--bits", "many"), "--bits"),
        ((checkpoint, "--text", text, "--bits", "nan"), "--bits"),
        ((checkpoint, "--text", tmp_path / "empty.txt"), "the text to calibrate with has 0 tokens"),
        ((bundle, "--text", text), ""),
        ((checkpoint, "--text", text, "-o", tmp_path / "no" / "mine.toml"), "no folder"),
    ):
        code, printed, err = command("sensitivity", *words, *(() if "-o" in words else ("-o", out)))
        assert (code != 0, printed) == (True, ""), words
        assert told in err.splitlines()[-1], err
        assert not out.exists()
