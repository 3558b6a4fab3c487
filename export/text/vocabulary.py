"""The tokenizer.json of a checkpoint folder: checked before any work is done, shipped as it is."""

from __future__ import annotations

import logging
from pathlib import Path

from ...runtime.errors import CheckpointError
from ...runtime.text.tokenizer import open_engine
from ...runtime.text.tokenizer_file import read_tokenizer_file
from ..situations import without_tokenizer

log = logging.getLogger(__name__)


def find_tokenizer(folder: Path, vocab_size: int) -> Path | None:
    """tokenizer.json, or None with a warning; CheckpointError when it cannot be read.

    Tokens that the model does not have are warned about only: a padding token that was added later and never
    learned is common, and no text holds it. Where a text does, the runtime refuses it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        log.warning("%s", without_tokenizer(folder))
        return None
    engine = open_engine(read_tokenizer_file(path, CheckpointError), path, CheckpointError)
    vocabulary = engine.get_vocab(with_added_tokens=True)
    beyond = sorted(token for token, number in vocabulary.items() if number >= vocab_size)
    if beyond:
        log.warning(
            "%s has %d tokens beyond the model's %d, such as %r: a text that holds one is refused",
            path,
            len(beyond),
            vocab_size,
            beyond[0],
        )
    return path
