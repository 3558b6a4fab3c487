"""Tiny ``model.lanes`` files with all that an app calls for: a tokenizer, turns, exit rules, the heads that they
read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from chat_templates import TEMPLATES
from mode_models import DELTAS, EXPERT, LOOP, TOKEN, llama, random_tensors
from msgspec import structs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeloop.export.families.llama_spec import Segment
from edgeloop.export.targets.native.text.section import tokenizer_tables
from edgeloop.export.text.compile_turns import compile_turns
from edgeloop.runtime.bundle.heads import head_shapes
from edgeloop.runtime.bundle.manifest import Exit
from edgeloop.runtime.engines.native.file import write_lanes
from edgeloop.runtime.engines.native.records import about_record, exits_record, turns_record
from edgeloop.runtime.engines.native.text_format import Tag, section
from edgeloop.runtime.text.turns import Turns

CONTEXT = 64
MODELS: dict[str, tuple[Segment, dict[str, Any], str]] = {
    "plain": (DELTAS, {"exit_gate": True}, "qwen 3"),
    "window": (LOOP, {"sliding_window": 24}, "mistral 0.3"),
    "expert": (LOOP, {"routing": EXPERT}, "llama 2"),
    "token": (LOOP, {"routing": TOKEN, "kv": "shared"}, "llama 3.2"),
}
"""By name: what the model is made of, and its chat template."""


def tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer of 256 bytes and some words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, "Ġt", "he", "Ġthe", "on", "ce"])}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("o", "n"), ("c", "e")]
    engine = Tokenizer(models.BPE(vocab, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<s>", "</s>"])
    engine.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def context_files(folder: Path) -> list[Path]:
    """Write the files into ``folder``, a new one."""
    folder.mkdir()
    source = tokenizer(folder)
    made = [write_model(folder, name, source) for name in MODELS]
    source.unlink()
    return made


def write_model(folder: Path, name: str, source: Path, turns: Turns | None = None) -> Path:
    """Write the model ``name`` with the tokenizer.json at ``source``; ``turns``: in place of those of its template."""
    segment, values, template = MODELS[name]
    program = llama(segment, vocab_size=263, context_length=CONTEXT, **values)
    program = structs.replace(program, eos_token_ids=(262,))
    random = np.random.default_rng(1)
    heads = {
        key: random.standard_normal([n or 3 for n in shape], np.float32)
        for key, shape in head_shapes(program).items()
    }
    rule = Exit(
        thresholds=(0.5, 0.5), skipped_kv="skip", goal="", tokens=1, perplexity=1.0,
        full_perplexity=1.0, agreement=1.0, mean_depth=2.0,
    )  # fmt: skip
    more = {
        Tag.TURNS: turns_record(turns or compile_turns(*TEMPLATES[template])),
        Tag.ABOUT: about_record(program, name, "0123456789abcdef" * 4),
        Tag.EXITS: exits_record(program, heads, {} if program.routing else {"latent": rule}),
    }
    path = folder / f"{name}.lanes"
    write_lanes(
        path, program, random_tensors(program), 0, text=section(tokenizer_tables(source, False) | more)
    )
    return path
