"""SentencePiece's table in the native tokenizer: which characters are looked up together, as the library does it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_texts import native
from native_tokenizers import charsmap
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers

from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.text.tokenizer import Tokenizer

TABLE = {
    "क": "K", "\u0958": "\u0915\u093c", "ক": "B", "த": "T", "ม": "M", "\u094d": "", "\u09cd": "-", "\u200d": "",
    "©": "(c)", "™": "TM", "ℹ": "i", "☺": ":)", "👩": "woman", "ᄀ": "G", "ᅡ": "A", "ᆨ": "k", "가": "ga", "각": "gak",
    "e\u0301": "é", "e": "e", "\u0301": "'", "🇦": "A", "\r\n": " ",
}  # fmt: skip
"""Keys that single characters are, so that it shows what is looked up with another one."""
PARTS = (
    *(key for key in TABLE if len(key) == 1),
    "\u0301", "\u0301", "\u0301", "\u0308", "\u094d", "\u094d", "\u200d", "\u200d", "\u200c", "\ufe0f", "🏽", "👧", "❤",
    "\u093c", "\u09cd", "\u0d4d", "\u1039", "\u0bcd", "ക", "\u0903", "\u0600", "ꥠ", "ힰ", "ퟋ", "ি", "🇧", "a",
    " ", "\r", "\n",
)  # fmt: skip
REAL = (
    "क्षत्रिय और विद्यार्थी, श्री, ज्ञान; র্ক্ষ্য, ক্ষমা; ക്ഷ ന്ത്യ; ක්‍ෂ; ខ្មែរ",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 ❤️‍🔥 🏳️‍🌈 👨‍⚕️ 🇩🇪🇫🇷🇮 ☺️‍™️ ©‍® ™️ 한국어 각 힣 ᄒ\u1161ᆫ",
    "क्\u0958\u0301 ©\u200d™\u0301 👩🏽\u200dℹ\u0308 가\u0301 각ᆨ\u0301",
)


@pytest.fixture(scope="module")
def both(
    lane_engine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NativeText, Tokenizer]]:
    """Tokenizers whose tokens are the bytes of the normalized text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Engine(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    engine.normalizer = normalizers.Precompiled(charsmap(TABLE))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    found = native(tmp_path_factory.mktemp("text"), engine)
    yield found, Tokenizer(engine)
    found.close()


def test_clusters_are_those_of_the_library(both: tuple[NativeText, Tokenizer]) -> None:
    """Consonants with a virama between, pictures with a joiner, syllables in parts, flags, accents behind each."""
    found, wanted = both
    dice = random.Random(4)
    for _ in range(20_000):
        text = "".join(dice.choice(PARTS) for _ in range(dice.randint(1, 9)))
        assert found.encode(text) == wanted.encode(text), ascii(text)
    for text in REAL:
        assert found.encode(text) == wanted.encode(text), ascii(text)


def test_an_accent_stays_only_in_a_longer_cluster(both: tuple[NativeText, Tokenizer]) -> None:
    """The library looks up short clusters as a whole: all of it becomes what the table has for its beginning."""
    found, wanted = both
    for text, made in (
        ("क\u0301", "K"),
        ("क\u094dक\u0301", "KK'"),
        ("aक\u0301", "aK"),
        ("™\u0301", "TM"),
        ("👩\u200d™\u0301", "womanTM'"),
        ("a\u200d™\u0301", "aTM"),
        ("가\u0301", "GA'"),
        ("aᅡ\u0301", "aA"),
    ):
        assert found.decode(found.encode(text)) == wanted.decode(wanted.encode(text)) == made, ascii(text)
