"""docs/ builds as a site whose links lead somewhere, with a reference of the public names."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / page.stem / "index.html").is_file()
    assert (site / "index.html").is_file()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "docs" / "api" / "index.html").read_text(encoding="utf-8")
    for module in ("edgeloop.runtime", "edgeloop.export"):
        for name in importlib.import_module(module).__all__:
            assert f'id="{module}.{name}"' in page
    for name in ("timing.GenerationStats", "serve.handle.Completion", "bundle.manifest.Manifest"):
        assert f'id="edgeloop.runtime.{name}"' in page
