"""``edgeloop bench --ops``: operators by depth and layer, and a trace in the trace-event format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trace_events import check_trace

from edgeloop.apps.measure.calls import StageCall
from edgeloop.apps.measure.folded import Folded
from edgeloop.apps.measure.operators import Operator, layers_of
from edgeloop.runtime.engines.table import ENGINES

Command = Callable[..., tuple[int, str, str]]
NO_ENGINE = ENGINES["native"].unavailable_reason()
FLAGS = ("-p", 8, "-n", 3)


def test_onnx(bundle: Path, tmp_path: Path, command_json: Callable[..., Any]) -> None:
    """1 + 2 × 3 + 1 layers: an attention operator for each that is applied, and a head."""
    trace = tmp_path / "trace.json"
    found = command_json("bench", bundle, "--engine", "onnx", "--ops", trace, *FLAGS)
    assert list(found["stages"]) == ["prologue", *(f"block, depth {n}" for n in (1, 2, 3)), "epilogue"]
    counts = {one["kind"]: one["count"] for one in found["operators"]}
    assert counts["GroupQueryAttention"] == 8
    ms = [one["ms"] for one in found["operators"]]
    assert ms == sorted(ms, reverse=True)
    layers = {(one["stage"], one["layer"]) for one in found["layers"]}
    assert layers == {("prologue", "layer 1"), ("epilogue", "layer 1")} | {
        (f"block, depth {depth}", f"layer {layer}") for depth in (1, 2, 3) for layer in (1, 2)
    }
    for measure in found["record"]["measures"]:
        assert measure["value"]["count"] == 3  # of three tokens
    assert set(found["between"]) == set(found["stages"])
    events = check_trace(json.loads(trace.read_text(encoding="utf-8")))
    stages = [event for event in events if event["cat"] == "stage"]
    assert [event["args"]["tokens"] for event in stages] == [8] * 5 + [1] * 15
    attention = [event for event in events if event["name"] == "GroupQueryAttention"]
    assert len(attention) == 8 * 4
    assert {event["args"]["layer"] for event in attention if event["args"]["stage"] == "block, depth 2"} == {
        1,
        2,
    }


@pytest.mark.skipif(bool(NO_ENGINE), reason=NO_ENGINE)
@pytest.mark.parametrize("threads", [1, 2])
def test_native(bundle: Path, tmp_path: Path, command_json: Callable[..., Any], threads: int) -> None:
    """The engine's own counters: as many attentions as layers that are applied, as many matrices as they have."""
    trace = tmp_path / "trace.json"
    words = ("bench", bundle, "--engine", "native", "--threads", threads, "--ops", trace, *FLAGS)
    found = command_json(*words)
    counts = {one["kind"]: one["count"] for one in found["operators"]}
    assert (counts["embed"], counts["attend"]) == (1, 8)
    assert sum(count for kind, count in counts.items() if kind.startswith("linear to")) >= 4 * 8 + 1
    assert min(one["ms"] for one in found["operators"] if one["kind"].startswith(("linear", "attend"))) > 0
    layers = {(one["stage"], one["layer"]) for one in found["layers"]}
    assert {(f"block, depth {d}", f"layer {n}") for d in (1, 2, 3) for n in (1, 2)} <= layers
    events = check_trace(json.loads(trace.read_text(encoding="utf-8")))
    stages = {event["args"]["stage"] for event in events if event["cat"] == "operator"}
    assert stages == set(found["stages"])
    if threads == 1:  # nothing runs beside it: nodes are parts of their calls
        assert min(found["between"].values()) > 0


def test_the_tables(bundle: Path, tmp_path: Path, command: Command) -> None:
    code, out, err = command("bench", bundle, "--engine", "onnx", "--ops", tmp_path / "t.json", *FLAGS)
    assert code == 0
    assert "between operators" in out
    assert "layer 2" in out
    assert "about:tracing" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--engine", "reference"),
            "engine reference has no profile of its operators; give one of onnx, native, executorch",
        ),
        (("--engine", "onnx", "-p", 60, "-n", 8), "68 tokens in a context of 64"),
        (("--engine", "onnx", "--kv-bits", 8), "K/V in 8 bits, and engine onnx keeps them in 32"),
        (("--engine", "onnx", "--chat", 3), "--ops and --chat are different benchmarks"),
        (("--engine", "onnx", "--ops", "FOLDER"), "is a folder"),
        (("--engine", "onnx", "--ops", "FOLDER/old.json"), "already; add --force"),
    ],
)
def test_what_cannot_be_is_one_line(
    bundle: Path, tmp_path: Path, command: Command, words: tuple[object, ...], said: str
) -> None:
    (tmp_path / "old.json").write_text("old")
    given = [str(word).replace("FOLDER", str(tmp_path)) for word in words]
    code, out, err = command("bench", bundle, "--ops", tmp_path / "new.json", *given)
    assert (code, out, err.splitlines()[-1].count(said)) == (2, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize("flag", ["--ops", "--profile"])
def test_a_bundle_without_the_engines_target_is_one_line(
    bundle: Path, tmp_path: Path, command: Command, flag: str
) -> None:
    code, out, err = command("bench", bundle, "--engine", "executorch", flag, tmp_path / "new")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "engine executorch needs" in err  # the target, or the package where that is not installed
    assert list(tmp_path.iterdir()) == []


def test_layers_are_told_apart_by_what_each_has_as_often() -> None:
    marks = [False, True, False, True, False, True, False, True]
    assert layers_of(marks, 2) == [0, 0, 0, 0, 0, 1, 1, 1]
    assert layers_of(marks, 4) == [0, 0, 0, 1, 1, 2, 2, 3]
    assert layers_of(marks, 3) == [None] * 8
    assert layers_of([False, False], 1) == [None, None]
    assert layers_of(marks, 0) == [None] * 8


def test_a_fold_is_of_decoded_tokens_only() -> None:
    """Medians of tokens; a prompt's calls are in the trace alone."""
    calls = [StageCall("prologue", None, 5, 0, 9_000_000)]
    for token in range(3):
        calls.append(StageCall("prologue", None, 1, 10 + token, 1_000_000))
        calls.append(StageCall("block", 0, 1, 11 + token, (token + 2) * 1_000_000))
    operators = [Operator(0, "matrix", 0.0, 7000.0, 0)]
    for token in range(3):
        operators.append(Operator(2 + 2 * token, "matrix", 0.0, 1000.0, 0))
        operators.append(Operator(2 + 2 * token, "matrix", 0.0, 500.0 * token, 1))
    found = Folded.of(calls, operators)
    assert found.stages == ("prologue", "block, depth 1")
    assert found.ordered == [("matrix", 1.5)]
    assert found.counts == {"matrix": 2}
    assert found.between("block, depth 1") == 1.5
    assert found.layers == {
        ("block, depth 1", "layer 1"): [1.0, 1.0, 1.0],
        ("block, depth 1", "layer 2"): [0.0, 0.5, 1.0],
    }


def test_shares_are_of_what_the_table_has() -> None:
    """A token that took long for another reason makes no operator's share small."""
    calls, operators = list[StageCall](), list[Operator]()
    for prologue, block in ((9, 2), (3, 9), (3, 2)):  # milliseconds
        for stage, depth, ms, inside in (("prologue", None, prologue, 2000.0), ("block", 0, block, 1500.0)):
            operators.append(Operator(len(calls), "matrix", 0.0, inside, 0))
            calls.append(StageCall(stage, depth, 1, len(calls), ms * 1_000_000))
    found = Folded.of(calls, operators)
    assert found.ordered == [("matrix", 3.5)]
    between = [found.between(stage) for stage in found.stages]
    assert between == [1.0, 0.5]
    assert found.share(3.5) == 0.7
    assert found.share(sum(between)) == pytest.approx(0.3)
    (rest,) = (measure for measure in found.measures() if measure.name == "between operators")
    assert rest.value.median == 7.5  # of whole tokens
