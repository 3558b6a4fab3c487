"""Depth on the command line: exits, KV policies, calibration."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeloop.apps import calibrate
from edgeloop.apps.calibration import Calibration
from edgeloop.export.calibration.collect import collect
from edgeloop.export.calibration.search import Goal
from edgeloop.export.calibration.write import write_probes
from edgeloop.runtime.decode.exits import MEASURES
from edgeloop.runtime.session import Session

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
    assert (found["exit"], found["skipped_kv"], found["kv"]) == ("depth:1", "exact", "per-depth")
    assert found["block_share"] == pytest.approx(1 / max(found["depths"]))
    # 1 + 2 × 3 + 1 layers: the deeper two depths have K and V of the prompt only; the last token has none yet.
    assert found["kv_bytes_per_token"] == 8 * 2 * 2 * 16 * 4  # layers, K/V, heads of 16 float32
    prompt = found["prompt_tokens"]
    assert found["kv_bytes"] == found["kv_bytes_per_token"] / 8 * (4 * (prompt + 5) + 4 * prompt)


def test_colour_tells_how_many_ran_what(command: Command, bundle: Path) -> None:
    code, out, err = command("run", bundle, "-p", "the", "-n", 5, "--exit", "depth:1", "--colour")
    assert code == 0
    assert "\x1b" not in out  # not a terminal
    assert "4 ran 1" in err
    words = ("run", bundle, "-p", "the", "-n", 5, "--exit", "depth:1", "--color")
    code, coloured, _ = command(*words, "always")
    assert code == 0
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == out
    # A token from the prompt ran every depth: two shades, each of the 256 colours.
    assert len(set(re.findall(r"\x1b\[38;5;(\d+)m", coloured))) == 2
    code, plain, err = command(*words, "never")
    assert (code, plain) == (0, out)
    assert "ran" not in err


def test_chat_takes_a_rule(command_json: Json, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the river\n")))
    found = command_json("chat", bundle, "-n", 4, "--exit", "depth:1")
    assert found["depths"][1:] == [1] * 3


def test_eval_under_a_rule(command_json: Json, command: Command, bundle: Path, text: Path) -> None:
    words = ("eval", bundle, "--text", text, "--max-tokens", 60)
    plain = command_json(*words)
    found = command_json(*words, "--exit", "never")
    assert found["perplexity"] == pytest.approx(
        plain["perplexity"], rel=0.02
    )  # int8 activations differ by rows
    assert (found["mean_depth"], found["block_share"]) == (plain["mean_depth"], 1.0)
    shallow = command_json(*words, "--exit", "confidence:0", "--skipped-kv", "skip")
    assert (shallow["mean_depth"], shallow["tokens"]) == (1.0, 59)
    code, out, _ = command(*words, "--exit", "depth:2", "--skipped-kv", "propagate")
    assert code == 0
    assert "skipped K/V: propagate" in out


def test_eval_of_several_policies(command_json: Json, command: Command, bundle: Path, text: Path) -> None:
    """Each row is what a run of its own finds; the first is full depth."""
    words = ("eval", bundle, "--text", text, "--max-tokens", 60)
    rules = ("--exit", "depth:1", "--exit", "latent:0.9")
    policies = ("--skipped-kv", "propagate", "--skipped-kv", "skip")
    found = command_json(*words, *rules, *policies)["policies"]
    assert [(f["exit"], f["skipped_kv"]) for f in found] == [
        ("never", "exact"),
        ("depth:1", "propagate"),
        ("depth:1", "skip"),
        ("latent:0.9", "propagate"),
        ("latent:0.9", "skip"),
    ]
    assert found[0]["speed"] == 1
    assert found[0]["decision"] == 0 < found[1]["decision"]
    for one in found[1:]:
        alone = command_json(*words, "--exit", one["exit"], "--skipped-kv", one["skipped_kv"])
        for key in ("perplexity", "mean_depth", "block_share", "agreement"):
            assert one[key] == pytest.approx(alone[key], rel=1e-5)
    code, out, _ = command(*words, *rules)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["exit", "never", "depth:1", "latent:0.9"]


def test_what_a_depth_keeps_of_the_prediction(bundle: Path) -> None:
    """exp(−KL) against float64 arithmetic on the logits that a visit of the depths gives."""
    ids = list(range(3, 43))
    with Session.open(bundle) as session:
        logits: dict[int, np.ndarray] = {}
        session.visit_depths(
            ids, lambda depth, at, before, state, out: logits.__setitem__(depth, out.astype(np.float64))
        )
        found = collect(session, ids, []).kept
    e = {d: np.exp(x - x.max(-1, keepdims=True)) for d, x in logits.items()}
    p = {d: x / x.sum(-1, keepdims=True) for d, x in e.items()}
    last = max(p)
    for depth in range(last):
        wanted = np.exp(-(p[last] * np.log(p[last] / p[depth])).sum(-1))[: len(ids) - 1]
        np.testing.assert_allclose(found[depth], wanted, rtol=1e-3)


def test_a_report_says_what_it_was_measured_with(
    bundle: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    """Text, engine, policy, machine and date; and a pipe hears once how long it will take."""
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    words = ("calibrate", out, "--text", text, "--agree", "0.6", "--max-tokens", 450, "--rule", "margin")
    code, table, err = command(
        *words, "--skipped-kv", "propagate", "--engine", "onnx", "--report", tmp_path / "r.html"
    )
    assert code == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>([^<]*)<dd>([^<]*)</div>", page))
    assert facts["text"] == "text.txt, 449 tokens that nothing was fitted to"
    assert facts["engine"].startswith("onnx, ")
    assert facts["policy"] == "skipped K/V propagate, slots per-depth"
    assert {"goal", "machine", "date"} <= facts.keys()
    assert re.search(r"measuring 5 policies side by side on 449 tokens, about \d+ s", err)
    assert f"written into {out}" in err
    (said,) = re.findall(r"^margin +(.*)$", table, re.MULTILINE)
    assert said.split()[2] in page


def test_progress_of_an_evaluation(bundle: Path) -> None:
    shares: list[float] = []
    with Session.open(bundle) as session:
        rules = [session.choose(rule) for rule in ("never", "depth:1")]
        session.compare(range(3, 103), rules, shares.append)
    assert shares == sorted(shares)
    assert len(shares) >= 2
    assert shares[-1] == 1


def test_a_rule_that_costs_others_more_is_tightened(
    bundle: Path, text: Path, tmp_path: Path, command_json: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A goal that running misses is asked for anew, with half of its slack; what is written is what was measured."""
    out, asked = tmp_path / "bundle", list[float]()
    shutil.copytree(bundle, out)
    first = Calibration.search

    def counted(self: Calibration, rule: str, goal: Goal) -> tuple[float, ...]:
        asked.append(goal.value)
        return first(self, rule, goal)

    verdicts = iter((False, True, True, True, True))
    monkeypatch.setattr(Calibration, "search", counted)
    monkeypatch.setattr(calibrate, "keeps", lambda found, goal: next(verdicts))
    words = ("calibrate", out, "--text", text, "--agree", "0.6", "--max-tokens", 600, "--rule", "margin")
    found = command_json(*words)
    assert asked == pytest.approx([0.6, 0.8])
    assert found["missed"] == []
    assert found["exits"]["margin"]["goal"] == "agree 0.6"
    assert found["measured_with"]["text"].startswith("text.txt, ")


def test_calibrated_rules_need_no_threshold(command_json: Json, calibrated: Path) -> None:
    shown = command_json("show", calibrated)
    assert shown["probes"]
    exits = shown["manifest"]["exits"]
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
    assert "one for each depth but the last" in out
    assert not [p for p in calibrated.iterdir() if p.name.startswith(".")]


def test_new_probes_leave_no_thresholds_of_old_ones(
    command: Command, command_json: Json, calibrated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(calibrated, out)
    heads = load_file(out / json.loads((out / "manifest.json").read_text())["heads"])
    write_probes(out, heads["probe.weight"] + 1, heads["probe.bias"])
    assert set(command_json("show", out)["manifest"]["exits"]) == {"confidence"}
    code, _, err = command("run", out, "-p", "the", "--exit", "probe")
    assert code == 2
    assert "has no threshold" in err
    assert len(list(out.glob("*heads.safetensors"))) == 1
    assert len(command_json("run", out, "-p", "the", "-n", 3, "--exit", "probe:0.5")["depths"]) == 3


def test_a_calibrated_score_is_a_threshold_that_a_rule_takes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float arithmetic finds divergences of a little below 0, which ``kl:θ`` refuses."""
    below = replace(MEASURES["kl"], score=lambda out, heads: np.full(len(out.state), -1e-7, np.float32))
    monkeypatch.setitem(MEASURES, "kl", below)
    with Session.open(bundle) as session:
        assert collect(session, list(range(3, 43)), ["kl"]).scores["kl"].min() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("run", "-p", "a", "--exit", "maybe"),
            "exit rule 'maybe': there is no such rule; known: never, depth:N",
        ),
        (("run", "-p", "a", "--exit", "probe"), "fit them with `edgeloop calibrate`"),
        (("run", "-p", "a", "--kv", "shared"), "export the model with --kv shared"),
        (("calibrate", "--text", "-", "--agree", "0.9", "--perplexity", "+1%"), "two goals"),
        (("calibrate", "--text", "-", "--rule", "gate"), "has no exit gate"),
        (("calibrate", "--text", "-"), "calibration needs at least 400"),
    ],
)
def test_one_line(
    command: Command, bundle: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a text")))
    code, out, err = command(words[0], bundle, *words[1:])
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


def test_a_calibration_that_is_interrupted_changes_nothing(
    command: Command, bundle: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the probes were fitted and written, where thresholds are measured."""
    out = tmp_path / "work" / "bundle"
    shutil.copytree(bundle, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeloop.apps.calibrate.Calibration.measure", interrupted)
    words = ("--text", text, "--agree", "0.6", "--max-tokens", 800, "--rule", "probe")
    assert command("calibrate", out, *words)[0] == 130
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
