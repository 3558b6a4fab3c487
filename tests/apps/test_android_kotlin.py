"""The Kotlin of apps/android: what has no class of Android's is compiled and run where there is a compiler.

The rest is parsed (``test_phone_sources.py``); ``make android`` gets the compiler from PyPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import jvm
import pytest
from http_server import serving
from pages import ROOT, blocks

from edgeloop.export import export_bundle
from edgeloop.runtime import Session


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and writes nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "web" / "bundle"
    export_bundle(ROOT / "apps" / "demo" / "checkpoint", folder, targets=["native"], quant="int4")
    return folder


@pytest.fixture
def address(bundle: Path) -> Iterator[str]:
    with serving(partial(Quiet, directory=str(bundle.parent))) as found:
        yield f"{found}/bundle"


def test_answers_as_flows_and_the_chat_without_its_screen(
    lane_engine: Path, bundle: Path, address: str, tmp_path: Path
) -> None:
    """Text is Python's; a flow that is not collected to its end stops the answer; each button does what it says."""
    if reason := jvm.missing() or jvm.without_kotlin():
        pytest.skip(reason)
    (piece,) = blocks(ROOT / "docs" / "android.md", "kotlin")
    page = tmp_path / "Page.kt"
    imports = "import edgeloop.AnswerOptions\nimport edgeloop.Conversation\nimport edgeloop.pieces\n"
    page.write_text(
        f"{imports}suspend fun page(conversation: Conversation) {{\n{piece}}}\n", encoding="utf-8"
    )
    path = jvm.kotlin_classes(tmp_path, jvm.classes(tmp_path), page)
    library = jvm.jni_library(lane_engine, tmp_path)
    model = str(bundle / "native" / "model.lanes")
    with Session.open(bundle, engine="native", kv_bits=16) as session:
        flow = "".join(step.text for step in session.generate("Once upon a time", max_tokens=24))
    lines = jvm.ran(path, library, "edgeloop.chat.ChatCheck", str(tmp_path / "bundles"), address, model)
    ready = [line for line in lines if line.startswith("ready: ")]
    assert ready == ["ready: false", "ready: true depth:1 depth:2 never null"]
    found = dict(line.split(": ", 1) for line in lines)
    assert found.pop("text").strip()
    assert found == {
        "flow": flow.replace("\n", "\\n") + "|LENGTH 24",
        "taken": "true true",
        "ready": "true depth:1 depth:2 never null",
        "problem": "SITE/nowhere/manifest.json answered 404, wanted 200",
        "roles": "user assistant null",
        "another": "2 true",
        "depth": "depth:1 [3, 1] null",  # the prompt ran all depths, and the first token is chosen behind it
        "still": "depth:1 true",
    }
