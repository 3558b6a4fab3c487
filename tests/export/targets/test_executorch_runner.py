"""The C++ runner of a .pte: its tokens and texts are those of Python's engine, and what it says of time adds up."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.bundle.manifest import read_manifest

pytest.importorskip("executorch")
from edgeloop.export.targets.executorch.target import ExecutorchTarget
from edgeloop.runtime.engines.executorch.layout import Shapes

CHUNK, TOKENS = 8, 10
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SHORT, LONG = (1, 3, 8), (9, 16, 17, 40)
"""Sizes of prompts: up to four times the rows of block_m2 they go token by token, longer ones in chunks of 8."""


@pytest.fixture(scope="module")
def bundle(tiny_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three depths whose context is longer than the rows that a cache is laid out for at first, which it
    outgrows, with a chat template."""
    root = tmp_path_factory.mktemp("runner")
    shutil.copytree(tiny_once("mor-cycle"), root / "checkpoint")
    config = json.loads((root / "checkpoint" / "config.json").read_text())
    config["max_position_embeddings"] = 320
    (root / "checkpoint" / "config.json").write_text(json.dumps(config))
    (root / "checkpoint" / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeloop.export.pipeline.open_target", lambda *_: ExecutorchTarget(Shapes(2, CHUNK)))
        export_bundle(root / "checkpoint", root / "bundle", targets=["executorch"], quant="none")
    return root / "bundle"


def run(runner: Path, bundle: Path, *words: str, given: str | None = None) -> str:
    """What the runner writes."""
    done = subprocess.run([str(runner), str(bundle), *words], capture_output=True, text=True, input=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def policy(bundle: Path, depths: int, skipped: str = "skip") -> dict[str, Any]:
    """Of a session whose answers leave after ``depths``."""
    most = read_manifest(bundle).program.depths
    return {"exit": f"depth:{depths}", "skipped_kv": skipped} if depths < most else {}


@pytest.mark.parametrize("depths", [1, 2, 3])
def test_tokens_are_those_of_python(bundle: Path, runner: Path, depths: int) -> None:
    """Short prompts and long ones, which come in chunks; and answers behind which the caches grow."""
    ids = np.random.default_rng(1).integers(0, 257, 100).tolist()
    answers = set()
    for size in (*SHORT, *LONG, 60):
        with Session.open(
            bundle, engine="executorch", threads=1, verify=False, **policy(bundle, depths)
        ) as session:
            wanted = [step.token for step in session.generate(ids[:size], TOKENS)]
        count = str(TOKENS)
        found = json.loads(
            run(runner, bundle, count, *map(str, ids[:size]), "--depths", str(depths), "--json")
        )
        assert found["tokens"][: len(wanted)] == wanted, size
        assert len(found["tokens"]) == TOKENS
        assert found["prompt_chunks"] == (0 if size in SHORT else -(-size // CHUNK))
        answers.add(tuple(wanted))
    assert len(answers) > 5  # they are of their prompts


def test_depths_write_different_tokens(bundle: Path, runner: Path) -> None:
    ids = [str(x) for x in np.random.default_rng(1).integers(0, 257, 40)]
    found = {run(runner, bundle, "30", *ids, "--depths", str(depths)) for depths in (1, 2, 3)}
    assert len(found) > 1


@pytest.mark.parametrize("prompt", ["Once", "Once upon a time there was a crème brûlée 你好, and then"])
@pytest.mark.parametrize("stops", [(), ("e",), ("\ufffd", "zz")])
def test_text_is_that_of_python(bundle: Path, runner: Path, prompt: str, stops: tuple[str, ...]) -> None:
    with Session.open(bundle, engine="executorch", threads=1, verify=False) as session:
        steps = list(session.generate(prompt, 24, stop=stops))
    words = [word for stop in stops for word in ("--stop", stop)]
    found = json.loads(run(runner, bundle, "-p", prompt, "-n", "24", "--json", *words))
    assert found["text"] == "".join(step.text for step in steps)
    assert found["tokens"][: len(steps)] == [step.token for step in steps]
    plain = run(runner, bundle, "-p", prompt, "-n", "24", *words)
    assert plain == prompt + found["text"] + "\n"


@pytest.mark.parametrize("depths", [2, 3])
def test_a_conversation_is_that_of_python(bundle: Path, runner: Path, depths: int) -> None:
    """Of which only what is new is run; what left early is run again."""
    lines = ["hello you there", "and then?", "why?"]
    said: list[dict[str, str]] = []
    wanted = ""
    for line in lines:
        said.append({"role": "user", "content": line})
        given = policy(bundle, depths, "exact")
        with Session.open(bundle, engine="executorch", threads=1, verify=False, **given) as session:
            answer = "".join(step.text for step in session.generate(session.encode_chat(said), 8))
        # A message in C ends at a zero byte, which this model of random weights writes.
        said.append({"role": "assistant", "content": answer.partition("\0")[0]})
        wanted += f"> {answer}\n"
    found = run(
        runner, bundle, "--chat", "-n", "8", "--depths", str(depths), given="\n".join([*lines, "", ""])
    )
    assert found == wanted + "> "


def test_times_add_up(bundle: Path, runner: Path) -> None:
    """A call for each stage, depth and token; chunks of a prompt are one; a depth that answers leave at has none."""
    ids = [str(x) for x in range(20)]
    found = json.loads(run(runner, bundle, "6", *ids, "--json", "--depths", "2"))
    stages = {(each["stage"], each["depth"]): each for each in found["stages"]}
    assert {depth for stage, depth in stages if stage == "block"} == {1, 2, 3}
    for (stage, depth), each in stages.items():
        assert each["prompt_calls"] == (1 if stage == "head" else 3)
        assert each["token_calls"] == (0 if depth == 3 else 5)
    spent = sum(each["prompt_ms"] for each in found["stages"])
    assert 0 < spent <= found["first_ms"]
    spent += sum(each["token_ms"] * each["token_calls"] for each in found["stages"])
    assert spent <= found["ms"] * 1.001
    assert found["load_ms"] > 0
    rate = 5000 / (found["ms"] - found["first_ms"])
    assert found["tokens_per_second"] == pytest.approx(rate, rel=1e-2)
    done = subprocess.run([str(runner), str(bundle), "6", *ids, "--times"], capture_output=True, text=True)
    assert len(done.stdout.split()) == 6
    assert re.match(
        r"load [\d.]+ ms, first token [\d.]+ ms behind 20 \(3 chunks\), then [\d.]+ tokens/s\n", done.stderr
    )
    assert re.search(r"^block, depth 3 +[\d.]+ +[\d.]+$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["-p", "x", "--depths", "4"], 2, "depths 4, and the model has 3"),
        (["-p", "x", "--depths", "0"], 2, "--depths 0: wanted at least 1"),
        (["-p", ""], 1, "the prompt is empty"),
        (["-p"], 2, "-p wants a value"),
        (["--frob"], 2, "--frob: there is no such option"),
        (["12"], 2, "wanted one of --prompt, --chat, or COUNT and the ids"),
        (["12", "x"], 2, "ID x: wanted a whole number"),
        (["12", "100000"], 1, "token 100000 is not in the vocabulary of 320"),
        (["400", "1"], 1, "1 and 400 tokens are more than the context's 320; give fewer"),
        (["-p", "x " * 200], 1, "tokens, and the model's context has 320"),
        (["--chat", "--json"], 2, "--chat is for people"),
    ],
)
def test_what_is_refused(bundle: Path, runner: Path, words: list[str], code: int, told: str) -> None:
    done = subprocess.run([str(runner), str(bundle), *words], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith("executorch-run: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert done.stdout in ("", " ".join(words[1:]))


def test_a_bundle_without_text(bundle: Path, runner: Path, tmp_path: Path) -> None:
    """Ids go in and out; a text is refused, as is a file that is none."""
    path = tmp_path / "bundle"
    shutil.copytree(bundle, path)
    (path / "text.lanes").unlink()
    assert len(run(runner, path, "3", "1", "2").split()) == 3
    done = subprocess.run([str(runner), str(path), "-p", "x"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "text.lanes: " in done.stderr
    assert "its tokenizer is of a kind that is left to Python hosts" in done.stderr
    (path / "text.lanes").write_bytes(b"no text at all")
    done = subprocess.run([str(runner), str(path), "-p", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "text.lanes: the text section: it is none" in done.stderr


def test_prompts_that_see_themselves_are_refused(bundle: Path, runner: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle, path)
    manifest = (path / "manifest.json").read_text()
    assert '"op": "attend"' in manifest
    (path / "manifest.json").write_text(
        manifest.replace('"op": "attend"', '"op": "attend", "mask": "prefix"')
    )
    done = subprocess.run([str(runner), str(path), "3", "1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the model has prompts whose tokens see each other, and this runner knows none" in done.stderr
