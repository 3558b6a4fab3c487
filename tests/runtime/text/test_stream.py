"""A stream is what follows the prompt in the decoded whole, whatever the decoder and the tokens."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer as Engine

from edgeloop.runtime.text.stream import Detokenizer
from edgeloop.runtime.text.tokenizer import Tokenizer

ROUNDS = 150


def streamed(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> list[str]:
    stream = tokenizer.detokenizer(prompt)
    return [*(stream.push(token) for token in answer), stream.flush()]


def follows(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The decoded whole after what it shares with the decoded prompt."""
    whole, before = tokenizer.decode([*prompt, *answer]), tokenizer.decode(prompt)
    same = 0
    while same < min(len(whole), len(before)) and whole[same] == before[same]:
        same += 1
    return whole[same:]


def test_random_tokens(kind: Engine):
    """Half characters, broken bytes, special tokens, unknown ids: all that a model could write."""
    tokenizer, dice = Tokenizer(kind), random.Random(1)
    for turn in range(ROUNDS):
        ids = [dice.randrange(tokenizer.vocab_size + 2) for _ in range(dice.choice((2, 9, 90)))]
        cut = dice.randrange(len(ids)) if turn % 3 else 0
        assert "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == follows(tokenizer, ids[:cut], ids[cut:])


def test_few_different_tokens(kind: Engine):
    """The same few again and again, so that repeats, runs and nothing but special tokens come about."""
    tokenizer, dice = Tokenizer(kind), random.Random(2)
    for _ in range(ROUNDS):
        few = [dice.randrange(tokenizer.vocab_size) for _ in range(dice.randint(1, 3))]
        ids = dice.choices(few, k=60)
        cut = dice.randrange(60)
        assert "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == follows(tokenizer, ids[:cut], ids[cut:])


def test_texts_are_shown_as_soon_as_they_are_certain(kind: Engine):
    """Nothing is held back for longer than a token where every token writes whole characters."""
    tokenizer, dice = Tokenizer(kind), random.Random(3)
    whole = [
        i
        for i in range(tokenizer.vocab_size)
        if tokenizer.decode([i]) and "\ufffd" not in tokenizer.decode([i])
    ]
    whole = [i for i in whole if tokenizer.pieces.byte(i) is None]
    for _ in range(ROUNDS):
        ids = dice.choices(whole, k=40)
        stream, text = tokenizer.detokenizer(ids[:5]), ""
        for n, token in enumerate(ids[5:], 6):
            text += stream.push(token)
            assert text == follows(tokenizer, ids[:5], ids[5:n])


def test_the_first_word_keeps_its_space(kind: Engine):
    """It is the answer's first word, not the text's; of a prompt that has no text it is."""
    tokenizer = Tokenizer(kind)
    names = (("▁loop", "▁stop"), ("loop</w>", "stop</w>"), ("loop", "stop"), ("o", "Ġlo"))
    loop, stop = next(ids for pair in names if None not in (ids := [kind.token_to_id(name) for name in pair]))
    stop_text = " lo" if "ByteLevel" in kind.to_str() else " stop"
    assert "".join(streamed(tokenizer, [loop], [stop])) == stop_text
    assert "".join(streamed(tokenizer, [kind.token_to_id("<|im_end|>")], [stop])) == tokenizer.decode([stop])


@pytest.mark.parametrize("rest", ["ac41", "41", "", "acff"])
def test_a_prompt_that_ends_in_half_a_character(byte_fallback: Engine, byte_level: Engine, rest: str):
    """The answer begins with the whole character if it has the other half, else after the half."""
    fallback = Tokenizer(byte_fallback)
    half = [byte_fallback.token_to_id(f"<0x{byte}>") for byte in ("E2", "82")]
    answer = [byte_fallback.token_to_id(f"<0x{rest[i : i + 2].upper()}>") for i in range(0, len(rest), 2)]
    a = byte_fallback.token_to_id("a")
    found = "".join(streamed(fallback, [a, *half], [*answer, a]))
    assert found == {"ac41": "€Aa", "41": "\ufffda", "": "a", "acff": "\ufffd\ufffda"}[rest]

    level = Tokenizer(byte_level)
    euro = level.encode("€")
    answer = [*euro[2:], *level.encode("A")] if rest == "ac41" else level.encode("A")
    assert len(euro) == 3
    assert "".join(streamed(level, euro[:2], answer)) == ("€A" if rest == "ac41" else "A")


def test_a_long_run_of_bytes_is_believed(byte_fallback: Engine):
    """A model that writes nothing but bytes is shown after so many, a character at a time, and no later."""
    tokenizer = Tokenizer(byte_fallback)
    ids = [byte_fallback.token_to_id(f"<0x{byte:02X}>") for byte in "你好吗".encode() * 40]
    pushes = streamed(tokenizer, [], ids)
    assert "".join(pushes) == tokenizer.decode(ids)
    assert not any(pushes[: Detokenizer.RUN])
    assert pushes[Detokenizer.RUN :][:7] == ["你好吗" * 14 + "你", "", "", "好", "", "", "吗"]
    broken = [*ids, byte_fallback.token_to_id("<0xFF>"), ids[0], byte_fallback.token_to_id("a")]
    assert "".join(streamed(tokenizer, [], broken)) == "你好吗" * 40 + "\ufffd\ufffda"
    for cut in (1, 2, 3, 60, 127, 128):
        assert "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == follows(tokenizer, ids[:cut], ids[cut:])
    for cut in (129, 200, 201, 359):  # a prompt of nothing else: its whole characters are its own
        assert "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == ("你好吗" * 40)[cut // 3 :]


def test_a_token_costs_the_same_however_long_the_text(kind: Engine):
    tokenizer, dice = Tokenizer(kind), random.Random(4)
    sizes: list[int] = []

    def decode(ids: list[int]) -> str:
        sizes.append(len(ids))
        return tokenizer.decode(ids)

    for few in (1, 3, tokenizer.vocab_size):
        ids = dice.choices([dice.randrange(tokenizer.vocab_size) for _ in range(few)], k=600)
        stream = Detokenizer(decode, tokenizer.pieces, ids[:300])
        for token in ids[300:]:
            stream.push(token)
    assert max(sizes) <= Detokenizer.RUN + Detokenizer.WINDOW + Detokenizer.KEEP
    assert sum(sizes) < 900 * 2 * Detokenizer.WINDOW
