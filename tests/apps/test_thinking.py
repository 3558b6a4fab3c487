"""Models that think before they answer, with ChatML as Ouro's: reasoning is shown or hidden, and not said again.

What a tiny model writes is chosen by its logits' bias: each of the tokens once, the likeliest first.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgeloop.apps.cli import main

Command = Callable[..., tuple[int, str, str]]
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
OPENED = CHATML.replace("assistant\n", "assistant\n<think>\n")
MARKS = ("<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "Hm.", "Yes.")
ONCE = ("--presence-penalty", 10000)


def model(checkpoint: Path, folder: Path, template: str) -> Path:
    """The tiny checkpoint with Ouro's marks, of which none ends a text, as in the authors' files."""
    shutil.copytree(checkpoint, folder)
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    for i, text in enumerate((*MARKS, *TAGS)):
        del found["model"]["vocab"][f"<|filler_{314 + i}|>"]
        token = {"id": 314 + i, "content": text, "special": text in MARKS, "normalized": False}
        found["added_tokens"].append({**token, "single_word": False, "lstrip": False, "rstrip": False})
    file.write_text(json.dumps(found))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, made = tmp_path_factory.mktemp("thinking"), {}
    for name, template in (("plain", CHATML), ("opened", OPENED)):
        made[name] = root / name
        folder = model(checkpoint, root / f"{name}-checkpoint", template)
        end = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|im_end|>")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
        assert main(["export", str(folder), "-o", str(made[name]), "--quant", "none", "--json"]) == 0
    return made


def writes(bundle: Path, *texts: str) -> list[object]:
    """The flags by which the model writes ``texts``, tokens each, and ends."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    biases = [
        f"{tokenizer.token_to_id(text)}={5000 - 100 * i}" for i, text in enumerate((*texts, "<|im_end|>"))
    ]
    return [*ONCE, *(word for bias in biases for word in ("--logit-bias", bias))]


def talk(command: Command, monkeypatch: pytest.MonkeyPatch, bundle: Path, lines: str, *words: object) -> Any:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = command("chat", bundle, *words)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()] if "--json" in words else (out, err)


WAYS = {"plain": ("<think>", "Hm.", "</think>", "Yes."), "opened": ("Hm.", "</think>", "Yes.")}


@pytest.mark.parametrize("way", WAYS)
def test_reasoning_is_kept_apart(
    bundles: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """And left out of the next prompt, which has the answer alone."""
    bundle = bundles[way]
    words = writes(bundle, *WAYS[way])
    first, second = talk(command, monkeypatch, bundle, "Ja?\nNo?\n", "--json", "-n", 10, *words)
    assert (first["text"], first["reasoning"]) == ("Yes.", "Hm.") == (second["text"], second["reasoning"])
    assert (first["finish_reason"], len(first["tokens"])) == ("eos", len(WAYS[way]) + 1)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    start = "<|im_start|>{}\n{}<|im_end|>\n"
    said = start.format("user", "Ja?") + start.format("assistant", "Yes.") + start.format("user", "No?")
    end = "<|im_start|>assistant\n" + ("<think>\n" if way == "opened" else "")
    assert second["prompt_tokens"] == len(tokenizer.encode(said + end, add_special_tokens=False).ids)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_shown_or_hidden(
    bundles: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The answer is on stdout alone."""
    bundle, words = bundles[way], writes(bundles[way], *WAYS[way])
    for given, wanted in (
        ((), "Hm.\n"),
        (("--thinking", "show"), "Hm.\n"),
        (("--thinking", "hide"), "(thinking)\n"),
    ):
        out, err = talk(command, monkeypatch, bundle, "Ja?\n", *words, *given)
        assert out == "Yes.\n"
        assert err == wanted
        code, out, err = command("run", bundle, "-p", "Ja?", "--chat", *words, *given)
        assert (code, out) == (0, "Yes.\n")
        assert err.startswith(wanted)


def test_a_session_has_it_beside_the_answer(
    bundles: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    bundle, file = bundles["plain"], tmp_path / "talk.session"
    words = [*writes(bundle, *WAYS["plain"]), "--chat", "--session", file, "--json"]
    assert command("run", bundle, "-p", "Ja?", *words)[0] == 0
    from edgeloop.runtime import Session

    with Session.load(bundle, file) as session:
        assert session.messages[-1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_an_answer_without_reasoning_is_as_it_was(
    bundles: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = writes(bundles["plain"], "Yes.", "<think>", "Hm.")
    (turn,) = talk(command, monkeypatch, bundles["plain"], "Ja?\n", "--json", *words)
    assert turn["text"] == "Yes.<think>Hm."
    assert "reasoning" not in turn


def test_thinking_is_for_chat_templates(bundles: dict[str, Path], command: Command) -> None:
    code, _, err = command("run", bundles["plain"], "-p", "Ja?", "--thinking", "hide")
    assert (code, "--thinking without --chat" in err) == (2, True)


def test_an_end_of_turn_at_which_no_text_ends_is_told(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with the authors' own files: answers would go on."""
    folder = model(checkpoint, tmp_path / "model", CHATML)
    assert main(["export", str(folder), "-o", str(tmp_path / "bundle"), "--quant", "none", "--json"]) == 0
    assert "the chat template ends an answer with '<|im_end|>', token" in caplog.text
