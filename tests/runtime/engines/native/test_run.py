"""edgeloop-run, the host in C++: what it writes is what a session in Python writes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from person import Person

from edgeloop.apps.devices.cross import zig
from edgeloop.export import export_bundle
from edgeloop.runtime import SamplingOptions, Session

DEMO = Path(__file__).parents[4] / "apps" / "demo" / "checkpoint"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(
        DEMO, tmp_path_factory.mktemp("b") / "demo", targets=("native",), quant="int4"
    ).bundle


def run(program: Path, *words: object, given: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(program), *map(str, words)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done


def session(bundle: Path, **options: Any) -> Session:
    return Session.open(bundle, engine="native", **options)


def test_it_wants_nothing_beside_it(static_host: Path) -> None:
    assert b"GLIBC" not in static_host.read_bytes()[:4096]
    done = subprocess.run([str(static_host), "--help"], capture_output=True, text=True, check=True, env={})
    assert "--kv-bits" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only for Linux is it linked with zig's C library")
def test_by_zig_it_is_smaller_and_has_the_same_bits(
    static_host: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, and every number of K and V, with plain kernels and with the best of this processor."""
    from native_cross import whole_host

    if not (compiler := zig()):
        pytest.skip("no zig (pip install ziglang)")
    small = whole_host(platform.machine(), (*compiler, "c++"))
    for kernels in ("", "portable"):
        monkeypatch.setenv("EDGELOOP_KERNELS", kernels)
        kept = [tmp_path / name for name in ("gcc", "zig")]
        for program, file in zip((static_host, small), kept, strict=True):
            run(program, bundle, "-p", PROMPT, "-n", 24, "--save", file)
        assert kept[0].read_bytes() == kept[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "opened", "options"),
    [
        ([], {}, None),
        (["--exit", "depth:2"], {"exit": "depth:2"}, None),
        (
            ["--exit", "latent:0.35", "--skipped-kv", "propagate"],
            {"exit": "latent:0.35", "skipped_kv": "propagate"},
            None,
        ),
        (["--kv-bits", "8"], {"kv_bits": 8}, None),
        (
            ["--temperature", "0.8", "--top-k", "30", "--top-p", "0.9", "--min-p", "0.02", "--seed", "7"],
            {},
            SamplingOptions(temperature=0.8, top_k=30, top_p=0.9, min_p=0.02, seed=7),
        ),
    ],
)  # fmt: skip
def test_its_text_is_that_of_a_session(
    words: list[str], opened: dict[str, Any], options: SamplingOptions | None, static_host: Path, bundle: Path
) -> None:
    told = json.loads(
        run(static_host, bundle, "-p", PROMPT, "-n", 30, "--json", "--threads", 1, *words).stdout
    )
    with session(bundle, **opened) as python:
        wanted = list(python.generate(PROMPT, 30, options))
    assert told["text"] == "".join(step.text for step in wanted)
    assert [(step["token"], step["depth"]) for step in told["steps"]] == [(s.token, s.depth) for s in wanted]
    assert (told["finish"], told["tokens"]) == (wanted[-1].finish, len(wanted))
    assert told["peak_bytes"] > 0
    assert told["open_ms"] > 0


def test_text_comes_behind_the_prompt_and_stops(static_host: Path, bundle: Path) -> None:
    with session(bundle) as python:
        wanted = "".join(step.text for step in python.generate(PROMPT, 60, stop=[" the "]))
    assert run(
        static_host, bundle / "native" / "model.lanes", "-p", PROMPT, "-n", 60, "--stop", " the "
    ).stdout == (PROMPT + wanted + "\n")


def test_a_session_goes_on_in_either_host(static_host: Path, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "saved"
    run(static_host, bundle, "-p", PROMPT, "-n", 12, "--save", file)
    with Session.load(bundle, file, engine="native") as python:
        wanted = "".join(step.text for step in python.generate(None, 12))
        python.save(file)
    told = json.loads(run(static_host, bundle, "--load", file, "-n", 12, "--json").stdout)
    with Session.load(bundle, file, engine="native") as python:
        more = "".join(step.text for step in python.generate(None, 12))
    assert told["text"] == more
    assert wanted


def test_a_conversation_goes_line_by_line(static_host: Path, bundle: Path) -> None:
    lines = ["Who lived there?", "And then?"]
    written = run(static_host, bundle, "--chat", "-n", 10, given="\n".join(lines) + "\n\n").stdout
    wanted = ""
    with session(bundle) as python:
        said: list[dict[str, str]] = []
        for line in lines:
            said.append({"role": "user", "content": line})
            python.converse(said)
            text = "".join(step.text for step in python.generate(None, 10))
            said.append({"role": "assistant", "content": text})
            wanted += f"> {text}\n"
    assert written == wanted + "> "


def test_a_person_may_say_it_again(static_host: Path, bundle: Path) -> None:
    """What a context refuses is a line, and the conversation goes on. Ctrl-C at the prompt ends it, or Ctrl-D."""
    line = "Who lived there?"
    with session(bundle) as python:
        python.converse([{"role": "user", "content": line}])
        wanted = "".join(step.text for step in python.generate(None, 10))
    for key, code in (("\x03", 130), ("\x04", 0)):
        person = Person(static_host, bundle, "--chat", "-n", 10, "--context", 64)
        person.waits_for("> ")
        person.types("word " * 90 + "\n")
        assert "tokens do not fit a context of 64; shorten the text\n> " in person.waits_for("\n> ")
        person.types(f"{line}\n")
        assert person.waits_for("\n> ") == f"{line}\n{wanted}\n> "
        person.types(key)
        assert person.ended() == code


def test_measurements_are_one_line(static_host: Path, bundle: Path) -> None:
    words = ("--bench", "-p", 16, "-n", 8, "--runs", 2, "--threads", 1)
    told = json.loads(run(static_host, bundle, *words, "--json").stdout)
    assert told["prompt_tokens"] == 16
    assert len(told["prompt_ms"]) == len(told["first_ms"]) == len(told["token_ms"]) == 2
    assert all(len(each) == 7 and min(each) > 0 for each in told["token_ms"])
    assert {"version", "kernels", "threads", "open_ms", "peak_bytes", "processor", "kv_bytes"} <= told.keys()
    assert "tokens/s" in run(static_host, bundle, *words).stdout


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--prompt", "x"], 2, "no model"),
        (["BUNDLE"], 2, "nothing to do"),
        (["BUNDLE", "--promt", "x"], 2, "--promt: there is no such option"),
        (["BUNDLE", "-n", "-3", "-p", "x"], 2, "-n -3: wanted a whole number"),
        (["BUNDLE", "-n", "0", "-p", "x"], 2, "-n 0: wanted 1 or more"),
        (["BUNDLE", "--chat", "-p", "x"], 2, "--chat reads lines"),
        (["BUNDLE", "-p", "x", "--kv-bits", "7"], 2, "--kv-bits 7: wanted 32, 16, 8 or 4"),
        (["BUNDLE", "-p"], 2, "-p wants a value"),
        (["none", "-p", "x"], 1, "No such file"),
        (["BUNDLE/native", "-p", "x"], 1, "native has no native/model.lanes"),
        (["BUNDLE/manifest.json", "-p", "x"], 1, "manifest.json: no model.lanes file"),
        (["BUNDLE", "-p", "x", "--exit", "depth:9"], 1, "depth:1 to depth:3"),
        (["BUNDLE", "-p", ""], 1, "the prompt is empty"),
        (["BUNDLE", "-p", "x", "--load", "none"], 1, "No such file"),
        (["BUNDLE", "--bench", "-p", "500", "-n", "500"], 1, "the model's context has"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], code: int, line: str, static_host: Path, bundle: Path
) -> None:
    done = run(static_host, *(word.replace("BUNDLE", str(bundle)) for word in words), code=code)
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_a_tokenizer_it_measures(
    static_host: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tiny("edgeloop")
    (checkpoint / "tokenizer.json").unlink()
    made = export_bundle(checkpoint, tmp_path / "made", targets=("native",)).bundle
    done = run(static_host, made, "-p", "x", code=1)
    assert "has no tokenizer, so only --bench runs" in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "tokens/s" in run(static_host, made, "--bench", "-p", 4, "-n", 4, "--runs", 1).stdout


def test_a_session_takes_the_place_of_files_alone(static_host: Path, bundle: Path, tmp_path: Path) -> None:
    """A folder, a pipe or a device stays what it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        done = run(static_host, bundle, "-p", "x", "-n", 1, "--save", place, code=1)
        assert f"{place} is no plain file" in done.stderr
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
@pytest.mark.parametrize(
    "words", [["-p", "x"], ["-p", "x", "--json"], ["--bench", "--runs", "1"], ["--chat"]]
)
def test_output_that_finds_no_room_is_one_line(words: list[str], static_host: Path, bundle: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [static_host, bundle, *words, "-n", "4"], input=b"x\n", stdout=full, stderr=subprocess.PIPE, check=False
        )  # fmt: skip
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
    assert b"No space left" in done.stderr
