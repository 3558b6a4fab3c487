"""The tokens that a text of a logit bias names, on tokenizers of every kind."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Engine

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.logit_bias import bias_of_ids
from edgeloop.runtime.text.tokenizer import Tokenizer


def test_a_text_names_every_token_that_writes_it(kind: Engine):
    tokenizer = Tokenizer(kind)
    size = tokenizer.vocab_size
    before = tokenizer.decode(tokenizer.encode("abcdef", special=False), special=True)
    for text in ("loop", " loop", "st", "<added>"):
        writers = [
            token
            for token in range(size)
            if tokenizer.decode([*tokenizer.encode("abcdef", special=False), token], special=True)
            == before + text
        ]
        if writers:
            assert bias_of_ids({text: -2.0}, size, tokenizer) == dict.fromkeys(writers, -2.0)
        else:
            with pytest.raises(UsageError, match="no single token writes '.*', which logit_bias names"):
                bias_of_ids({text: -2.0}, size, tokenizer)


def test_special_tokens_go_by_their_names(kind: Engine):
    tokenizer = Tokenizer(kind)
    assert bias_of_ids({"<|a b|>": 1.0, 3: 2.0}, tokenizer.vocab_size, tokenizer) == {
        kind.token_to_id("<|a b|>"): 1.0,
        3: 2.0,
    }


def test_what_cannot_be_found_is_named(byte_level: Engine):
    tokenizer = Tokenizer(byte_level)
    size = tokenizer.vocab_size
    with pytest.raises(
        UsageError, match=rf"token {size} of logit_bias is not in the vocabulary, wanted 0 to {size - 1}"
    ):
        bias_of_ids({size: 1.0}, size, tokenizer)
    with pytest.raises(
        UsageError, match="no single token writes 'xyz', .* written as 'x', 'y', 'z': name one"
    ):
        bias_of_ids({"xyz": 1.0}, size, tokenizer)
    with pytest.raises(UsageError, match="no single token writes ''"):
        bias_of_ids({"": 1.0}, size, tokenizer)
    with pytest.raises(UsageError, match="no tokenizer, so logit_bias cannot find 'a'; give token ids"):
        bias_of_ids({"a": 1.0}, size, None)
    token = byte_level.token_to_id("a")
    with pytest.raises(UsageError, match=rf"gives token {token} \('a'\) both 1 and 2; name it once"):
        bias_of_ids({token: 1.0, "a": 2.0}, size, tokenizer)
    assert bias_of_ids({token: 1.0, "a": 1.0}, size, tokenizer) == {token: 1.0}
    with pytest.raises(UsageError, match="surrogate"):
        bias_of_ids({"\udcff": 1.0}, size, tokenizer)
