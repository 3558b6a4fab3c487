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

PROMPT = [20, 30, 41, 59]
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


CASES: list[tuple[dict[str, Any], int, SamplingOptions]] = [
    ({}, 40, SamplingOptions()),
    ({}, 30, SamplingOptions(temperature=0.8, seed=7)),
    ({}, 30, SamplingOptions(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02, seed=2**63 + 5)),
    ({"exit": "depth:2"}, 20, SamplingOptions()),
    ({"exit": "latent:0.35", "skipped_kv": "propagate"}, 40, SamplingOptions()),
    ({"exit": "latent:0.5,0.2", "skipped_kv": "propagate"}, 20, SamplingOptions(temperature=0.7, seed=3)),
    ({"kv_bits": 32}, 20, SamplingOptions()),
    ({"kv_bits": 8}, 20, SamplingOptions()),
]
KV = {32: "FLOAT32", 16: "FLOAT16", 8: "INT8"}


def test_it_writes_what_python_writes(host: Host) -> None:
    """Tokens, their depths and why the answer ended: greedily, sampled by a seed, with exits and other K and V."""
    lines, wanted = [], []
    for options, count, sampling in CASES:
        chosen = {"kv_bits": 16, **options}
        with Session.open(host.bundle, engine="native", **chosen) as session:
            steps = list(session.generate(PROMPT, max_tokens=count, sampling=sampling))
            ends = session.bundle.program.eos_token_ids
        tokens = [step.token for step in steps]
        ended = tokens[-1] in ends
        if ended:
            tokens.pop()
        wanted.append(
            (
                ",".join(map(str, tokens)),
                ",".join(str(step.depth) for step in steps[: len(tokens)]),
                "END" if ended else "LENGTH",
                str(len(tokens)),
                str(len(PROMPT) + len(tokens)),
            )
        )
        numbers = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed)
        fields = (chosen.get("exit", "never"), KV[chosen["kv_bits"]], *numbers, count)
        lists = (",".join(map(str, each)) for each in (ends, PROMPT))
        lines.append("|".join((*map(str, fields), *lists)))
    assert len({tokens for tokens, *_ in wanted}) > 4
    assert len({depths for _, depths, *_ in wanted}) > 3
    found = host.ran("answers", str(host.model), given="\n".join(lines) + "\n")
    assert [tuple(line.split("|")) for line in found] == wanted


def test_what_it_refuses_and_what_it_promises(host: Host) -> None:
    """Errors are exceptions with the library's code and line; use behind a close is one, too."""
    found = dict(line.split(": ", 1) for line in host.ran("rules", str(host.model)))
    assert found == {
        "no file": f"FILE {host.model}.none: No such file or directory",
        "no model": f"FILE {host.model.with_name('none.lanes')}: No such file or directory",
        "no kernels": "USAGE there are no kernels sse9 for this processor; leave them out for the best ones",
        "half a character": (
            "IllegalArgumentException the text has half of a character: a surrogate without its other one"
        ),
        "a smile": (
            "USAGE there are no kernels \N{SLIGHTLY SMILING FACE} for this processor; leave them out for the best ones"
        ),
        "a zero": "USAGE a text has a zero character, wanted none",
        "no exit": "USAGE found the exit 'sometimes', wanted never, depth:N or latent:X",
        "depths": "USAGE a rule that stops after 9 depths, wanted 1 to 3",
        "capacity": "USAGE a capacity of 100000 tokens, wanted 1 to 512",
        "temperature": "USAGE a temperature of -1, wanted 0 or more",
        "nothing": "USAGE there is nothing to answer: append a text first",
        "no such token": "USAGE found token 1099511627776, wanted 0 to 4095",
        "full": "CONTEXT 16",
        "no room": "USAGE 1 tokens behind 16, and there is room for 16",
        "again": "true STOPPED 3",
        "thrown": "IllegalArgumentException the listener's own",
        "inside": "IllegalStateException a listener may only stop the conversation that calls it",
        "close inside": "IllegalStateException a listener may only stop the conversation that calls it",
        "stop inside": "STOPPED 1",
        "stop before": "LENGTH",
        "closed by another": "the conversation is closed",
        "closed model": "IllegalStateException the model is closed",
        "open still": "9",
        "closed": "IllegalStateException the conversation is closed",
    }


def test_the_page_has_a_program(host: Host, tmp_path: Path) -> None:
    """And a piece of one, which is compiled."""
    program, piece = blocks(ROOT / "docs" / "android.md", "java")
    folder = "Path folder"
    assert piece.count("context.getFilesDir().toPath()") == 1
    body = piece.replace("context.getFilesDir().toPath()", folder.split()[1])
    names = "java.net.URL; java.nio.file.Path; edgeloop.BundleStore; edgeloop.Model"
    imports = "".join(f"import {each};\n" for each in names.split("; "))
    (tmp_path / "Hello.java").write_text(program, encoding="utf-8")
    (tmp_path / "Piece.java").write_text(
        f"{imports}class Piece {{ void piece({folder}) throws Exception {{\n{body}}} }}", encoding="utf-8"
    )
    path = jvm.compiled(tmp_path.glob("*.java"), tmp_path, host.classes)
    with Session.open(host.bundle, engine="native", kv_bits=16) as session:
        wanted = [step.token for step in session.generate(PROMPT, max_tokens=16)]
    assert [int(line) for line in jvm.ran(path, host.library, "Hello", str(host.model))] == wanted


LEAST_LEAK = 75 * 204 * 4096
"""Bytes: what 75 conversations of 204 tokens of this model have as K and V in 16 bits."""


def test_a_hundred_conversations_leave_nothing(host: Host) -> None:
    """From four threads, with four models one after the other: memory and threads are those after the first."""
    said, grown, threads = host.ran("crowd", str(host.model))
    assert len(said.split()) == 3
    assert said.startswith("said: 100 ")
    assert int(grown.removeprefix("grown: ")) < LEAST_LEAK / 3
    assert int(threads.removeprefix("threads: ")) <= 3  # the JVM's own come and go; each model has two
