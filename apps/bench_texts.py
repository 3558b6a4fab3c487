"""The texts of ``edgeloop bench --decode all``: beginnings of paragraphs, or random tokens, and how they go on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from ..runtime.bundle.folder import Bundle
from ..runtime.decode.sampling import Sampler, SamplingOptions
from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.engines.backend import I64
from ..runtime.errors import UsageError
from .intake import read_text

PROMPT = 24
"""Tokens of a text that are the prompt of its row."""
TEXTS = 6
WARM = SamplingOptions(temperature=0.8, seed=1)


@dataclass(frozen=True)
class Continuation:
    """ids [prompt + tokens], which ``sampler`` chose sequentially."""

    name: str
    ids: I64
    prompt: int
    sampler: Sampler


def write_all(
    args: argparse.Namespace, bundle: Bundle, decoder: SequentialDecoder
) -> tuple[Continuation, list[Continuation]]:
    """Return the continuation whose acceptance is forced, and those of ``--text``, greedy and sampled."""
    random = np.random.default_rng(0)
    prompt = random.integers(0, bundle.program.vocab_size, args.prompt_tokens, np.int64)
    greedy, warm = Sampler(SamplingOptions()), Sampler(WARM)
    known = write(decoder, "random tokens", prompt, args.tokens, greedy)
    texts = []
    for name, ids in prompts(args.text, bundle) if args.text else []:
        texts.append(write(decoder, name, ids, args.tokens, greedy))
        texts.append(
            write(decoder, f"{name} (temperature {warm.options.temperature})", ids, args.tokens, warm)
        )
    return known, texts


def prompts(file: str, bundle: Bundle, most: int = TEXTS) -> list[tuple[str, I64]]:
    """Names and ids of the beginnings of up to ``most`` paragraphs, from all over the text; UsageError without any."""
    from ..runtime.text.tokenizer import Tokenizer

    text = bundle.manifest.text
    if text.tokenizer is None:
        raise UsageError(f"{bundle.folder} has no tokenizer, so --text cannot be used; leave it out")
    tokenizer = Tokenizer.open(bundle.path(text.tokenizer), text.split_special_tokens)
    encoded = ((p, tokenizer.encode(p)) for p in read_text(file).split("\n\n"))
    long_enough = [(p, ids) for p, ids in encoded if len(ids) >= PROMPT]
    if not long_enough:
        raise UsageError(f"{file} has no paragraph of {PROMPT} tokens or more; give a longer text")
    chosen = np.linspace(0, len(long_enough) - 1, min(most, len(long_enough))).astype(int)
    picked = [long_enough[i] for i in sorted(set(chosen.tolist()))]
    return [(f"“{' '.join(p.split()[:4])} …”", np.array(ids[:PROMPT], np.int64)) for p, ids in picked]


def write(decoder: SequentialDecoder, name: str, prompt: I64, tokens: int, sampler: Sampler) -> Continuation:
    """Decode ``tokens`` tokens behind prompt [S] sequentially and return them; end-of-text does not end them."""
    ids = np.empty(len(prompt) + tokens, np.int64)
    ids[: len(prompt)] = prompt
    decoder.reset()
    logits = decoder.prompt(prompt)
    for position in range(len(prompt), len(ids)):
        ids[position] = sampler.choose(logits[-1], ids[:position], position)
        logits = decoder.prompt(ids[position : position + 1])
    return Continuation(name, ids, len(prompt), sampler)
