"""Streams of text are the decoded whole, and never show half a character."""

from __future__ import annotations

import random

import pytest

from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.text.tokenizer import Tokenizer

PIECES = [
    "a loop, ",
    "loop.",
    "  ",
    "\n",
    "héllo ",
    "你好",
    "吗?",
    "👩‍👩‍👧‍👦",
    "😀",
    "🇪🇺 ",
    "é",
    "مرحبا ",
    "x",
    "\t",
]


def texts(count):
    source = random.Random(0)
    yield from ("", "你", " leading", "😀" * 30, "a" * 60)
    for _ in range(count):
        yield "".join(source.choices(PIECES, k=source.randint(1, 30)))


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request):
    return Tokenizer(request.getfixturevalue(request.param))


def test_pushes_are_the_whole(tokenizer):
    for text in texts(60):
        ids = tokenizer.encode(text)
        stream = tokenizer.detokenizer()
        pushes = [stream.push(token) for token in ids]
        assert not any("\ufffd" in push for push in pushes)
        assert "".join(pushes) + stream.flush() == tokenizer.decode(ids)
    assert tokenizer.decode(tokenizer.encode("a loop 你")).strip() == "a loop 你"


def test_a_character_in_pieces_is_held_back(byte_level):
    tokenizer = Tokenizer(byte_level)
    ids = tokenizer.encode("a😀b")
    assert len(ids) == 6
    stream = tokenizer.detokenizer()
    assert [stream.push(i) for i in ids] == ["a", "", "", "", "😀", "b"]
    assert stream.push(ids[1]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_give_no_text(byte_level):
    tokenizer = Tokenizer(byte_level)
    assert tokenizer.encode("<|end|>") == [0]
    assert tokenizer.decode([0]) == ""
    assert tokenizer.decode([0], special=True) == "<|end|>"
    assert (tokenizer.written(0), tokenizer.written(None), tokenizer.written(10**6)) == ("<|end|>", "", "")


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in (None, "{", "{}"):
        if content:
            path.write_text(content)
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            Tokenizer.open(path)


def test_it_opens(tmp_path, byte_level):
    byte_level.save(str(tmp_path / "t.json"))
    assert Tokenizer.open(tmp_path / "t.json").encode("loop") == byte_level.encode("loop").ids
