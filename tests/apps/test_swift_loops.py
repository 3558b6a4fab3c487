"""The depth loops in apps/ios/Hosts, compiled on Linux: they write what Python's sessions write.

ONNX Runtime and ExecuTorch answer from a process of Python's, behind stand-ins for their Swift APIs. ``make swift`` has
a compiler; without one this is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import swift_compiler
from pages import ROOT, blocks
from swift_apps import CHECKS, HOSTS, LIBRARIES, Built

from edgeloop.export import export_bundle
from edgeloop.runtime import Session

TALE = "Tell me a tale."
PROMPT = [3, 141, 59, 26, 53, 58]
COUNT, CAPACITY = 10, 24
BundleOf = Callable[[str, str], Path]
LOOPS = {
    "onnx": ("OnnxCheck", "graphs", "onnx_graphs.py"),
    "executorch": ("PteCheck", "methods", "pte_methods.py"),
}


@pytest.mark.parametrize("depths", [0, 2])
@pytest.mark.parametrize("kind", ["ouro", "mor-lora"])
@pytest.mark.parametrize("target", LOOPS)
def test_loops(target: str, kind: str, depths: int, ios: Built, bundle_of: BundleOf, tmp_path: Path) -> None:
    if target == "executorch":
        pytest.importorskip("executorch")
    written_in_three_ways(ios, target, bundle_of(kind, target), depths, tmp_path)


def test_a_loop_with_weights_beside_the_program(
    ios: Built, tiny_once: Callable[[str], Path], tmp_path: Path
) -> None:
    """In one file: the runtime behind the stand-in takes no second one, which the deltas would be."""
    pytest.importorskip("executorch")
    bundle = tmp_path / "bundle"
    export_bundle(tiny_once("ouro"), bundle, targets=["executorch"], options={"split_weights": True})
    assert [path.name for path in bundle.rglob("*.ptd")] == ["base.ptd"]
    written_in_three_ways(ios, "executorch", bundle, 0, tmp_path)


@pytest.mark.parametrize("target", LOOPS)
def test_the_program_of_the_page(target: str, ios: Built, bundle_of: BundleOf, tmp_path: Path) -> None:
    """As it stands for ONNX Runtime, and with another loop for ExecuTorch: text in and text out."""
    if target == "executorch":
        pytest.importorskip("executorch")
    (text,) = blocks(ROOT / "docs" / "in-your-app.md", "swift")
    if target == "executorch":
        text = text.replace(
            "OnnxLoop(bundle: bundle, capacity: 48, threads: 2)", "PteLoop(bundle: bundle, capacity: 48)"
        )
        assert "PteLoop" in text
    page = ios.folder / f"{target}.swift"
    page.write_text(text, encoding="utf-8")
    check, kind, script = LOOPS[target]
    loop = [path for path in ios.sources(check) if path.parent == HOSTS]
    link = [ios.module(name) for name in (*LIBRARIES[check], *LIBRARIES["TellCheck"])]
    sources = [page, CHECKS / "TellCheck.swift", *loop]
    program = swift_compiler.program(f"Tell{target}", sources, ios.folder, link)
    path = f"{sys.executable}\n{ROOT / 'tests' / script}"
    if target == "executorch":
        path = f"{path}\n{tmp_path / 'calls'}"
    bundle = bundle_of("ouro", target)
    done = subprocess.run(
        [*program, str(bundle), TALE, "2"],
        capture_output=True,
        env={**os.environ, f"EDGELOOP_{kind.upper()}": path},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    with Session.open(bundle, engine=target, exit="depth:2") as session:
        wanted = "".join(step.text for step in session.generate(TALE, max_tokens=16))
    assert len(set(wanted)) > 2
    assert done.stdout.decode() == wanted + "\n"


def test_what_the_loops_do_not_know(ios: Built, bundle_of: BundleOf, tmp_path: Path) -> None:
    """One line each, before anything runs, as in test_app_hosts.py."""
    pytest.importorskip("executorch")
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("ouro", "executorch"), bundle)
    layout, manifest = bundle / "executorch" / "layout.json", bundle / "manifest.json"

    def said(path: Path, **changed: object) -> str:
        before = path.read_text(encoding="utf-8")
        path.write_text(json.dumps(json.loads(before) | changed), encoding="utf-8")
        (line,) = loop(ios, "executorch", bundle, 0, tmp_path)
        path.write_text(before, encoding="utf-8")
        return line

    found = json.loads(layout.read_text(encoding="utf-8"))
    assert "the embedding is not where" in said(layout, embedding=found["embedding"] | {"check": 1})
    assert "ends too early" in said(layout, embedding=found["embedding"] | {"values": 2**62})
    assert "numbers in 7 groups" in said(layout, embedding=found["embedding"] | {"groups": 7})
    assert "a sliding window" in said(layout, sizes=found["sizes"] | {"window": 4})
    assert "has format 3, this loop reads 4" in said(manifest, format=3)
    program = json.loads(manifest.read_text(encoding="utf-8"))["program"]
    assert "a router" in said(manifest, program=program | {"routing": {"kind": "token"}})
    assert "context_length 1099511627776, wanted 1 to" in said(
        manifest, program={**program, "context_length": 2**40}
    )
    assert "has width -1, wanted 1 to" in said(layout, sizes=found["sizes"] | {"width": -1})
    assert loop(ios, "executorch", bundle, 0, tmp_path, -1) == ["room for -1 tokens, wanted 1 or more"]
    assert "has no vocab_size" in said(manifest, program={**program, "vocab_size": None})
    manifest.write_text("no JSON", encoding="utf-8")
    assert loop(ios, "executorch", bundle, 0, tmp_path) == [
        f"{manifest} is not there, or not JSON; copy the bundle again"
    ]


def written_in_three_ways(ios: Built, target: str, bundle: Path, depths: int, folder: Path) -> None:
    """The answer by three ways to it, and a prompt behind tokens that left early, as in test_app_hosts.py."""
    lines = loop(ios, target, bundle, depths, folder)
    options = {"exit": f"depth:{depths}"} if depths else {}
    with Session.open(bundle, engine=target, **options) as session:
        wanted = [step.token for step in session.generate(PROMPT, max_tokens=COUNT)]
    assert len(set(wanted)) > (1 if depths else 3)
    assert [[int(word) for word in line.split()] for line in lines[:3]] == [wanted] * 3
    early = f"{COUNT - 1} tokens left early; go back to {len(PROMPT)} and begin the prompt with them"
    assert lines[3:] == ([early] if depths else [])


def loop(
    ios: Built, target: str, bundle: Path, depths: int, folder: Path, capacity: int = CAPACITY
) -> list[str]:
    name, kind, script = LOOPS[target]
    path = ROOT / "tests" / script
    if target == "executorch":
        path = Path(f"{path}\n{folder / 'calls'}")
    return ios.ran(name, bundle, capacity, depths, COUNT, *PROMPT, **{kind: path})
