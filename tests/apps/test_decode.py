"""Pipelined decoding on the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeloop.runtime.decode.draft_control import DraftPlan, FixedPlan

Command = Callable[..., tuple[int, str, str]]
Json = Callable[..., Any]
PROMPT = ("-p", "the river", "-n", 24)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    """In float arithmetic, where a call with more rows rounds no activations."""
    from edgeloop.apps.cli import main

    out = checkpoint.with_name("float_bundle")
    assert main(["export", str(checkpoint), "-o", str(out), "--quant", "none", "--json"]) == 0
    return out


@pytest.mark.parametrize("sampling", [(), ("--temperature", 0.9, "--seed", 3, "--repetition-penalty", 1.2)])
def test_run_writes_the_same(
    bundle: Path, command_json: Json, monkeypatch: pytest.MonkeyPatch, sampling: tuple[object, ...]
) -> None:
    drafts: list[bool] = []

    class Drafting(FixedPlan):
        """Drafts after depth 0 for every token, and counts those that were right."""

        def saw(self, depth: int, right: bool) -> None:
            drafts.append(right)
            super().saw(depth, right)

    monkeypatch.setattr(
        "edgeloop.runtime.session.DraftController", lambda depths: Drafting(depths, DraftPlan(0))
    )
    plain = command_json("run", bundle, *PROMPT, *sampling)
    found = command_json("run", bundle, *PROMPT, *sampling, "--decode", "pipelined")
    assert found["tokens"] == plain["tokens"]
    assert found["text"] == plain["text"]
    assert (plain["decode"], found["decode"]) == ("sequential", "pipelined")
    assert plain["acceptance"] is None
    assert plain["passes_per_token"] == 3
    assert found["acceptance"] == sum(drafts) / len(drafts)
    assert 1 <= found["passes_per_token"] <= 3


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--temperature", 0.9, "--seed", 3),
        ("--temperature", 0.9, "--repetition-penalty", 1.2),  # the host chooses
        ("--exit", "latent:0.8", "--skipped-kv", "exact"),
        ("--exit", "margin:0.5"),  # the host decides who leaves
    ],
)
def test_the_lane_engine_writes_the_same(
    bundle: Path, command_json: Json, lane_engine: Path, words: tuple[object, ...]
) -> None:
    native = ("run", bundle, "-p", "the river, the river, the", "-n", 40, "--engine", "native", *words)
    plain, found, default = (
        command_json(*native, *how) for how in (("--decode", "sequential"), ("--decode", "pipelined"), ())
    )
    for key in ("tokens", "text", "depths"):
        assert found[key] == default[key] == plain[key]
    assert (plain["decode"], found["decode"]) == ("sequential", "pipelined")
    by_host = "margin:0.5" in words
    assert default["decode"] == ("sequential" if by_host else "pipelined")


def test_the_cost_names_passes_and_drafts(bundle: Path, command: Command) -> None:
    code, _, err = command("run", bundle, *PROMPT, "--decode", "pipelined")
    assert code == 0
    assert " passes a token (" in err
    assert "of drafts right" in err
    assert "passes" not in command("run", bundle, *PROMPT)[2]


def test_exits_and_pipelines(bundle: Path, command_json: Json) -> None:
    words = ("run", bundle, *PROMPT, "--exit", "latent:0.8", "--skipped-kv", "skip")
    plain, found = command_json(*words), command_json(*words, "--decode", "pipelined")
    for key in ("tokens", "depths", "exit", "skipped_kv"):
        assert found[key] == plain[key]
    assert found["decode"] == "pipelined"


def test_bench_compares_the_ways(
    bundle: Path, tmp_path: Path, command: Command, command_json: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It drafts whatever that costs.
    monkeypatch.setattr(
        "edgeloop.apps.bench_decode.DraftController", lambda depths: FixedPlan(depths, DraftPlan(0))
    )
    text = tmp_path / "tales.txt"
    text.write_text(
        "the river ran on and on, and so did the goblin.\n\nno\n\nhe ran to the river; it was deep."
    )
    words = ("bench", bundle, "--decode", "all", "--tokens", 12, "--prompt-tokens", 8, "--runs", 1)
    found = command_json(*words, "--text", text)
    stages = {(call["stage"], call["rows"]) for call in found["calls"]}
    assert stages == {("block", 1), ("block", 2), ("block", 3)} | {
        (stage, n) for stage in ("prologue", "epilogue") for n in (1, 2)
    }
    forced = [row for row in found["decoding"] if row["forced_acceptance"] is not None]
    assert [row["forced_acceptance"] for row in forced] == [0.0, 0.5, 0.7, 0.9, 1.0]
    shares = [row["acceptance"] for row in forced]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    own = [row for row in found["decoding"] if row["text"] != "random tokens"]
    assert [row["decode"] for row in own] == ["sequential", "pipelined"] * (len(own) // 2)
    assert len(own) == 2 * 2 * 2  # two paragraphs that are long enough, greedy and sampled
    assert all(row["flips"] == 0 for row in found["decoding"])
    base = found["decoding"][0]
    for row in found["decoding"]:
        if row["decode"] == "sequential":  # it stands above the others of the same tokens
            base = row
        assert row["speed"] == pytest.approx(row["tokens_per_s"] / base["tokens_per_s"])
    code, out, _ = command(*words)
    assert code == 0
    assert "pipelined, forced acceptance 0.9" in out
    assert "texts" not in out


def test_bench_of_an_engine_that_drafts(
    bundle: Path, tmp_path: Path, command: Command, command_json: Json, lane_engine: Path
) -> None:
    text = tmp_path / "tales.txt"
    text.write_text(
        "the river ran on and on, and so did the goblin.\n\nno\n\nhe ran to the river; it was deep."
    )
    words = ("bench", bundle, "--engine", "native", "--decode", "all", "--tokens", 12, "--runs", 1)
    found = command_json(*words, "--prompt-tokens", 8, "--text", text)
    rows = found["decoding"]
    assert [row["forced_acceptance"] for row in rows] == [None] * 4 + [0.0, 0.5, 0.7, 0.9, 1.0]
    assert [row["temperature"] for row in rows[:4]] == [0, 0, 0.8, 0.8]
    assert all(row["other_tokens"] == 0 for row in rows)
    assert {row["tokens"] for row in rows} == {12 * 2 * 2}
    shares = [row["acceptance"] for row in rows[4:]]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert rows[-1]["passes_per_token"] < rows[4]["passes_per_token"]
    for kind in ("greedy", "sampled"):
        speeds = sorted(row["speed"] for row in rows[:4] if (row["temperature"] > 0) == (kind == "sampled"))
        assert found["overall"][kind]["slowest"] == speeds[0]
        learnt = found["learnt"][kind]
        assert len(learnt["acceptance"]) == 2
        assert all(costs == sorted(costs) for costs in learnt["costs_ns"].values())
        assert all(0 < least < 1 for least in learnt["least"])
    code, out, _ = command(*words, "--prompt-tokens", 8)
    assert code == 0
    assert "acceptance 0.9" in out
    assert "a draft is fed" in out
    assert "threads of the block" in out


def test_chat_takes_turns(bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*words: str) -> list[Any]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the river\na goblin\n")))
        code, out, err = command("chat", bundle, "-n", 9, "--json", *words)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    plain, found = answers(), answers("--decode", "pipelined")
    assert [turn["tokens"] for turn in found] == [turn["tokens"] for turn in plain]
    assert any(turn["acceptance"] is not None for turn in found)  # it tries at least once


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--decode", "both"), "decode 'both'; known: sequential, pipelined"),
        (("--decode", "pipelined", "--kv", "last"), "fewer KV slots than depths"),
    ],
)
def test_refusals_are_one_line(bundle: Path, command: Command, words: tuple[str, ...], told: str) -> None:
    code, out, err = command("run", bundle, *PROMPT, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert told in err


def test_bench_refuses_in_one_line(bundle: Path, tmp_path: Path, command: Command) -> None:
    text = tmp_path / "short.txt"
    text.write_text("no\n\n")
    flags = ("--tokens", 12, "--prompt-tokens", 8)
    assert "no paragraph of" in command("bench", bundle, "--decode", "all", *flags, "--text", text)[2]
    assert "give both or neither" in command("bench", bundle, *flags, "--text", text)[2]
