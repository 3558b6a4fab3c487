"""TextFile of apps/android on a desktop's JVM: texts, turns and answers are those of others' libraries."""

from __future__ import annotations

import random
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

import jvm
import pytest
from chat_templates import TEMPLATES, transformers_tokenizer
from native_texts import made, write_text_file
from native_tokenizers import tokenizer
from programs import PROGRAMS

from edgeloop.export.text.compile_turns import WAYS, compile_turns, conversations

NAMES = ("gpt2", "llama2", "t5")
THINKING = ("DEFAULT", "ON", "OFF")
"""What Java calls the ways of compile_turns.WAYS."""
Asked = Callable[[Path, Sequence[str]], list[str]]


@pytest.fixture(scope="module")
def asked(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The answers to lines about a file; the first one is what ends a text."""
    if reason := jvm.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("text")
    path, library = jvm.classes(folder), jvm.jni_library(lane_engine, folder)
    return lambda file, lines: jvm.ran(path, library, "edgeloop.TextCheck", str(file), given="\n".join(lines))


def of(text: str) -> str:
    return b64encode(text.encode()).decode()


def joined(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_those_of_tokenizers(name: str, asked: Asked, tmp_path: Path) -> None:
    """In thirty scripts, with zero characters too."""
    engine, texts = tokenizer(name), [*made(300, 5), "A caf\u00e9 \N{SLIGHTLY SMILING FACE}\0 \u6f22", ""]
    lines, wanted = [], [str(list(PROGRAMS["gpt"]().eos_token_ids))]
    for text in texts:
        ids = engine.encode(text).ids
        bare = engine.encode(text, add_special_tokens=False).ids
        lines += [f"encode special {of(text)}", f"encode bare {of(text)}"]
        lines += [f"decode bare {joined(ids)}", f"decode special {joined(ids)}"]
        shown = engine.decode(ids), engine.decode(ids, skip_special_tokens=False)
        wanted += [joined(ids), joined(bare), *map(of, shown)]
    assert asked(write_text_file(tmp_path, tokenizer(name)), lines) == wanted


@pytest.mark.parametrize("name", ["chatml", "llama 2", "qwen 3"])
def test_conversations_are_those_of_transformers(name: str, asked: Asked, tmp_path: Path) -> None:
    source, special = TEMPLATES[name]
    oracle = transformers_tokenizer(special)
    lines, wanted = [], []
    for said, generate, way in conversations(compile_turns(source, special), random.Random(4), 90):
        if not generate:
            continue
        turns = [word for message in said for word in (message["role"], of(message["content"]))]
        lines.append(" ".join(("render", THINKING[way], *turns)))
        wanted.append((said, WAYS[way]))
    found = asked(write_text_file(tmp_path, tokenizer("gpt2"), name), lines)[1:]
    shown = 0
    for line, (said, way) in zip(found, wanted, strict=True):
        if line == "USAGE":  # as the template refuses it, or turns do not say it
            continue
        options = {"tokenize": False, "add_generation_prompt": True, **way}
        assert b64decode(line).decode() == oracle.apply_chat_template(said, chat_template=source, **options)
        shown += 1
    assert shown > 15


@pytest.mark.parametrize("name", NAMES)
def test_answers_come_as_whole_characters(name: str, asked: Asked, tmp_path: Path) -> None:
    """Together what follows the prompt's text; up to a stop string, wherever tokens divide it."""
    engine = tokenizer(name)
    lines: list[str] = []
    wanted: list[tuple[str, bool]] = []
    for text in (
        "\u00fcber Nacht \u4f60\u597d, and then? STOP and more",
        "caf\u00e9 \N{SLIGHTLY SMILING FACE}\N{SLIGHTLY SMILING FACE} done",
    ):
        ids = engine.encode(text, add_special_tokens=False).ids
        before, after = joined(ids[:3]), joined(ids[3:])
        rest = engine.decode(ids)[len(engine.decode(ids[:3])) :]
        lines += [f"write {before} {after}", f"write {before} {after} {of('STOP')} {of('zzz')}"]
        wanted += [(rest, False), (rest.partition("STOP")[0], "STOP" in rest)]
    for line, (text, stopped) in zip(
        asked(write_text_file(tmp_path, tokenizer(name)), lines)[1:], wanted, strict=True
    ):
        pieces, said = line.split(" ")
        shown = [b64decode(piece).decode() for piece in pieces.split(",")]
        assert ("".join(shown), said) == (text, str(stopped).lower())
        assert "\ufffd" not in "".join(shown) or "\ufffd" in text
        assert len([piece for piece in shown if piece]) > 2


def test_what_it_refuses(asked: Asked, tmp_path: Path) -> None:
    found = asked(
        write_text_file(tmp_path, tokenizer("gpt2")),
        ["missing", "other", "half", "nobody", "closed", "written"],
    )[1:]
    assert found[0] == f"FILE {tmp_path / 'none.lanes'}: No such file or directory"
    assert found[1].startswith("FORMAT the text section: ")
    assert found[2:] == [
        "the text has half of a character: a surrogate without its other one",
        "USAGE role nobody, wanted system, user or assistant",
        "the text file is closed",
        "the writer is closed",
    ]


def test_what_apps_on_other_engines_install(asked: Asked, tmp_path: Path) -> None:
    files = ["text.lanes", "tokenizer.json", "native/model.lanes"]
    onnx = [
        f"onnx/{name}" for name in ("prologue.onnx", "block.onnx", "epilogue.onnx", "weights.safetensors")
    ]
    more = ["onnx/fill.onnx", "onnx/block.packed.onnx"]
    pte = [f"executorch/{name}" for name in ("model.pte", "layout.json", "deltas.ptd")]
    path, every = (
        write_text_file(tmp_path, tokenizer("gpt2")),
        [*files, *onnx, *more, *pte, "executorch-flat/model.pte"],
    )
    for kind, wanted in (("ONNX", ["text.lanes", *onnx]), ("EXECUTORCH", ["text.lanes", *pte])):
        found = asked(path, [f"wanted {kind} {file}" for file in every])[1:]
        assert [file for file in found if file] == wanted
