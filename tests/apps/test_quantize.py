"""``edgeloop quantize``: what it makes is what ``export --calibrate`` makes, also when it was killed on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import edit_weights, louder
from safetensors.numpy import load_file, save_file
from tiny import looped_layer

from edgeloop.export import loop_gptq
from edgeloop.runtime.bundle.folder import Bundle

Command = Callable[..., tuple[int, str, str]]
Json = Callable[..., Any]


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looped_layer(tmp_path_factory.mktemp("quantize") / "looped", max_position_embeddings=32)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tale.txt"
    path.write_text("Once upon a time there was a king who had a daughter. " * 8)
    return path


def stored(bundle: Path) -> dict[str, np.ndarray]:
    opened = Bundle.open(bundle)
    return load_file(opened.path(opened.manifest.targets["onnx"].weights))


def test_the_codes_are_those_of_export_calibrate(
    looped: Path, text: Path, tmp_path: Path, command: Command, command_json: Json
) -> None:
    codes, one, other = tmp_path / "codes", tmp_path / "one", tmp_path / "other"
    words = ("--quant", "int4-mixed", "--group-size", 64)
    found = command_json("quantize", looped, "--text", text, *words, "-o", codes)
    assert (found["recipe"], found["matrices"], found["resumed"]) == ("int4-mixed", 5, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes"]
    command_json("export", looped, "--calibrate", text, *words, "-o", one)
    command_json("export", looped, "--codes", codes, "-o", other)
    wanted, got = stored(one), stored(other)
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    manifests = [Bundle.open(bundle).manifest.quantization for bundle in (one, other)]
    assert manifests[0] == manifests[1]
    code, out, _ = command("quantize", looped, "--text", text, *words, "-o", codes, "--force", "--tokens", 50)
    assert code == 0
    assert "50 tokens" in out


def test_what_was_trained_is_in_every_target(tmp_path: Path, command: Command, command_json: Json) -> None:
    """Codes, scales, norms and deltas, bit for bit; and ``export --refine`` trains the same."""
    looped = looped_layer(tmp_path / "looped", max_position_embeddings=32)
    edit_weights(looped, louder)
    text, codes = tmp_path / "tale.txt", tmp_path / "codes"
    text.write_text("Once upon a time there was a king who had a daughter. " * 40)
    words = ("--quant", "int4-mixed", "--group-size", 64, "--refine", 8)
    found = command_json("quantize", looped, "--text", text, *words, "-o", codes)
    assert found["steps"] == 8
    assert sum(found["divergence_after"]) < sum(found["divergence_before"])
    command_json("export", looped, "--codes", codes, "-o", tmp_path / "one", "--target", "onnx,native")
    wanted, got = load_file(codes / "codes.safetensors"), stored(tmp_path / "one")
    assert wanted.keys() == got.keys()
    fitted = tmp_path / "fitted"
    command_json("quantize", looped, "--text", text, *words[:4], "-o", fitted)
    command_json("export", looped, "--codes", fitted, "-o", tmp_path / "untrained")
    untrained = stored(tmp_path / "untrained")
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
        assert name.endswith(".codes") or not np.array_equal(untrained[name], array), name
    command_json("export", looped, "--calibrate", text, *words, "-o", tmp_path / "other")
    again = stored(tmp_path / "other")
    for name, array in got.items():
        np.testing.assert_array_equal(again[name], array)
    code, _, err = command("export", looped, "--refine", 8, "-o", tmp_path / "bundle")
    assert code == 2
    assert "training needs a text: give --calibrate with --refine" in err
    about = json.loads((codes / "codes.json").read_text())
    (norm, digest), *_ = about["floats"].items()
    for floats, line in (
        ({norm: digest}, "is of another model"),
        ({**about["floats"], norm: "0" * 64}, "has changed since"),
    ):
        (codes / "codes.json").write_text(json.dumps({**about, "floats": floats}))
        code, _, err = command("export", looped, "--codes", codes, "-o", tmp_path / "bundle")
        assert code == 1, err
        assert line in err


def test_a_run_that_was_ended_goes_on(
    looped: Path,
    text: Path,
    tmp_path: Path,
    command: Command,
    command_json: Json,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command_json("quantize", looped, "--text", text, "-o", tmp_path / "whole")
    words, partial = (
        ("quantize", looped, "--text", text, "-o", tmp_path / "codes"),
        tmp_path / "codes.partial",
    )
    fitted, left = loop_gptq.gptq, 2

    def some(*given: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return fitted(*given)

    monkeypatch.setattr(loop_gptq, "gptq", some)
    assert command(*words)[0] == 130
    assert not (tmp_path / "codes").exists()
    (kept,) = partial.iterdir()
    assert len(list(kept.iterdir())) == 2
    (kept / "half.safetensors.new").write_bytes(b"half")
    max(kept.glob("*.safetensors")).write_bytes(b"damaged")
    left = 4  # of five: what is finished is not fitted again
    assert command_json(*words)["resumed"] == 1
    assert not partial.exists()
    for name in ("codes.safetensors", "codes.json"):
        assert (tmp_path / "codes" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_another_run_left_is_not_taken(
    looped: Path, text: Path, tmp_path: Path, command: Command, command_json: Json
) -> None:
    stale = tmp_path / "codes.partial" / ("0" * 64)
    stale.mkdir(parents=True)
    (stale / "x.safetensors").write_bytes(b"")
    assert command_json("quantize", looped, "--text", text, "-o", tmp_path / "codes")["resumed"] == 0
    (tmp_path / "more.partial" / "mine").mkdir(parents=True)
    code, out, err = command("quantize", looped, "--text", text, "-o", tmp_path / "more")
    assert (code, out) == (2, "")
    assert "more.partial holds what quantize has not put there" in err


def test_what_is_refused(
    looped: Path, text: Path, tmp_path: Path, command: Command, command_json: Json
) -> None:
    codes = tmp_path / "codes"
    command_json("quantize", looped, "--text", text, "-o", codes)
    empty = tmp_path / "empty.txt"
    empty.write_text("")

    def refused(*words: object) -> str:
        code, out, err = command(*words)
        lines = [line for line in err.splitlines() if line.startswith("edgeloop: ")]
        assert (code in (1, 2), out, len(lines)) == (True, "", 1), err
        return lines[0]

    assert "exists" in refused("quantize", looped, "--text", text, "-o", codes)
    assert "holds no codes" in refused("quantize", looped, "--text", text, "-o", tmp_path, "--force")
    assert "floats alone" in refused(
        "quantize", looped, "--text", text, "-o", tmp_path / "c", "--quant", "none"
    )
    assert "has 0 tokens" in refused("quantize", looped, "--text", empty, "-o", tmp_path / "c")
    export = ("export", looped, "-o", tmp_path / "bundle", "--codes")
    assert "leave --quant" in refused(*export, codes, "--quant", "int8")
    assert "edgeloop quantize" in refused(*export, tmp_path / "none")
    about = json.loads((codes / "codes.json").read_text())
    for change, line in (
        ({"format": 7}, "is of format 7"),
        ({"more": 1}, "is no folder of codes"),
        ({"recipe": {**about["recipe"], "rules": []}}, "its recipe is none"),
        ({"matrices": {"embed": about["matrices"]["embed"]}}, "is of another model"),
        ({"matrices": {**about["matrices"], "embed": "0" * 64}}, "embed has changed since"),
    ):
        (codes / "codes.json").write_text(json.dumps({**about, **change}))
        assert line in refused(*export, codes)
    (codes / "codes.json").write_text(json.dumps(about))
    other = tmp_path / "trained on"
    shutil.copytree(looped, other)
    weights = load_file(other / "model.safetensors")
    weights["block.0.down_proj.weight"] = weights["block.0.down_proj.weight"] + np.float32(1e-3)
    save_file(weights, other / "model.safetensors")
    line = refused("export", other, "-o", tmp_path / "bundle", "--codes", codes)
    assert "down_proj has changed since" in line
    (codes / "codes.safetensors").write_bytes(b"")
    assert "is damaged" in refused(*export, codes)
    assert not (tmp_path / "bundle").exists()
