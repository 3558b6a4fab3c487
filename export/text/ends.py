"""The ids that begin and end a text, as transformers' ``generate`` takes them from a checkpoint folder."""

from __future__ import annotations

import logging
from pathlib import Path

from msgspec import structs

from ...runtime.model.program import Program
from ..checkpoint.weight_files import read_json
from ..families.config_values import token_ids
from .vocabulary import Vocabulary

log = logging.getLogger(__name__)


def with_ends(program: Program, folder: Path) -> Program:
    """Return ``program`` with config.json's ids, or those of generation_config.json where that file names some.

    That is what ``generate`` does, but for one case: beside a generation_config.json that names no end at all it
    ignores config.json's too, and never stops. CheckpointError for ids that are no tokens of the model.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return program
    config, where = read_json(path), str(path)
    bos = token_ids(config, "bos_token_id", program.vocab_size, where) or (program.bos_token_id,)
    eos = token_ids(config, "eos_token_id", program.vocab_size, where) or program.eos_token_ids
    return structs.replace(program, bos_token_id=bos[0], eos_token_ids=tuple(dict.fromkeys(eos)))


def warn_of_ends(program: Program, vocabulary: Vocabulary, folder: Path) -> None:
    """Log a warning where the tokenizer has a token to end a text, and nothing says that generation ends there.

    ``generate`` ignores the tokenizer's too; models that were trained to chat often have it only there.
    """
    if vocabulary.eos_id is not None and vocabulary.eos_id not in program.eos_token_ids:
        log.warning(
            "%s: the tokenizer's eos_token %r is token %d, and a text ends at %s: add it to eos_token_id in "
            "generation_config.json if generation is to stop there",
            folder,
            vocabulary.special_tokens["eos_token"],
            vocabulary.eos_id,
            ", ".join(map(str, program.eos_token_ids)) or "no token at all",
        )
