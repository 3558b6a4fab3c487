"""Nothing that a file says steers the terminal, and no message is longer than a few hundred characters."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeloop.apps.cli import describe
from edgeloop.apps.console import Console
from edgeloop.apps.plain import LONGEST, LogFormatter, json_text, one_line, plain
from edgeloop.runtime.errors import BundleError

Command = Callable[..., tuple[int, str, str]]
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\r\x08\u202egnp.exe"
STEERS = set(
    map(chr, [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
)


def test_what_steers_a_terminal_is_written_out() -> None:
    assert plain("\x1b[31m") == "\\x1b[31m"
    assert plain("\u202e") == "\\u202e"
    assert plain("ab\n\tc ü 世 🙂") == "ab\n\tc ü 世 🙂"
    for character in STEERS:
        assert STEERS.isdisjoint(plain(character)), repr(character)
        assert STEERS.isdisjoint(one_line(character)), repr(character)


def test_the_middle_of_a_long_line_goes() -> None:
    text = "found " + "x" * 5000 + "\n; do that"
    line = one_line(text)
    assert len(line) == LONGEST
    assert line.startswith("found x")
    assert line.endswith("x ; do that")
    assert one_line("a\n b") == "a b"


def test_json_says_the_same() -> None:
    values = {"name": EVIL, "lone": "\ud800"}
    text = json.dumps(values, ensure_ascii=False)
    assert STEERS.isdisjoint(json_text(text))
    assert json.loads(json_text(text)) == values


def test_every_way_to_print(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.write(EVIL)
    console.facts([(EVIL, EVIL)])
    console.table([EVIL, f"#{EVIL}"], [[EVIL, EVIL]])
    console.note(EVIL)
    console.line(EVIL)
    console.error(EVIL)
    with console.progress() as progress:
        progress(EVIL, 0.5)
    Console(json=True).result({EVIL: EVIL})
    out, err = capsys.readouterr()
    assert STEERS.isdisjoint(out + err)
    assert "owned" in out
    assert "owned" in err


def test_what_a_model_writes_has_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Direction marks stay: texts of some languages need them."""
    Console().stream(EVIL)
    assert capsys.readouterr().out == "]0;owned[31m2J\u202egnp.exe"


def test_a_cell_with_new_lines_is_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(["name"], [["a\nb\tc"]])
    assert capsys.readouterr().out.splitlines()[1:] == ["a\\nb c"]


@pytest.mark.parametrize(
    "error", [BundleError(f"{EVIL}\n" * 500), OSError(5, EVIL * 99, EVIL), ValueError(EVIL * 99)]
)
def test_errors_are_short_and_plain(error: Exception) -> None:
    message, _ = describe(error)
    assert STEERS.isdisjoint(message)
    assert "\n" not in message
    assert len(message) <= LONGEST


def test_log_records_are_short_and_plain() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "found %s", (EVIL * 99,), None)
    line = LogFormatter().format(record)
    assert line.startswith("edgeloop: WARNING: found ")
    assert STEERS.isdisjoint(line)
    assert "\n" not in line
    assert len(line) <= LONGEST


def test_names_from_a_checkpoint(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / f"check{chr(27)}[31mpoint"))
    path = folder / "model.safetensors"
    save_file({**load_file(path), f"{EVIL}\nbug": torch.zeros(1)}, path, metadata={"format": "pt"})
    for words in (
        ["show", folder],
        ["show", folder, "--json"],
        ["export", folder, "-o", tmp_path / "x\x1b[31m"],
    ):
        _, out, err = command(*words)
        assert STEERS.isdisjoint(out + err), words
        assert "owned" in out + err


def test_names_from_a_manifest(bundle: Path, tmp_path: Path, command: Command) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["edgeloop"] = manifest["quantization"]["scheme"] = EVIL
    manifest["targets"][EVIL] = manifest["targets"]["onnx"]
    rule = {"missing": EVIL, "goal": EVIL, "tokens": 1, "perplexity": 1.0, "full_perplexity": 1.0}
    manifest["exits"] = {EVIL: {**rule, "thresholds": [0.5, 0.5], "agreement": 1.0, "mean_depth": 1.0}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for words in (["show", folder], ["show", folder, "--json"], ["audit", folder]):
        _, out, err = command(*words)
        assert STEERS.isdisjoint(out + err), words
        assert "owned" in out + err or words[0] == "audit"
    (folder / f"{EVIL.replace('/', '')}").write_text("x")
    _, out, err = command("audit", folder)
    assert STEERS.isdisjoint(out + err)
    assert "owned" in out
    manifest["files"][EVIL] = {"bytes": 1, "sha256": "0" * 64}
    family = {**manifest["program"], "family": EVIL}
    for changed in (manifest, {**manifest, "program": family}):
        (folder / "manifest.json").write_text(json.dumps(changed))
        code, out, err = command("run", folder, "-p", "x")
        assert code == 1
        assert STEERS.isdisjoint(out + err)
        assert err.count("\n") == 1


def test_what_the_engine_itself_would_write(bundle: Path, tmp_path: Path) -> None:
    """onnxruntime writes to the file behind stderr, in colours: here in a process of its own, which has one."""
    import subprocess

    onnx = pytest.importorskip("onnx")
    from editing import relist

    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    path = folder / "onnx" / "block.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = f"Nothing{EVIL}\nof that name"
    path.write_bytes(model.SerializeToString())
    relist(folder, "onnx/block.onnx")
    command = [sys.executable, "-m", "edgeloop.apps.cli", "run", str(folder), "-p", "x"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert text.count("\n") == 1
    assert "owned" in text
    assert STEERS.isdisjoint(text)
    assert len(text) <= LONGEST + 20
