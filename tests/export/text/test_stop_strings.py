"""Generation ends at the token at which transformers' ``generate`` ends, for the same model and stop strings."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import SamplingOptions, Session

PROMPT = [5, 9, 77, 30, 12, 66]
LENGTH, PENALTY = 24, 1.8  # of repeats: a model that knows nothing says one thing only


def test_stop_strings_end_it_where_generate_does(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None
) -> None:
    """Those that the model really writes: whole tokens, parts of them, across their borders, from the prompt on."""
    folder = tiny("llama")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = AutoTokenizer.from_pretrained(folder)

    def generated(stops: list[str]) -> list[int]:
        with torch.no_grad():
            found = model.generate(
                torch.tensor([PROMPT]), do_sample=False, max_new_tokens=LENGTH, pad_token_id=0,
                repetition_penalty=PENALTY,
                stop_strings=stops or None, tokenizer=theirs,
            )  # fmt: skip
        ids: list[int] = found[0].tolist()
        return ids[len(PROMPT) :]

    out = export_bundle(folder, tmp_path / "b", quant="none").bundle
    dice = random.Random(0)
    with Session.open(out, engine="reference") as session:
        tokenizer, free = session.tokenizer, generated([])
        written = b"".join(tokenizer.pieces[i] for i in [*PROMPT, *free])
        possible = []
        for start in range(len(written)):
            for end in range(start + 1, min(start + 9, len(written))):
                try:
                    possible.append(written[start:end].decode())
                except UnicodeDecodeError:
                    continue
        ends = set()
        for _ in range(20):
            stops = dice.sample(possible, dice.randint(1, 2))
            steps = list(session.generate(PROMPT, LENGTH, SamplingOptions(repetition_penalty=PENALTY), stops))
            assert [step.token for step in steps] == generated(stops)
            ends.add((len(steps), steps[-1].finish))
            whole = tokenizer.decode([*PROMPT, *(step.token for step in steps)])[
                len(tokenizer.decode(PROMPT)) :
            ]
            text = "".join(step.text for step in steps)
            assert whole.startswith(text)
            if steps[-1].finish == "stop":
                assert not any(stop in text for stop in stops)
    assert len(ends) > 4
