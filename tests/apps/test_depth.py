"""Depth on the command line: exits, KV policies, calibration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Command = Callable[..., tuple[int, str, str]]
Json = Callable[..., Any]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["loop", "depth", "token", "the", "river", "ran", "a", "goblin"]
    picked = np.random.default_rng(0).choice(words, 1500)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(picked))
    return path


@pytest.fixture(scope="module")
def calibrated(bundle: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeloop.apps.cli import main

    folder = tmp_path_factory.mktemp("calibrated")
    out = folder / "bundle"
    shutil.copytree(bundle, out)
    words = [
        "calibrate",
        out,
        "--text",
        text,
        "--agree",
        "0.6",
        "--max-tokens",
        800,
        "--report",
        folder / "r.html",
    ]
    assert main([*map(str, words), "--rule", "probe", "--rule", "confidence", "--json"]) == 0
    return out


def test_run_lists_the_depths_of_its_tokens(command_json: Json, bundle: Path) -> None:
    found = command_json("run", bundle, "-p", "the river", "-n", 6, "--exit", "depth:1")
    assert found["depths"][1:] == [1] * 5  # the first token comes from the prompt, which runs every depth
    assert (found["exit"], found["missing"], found["kv"]) == ("depth:1", "exact", "per-depth")
    assert found["block_share"] == pytest.approx(1 / max(found["depths"]))
    assert 0 < found["kv_bytes"] < 20 * found["kv_bytes_per_token"]


def test_colour_tells_how_many_ran_what(command: Command, bundle: Path) -> None:
    code, out, err = command("run", bundle, "-p", "the", "-n", 5, "--exit", "depth:1", "--colour")
    assert code == 0
    assert "\x1b" not in out  # not a terminal
    assert "4 ran 1" in err


def test_eval_under_a_rule(command_json: Json, command: Command, bundle: Path, text: Path) -> None:
    words = ("eval", bundle, "--text", text, "--max-tokens", 60)
    plain = command_json(*words)
    found = command_json(*words, "--exit", "never")
    assert found["perplexity"] == pytest.approx(
        plain["perplexity"], rel=0.02
    )  # int8 activations differ by rows
    assert (found["mean_depth"], found["block_share"]) == (plain["mean_depth"], 1.0)
    shallow = command_json(*words, "--exit", "confidence:0", "--missing", "skip")
    assert (shallow["mean_depth"], shallow["tokens"]) == (1.0, 59)
    code, out, _ = command(*words, "--exit", "depth:2", "--missing", "propagate")
    assert code == 0
    assert "missing: propagate" in out


def test_calibrated_rules_need_no_threshold(command_json: Json, calibrated: Path) -> None:
    exits = command_json("show", calibrated)["manifest"]["exits"]
    assert set(exits) == {"probe", "confidence"}
    for rule in exits.values():
        assert rule["agreement"] >= 0.6
        assert rule["goal"] == "agree 0.6"
    for rule in exits:
        found = command_json("run", calibrated, "-p", "the", "-n", 4, "--exit", rule)
        assert len(found["depths"]) == 4
    page = (calibrated.parent / "r.html").read_text()
    assert page.count("<svg") >= 2
    assert "probe" in page


def test_a_calibrated_bundle_is_whole(command: Command, calibrated: Path) -> None:
    code, out, _ = command("show", calibrated)
    assert code == 0
    assert "agree 0.6" in out
    assert not [p for p in calibrated.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "-p", "a", "--exit", "maybe"), "unknown exit rule 'maybe'; known: never, depth:N"),
        (("run", "-p", "a", "--exit", "probe"), "fit them with `edgeloop calibrate`"),
        (("run", "-p", "a", "--kv", "shared"), "export it with --kv shared"),
        (("calibrate", "--text", "-", "--agree", "0.9", "--perplexity", "+1%"), "two goals"),
        (("calibrate", "--text", "-", "--rule", "gate"), "has no exit gate"),
    ],
)
def test_one_line(
    command: Command, bundle: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a text")))
    code, out, err = command(words[0], bundle, *words[1:])
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
