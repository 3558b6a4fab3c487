"""A tokenizer.json from a stranger: whatever it says, it is used, or refused in one line, and the process lives.

The library's own answers are not the oracle here: several of these files make it panic, abort or eat the memory.
So each is opened and used in a process of its own kind, with 2 GiB, and what comes out is looked at.
"""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models

from edgeloop.runtime.errors import BundleError, UsageError
from edgeloop.runtime.text.tokenizer import Tokenizer
from edgeloop.runtime.text.tokenizer_file import MAX_BYTES, MAX_TOKEN, bounded, read_tokenizer_file

PLAIN = json.loads(Engine(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str())
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
ANY = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 5000}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
PADDING = {
    "strategy": {"Fixed": 2**33}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "a",
}  # fmt: skip


def charsmap(size, rest):
    table = base64.b64encode(struct.pack("<I", size) + rest).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}


def template(pieces, tokens=None):
    rule = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": tokens or {}}
    return {"post_processor": rule}


def sequence(name):
    return {"Sequence": {"id": name, "type_id": 0}}


def special(name):
    return {"SpecialToken": {"id": name, "type_id": 0}}


USED = {
    "plain": {},
    "padding": {"padding": PADDING},
    "truncation": {
        "truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}
    },
    "dropout": {"model": {**PLAIN["model"], "dropout": 1.0}},
    "no type": {"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}},
    "nested": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}] * 9}
    },
    "a token far away": {"added_tokens": [{"id": 2**32 - 1, "content": "<x>", **ADDED}]},
    "template": template([special("s"), sequence("A")], {"s": {"id": "s", "ids": [1], "tokens": ["b"]}}),
}
"""Changes of ``PLAIN`` → files that can be used."""

REFUSED = {
    "empty": b"",
    "no JSON": b"<html>",
    "a list": b"[]",
    "a number": b"7",
    "no model": {"model": None},
    "a model of no kind": {"model": {"type": "Nonsense"}},
    "deep": b'{"model":' + b"[" * 100_000,
    "not UTF-8": json.dumps(PLAIN).encode().replace(b'"ab"', b'"a\xff"'),
    "surrogate": json.dumps(PLAIN).encode().replace(b'"ab"', b'"\\ud800"'),
    "merges of nothing": {"model": {**PLAIN["model"], "merges": [["a", "z"]]}},
    "prefix": {"model": {**PLAIN["model"], "continuing_subword_prefix": "####"}},
    "long token": {"added_tokens": [{"id": 3, "content": "x" * (MAX_TOKEN + 1), **ADDED}]},
    "unigram": {"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]], "byte_fallback": False}},
    "many pieces": {
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[f"{i:04}" + "x" * 4000, 0.0] for i in range(700)],
        }
    },
    "many added": {
        "added_tokens": [{"id": i, "content": f"{i:04}" + "x" * 4000, **ADDED} for i in range(700)]
    },
    "pieces without a score": {"model": {"type": "Unigram", "unk_id": 0, "vocab": ["a"]}},
    "regex": {"pre_tokenizer": {**SLOW, "pattern": {"Regex": "("}}},
    "no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "normalizer": {"normalizer": {"type": "Sequence", "normalizers": [LONG] * 6}},
    "nested normalizer": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [ANY]}]}
    },
    "decoder": {"decoder": {"type": "Sequence", "decoders": [LONG] * 6}},
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "x" * 10_000}},
    "charsmap": charsmap(800, b"\xff" * 8),
    "empty charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "charsmap out of itself": charsmap(8, b"\xff" * 8 + b"abc"),
    "charsmap that grows": charsmap(4, b"\0" * 4 + b"x" * 5000),
    "charsmap no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "ä"}},
    "unknown special": template([special("s"), sequence("A")]),
    "a list as a name": template([special(["s"]), sequence("A")]),
    "text B": template([sequence("B")]),
    "text twice": template([sequence("A")] * 2),
    "many around": template([special("s")], {"s": {"id": "s", "ids": [1] * 5000, "tokens": ["b"]}}),
    "template of nothing": {"post_processor": {"type": "TemplateProcessing", "single": 5}},
}
"""Changes of ``PLAIN``, or whole files → a BundleError that names the file."""

UNKNOWN = {
    "word pieces": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": {"a": 0}},
    "words": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}},
    "unigram": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": False},
    "BPE": {**PLAIN["model"], "unk_token": "<unk>"},
}  # fmt: skip
"""Models that have no token for "zé", nor one for what is unknown."""

SCRIPT = """
import json, resource, sys
from edgeloop.runtime.errors import EdgeloopError
from edgeloop.runtime.text.tokenizer import Tokenizer

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
found = {}
for path in sys.argv[1:]:
    try:
        tokenizer = Tokenizer.open(path)
        ids = tokenizer.encode("ab")
        found[path] = ["used", ids, tokenizer.decode(ids)]
    except EdgeloopError as error:
        found[path] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


def changed(change):
    return change if isinstance(change, bytes) else json.dumps(PLAIN | change).encode()


def test_every_file_is_used_or_refused_in_one_line(tmp_path):
    pytest.importorskip("resource")
    files = {tmp_path / f"{i}.json": name for i, name in enumerate(USED | REFUSED)}
    for path, change in zip(files, [*USED.values(), *REFUSED.values()], strict=True):
        path.write_bytes(changed(change))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, files)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""  # no report of a panic
    for path, (outcome, *rest) in json.loads(done.stdout).items():
        name = next(n for p, n in files.items() if str(p) == path)
        if name in USED:
            # Truncated, padded or split at random, the text would have other ids.
            assert (name, outcome, rest[0]) == (name, "used", [1, 2] if name == "template" else [2])
        else:
            assert (name, outcome) == (name, "BundleError"), rest
            assert rest[0].startswith(path)
            assert rest[0].isprintable()
            assert len(rest[0]) < len(path) + 300


@pytest.mark.parametrize("name", UNKNOWN)
def test_text_without_tokens_is_the_callers_error(tmp_path, name):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(changed({"model": UNKNOWN[name]}))
    tokenizer = Tokenizer.open(path)
    with pytest.raises(UsageError, match="cannot encode this text"):
        tokenizer.encode("zé")
    assert tokenizer.encode("a") == [0]


def test_a_panic_while_encoding_is_an_error_and_the_tokenizer_lives(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(changed({"pre_tokenizer": SLOW}))
    tokenizer = Tokenizer.open(path)
    with pytest.raises(UsageError, match="retry-limit"):
        tokenizer.encode("a" * 40 + "b")
    assert tokenizer.encode("ab") == [2]


def test_a_panic_while_decoding_is_an_error(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(changed({"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 2}}))
    tokenizer = Tokenizer.open(path)
    with pytest.raises(BundleError, match="cannot decode these tokens"):
        tokenizer.decode([0])
    assert tokenizer.decode([1]) == "b"


def test_what_is_no_text_is_named(byte_level):
    tokenizer = Tokenizer(byte_level)
    for text, found in (
        ("ab\ud800c", r"character 3 .* U\+D800;"),
        ("\udcff", r"character 1 .* byte 0xFF"),
        (b"ab", "is of type bytes"),
        (None, "is of type NoneType"),
    ):
        with pytest.raises(UsageError, match=found):
            tokenizer.encode(text)
    for ids in ([-1], [2**32], ["a"], [None]):
        with pytest.raises(UsageError, match="token ids are whole numbers"):
            tokenizer.decode(ids)
    assert tokenizer.written(-1) == ""


def test_a_text_that_would_grow_is_bounded(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(changed({"normalizer": LONG}))
    tokenizer = Tokenizer.open(path)
    assert len(tokenizer.encode("a" * 10)) == 1000
    with pytest.raises(UsageError, match="give a shorter text"):
        tokenizer.encode("a" * 1_000_000)


def test_the_rest_of_a_file_is_left_as_it_is(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(changed({"padding": PADDING, "version": "1.0"}))
    assert json.loads(read_tokenizer_file(path).data) == PLAIN | {"version": "1.0"}
    twice = (
        b'{"padding": null, ' + json.dumps(PLAIN | {"padding": PADDING}).encode()[1:-1] + b', "padding": 1}'
    )
    assert json.loads(bounded(twice).data)["padding"] is None


def test_a_missing_file_and_one_of_no_size(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(BundleError, match="cannot be read"):
            Tokenizer.open(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: no disk is used
    with pytest.raises(BundleError, match=f"has {MAX_BYTES + 1} bytes, at most {MAX_BYTES}"):
        Tokenizer.open(path)
