"""A text section that is a file of its own, text.lanes: what a host of another engine has of the C interface."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chat_templates import TEMPLATES, transformers_tokenizer
from native_texts import made, write_text_file
from native_tokenizers import tokenizer
from programs import PROGRAMS

from edgeloop.export.text.compile_turns import WAYS, compile_turns, conversations
from edgeloop.runtime.engines.native.records import about_record
from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.engines.native.text_format import Tag, section
from edgeloop.runtime.errors import BundleError, EdgeloopError, UsageError

ANSWER = 1
TABLES = {0: 0, 1: 2, 2: 4}
"""Flags of el_text_render, by which of WAYS a template is told."""


@pytest.mark.parametrize("name", ["gpt2", "llama2", "t5"])
def test_texts_are_those_of_tokenizers(lane_engine: Path, tmp_path: Path, name: str) -> None:
    engine, text = tokenizer(name), NativeText(write_text_file(tmp_path, tokenizer(name)), alone=True)
    for words in made(200, 3):
        ids = engine.encode(words).ids
        assert text.encode(words) == ids
        assert text.decode(ids) == engine.decode(ids)
        assert text.encode(words, special=False) == engine.encode(words, add_special_tokens=False).ids
    text.close()


def test_what_ends_a_text(lane_engine: Path, tmp_path: Path) -> None:
    text = NativeText(write_text_file(tmp_path, tokenizer("gpt2")), alone=True)
    assert text.ends() == list(PROGRAMS["gpt"]().eos_token_ids)
    assert text.ends()
    text.close()


@pytest.mark.parametrize("name", ["chatml", "llama 2", "qwen 3"])
def test_conversations_are_those_of_transformers(lane_engine: Path, tmp_path: Path, name: str) -> None:
    source, special = TEMPLATES[name]
    oracle = transformers_tokenizer(special)
    text = NativeText(write_text_file(tmp_path, tokenizer("gpt2"), name), alone=True)
    same = 0
    for said, generate, table in conversations(compile_turns(source, special), random.Random(11), 60):
        try:
            found = text.render(said, generate * ANSWER | TABLES[table])
        except UsageError:
            continue
        wanted = oracle.apply_chat_template(
            said, chat_template=source, tokenize=False, add_generation_prompt=generate, **WAYS[table]
        )
        assert found == wanted
        same += 1
    assert same > 50
    text.close()


def test_an_answer_as_it_comes(lane_engine: Path, tmp_path: Path) -> None:
    """Whole characters, up to a stop string."""
    engine, text = tokenizer("gpt2"), NativeText(write_text_file(tmp_path, tokenizer("gpt2")), alone=True)
    ids = engine.encode("über Nacht 你好, and then? STOP and more").ids
    writer, pieces = text.writer(stops=["STOP"]), []
    for token in ids:
        pieces.append(writer.push(token))
        if writer.stopped:
            break
    assert writer.stopped
    assert "".join(pieces) == "über Nacht 你好, and then? "
    writer.close()
    text.close()


def test_what_is_refused(lane_engine: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no-such.lanes"):
        NativeText(tmp_path / "no-such.lanes", alone=True)
    path = write_text_file(tmp_path, tokenizer("gpt2"), None)
    text = NativeText(path, alone=True)
    with pytest.raises(UsageError, match="no turns for conversations"):
        text.render([{"role": "user", "content": "x"}])
    text.close()
    bare = tmp_path / "bare.lanes"
    bare.write_bytes(section({Tag.ABOUT: about_record(PROGRAMS["gpt"](), "", "")}))
    with pytest.raises(UsageError, match="has no tokenizer: it is of another kind"):
        NativeText(bare, alone=True)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(EdgeloopError, match="it is none, of bytes 0"):
        NativeText(tmp_path / "empty", alone=True)
    text = NativeText(write_text_file(tmp_path, tokenizer("gpt2")), alone=True)
    for said, what in (([], "conversation is empty"), ([{"role": "tool", "content": "x"}], "role tool")):
        with pytest.raises(UsageError, match=what):
            text.render(said)
    with pytest.raises(UsageError, match="not asked to think"):
        text.render([{"role": "user", "content": "x"}], 2)
    text.close()


def test_changed_bytes_are_an_error_or_a_tokenizer(lane_engine: Path, tmp_path: Path) -> None:
    """Of head and records all are noticed, by the checksum; a shorter file is, wherever it ends."""
    path, chance = write_text_file(tmp_path, tokenizer("gpt2")), random.Random(0)
    data = path.read_bytes()
    head = 64 + 24 * int.from_bytes(data[12:16], "little")
    changed = tmp_path / "changed"
    for _ in range(60):
        damaged = bytearray(data)
        damaged[chance.randrange(head)] ^= 1 << chance.randrange(8)
        changed.write_bytes(damaged)
        with pytest.raises(BundleError, match="the text section"):
            NativeText(changed, alone=True)
        changed.write_bytes(data[: chance.randrange(len(data))])
        with pytest.raises(BundleError, match="the text section"):
            NativeText(changed, alone=True)
