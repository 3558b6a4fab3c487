"""Chooses the class with which transformers 5 reads a folder's tokenizer.json.

Most classes take the file as it is; those of ``REBUILT`` build parts of it anew. A class that is in neither table is
warned about by its name, and the file is taken as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .rebuilt import REBUILT

log = logging.getLogger(__name__)

AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend", "BloomTokenizer")
"""Classes that take tokenizer.json as it is, under all names (``Fast`` at the end aside)."""

OWN = {
    "albert": "AlbertTokenizer",
    "mistral": "TokenizersBackend",
    "mixtral": "TokenizersBackend",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "phi3": "TokenizersBackend",
    "olmo2": "TokenizersBackend",
}
"""The class of a model type; a type that is not here has none, as llama."""

MISNAMED = ("qwen2", "phi3")
"""Model types whose folders name a wrong class: that of the type counts."""


def choose_class(config: Mapping[str, Any], options: Mapping[str, Any], byte_level: bool, where: str) -> str:
    """Return the name of the class, without ``Fast``: one of ``REBUILT``, or "" for the file as it is.

    ``config`` is config.json, ``options`` tokenizer_config.json; ``byte_level``: tokenizer.json has such a part.
    """
    declared = str(options.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    model_type = config.get("model_type")
    own = OWN.get(model_type) if isinstance(model_type, str) else None
    code = options.get("auto_map")
    if code and (isinstance(code, list) or (isinstance(code, dict) and "AutoTokenizer" in code)):
        log.warning(
            "%s: tokenizer %s is code of the checkpoint, which is never run: tokenizer.json is taken as it is; "
            "compare the ids of a few texts with those of transformers",
            where,
            declared or code,
        )
        return declared if declared in REBUILT else ""
    if declared == "LlamaTokenizer" and byte_level and model_type not in ("mistral", "mixtral", *MISNAMED):
        return ""  # Llama 3 names Llama 2's class
    if declared and own and own != declared:
        chosen = own if model_type in MISNAMED else declared
        return "" if own in AS_IT_IS else _known(chosen, where)
    return _known(declared or own or "", where)


def _known(name: str, where: str) -> str:
    if name and name not in REBUILT and name not in AS_IT_IS:
        log.warning(
            "%s: tokenizer_class %s is not one whose rules are known here: tokenizer.json is taken as it is; "
            "compare the ids of a few texts with those of transformers",
            where,
            name,
        )
    return name if name in REBUILT else ""
