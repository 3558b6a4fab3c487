"""apps/ios, compiled on Linux with stand-ins for Apple's frameworks: its hosts write what Python writes.

The lane engine behind them is the library itself; Core ML answers from a process of Python's. ``make swift`` has a
compiler; without one this is skipped.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import swift_compiler
from pages import ROOT, blocks
from swift_apps import IOS, Built

from edgeloop.apps.cli import main
from edgeloop.export import export_bundle
from edgeloop.runtime import SamplingOptions, Session
from edgeloop.runtime.bundle.manifest import read_manifest

TALE, THEN = "Tell me a tale.", "And then?"
PROMPT = [3, 141, 59, 26, 53, 58]
COUNT = 10


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story model for the lane engine and Core ML, with calibrated exits."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle(
        ROOT / "apps" / "demo" / "checkpoint", bundle, targets=["native", "coreml", "onnx"], quant="int8"
    )
    text = bundle.with_name("text")
    text.write_text(
        (ROOT / "apps/demo/texts/grimm.txt").read_text(encoding="utf-8")[2000:6000], encoding="utf-8"
    )
    words = ["calibrate", str(bundle), "--text", str(text), "--skipped-kv", "propagate", "--engine", "native"]
    assert main(words) == 0
    return bundle


def model(bundle: Path) -> Path:
    return bundle / "native" / "model.lanes"


def answer(session: Session, count: int, **options: Any) -> str:
    """A line as the checks write it."""
    steps = list(session.generate(max_tokens=count, **options))
    columns = (",".join(str(getattr(step, name)) for step in steps) for name in ("token", "depth"))
    return "|".join((*columns, "".join(step.text for step in steps).replace("\n", "\\n")))


CASES: list[tuple[str, SamplingOptions, int, str]] = [
    ("never", SamplingOptions(), 40, ""),
    ("never", SamplingOptions(), 40, "tale"),
    ("never", SamplingOptions(temperature=0.8, seed=7), 30, ""),
    ("never", SamplingOptions(temperature=1.2, top_k=20, seed=2**63 + 5), 30, ""),
    ("depth:1", SamplingOptions(), 20, ""),
    ("latent", SamplingOptions(), 40, ""),
    ("probe", SamplingOptions(temperature=0.7, seed=3), 20, ""),
]


def test_the_lane_engine_writes_what_python_writes(ios: Built, demo: Path) -> None:
    lines, wanted = [], []
    for rule, sampling, count, stop in CASES:
        given = (rule, sampling.temperature, sampling.top_k, sampling.seed, count, stop, TALE)
        lines.append("|".join(map(str, given)))
        with Session.open(demo, engine="native", kv_bits=16, exit=rule) as session:
            session.converse([{"role": "user", "content": TALE}])
            wanted.append(answer(session, count, sampling=sampling, stop=[stop] if stop else []))
    assert len(set(wanted)) == len(CASES)
    found = ios.ran("ConversationCheck", "answers", "lanes", model(demo), given="\n".join(lines) + "\n")
    assert found == wanted


@pytest.mark.parametrize("host", ["lanes", "coreml"])
def test_conversations(host: str, ios: Built, demo: Path) -> None:
    """Turns, an exit between them, and the last answer anew; Core ML's functions by the interpreter."""
    options: dict[str, Any] = {"engine": "native", "kv_bits": 16}
    words: list[object] = [host, model(demo)]
    if host == "coreml":
        options = {"engine": "coreml-reference"}
        words = [host, demo / "coreml" / "model.mlpackage", demo / "text.lanes"]
    found = ios.ran("ConversationCheck", "talk", *words, functions=ROOT / "tests" / "coreml_functions.py")
    one = [{"role": "user", "content": TALE}]
    with Session.open(demo, **options) as session:
        session.converse(one)
        first = answer(session, 16)
        depths = session.program.depths
    said = first.split("|")[2]
    talk = [
        *one,
        {"role": "assistant", "content": said.replace("\\n", "\n")},
        {"role": "user", "content": THEN},
    ]
    with Session.open(demo, exit="depth:2", **options) as session:
        session.converse(talk)
        second = answer(session, 16)
    # The prompt ran all depths, so the token behind it did.
    tokens, _, text = second.split("|")
    assert [line.split("|")[::2] for line in found[1:3]] == [[tokens, text]] * 2
    assert found[0] == first
    assert found[3:-1] == [f"user: {TALE}", f"assistant: {said}", f"user: {THEN}", f"assistant: {text}"]
    exits = read_manifest(demo).exits.keys()
    without_logits = {"latent", "probe"}  # which the lane engine decides itself
    assert exits > without_logits
    assert found[-1] == f"{depths} {json.dumps(sorted(exits if host == 'coreml' else without_logits))}"


def test_what_is_refused_and_how_an_answer_ends(ios: Built, demo: Path) -> None:
    *lines, last = ios.ran("ConversationCheck", "rules", "lanes", model(demo))
    found = dict(line.split(": ", 1) for line in lines)
    assert len(last.split("|")[0].split(",")) == 5
    with Session.open(demo, engine="native") as session:
        smile = list(
            session.tokenizer.encode("A caf\u00e9 \N{SLIGHTLY SMILING FACE}\0 \u6f22", special=False)
        )
    assert found == {
        "exit": "exit rule depth:none: wanted depth:1 to depth:3, the depths of this model",
        "again": "there is no answer at the end of the context",
        "file": "/nowhere/model.lanes: No such file or directory",
        "smile": f"true {smile}",
        "stopped": 'true ["user", "assistant"]',
        "left": '3 ["user"]',
        "cancelled": "true",
    }


def test_the_chat_shows_what_its_buttons_do(ios: Built, demo: Path) -> None:
    found = dict(line.split(": ", 1) for line in ios.ran("ChatCheck", model(demo)))
    rules = found.pop("rules")
    assert re.fullmatch(r'\["depth:1", "depth:2", .*"latent", .*"never"\] of 3', rules)
    assert found == {
        "nothing": "0 false",
        "sent": '["user", "assistant"] true 1',
        "meanwhile": "2",
        "stopped": "[1, 3] true",
        "again": '["user", "assistant"] 0',
        "another": "true no problem",
        "early": 'true ["user", "assistant", "user", "assistant"] true no problem',
        "problem": "exit rule depth:9: wanted depth:1 to depth:3, the depths of this model",
    }


def test_the_screen_fits_the_chat(ios: Built) -> None:
    assert ios.program("EdgeloopChat")


RULES = [
    "never",
    "depth 2",
    "confidence 0.05 0.03",
    "margin 0.02 0.02",
    "entropy 6.5 6.5",
    "kl 0.4 0.4",
    "entropy-diff 0.2 0.2",
    "stable 1 2",
    "latent 0.5 0.3",
    "probe",
]


def test_exit_rules_on_core_ml(ios: Built, demo: Path) -> None:
    """Every measure, as Python's session decides, on the same numbers."""
    package = demo / "coreml" / "model.mlpackage"
    script = ROOT / "tests" / "coreml_functions.py"
    given = "\n".join(RULES) + "\n"
    found = ios.ran("DepthCheck", package, COUNT, *PROMPT, given=given, functions=script)
    assert len(found) == len(RULES)
    depths = set()
    for rule, line in zip(RULES, found, strict=True):
        name, *numbers = rule.split()
        chosen = f"{name}:{','.join(numbers)}" if numbers else name
        with Session.open(demo, engine="coreml-reference", exit=chosen, skipped_kv="propagate") as session:
            steps = [*session.generate(PROMPT, max_tokens=COUNT + 1)]
        assert line == " ".join(f"{one.token}:{after.depth}" for one, after in pairwise(steps)), rule
        depths.add(tuple(step.depth for step in steps[1:]))
    assert len(depths) > 4


def test_the_readme_and_the_page_compile(ios: Built) -> None:
    """Each block in a function of its own, with what the text around it has."""
    for name in ("edgeloop", "CoreML", "Edgeloop", "EdgeloopNative"):
        ios.module(name)
    found = blocks(IOS / "README.md", "swift")
    assert len(found) > 2
    for text in found:
        lines = text.splitlines()
        imports = {"import Edgeloop", "import EdgeloopNative", "import Foundation"}
        code = "\n".join(line for line in lines if not line.startswith("import "))
        imports |= {line for line in lines if line.startswith("import ")}
        around = "bundle: URL, url: URL, lanes: LaneModel, ids: [Int32]"
        source = "\n".join((*sorted(imports), f"func example({around}) async throws {{", code, "}"))
        assert swift_compiler.said(source, ios.folder) == "", text
    assert "cannot find 'nothing'" in swift_compiler.said("func wrong() { nothing() }", ios.folder)


def test_the_package_description(ios: Built, tmp_path: Path) -> None:
    package = swift_compiler.package(IOS, tmp_path)
    targets = {each["name"]: each["type"] for each in package["targets"]}
    assert targets == {
        "Edgeloop": "regular",
        "CEdgeloop": "binary",
        "EdgeloopNative": "regular",
        "EdgeloopChat": "executable",
    }
    assert {each["platformName"] for each in package["platforms"]} == {"ios", "macos"}
