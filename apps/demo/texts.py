"""The tales and the dialogues: read, split into training and validation text, and tokenized.

Hard line breaks inside a paragraph are joined, so that the model spends nothing on learning where a
page was 70 characters wide. The last 5% of each file is validation text that training never sees.

    python -m edgeloop.apps.demo.texts validation.txt                    # write it, for edgeloop eval
    python -m edgeloop.apps.demo.texts calibration.txt unseen.txt        # half of each file's: for calibrate, for eval
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from .dialogues import END_OF_TEXT, split_dialogues

TEXTS = Path(__file__).parent / "texts"
MORE = TEXTS / "more"
"""Books that are no tales: more English of the time, for training."""
TEMPLATE = Path(__file__).parent / "chat_template.jinja"
VALIDATION_SHARE = 0.05


def tidy(text: str) -> str:
    """Paragraphs on one line each, a blank line between them, END_OF_TEXT between tales."""
    tales = []
    for tale in re.split(r"\n\s*\n\s*\n\s*\n", text):
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", tale)]
        body = "\n\n".join(p for p in paragraphs if p)
        if body:
            tales.append(body)
    return END_OF_TEXT.join(tales)


def split_texts(folder: Path = TEXTS) -> tuple[str, str]:
    """(training text, validation text) of every ``*.txt`` in ``folder``, in name order."""
    training, validation = _cut(folder, (0, 1 - VALIDATION_SHARE, 1))
    return training, validation


def validation_halves(folder: Path = TEXTS) -> tuple[str, str]:
    """The first and the second half of each file's validation text."""
    first, second = _cut(folder, (1 - VALIDATION_SHARE, 1 - VALIDATION_SHARE / 2, 1))
    return first, second


def _cut(folder: Path, ends: tuple[float, ...]) -> list[str]:
    """The parts of every file between its shares ``ends``, each tidied and joined with those of the other files."""
    parts: list[list[str]] = [[] for _ in ends[1:]]
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="ascii")
        cuts = [int(len(text) * end) for end in ends]
        for part, (start, stop) in zip(parts, pairwise(cuts), strict=True):
            part.append(tidy(text[start:stop]))
    return [END_OF_TEXT.join(part) for part in parts]


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """A byte-level BPE whose token 0 is END_OF_TEXT; every string round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split(END_OF_TEXT), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    """Token ids [N] of ``text``; END_OF_TEXT becomes token 0."""
    return np.array(tokenizer.encode(text).ids, dtype=np.int64)


@dataclass(frozen=True)
class Tokens:
    """What the recipe trains and validates on: token streams [N], and the tokenizer that made them."""

    tokenizer: Tokenizer
    training: Tensor
    """Tales, other books, dialogues."""
    validation: Tensor
    """The tales' own."""
    validation_bytes: int
    dialogues: Tensor
    """Those held out."""

    def save(self, folder: Path) -> None:
        """The tokenizer and the chat template, beside a checkpoint."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        shutil.copyfile(TEMPLATE, folder / TEMPLATE.name)


def read_tokens(vocab_size: int) -> Tokens:
    """The tales, the other books and the dialogues as tokens. The tokenizer is trained on the tales alone."""
    training, validation = split_texts()
    tokenizer = train_tokenizer(training, vocab_size)
    spoken, held = split_dialogues(training)
    more, _ = split_texts(MORE)

    def ids(text: str) -> Tensor:
        return torch.from_numpy(encode(tokenizer, text))

    return Tokens(
        tokenizer=tokenizer,
        training=ids(training + END_OF_TEXT + more + "".join(spoken)),
        validation=ids(validation),
        validation_bytes=len(validation),
        dialogues=ids("".join(held)),
    )


if __name__ == "__main__":
    wanted = [split_texts()[1]] if len(sys.argv) == 2 else validation_halves()
    for name, text in zip(sys.argv[1:], wanted, strict=True):
        Path(name).write_text(text, encoding="ascii")
