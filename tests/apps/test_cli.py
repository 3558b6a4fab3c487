"""The command line as a process: help without engines, one line and a code for every failure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeloop.apps.cli import VERBS, describe, main
from edgeloop.runtime.errors import BundleError, UsageError

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "tokenizers", "rich", "jinja2")


def edgeloop(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeloop.apps.cli", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def imported_by(words: list[str]) -> set[str]:
    code = f"""
import sys
sys.argv = ['edgeloop', *{words!r}]
from edgeloop.apps.cli import main
code = main()
sys.stdout.flush()
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert imported_by(words) & set(HEAVY) == set()


def test_help_imports_no_verb() -> None:
    verbs = {f"edgeloop.apps{verb.module}" for verb in VERBS.values()}
    assert imported_by(["--help"]) & verbs == set()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "--json" in text
    assert f"edgeloop {verb}" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rum"], "did you mean `edgeloop run`?"),
        (["frobnicate"], "choose one of export, "),
        (["export"], "required: CKPT, -o/--out"),
        (["run", "bundle", "-p", "x", "-n", "0"], "'0' is not a whole number of 1 or more"),
        (["run", "bundle", "-p", "x", "--temprature", "1"], "--temprature"),
        (["export", "x", "-o", "y", "--group-size", "33"], "choose from 32, 64, 128"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edgeloop: ")
    assert err.count("\n") == 1
    assert told in err


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UsageError("no"), "no", 2),
        (BundleError("broken\nin two"), "broken in two", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (OSError(28, "No space left on device", "/out/weights"), "/out/weights: No space left on device", 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'edgeloop[export]'", 1),
        (ModuleNotFoundError("No module named 'x'", name="x"), "a bug of edgeloop: ModuleNotFoundError", 70),
        (ZeroDivisionError("by\nzero"), "a bug of edgeloop: ZeroDivisionError: by zero (--debug", 70),
        (MemoryError(), "out of memory", 1),
    ],
)
def test_errors_become_one_line_and_a_code(error: BaseException, line: str, code: int) -> None:
    message, found = describe(error)
    assert line in message
    assert "\n" not in message
    assert found == code


WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(("rich", "jinja2", "torch", "onnx", "onnx_ir", "yaml"))  # as if not installed
from edgeloop.apps.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_extras(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_without_rich_there_is_json_and_a_line_that_says_so(bundle: Path) -> None:
    words = ("run", bundle, "-p", "Once", "-n", "3", "--engine", "reference")
    done = without_extras(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "edgeloop: the command line needs rich, which is not installed: pip install 'edgeloop[cli]', or add --json\n"
    )
    done = without_extras(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tokens"]) == 3
    assert without_extras("run", "--help").returncode == 0


def test_without_jinja_what_needs_no_template_works(bundle: Path) -> None:
    words = ("run", bundle, "-p", "Once", "-n", "3", "--engine", "reference", "--json")
    assert without_extras(*words).returncode == 0
    done = without_extras(*words, "--chat")
    assert done.returncode == 2
    assert done.stderr == (
        "edgeloop: chat templates need jinja2, which is not installed: pip install 'edgeloop[chat]'\n"
    )


def test_no_traceback_unless_asked(tmp_path: Path) -> None:
    skipped_kv = str(tmp_path / "nothing")
    plain = edgeloop("show", skipped_kv)
    assert plain.returncode == 1
    assert plain.stderr.count("\n") == 1
    assert "Traceback" not in plain.stderr
    assert "Traceback" in edgeloop("show", skipped_kv, "--debug").stderr


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m edgeloop.apps.cli --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 141)  # 0 when the help was written before `true` was gone
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    command = f"{sys.executable} -m edgeloop.apps.cli --help > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "edgeloop: No space left on device\n"


def test_doctor_as_json() -> None:
    done = edgeloop("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"engines", "targets", "threads", "huge_pages"} <= set(report)
