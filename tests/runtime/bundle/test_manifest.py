"""Numbers of a manifest are checked where they are read: one line names the field."""

from __future__ import annotations

import json

import msgspec
import pytest

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import FORMAT, read_manifest
from edgeloop.runtime.engines.table import open_backend
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.version import VERSION

RULE = {
    "thresholds": [0.5, 0.5],
    "missing": "exact",
    "goal": "+1%",
    "tokens": 10,
    "perplexity": 2.0,
    "full_perplexity": 2.0,
    "agreement": 0.9,
    "mean_depth": 2.0,
}


@pytest.fixture
def changed(maker, tmp_path):
    """``changed("program/vocab_size", 0)``: the folder of a bundle whose manifest says that."""
    folder = maker.bundle(tmp_path / "bundle", maker.program())
    path = folder / "manifest.json"

    def change(place, value):
        manifest = json.loads(path.read_text())
        manifest["exits"] = {"probe": dict(RULE)}
        *way, last = place.split("/")
        inner = manifest
        for key in way:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
        path.write_text(json.dumps(manifest))
        return folder

    return change


def test_the_rule_itself_is_right(changed):
    assert read_manifest(changed("exits/probe/tokens", 1)).exits["probe"].thresholds == (0.5, 0.5)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("program/context_length", 10**12, "context_length is 1000000000000, wanted 1 to"),
        ("program/eos_token_ids", [-1], "eos_token_ids is -1"),
        ("program/loop/blocks/0/ops/4/heads", 3, "block op 4 (attend, 0.mixed): heads are 3, no multiple"),
        ("program/loop/schedule", [], "the number of depths in loop.schedule is 0"),
        (
            "program/routing",
            {"kind": "expert", "squash": "sigmoid", "alpha": 0.1, "capacity": [1.0]},
            "routing.capacity has 1 shares, wanted one for each of 3 depths",
        ),
        ("quantization/bits", 0, "quantization.bits is 0"),
        ("quantization/bits", 5, "quantization.bits is 5, wanted one of 4, 8, 16, 32"),
        ("quantization/group_size", -32, "quantization.group_size is -32"),
        ("quantization/deltas", 4, "quantization.deltas is 4, wanted one of 8, 16, 32"),
        ("parameters", 0, "parameters is 0, wanted 1 to"),
        ("unrolled_parameters", -1, "unrolled_parameters is -1"),
        ("files/onnx\\weights", {"bytes": -1, "sha256": "0" * 64}, "].bytes is -1"),
        (
            "files/x",
            {"bytes": 1, "sha256": "xyz"},
            "files['x'].sha256 is 'xyz', wanted 64 hexadecimal digits",
        ),
        (
            "targets/onnx/details",
            {"target": "coreml", "path": "onnx", "functions": {}, "states": {}, "chunk": 1, "capacity": 1},
            "targets.onnx.details are those of target coreml",
        ),
        (
            "targets/onnx/details",
            {"target": "abacus"},
            "Invalid value 'abacus' - at `$.targets[...].details.target`",
        ),
        (
            "targets/coreml",
            {
                "graphs": {"model": "m"},
                "weights": "w",
                "parity": {"per_depth": [], "logits": 0, "shipped": 0},
            },
            "targets.coreml has no details, wanted those of target coreml",
        ),
        (
            "targets/executorch-flat",
            {
                "graphs": {},
                "weights": "w",
                "parity": {"per_depth": [], "logits": 0, "shipped": 0},
                "details": {"target": "executorch-flat", "constants": {}, "rows": 0},
            },
            "targets.executorch-flat.details.rows is 0, wanted 1 to",
        ),
        ("targets/onnx/graphs", {"prologue": "onnx/prologue.onnx"}, "targets.onnx.graphs has no block"),
        ("targets", {}, "targets are none, wanted one at least"),
        ("targets/onnx/parity/logits", -1.0, "targets.onnx.parity is -1.0"),
        ("exits/probe/thresholds", [0.5], "exits.probe.thresholds are 1, wanted 2"),
        ("exits/probe/thresholds", [0.5, 1e31], "exits.probe.thresholds is 1e+31"),
        ("exits/probe/full_perplexity", 0, "exits.probe.full_perplexity is 0.0"),
        ("exits/probe/agreement", 2, "exits.probe.agreement is 2.0"),
        ("exits/probe/mean_depth", 4, "exits.probe.mean_depth is 4.0"),
    ],
)
def test_a_number_that_cannot_be_meant_is_named(changed, place, value, told):
    with pytest.raises(BundleError) as caught:
        read_manifest(changed(place, value))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("9.1.0", f" (made by edgeloop 9.1.0, this is {VERSION}); export the checkpoint again"),
        (VERSION, "`$.program.prologue.ops[0].op`; export the checkpoint again"),
        ("9\n1", "`$.program.prologue.ops[0].op`; export the checkpoint again"),
    ],
)
def test_an_op_of_another_version(changed, version, told):
    folder = changed("program/prologue/ops/0/op", "invert")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"edgeloop": version}))
    with pytest.raises(BundleError, match="Invalid value 'invert'") as caught:
        read_manifest(folder)
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"format": ' + "[" * 200_000,
        f'{{"format": {FORMAT}, "program": ' + "[" * 200_000,
        f'{{"format": {FORMAT}}}',
        f'{{"format": {FORMAT}}} {{}}',
        '{"format": 1e999}',
        '"text"',
        "\xff",
        "",
    ],
)
def test_what_is_no_manifest_is_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_sizes_that_the_weights_do_not_have(maker, tmp_path):
    """A program in which all fits, for weights of a terabyte: refused before anything is made of that size."""
    folder = maker.bundle(tmp_path / "bundle", maker.program())
    path = folder / "manifest.json"
    huge = maker.program(
        hidden_size=1 << 18, heads=1 << 14, kv_heads=1 << 14, head_dim=16, vocab_size=1 << 20
    )
    manifest = json.loads(path.read_text()) | {"program": msgspec.to_builtins(huge)}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has shape .*, wanted .*262144.*; export the checkpoint again"):
        open_backend("reference", Bundle.open(folder))
