"""The ids that begin and end a text, as transformers' ``generate`` takes them from a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from ...runtime.spec import Spec
from ..families.llama_config import token_ids
from ..weight_files import read_json


def with_ends(spec: Spec, folder: Path) -> Spec:
    """``spec``, whose ids are config.json's, with those of generation_config.json where that file names some.

    That is what ``generate`` does, but for one case: beside a generation_config.json that names no end at all it
    passes over config.json's too, and never stops. CheckpointError for ids that are no tokens of the model.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return spec
    config, where = read_json(path), str(path)
    bos = token_ids(config, "bos_token_id", spec.vocab_size, where) or (spec.bos_token_id,)
    eos = token_ids(config, "eos_token_id", spec.vocab_size, where) or spec.eos_token_ids
    return structs.replace(spec, bos_token_id=bos[0], eos_token_ids=tuple(dict.fromkeys(eos)))
