"""A tiny checkpoint with a chat template, and the bundle that the command line makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import swift_compiler
from swift_apps import Built

from edgeloop.apps.cli import main
from edgeloop.apps.devices import cross

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(autouse=True)
def quick_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark measures what this machine reads and multiplies in a millisecond, not in a second."""
    from edgeloop.apps.measure import roofs

    for name, value in {"SPELLS": 1, "SPELL_S": 1e-4, "_MOST": 1 << 20, "ROWS": 4, "INNER": 64}.items():
        monkeypatch.setattr(roofs, name, value)


@pytest.fixture(scope="session")
def checkpoint(tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apps") / "checkpoint"
    shutil.copytree(tiny_once("edgeloop"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Path:
    """Shared: tests leave it as it is."""
    out = checkpoint.with_name("bundle")
    assert main(["export", str(checkpoint), "-o", str(out), "--quant", "int4", "--json"]) == 0
    return out


@pytest.fixture(scope="session")
def native_bundle(checkpoint: Path) -> Path:
    """As ``bundle``, for the lane engine alone; tests leave it as it is."""
    out = checkpoint.with_name("native")
    words = ["export", str(checkpoint), "-o", str(out), "--target", "native", "--quant", "int4", "--json"]
    assert main(words) == 0
    return out


@pytest.fixture(scope="session")
def bundle_of(
    tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """A tiny checkpoint of a kind, for one target, in int4: made once, so tests leave it as it is."""
    from edgeloop.export import export_bundle

    root = tmp_path_factory.mktemp("targets")

    def get(kind: str, target: str) -> Path:
        goal = root / target / kind
        if not goal.exists():
            export_bundle(tiny_once(kind), goal, targets=[target], quant="int4")
        return goal

    return get


@pytest.fixture(scope="session")
def ios(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The Swift of apps/ios; skips without a compiler."""
    if reason := swift_compiler.missing():
        pytest.skip(reason)
    return Built(tmp_path_factory.mktemp("swift"), lane_engine)


@pytest.fixture
def static_host(static_host: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As elsewhere. Boards get it by this computer's compiler: zig would compile all of it in each run of tests."""
    monkeypatch.setattr(cross, "zig", tuple)
    return static_host


@pytest.fixture
def bundle_without_template(bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["text"]["chat_templates"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``command("run", bundle, …)`` → exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def command_json(command: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """``command_json("run", bundle, …)`` → the one JSON object; stderr must be empty."""

    def run(*words: object) -> Any:
        code, out, err = command(*words, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out)

    return run
