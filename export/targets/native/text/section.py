"""The tables of a text section that a tokenizer.json makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .....runtime.engines.native.text_format import RULES, Flag, Tag
from .....runtime.errors import ExportError
from .....runtime.text.tokenizer import open_engine
from .....runtime.text.tokenizer_file import read_tokenizer_file
from .added import added_tables, around
from .normalizing import Normalizing
from .sets import Sets
from .steps import Steps
from .strings import Strings
from .vocabulary import model_tables, raw


def tokenizer_tables(path: Path, split_special: bool) -> dict[int, bytes]:
    """The tables of the tokenizer.json at ``path``, by their tags.

    ``split_special``: special tokens in a text are text. ExportError names what the native engine's text does not do.
    """
    source = read_tokenizer_file(path, ExportError)
    engine = open_engine(source, path, ExportError)
    file: dict[str, Any] = json.loads(source.data)
    strings, sets = Strings(), Sets()
    steps = Steps(sets, strings)
    rules: dict[str, Any] = {}
    try:
        normalizing = Normalizing(steps)
        normalizing.add(file.get("normalizer"))
        as_bytes = steps.split(file.get("pre_tokenizer"))
        steps.decode(file.get("decoder"), as_bytes)
        found = model_tables(file["model"], as_bytes, strings, rules)
        found |= around(file.get("post_processor"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} has a rule that is not read ({error!r})") from error
    rules["flags"] |= Flag.SPLIT_SPECIAL if split_special else 0

    def written(name: str) -> bytes:
        bare = raw(name) if as_bytes else None
        return name.encode() if bare is None else bare

    found |= added_tables(engine, written, sets, strings, rules)
    record = np.zeros((), RULES)
    for name, value in rules.items():
        record[name] = value
    found |= steps.tables() | sets.tables() | normalizing.tables()
    found |= {Tag.RULES: record.tobytes(), Tag.STRINGS: bytes(strings.data)}
    return found
