"""The verbs from end to end: a tiny checkpoint becomes a bundle, which is shown, run, measured and talked to."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeloop.apps import bench_soak
from edgeloop.apps.demo import verb as demo
from edgeloop.apps.options import token_bias
from edgeloop.runtime.engines.table import ENGINES
from edgeloop.runtime.serve.handle import Handle
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]
PROMPT = "Once upon"


def test_export_tells_what_it_made(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "bundle"
    code, text, err = command("export", checkpoint, "-o", out, "--quant", "int8", "--group-size", 32)
    assert code == 0, err
    assert "1 + 2×3 + 1" in text
    assert "int8, groups of 32" in text
    assert f"edgeloop run {out}" in text
    assert "quantizing" in err


def test_a_recipe_and_what_landed_where(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    recipe, out = tmp_path / "mine.toml", tmp_path / "bundle"
    table = '[[rules]]\nmatch = "embed"\nbits = 8\ngroup = "channel"\n'
    recipe.write_text(table + '[[rules]]\nmatch = "*"\nbits = 4\ngroup = 32\n')
    code, text, err = command("export", checkpoint, "-o", out, "--recipe", recipe)
    assert code == 0, err
    assert "mine, mostly groups of 32" in text
    code, text, _ = command("show", out)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "stored as matrices weights bits a weight" in rows
    embedding = next(row for row in rows if row.startswith("8 bits with a scale a row embed"))
    assert embedding.endswith("8.25")  # a row of 64 codes with a scale of 16 bits
    assert next(row for row in rows if row.startswith("4 bits in groups of 32")).endswith("4.50")
    code, _, err = command("export", checkpoint, "-o", tmp_path / "x", "--recipe", recipe, "--quant", "int4")
    assert (code, "leave --quant and --group-size away" in err) == (2, True)


def test_export_does_not_overwrite(checkpoint: Path, bundle: Path, command: Command) -> None:
    code, out, err = command("export", checkpoint, "-o", bundle)
    assert (code, out) == (2, "")
    assert "--force" in err


def test_export_of_an_unknown_target(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    code, _, err = command("export", checkpoint, "-o", tmp_path / "x", "--target", "onnx,abacus")
    assert code == 2
    assert "abacus" in err
    assert not (tmp_path / "x").exists()


def test_run_streams_the_text_and_tells_the_cost_apart(bundle: Path, command: Command) -> None:
    code, out, err = command("run", bundle, "-p", PROMPT, "-n", 8)
    assert code == 0
    assert err.startswith("[8 tokens (ended by --max-tokens), ")
    assert "\x1b" not in out + err


def test_run_as_json(bundle: Path, command_json: CommandJson) -> None:
    found = command_json("run", bundle, "-p", PROMPT, "-n", 8)
    assert len(found["tokens"]) == len(found["depths"]) == 8
    assert set(found["depths"]) == {3}
    assert len(found["ms_per_depth"]) == 3
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_ms", "peak_rss_bytes"):
        assert found[key] > 0


def test_the_same_seed_gives_the_same_text(bundle: Path, command_json: CommandJson) -> None:
    def tokens(seed: int) -> list[int]:
        found = command_json("run", bundle, "-p", PROMPT, "-n", 12, "--temperature", 1.5, "--seed", seed)
        return list(found["tokens"])

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_run_ends_before_a_stop_string(bundle: Path, command: Command, command_json: CommandJson) -> None:
    whole = command_json("run", bundle, "-p", PROMPT, "-n", 20)["text"]
    stop = whole[3:5]
    assert "\ufffd" not in stop
    cut = command_json("run", bundle, "-p", PROMPT, "-n", 20, "--stop", stop)
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert " tokens (ended by a stop string), " in command("run", bundle, "-p", PROMPT, "--stop", stop)[2]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are pinned on Linux only")
@pytest.mark.parametrize("engine", ["native"])
def test_run_on_named_processors(
    bundle: Path, command: Command, command_json: CommandJson, engine: str
) -> None:
    """The same tokens; the thread of the command line is on the first of them."""
    before = os.sched_getaffinity(0)
    words = ("run", bundle, "-p", PROMPT, "-n", 8, "--engine", engine)
    cpus = [max(before), min(before)]
    try:
        pinned = command_json(*words, "--cpus", ",".join(map(str, cpus)))
        assert os.sched_getaffinity(0) == {cpus[0]}
        os.sched_setaffinity(0, before)
        assert pinned["tokens"] == command_json(*words)["tokens"]
        for wrong, line in (
            ("1023", "this process may not use processor 1023"),
            (f"{cpus[0]},1023", "this process may not use processor 1023; name others"),
            ("0-2", "is not numbers of processors, as 0,2"),
        ):
            code, out, err = command(*words, "--cpus", wrong)
            assert (code, out) == (2, "")
            assert line in err
    finally:
        os.sched_setaffinity(0, before)


def test_both_engines_begin_alike(bundle: Path, command_json: CommandJson) -> None:
    def first(engine: str) -> int:
        return int(command_json("run", bundle, "-p", PROMPT, "-n", 1, "--engine", engine)["tokens"][0])

    assert first("onnx") == first("reference")


def test_run_reads_stdin_and_restarts_itself(bundle: Path, command_json: CommandJson) -> None:
    words = ["run", str(bundle), "-p", "-", "-n", "8", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeloop.apps.cli", *words],
        input=PROMPT + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["tokens"] == command_json("run", bundle, "-p", PROMPT, "-n", 8)["tokens"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-p", ""], "the prompt is empty"),
        (["-p", "x", "--engine", "abacus"], "unknown engine 'abacus'"),
        (["-p", "x", "--top-p", "2"], "top_p is 2.0"),
        (["-p", "x", "--context", "65"], "wanted 1 to 64"),
        (["-p", "x" * 100], "the context holds 64"),
        (["-p", "\udcff"], "not UTF-8"),
        (["-p", "x", "--stop", ""], "a stop string is empty"),
    ],
)
def test_run_refuses_in_one_line(bundle: Path, command: Command, words: list[str], told: str) -> None:
    code, out, err = command("run", bundle, *words)
    assert (code, out) == (2, "")
    assert err.startswith("edgeloop: ")
    assert err.count("\n") == 1
    assert told in err


def test_a_damaged_bundle_is_one_line(bundle_without_template: Path, command: Command) -> None:
    (bundle_without_template / "tokenizer.json").unlink()
    code, _, err = command("run", bundle_without_template, "-p", PROMPT)
    assert code == 1
    assert "tokenizer.json is missing" in err
    assert err.count("\n") == 1


def test_eval(bundle: Path, tmp_path: Path, command: Command, command_json: CommandJson) -> None:
    text = tmp_path / "tale.txt"
    text.write_text("There was once a king who had three sons. " * 10)
    found = command_json("eval", bundle, "--text", text, "--max-tokens", 101)
    assert found["tokens"] == 100
    assert found["mean_depth"] == 3
    assert len(found["perplexity_per_depth"]) == 3
    with Session.open(bundle) as session:
        wanted = session.perplexity(session.tokenizer.encode(text.read_text())[:101])
    assert found["perplexity"] == found["perplexity_per_depth"][-1] == wanted.perplexity
    assert found["perplexity_per_depth"] == list(wanted.perplexity_per_depth)
    code, out, _ = command("eval", bundle, "--text", text)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [[str(d), "of", "3"] for d in (1, 2, 3)]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"], ids=["missing", "empty", "not UTF-8"])
def test_eval_of_no_text(bundle: Path, tmp_path: Path, command: Command, content: bytes | None) -> None:
    text = tmp_path / "tale.txt"
    if content is not None:
        text.write_bytes(content)
    code, out, err = command("eval", bundle, "--text", text)
    assert (code, out) == (2, "")
    assert "tale.txt" in err


def test_a_full_context_is_told(bundle: Path, command: Command, command_json: CommandJson) -> None:
    words = ("run", bundle, "-p", "Once upon", "--context", 12)
    found = command_json(*words)
    assert (found["finish_reason"], len(found["tokens"])) == ("context", 12 - 9 + 1)
    assert (
        "[the context of 12 tokens is full: shorten the prompt, or open the bundle with a longer"
        in command(*words)[2]
    )
    words = ("run", bundle, "-p", "x" * 62)
    assert command_json(*words)["finish_reason"] == "context"
    err = command(*words)[2]
    assert "[the context of 64 tokens is full: shorten the prompt; 64 is all that this model has]" in err
    assert "tokens (ended by a full context), " in err
    assert "--context" not in err
    found = command_json("run", bundle, "-p", "Once", "-n", 2)
    assert found["finish_reason"] == "length"
    assert "full" not in command("run", bundle, "-p", "Once", "-n", 2)[2]


def test_chat_tells_why_an_answer_ended(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    code, out, err = command("chat", bundle, "--context", 16, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["finish_reason"] == "context"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert (
        "[the context of 16 tokens is full: ask for less, or open"
        in command("chat", bundle, "--context", 16)[2]
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    _, _, err = command("chat", bundle, "-n", 3)
    assert err == "[the answer has 3 tokens, as many as --max-tokens allows]\n"


def test_chat_remembers(bundle: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\nYes\n"))
    code, out, err = command("chat", bundle, "-n", 1, "--json")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["prompt"], second["prompt"]) == ("Hi", "Yes")
    assert second["prompt_tokens"] > first["prompt_tokens"] + len("u:Yes")


def test_chat_forgets_when_the_context_is_full(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("I am a little fox.\n" * 4))
    code, _, err = command("chat", bundle, "-n", 1)
    assert code == 0
    assert "earlier messages are forgotten" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("I am a fox.\n" * 4))
    turns = [json.loads(line) for line in command("chat", bundle, "--json")[1].splitlines()]
    assert len(turns) == 4
    assert max(turn["prompt_tokens"] for turn in turns) <= 64 // 2  # the other half is for the answer


def test_chat_without_a_template_says_so(
    bundle_without_template: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n"))
    code, _, err = command("chat", bundle_without_template, "-n", 4)
    assert code == 0
    assert "no chat template" in err
    code, _, err = command("chat", bundle_without_template, "--system", "Be brief.")
    assert code == 2
    assert "--system" in err


def test_chat_refuses_stop_strings_before_the_first_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = command("chat", bundle, "--stop", "")
    assert (code, err) == (2, "edgeloop: a stop string is empty; leave it out\n")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_is_130_and_one_line(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgeloop.apps.cli", "chat", str(bundle), "-n", "4", "--json"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("Hi\n")
        process.stdin.flush()
        assert process.stdout.readline()  # it has answered, and waits for the next line
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "edgeloop: interrupted\n"


def measured() -> list[str]:
    """The engines that benchmarks of many users measure: native too, where there is its library."""
    return ["onnx"] if ENGINES["native"].unavailable_reason() else ["native", "onnx"]


def test_bench_users(bundle: Path, command: Command, command_json: CommandJson) -> None:
    flags = ("--users", "1,2", "--requests", "3", "--runs", "1", "--exit", "depth:2")
    found = command_json("bench", bundle, *flags)
    assert [(row["engine"], row["users"]) for row in found["users"]] == [
        (e, n) for e in measured() for n in (1, 2)
    ]
    for row in found["users"]:  # of one round
        for other in ("static", "one_by_one"):
            assert row[f"over_{other}"] == pytest.approx(row["depth_wise"] / row[other])
    assert found["exit"] == "depth:2"
    code, out, _ = command("bench", bundle, *flags)
    assert code == 0
    assert "÷ one by one" in out
    assert command("bench", bundle, "--users", "0")[0] == 2
    assert "from 1 to 100000" in command("bench", bundle, "--users", "1", "--requests", "1" + "0" * 12)[2]
    assert "a context of 1 has no room" in command("bench", bundle, "--users", "1", "--context", "1")[2]


def test_bench_soak(bundle: Path, command: Command, command_json: CommandJson) -> None:
    flags = ("--max-stall", "2")
    found = command_json("bench", bundle, "--soak", "0.02", *flags)["engines"]
    assert [each["engine"] for each in found] == measured()
    for each in found:
        assert each["lanes_free"] == each["lanes"] == 4
        assert each["served"] > 0
        assert 0 < each["same"] <= each["served"] + each["cancelled"]
        if each["engine"] == "native":
            assert each["same"] == each["served"] + each["cancelled"]
    code, out, _ = command("bench", bundle, "--soak", "0.01")
    assert code == 0
    assert "4 of 4 free" in out
    for option in ("--soak", "--max-stall", "--kv-limit"):
        assert "above 0" in command("bench", bundle, option, "none")[2]
    for option in ("--max-stall", "--kv-limit"):
        assert f"{option} is about many users" in command("bench", bundle, option, "2")[2]
    err = command("bench", bundle, "--users", "2", "--engine", "onnx", "--kv-limit", "0.001")[2]
    assert "at once, and kv_limit is 1000; open it with fewer sequences" in err


def test_bench_soak_fails_where_an_answer_may_not_differ(
    bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = BatchServer.submit

    def shorter(engine: BatchServer, prompt: object, tokens: int, sampling: object, client: object) -> Handle:
        return submit(engine, prompt, max(tokens - 3, 1), sampling)  # type: ignore[arg-type]

    monkeypatch.setattr(BatchServer, "submit", shorter)
    onnx = ("--soak", "0.01", "--engine", "onnx")
    code, out, err = command("bench", bundle, *onnx)  # int4, whose kernels have an excuse
    assert (code, "integer kernels round" in err) == (0, True)
    monkeypatch.setattr(bench_soak, "EQUAL", {"int4"})
    code, out, err = command("bench", bundle, *onnx, "--json")
    assert code == 1
    (found,) = json.loads(out)["engines"]
    wrong = found["served"] + found["cancelled"] - found["same"]
    assert wrong > 0
    assert err.startswith(f"edgeloop: {wrong} answers of engine onnx differ from those of a lone run")


def test_bench(bundle: Path, command: Command, command_json: CommandJson) -> None:
    flags = ("--prompt-tokens", 16, "--tokens", 8, "--runs", 2)
    found = command_json("bench", bundle, *flags)
    assert len(found["decode_tokens_per_s_runs"]) == 2
    assert found["token_ms_median"] <= found["token_ms_p99"]
    assert len(found["ms_per_depth"]) == 3
    code, out, _ = command("bench", bundle, *flags)
    assert code == 0
    assert "decode, 8 tokens" in out
    assert command("bench", bundle, "--tokens", 64)[0] == 2


def test_synth(tmp_path: Path, command: Command, command_json: CommandJson) -> None:
    assert "ouro-1.4b" in command("synth", "--list")[1]
    assert "smollm-135m-r3" in command_json("synth", "--list")["shapes"]
    code, _, err = command("synth", "--shape", "smolm", "-o", tmp_path / "x")
    assert code == 2
    assert "smollm-135m-r3" in err
    assert command("synth", "--shape", "smollm-135m-r3")[0] == 2


def test_demo(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    command_json: CommandJson,
) -> None:
    monkeypatch.setattr(demo, "CHECKPOINT", checkpoint)
    code, out, _ = command("demo", "-o", tmp_path / "demo", "-n", 8)
    assert code == 0
    assert out.startswith("Once upon a time")
    for row in ("bundle", "the same unrolled", "speed", "first token", "peak memory"):
        assert f"\n{row} " in out
    # A folder that is no bundle is left alone, and the export's own line says why.
    assert command("demo", "-o", checkpoint)[0] == 2


def test_the_demo_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """Its checkpoint stays in the checkout."""
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "checkpoint")
    code, out, err = command("demo", "-o", tmp_path / "demo")
    assert (code, out) == (2, "")
    assert "comes with edgeloop's checkout, not with the installed package" in " ".join(err.split())


def test_run_tells_how_likely_each_token_was(
    bundle: Path, command: Command, command_json: CommandJson
) -> None:
    words = ("run", bundle, "-p", PROMPT, "-n", 4, "--logprobs", 2, "--prompt-logprobs", 1)
    found = command_json(*words)
    with Session.open(bundle) as session:
        ids = session.tokenizer.encode(PROMPT)
        score = session.score([*ids, *found["tokens"]], 2)
    given, answer = score.tokens[1 : len(ids)], score.tokens[len(ids) :]
    assert found["prompt_logprobs"][0] is None
    for entries, tokens in ((found["prompt_logprobs"][1:], given), (found["logprobs"], answer)):
        for entry, token in zip(entries, tokens, strict=True):
            assert token is not None
            assert entry["id"] == token.token
            assert entry["logprob"] == pytest.approx(token.logprob, abs=0.05)  # int4, other rows in a call
            assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]
    assert [len(entry["top_logprobs"]) for entry in found["logprobs"]] == [2] * 4
    assert [len(entry["top_logprobs"]) for entry in found["prompt_logprobs"][1:]] == [1] * len(given)
    for entry in found["logprobs"]:  # greedy
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("id", "token", "bytes", "logprob")}
    assert "logprobs" not in command_json("run", bundle, "-p", PROMPT, "-n", 4)
    code, out, _ = command(*words)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "logprob" in line] == ["id", "id"]


def test_run_takes_bias_and_penalties(bundle: Path, command: Command, command_json: CommandJson) -> None:
    first = command_json("run", bundle, "-p", PROMPT, "-n", 3)["tokens"][0]
    banned = command_json("run", bundle, "-p", PROMPT, "-n", 3, "--logit-bias", f"{first}=-inf")
    assert first not in banned["tokens"]
    words = ("--presence-penalty", 500, "--frequency-penalty", 1)
    tokens = command_json("run", bundle, "-p", PROMPT, "-n", 12, *words)["tokens"]
    assert len(set(tokens)) == len(tokens)
    code, _, err = command("run", bundle, "-p", PROMPT, "--logit-bias", "the")
    assert code == 2
    assert "'the' is not TOKEN=X, as in 42=-1.5 or ' the=2'" in err


def test_a_token_of_a_bias_is_an_id_or_a_text() -> None:
    assert token_bias("42=-1.5") == (42, -1.5)
    assert token_bias('"42"=-inf') == ("42", float("-inf"))
    assert token_bias(" the=2") == (" the", 2.0)
    assert token_bias("a=b=1") == ("a=b", 1.0)
    for text in ("42", "=1", "the=", "the=much"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not TOKEN=X"):
            token_bias(text)


def test_chat_tells_how_likely_each_token_was(
    bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who are you?\n")))
    code, out, _ = command("chat", bundle, "-n", 3, "--logprobs", 1, "--json")
    assert code == 0
    found = json.loads(out)
    assert [entry["id"] for entry in found["logprobs"]] == found["tokens"]


def test_eval_tells_how_likely_each_token_is(
    bundle: Path, tmp_path: Path, command: Command, command_json: CommandJson
) -> None:
    text = tmp_path / "sentence.txt"
    text.write_text("There was once a king.")
    found = command_json("eval", bundle, "--text", text, "--logprobs", 0)
    logprobs = [entry["logprob"] for entry in found["logprobs"][1:]]
    assert found["logprobs"][0] is None
    assert found["tokens"] == len(logprobs)
    assert found["total_logprob"] == pytest.approx(sum(logprobs))
    whole = command_json("eval", bundle, "--text", text)["perplexity"]
    assert found["perplexity"] == pytest.approx(whole, rel=1e-3)
    code, out, err = command("eval", bundle, "--text", text, "--logprobs", 1)
    assert (code, len(out.splitlines())) == (0, 2 + len(logprobs))
    assert f"[{len(logprobs)} tokens: log-probability {found['total_logprob']:.2f}"[:-2] in err
    code, _, err = command(
        "eval", bundle, "--text", text, "--logprobs", 1, "--exit", "never", "--exit", "depth:2"
    )
    assert code == 2
    assert "--logprobs is for one rule and policy" in err
