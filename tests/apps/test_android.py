"""The module ``engine`` of apps/android, on a desktop's JVM: it writes what Python writes, and holds what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jvm
import pytest
from pages import ROOT, blocks

from edgeloop.export import export_bundle
from edgeloop.runtime import SamplingOptions, Session

PROMPT = "Once upon a time, there was a king"
TALE = "Tell me a tale."
THEN = "And then?"
EXERCISE = "edgeloop.Exercise"


@dataclass(frozen=True)
class Host:
    """What is compiled, and a model for it."""

    classes: str
    library: Path
    bundle: Path

    @property
    def model(self) -> Path:
        return self.bundle / "native" / "model.lanes"

    def ran(self, part: str, *arguments: str, given: str = "") -> list[str]:
        return jvm.ran(self.classes, self.library, EXERCISE, part, *arguments, given=given)


@pytest.fixture(scope="module")
def host(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    if reason := jvm.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("android")
    bundle = folder / "bundle"
    export_bundle(ROOT / "apps" / "demo" / "checkpoint", bundle, targets=["native"], quant="int4")
    return Host(jvm.classes(folder), jvm.jni_library(lane_engine, folder), bundle)


CASES: list[tuple[dict[str, Any], int, str, SamplingOptions]] = [
    ({}, 40, "", SamplingOptions()),
    ({}, 40, "HERE", SamplingOptions()),
    ({}, 30, "", SamplingOptions(temperature=0.8, seed=7)),
    ({}, 30, "", SamplingOptions(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02, seed=2**63 + 5)),
    ({"exit": "depth:2"}, 20, "", SamplingOptions()),
    ({"exit": "latent:0.35", "skipped_kv": "propagate"}, 40, "", SamplingOptions()),
    ({"exit": "latent:0.5,0.2", "skipped_kv": "skip"}, 20, "", SamplingOptions(temperature=0.7, seed=3)),
    ({"kv_bits": 32}, 20, "", SamplingOptions()),
    ({"kv_bits": 8}, 20, "", SamplingOptions()),
]
KV = {32: "FLOAT32", 16: "FLOAT16", 8: "INT8"}
FINISH = {"eos": "END", "stop": "STOP_STRING", "length": "LENGTH", "context": "CONTEXT"}


def test_it_writes_what_python_writes(host: Host) -> None:
    """Text, tokens, their depths and why it ended: greedily, by a seed, with stops, exits and other K and V."""
    lines, wanted = [], []
    for options, count, ends, sampling in CASES:
        stop = ends and wanted[0][-1][20:24]  # what comes in the same answer without it
        chosen = {"kv_bits": 16, **options}
        with Session.open(host.bundle, engine="native", **chosen) as session:
            steps = list(session.generate(PROMPT, count, sampling, [stop] if stop else []))
            length = len(session.ids)
        wanted.append(
            (
                ",".join(str(step.token) for step in steps),
                ",".join(str(step.depth) for step in steps),
                FINISH[steps[-1].finish or ""],
                str(length),
                "".join(step.text for step in steps).replace("\n", "\\n"),
            )
        )
        numbers = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed)
        policy = (chosen.get("exit", ""), chosen.get("skipped_kv", ""), KV[chosen["kv_bits"]])
        lines.append("|".join(map(str, (*policy, *numbers, count, stop, PROMPT))))
    assert len({tokens for tokens, *_ in wanted}) > 4
    assert len({depths for _, depths, *_ in wanted}) > 3
    assert len({finish for _, _, finish, *_ in wanted}) > 1
    found = host.ran("answers", str(host.model), given="\n".join(lines) + "\n")
    assert [tuple(line.split("|", 4)) for line in found] == wanted


def test_conversations(host: Host, tmp_path: Path) -> None:
    """Turns as Python renders and answers them; saved, loaded, forked, and answered anew."""
    told = {}
    messages: list[dict[str, str]] = []
    with Session.open(host.bundle, engine="native", kv_bits=16) as session:
        for name, said in (("first", TALE), ("second", THEN)):
            session.converse([*messages, {"role": "user", "content": said}])
            answer = "".join(step.text for step in session.generate(max_tokens=24))
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            told[name] = answer.replace("\n", "\\n")
        rendered = list(session.encode_chat([{"role": "user", "content": TALE}]))
        smile = "A caf\u00e9 \N{SLIGHTLY SMILING FACE}\0 \u6f22"
        encoded = list(session.tokenizer.encode(smile, special=False))
        program = session.program
        sizes = (program.depths, program.vocab_size, program.context_length)
    found = dict(
        line.split(": ", 1) for line in host.ran("turns", str(host.model), str(tmp_path / "saved.session"))
    )
    same = dict.fromkeys(("decoded", "the same", "shared", "another", "chat"), "true")
    assert found == {
        "info": " ".join(map(str, (*sizes, "true", "ANY", list(program.eos_token_ids)))),
        "encoded": str(encoded),
        "rendered": str(rendered),
        "messages": "user assistant user assistant true",
        "stats": f"true true true {program.depths}.0",
        **told,
        **same,
    }


def test_what_it_refuses_and_what_it_promises(host: Host) -> None:
    """Errors are exceptions with the library's code and line; use behind a close is one, too."""
    found = dict(line.split(": ", 1) for line in host.ran("rules", str(host.model)))
    smile = "\N{SLIGHTLY SMILING FACE}"
    inside = "IllegalStateException a listener may only stop the conversation that calls it"
    kernels = "for this processor; leave them out for the best ones"
    assert found == {
        "no file": f"FILE {host.model}.none: No such file or directory",
        "no model": "FORMAT no model.lanes file: it begins otherwise",
        "no kernels": f"USAGE there are no kernels sse9 {kernels}",
        "half a character": (
            "IllegalArgumentException the text has half of a character: a surrogate without its other one"
        ),
        "a smile": f"USAGE there are no kernels {smile} {kernels}",
        "a zero": "USAGE a text has a zero character, wanted none",
        "no exit": found["no exit"],
        "depths": "USAGE exit rule depth:9: wanted depth:1 to depth:3, the depths of this model",
        "capacity": "USAGE a capacity of 100000 tokens, wanted 1 to 512",
        "temperature": "USAGE a temperature of -1, wanted 0 or more",
        "nothing": "USAGE the context is empty; append a text, or say something",
        "no such token": "USAGE token id 1099511627776, wanted 0 to 4095",
        "no such role": "USAGE role nobody, wanted system, user or assistant",
        "no saved file": found["no saved file"],
        "full": "CONTEXT 17",
        "again": "true STOPPED 3",
        "thrown": "IllegalArgumentException the listener's own",
        "inside": inside,
        "close inside": inside,
        "stop inside": "STOPPED 1",
        "stop before": "LENGTH",
        "closed by another": "the conversation is closed",
        "closed model": "IllegalStateException the model is closed",
        "closed text": "IllegalStateException the model is closed",
        "open still": "9",
        "closed": "IllegalStateException the conversation is closed",
    }
    assert found["no exit"].startswith("USAGE exit rule sometimes")
    assert found["no saved file"].startswith(f"FORMAT {host.model}")


def test_the_page_has_a_program(host: Host, tmp_path: Path) -> None:
    """And pieces of one, which are compiled."""
    program, *pieces = blocks(ROOT / "docs" / "android.md", "java")
    assert [piece.count("context.getFilesDir().toPath()") for piece in pieces] == [1, 1, 0]
    bodies = [piece.replace("context.getFilesDir().toPath()", "folder") for piece in pieces]
    names = ("BundleStore", "BundleUpdate", "Model", "TrustedKey")
    every = ("java.net.URL", "java.nio.file.Path", *(f"edgeloop.{name}" for name in names))
    imports = "".join(f"import {each};\n" for each in every)
    fields = "Path folder, bundle, update; TrustedKey key;\n"  # what a piece takes from around it
    methods = "".join(f"void piece{i}() throws Exception {{\n{body}}}\n" for i, body in enumerate(bodies))
    (tmp_path / "Hello.java").write_text(program, encoding="utf-8")
    (tmp_path / "Piece.java").write_text(f"{imports}class Piece {{ {fields}{methods}}}", encoding="utf-8")
    path = jvm.compiled(tmp_path.glob("*.java"), tmp_path, host.classes)
    with Session.open(host.bundle, engine="native", kv_bits=16) as session:
        session.converse([{"role": "user", "content": TALE}])
        wanted = "".join(step.text for step in session.generate(max_tokens=64))
    assert jvm.ran(path, host.library, "Hello", str(host.model)) == wanted.splitlines()


LEAST_LEAK = 75 * 204 * 4096
"""Bytes: what 75 conversations of 204 tokens of this model have as K and V in 16 bits."""


def test_a_hundred_conversations_leave_nothing(host: Host) -> None:
    """From four threads, with four models one after the other: memory and threads are those after the first."""
    said, grown, threads = host.ran("crowd", str(host.model))
    assert len(said.split()) == 3
    assert said.startswith("said: 100 ")
    assert int(grown.removeprefix("grown: ")) < LEAST_LEAK / 3
    assert int(threads.removeprefix("threads: ")) <= 3  # the JVM's own come and go; each model has two
