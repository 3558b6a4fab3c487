"""What importing and opening may load: a board has neither torch nor every engine."""

from __future__ import annotations

import subprocess
import sys


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()


def test_the_package_alone_loads_nothing_heavy():
    code = "import edgeloop.runtime, sys; print(*[m for m in ('torch', 'onnxruntime', 'numpy') if m in sys.modules])"
    assert run(code) == []


def test_public_names_are_shown():
    code = """
import edgeloop.runtime, edgeloop.export, sys
for module in (edgeloop.runtime, edgeloop.export):
    assert set(module.__all__) <= set(dir(module)), module
    assert "__doc__" in dir(module)
print(*[m for m in ("torch", "numpy") if m in sys.modules])
"""
    assert run(code) == []


def test_a_session_loads_its_engine_only(maker, tmp_path):
    folder = maker.bundle(tmp_path / "bundle", maker.program())
    code = f"""
import sys
from edgeloop.runtime import Bundle, SamplingOptions, Session, Step
heavy = ("torch", "transformers", "onnxruntime", "jinja2", "rich", "tokenizers")
print(*[m for m in heavy if m in sys.modules])
with Session.open({str(folder)!r}, engine="reference") as session:
    list(session.generate([1, 2], 2, SamplingOptions(temperature=1.0)))
print(*[m for m in heavy if m in sys.modules])
"""
    assert run(code) == []
