"""Stop strings end generation where transformers' do, and the text shown ends before them."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.stops import MAX_LENGTH, MAX_STOPS, StopMatcher, check_stops
from edgeloop.runtime.text.tokenizer import Tokenizer

STOPS = [
    "stop",
    "st",
    "op",
    "a loop",
    " ",
    "\n",
    "<|im_end|>",
    "im_e",
    "é",
    "oo",
    "aa",
    "aba",
    " l",
    "<|a b|>a",
    "<added>",
]


def shown(
    tokenizer: Tokenizer, stops: tuple[str, ...], prompt: list[int], answer: list[int]
) -> tuple[str, int | None]:
    """The text of ``answer`` and how many of its tokens came to the end of it, None if there was none."""
    text, parts = tokenizer.answer_text(prompt, stops), ""
    for n, token in enumerate(answer, 1):
        parts += text.push(token)
        if text.stopped:
            return parts + text.flush(), n
    return parts + text.flush(), None


def first_end(criteria: StopStringCriteria, prompt: list[int], answer: list[int]) -> int | None:
    """Tokens of ``answer`` after which ``generate`` would have ended."""
    for n in range(1, len(answer) + 1):
        if bool(criteria(torch.tensor([[*prompt, *answer[:n]]]), None)[0]):
            return n
    return None


def test_pieces_are_those_of_transformers(kind: Engine):
    theirs = PreTrainedTokenizerFast(tokenizer_object=kind)
    mode = StopStringCriteria._get_stop_string_matching_mode(theirs)
    pieces, ids = StopStringCriteria.clean_tokenizer_vocab(theirs, stop_string_matching_mode=mode)
    wanted = {
        i: piece if isinstance(piece, bytes) else piece.encode() for piece, i in zip(pieces, ids, strict=True)
    }
    ours = Tokenizer(kind).pieces
    assert {i: ours[i] for i in wanted} == wanted


def test_the_same_token_ends_it_as_in_transformers(kind: Engine):
    """Random tokens, of which stop strings can be made; several stops, that begin in the prompt and overlap."""
    tokenizer, dice = Tokenizer(kind), random.Random(5)
    theirs = PreTrainedTokenizerFast(tokenizer_object=kind)
    possible = [stop for stop in STOPS if tokenizer.pieces.can_write(stop)]
    ends = 0
    for _ in range(12):
        stops = tuple(dice.sample(possible, dice.randint(1, 3)))
        criteria = StopStringCriteria(theirs, list(stops))
        letters = set("".join(stops).encode())
        near = [i for i in range(tokenizer.vocab_size) if letters & set(tokenizer.pieces[i])]
        for _ in range(10):
            ids = dice.choices(near, k=14)
            ids[dice.randrange(14)] = kind.token_to_id("<|im_end|>")
            cut = dice.randint(1, 5)
            prompt, answer = ids[:cut], ids[cut:]
            text, end = shown(tokenizer, stops, prompt, answer)
            assert end == first_end(criteria, prompt, answer)
            whole = "".join(shown(tokenizer, (), prompt, answer)[0])
            assert whole.startswith(text) or "\ufffd" in text
            ends += end is not None
    assert 30 < ends < 120  # it did and it did not


def test_the_text_ends_before_the_stop_string(kind: Engine):
    """Where the answer is plain text, that is its beginning up to the first stop string in it."""
    tokenizer, dice = Tokenizer(kind), random.Random(6)
    plain = [
        i
        for i in range(tokenizer.vocab_size)
        if not tokenizer.pieces.silent(i) and tokenizer.pieces.byte(i) is None
        and "\ufffd" not in tokenizer.decode([i]) and tokenizer.pieces[i].strip(b"abcdefghijklmnopqrstuvwxyz ") == b""
    ]  # fmt: skip
    possible = [
        stop for stop in ("st", "op", "lo", "oo", "p s", "ee", "a") if tokenizer.pieces.can_write(stop)
    ]
    for _ in range(200):
        stops = tuple(dice.sample(possible, 2))
        prompt, answer = [plain[0]] * 3, dice.choices(plain, k=12)
        whole = b"".join(tokenizer.pieces[i] for i in answer).decode()
        if whole != tokenizer_text(tokenizer, prompt, answer):
            continue  # </w> is a space if a token follows: what tokens write by themselves is not the text
        before = b"".join(tokenizer.pieces[i] for i in prompt).decode()
        text, end = shown(tokenizer, stops, prompt, answer)
        if any(stop.startswith(before[-n:]) for stop in stops for n in range(1, len(stop))):
            continue  # begins in the prompt: another test
        # The first token that completes one decides; of what it completes, the earliest beginning.
        length, cut = 0, None
        for token in answer:
            length += len(tokenizer.pieces[token])
            found = [at for stop in stops if (at := whole[:length].find(stop)) >= 0]
            if found:
                cut = min(found)
                break
        assert text == whole[:cut]
        assert (end is None) == (cut is None)


def tokenizer_text(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    return tokenizer.decode([*prompt, *answer])[len(tokenizer.decode(prompt)) :]


def test_a_special_token_ends_it_and_is_not_shown(kind: Engine):
    tokenizer = Tokenizer(kind)
    end, other = kind.token_to_id("<|im_end|>"), kind.token_to_id("<|a b|>")
    o, p = kind.token_to_id("o"), kind.token_to_id("p")
    text = tokenizer_text(tokenizer, [o], [p, other, p])
    assert shown(tokenizer, ("<|im_end|>",), [o], [p, other, p, end, p]) == (text, 4)
    assert shown(tokenizer, ("m_en",), [o], [p, other, p, end, p]) == (text, 4)
    both = "b|>" + tokenizer.pieces[end].decode().removesuffix("_end|>")
    assert shown(tokenizer, (both,), [o], [other, end]) == ("", 2)
    assert shown(tokenizer, ("<|im_end|>",), [o, end], [p, other, p]) == (text, None)
    half = kind.token_to_id("Ã") if "ByteLevel" in kind.to_str() else kind.token_to_id("<0xC3>")
    if half is not None:  # it is still held back when the end comes
        text = tokenizer_text(tokenizer, [o], [p, half])
        assert text.endswith("\ufffd")
        assert shown(tokenizer, ("m_en",), [o], [p, half, end]) == (text, 3)


def test_one_that_begins_in_the_prompt(kind: Engine):
    tokenizer = Tokenizer(kind)
    o, p = (kind.token_to_id(name) for name in "op")
    joined = tokenizer.pieces[o] + tokenizer.pieces[p] + tokenizer.pieces[o]
    stop = joined.decode().strip()
    assert shown(tokenizer, (stop,), [o, p], [o, p]) == ("", 1)
    assert shown(tokenizer, (stop,), [o, p, o], [p, p, p])[1] is None  # it ended in the prompt
    assert shown(tokenizer, (stop,), [o, p, o], [p, o, p])[1] == 2


@pytest.mark.parametrize(
    ("stops", "pushes", "wanted"),
    [
        (("END",), ["abE", "N", "x"], [(False, 1), (False, 2), (False, 0)]),
        (("END",), ["abE", "NDef"], [(False, 1), (True, 5)]),
        (("aab",), ["aa", "ab!"], [(False, 2), (True, 4)]),
        (("long stop", "st"), ["a long st"], [(True, 2)]),
        (("\n\n", "User:"), ["Hi\n", "User", ":"], [(False, 1), (False, 4), (True, 5)]),
        (("abc", "b"), ["ab"], [(True, 1)]),
        (("abc", "b"), ["abc"], [(True, 3)]),
        (("aa",), ["a", "aa"], [(False, 1), (True, 3)]),
    ],
)
def test_where_stops_begin(stops, pushes, wanted):
    matcher = StopMatcher(stops)
    assert [(matcher.push(push.encode()), matcher.begins) for push in pushes] == wanted


def test_text_that_no_stop_string_came_of_is_shown(byte_level: Engine):
    tokenizer = Tokenizer(byte_level)
    ids = tokenizer.encode("xENx")
    text = tokenizer.answer_text([], ("END",))
    assert [text.push(token) for token in ids] == ["x", "", "", "ENx"]
    text = tokenizer.answer_text([], ("END",))
    assert "".join(text.push(token) for token in ids[:3]) + text.flush() == "xEN"


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([""], "a stop string is empty"),
        (["a", "\ud83d"], "the stop string '.ud83d' is not text: character 1 is half of a pair"),
        ([7], "a stop string is of type int, wanted str"),
        (["a" * (MAX_LENGTH + 1)], "has 10001 characters, wanted at most 10000"),
        (["a"] * (MAX_STOPS + 1), "1001 stop strings, wanted at most 1000"),
    ],
)
def test_stops_that_cannot_be_meant(byte_level: Engine, stop: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        check_stops(stop, Tokenizer(byte_level).pieces)


def test_what_can_never_come_is_refused_by_name(kind: Engine):
    """Transformers refuses a string of which no token has any part; here every string that no tokens make."""
    pieces, theirs = Tokenizer(kind).pieces, PreTrainedTokenizerFast(tokenizer_object=kind)
    spelled = {piece for i in range(kind.get_vocab_size()) for piece in [pieces[i]] if piece}
    for stop in ("Z", "\u4e2d", "loop\u4e2d", "stop", "st op", "\u00e9", "<|im_end|>", "_end|><|a"):
        if pieces.can_write(stop):
            assert check_stops(stop, pieces) == (stop,)
            StopStringCriteria(theirs, [stop])
        else:
            with pytest.raises(UsageError, match=f"the stop string '.*{stop[-1]}' can never come"):
                check_stops(["a", stop], pieces)
            assert not any(stop.encode() in piece for piece in spelled)
    if not pieces.can_write("中"):
        with pytest.raises(ValueError, match="Stop string preprocessing was unable"):
            StopStringCriteria(theirs, ["中"])


@pytest.mark.parametrize("tokens", [("ab", "bca", "c"), ("a", "bb"), ("abc", "ca"), ("ccab", "b"), ("aab",)])
def test_whether_tokens_can_write_it_by_trying_all(tokens: tuple[str, ...]):
    """Every text of up to four letters, against every sequence of as many tokens."""
    engine = Engine(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    engine.decoder = decoders.Fuse()
    pieces = Tokenizer(engine).pieces
    written = ["".join(parts) for parts in product(tokens, repeat=4)]
    for size in (1, 2, 3, 4):
        for letters in product("abc", repeat=size):
            text = "".join(letters)
            assert pieces.can_write(text) == any(text in one for one in written), text


def test_a_bundle_without_a_tokenizer_never_stops():
    with pytest.raises(UsageError, match="no tokenizer, so the stop string 'a' never comes"):
        check_stops(["a"], None)
    assert check_stops([], None) == ()
