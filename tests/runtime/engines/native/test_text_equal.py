"""The native tokenizer against the tokenizers library: tokens, text and streams of every kind that it reads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_texts import made, native, tales
from native_tokenizers import MAKERS, tokenizer

from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.text.tokenizer import Tokenizer

TEXTS = 700
"""Of each kind: ten thousand in all."""


@pytest.fixture(scope="module", params=MAKERS)
def both(
    request: pytest.FixtureRequest, lane_engine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NativeText, Tokenizer]]:
    """The native tokenizer and the library's."""
    engine = tokenizer(request.param)
    found = native(tmp_path_factory.mktemp("text"), engine)
    yield found, Tokenizer(engine)
    found.close()


def texts(engine: Tokenizer) -> Iterator[str]:
    """In thirty scripts, some with added tokens in them; and tales."""
    dice = random.Random(2)
    names = [token.content for token in engine._engine.get_added_tokens_decoder().values()] or ["<s>"]
    for text in made(TEXTS):
        if dice.random() < 0.2:
            at = dice.randint(0, len(text))
            text = (
                text[:at]
                + dice.choice(names)
                + dice.choice(("", " ", "\n\n"))
                + text[at:]
                + dice.choice(names)
            )
        yield text
    yield from tales(60)
    yield from ("", " ", "a", "\n", "a" * 3000, "é" * 500, " " * 500, "\x00")


def test_tokens_and_their_text(both: tuple[NativeText, Tokenizer]) -> None:
    found, wanted = both
    for text in texts(wanted):
        ids = wanted.encode(text)
        assert found.encode(text) == ids, ascii(text)
        assert found.encode(text, special=False) == wanted.encode(text, special=False), ascii(text)
        assert found.decode(ids) == wanted.decode(ids), ascii(text)
        assert found.decode(ids, special=True) == wanted.decode(ids, special=True), ascii(text)


def test_streams(both: tuple[NativeText, Tokenizer]) -> None:
    """Tokens by lot, unknown ones among them, and stop strings: piece by piece what Python hosts write."""
    found, wanted = both
    dice = random.Random(7)
    for turn in range(120):
        ids = [dice.randrange(wanted.vocab_size + 2) for _ in range(dice.choice((2, 9, 60)))]
        if turn % 3 == 0:
            ids = [dice.choice(ids) for _ in range(90)]
        assert found.decode(ids) == wanted.decode(ids)
        cut = dice.randrange(len(ids)) if turn % 2 else 0
        stops = []
        if turn % 4 > 1:
            whole = wanted.decode(ids, special=True).replace("\ufffd", "").replace("\0", "")
            at = dice.randrange(max(1, len(whole) - 3))
            stops = [stop for stop in (whole[at : at + 1], whole[at + 1 : at + 5]) if stop][turn % 2 :]
        answer, writer = wanted.answer_text(ids[:cut], stops), found.writer(ids[:cut], stops)
        for token in ids[cut:]:
            assert writer.push(token) == answer.push(token)
            assert writer.stopped == answer.stopped
            if answer.stopped:
                break
        assert writer.flush() == answer.flush()
        writer.close()
