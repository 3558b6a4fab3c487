"""The ids that end a text are those at which transformers' ``generate`` stops, from the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.bundle.manifest import read_manifest
from edgeloop.runtime.errors import CheckpointError

PROMPT = [5, 9, 77, 30, 12, 200]
SAID: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "config alone": ({"eos_token_id": 7, "bos_token_id": 3}, None),
    "config has several": ({"eos_token_id": [7, 8]}, None),
    "config has none": ({"eos_token_id": None, "bos_token_id": None}, None),
    "more in generation_config": ({"eos_token_id": 7}, {"eos_token_id": [7, 9], "bos_token_id": 2}),
    "others in generation_config": ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}),
    "only in generation_config": (
        {"eos_token_id": None, "bos_token_id": None},
        {"eos_token_id": 9, "bos_token_id": 4},
    ),
    "from the model's config": ({"eos_token_id": 7}, {"_from_model_config": True, "eos_token_id": [8]}),
    "one twice": ({"eos_token_id": 7}, {"eos_token_id": [9, 9, 7]}),
}


def say(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))


@pytest.mark.parametrize("name", SAID)
def test_as_generate_prepares_them(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None, name: str
) -> None:
    folder = tiny("llama")
    say(folder, *SAID[name])
    program = read_manifest(export_bundle(folder, tmp_path / "b", quant="none").bundle).program
    model = LlamaForCausalLM.from_pretrained(folder)
    config, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(config, True, device="cpu")
    wanted = [] if config._eos_token_tensor is None else config._eos_token_tensor.tolist()
    assert sorted(program.eos_token_ids) == sorted(set(wanted))
    if (SAID[name][1] or {}).get("bos_token_id"):
        assert program.bos_token_id == config.bos_token_id


def test_generation_stops_where_generate_does(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None
) -> None:
    folder = tiny("llama")

    def generated() -> list[int]:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            found = model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=16, pad_token_id=0)
        ids: list[int] = found[0].tolist()
        return ids[len(PROMPT) :]

    free = generated()
    end = next(token for i, token in enumerate(free) if i >= 3 and token not in free[:i])
    say(folder, {}, {"eos_token_id": [0, end]})
    wanted = generated()
    assert wanted == free[: free.index(end) + 1] != free
    out = export_bundle(folder, tmp_path / "b", quant="none").bundle
    with Session.open(out, engine="reference") as session:
        found = [step.token for step in session.generate(PROMPT, max_tokens=16)]
    assert found == wanted


def test_a_generation_config_that_names_no_end_leaves_the_models(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None
) -> None:
    """Here ``generate`` never stops, which nobody means."""
    folder = tiny("llama")
    say(folder, {"eos_token_id": [7, 8], "bos_token_id": 2}, {"temperature": 0.6, "eos_token_id": None})
    program = read_manifest(export_bundle(folder, tmp_path / "b", quant="none").bundle).program
    assert (program.bos_token_id, program.eos_token_ids) == (2, (7, 8))


@pytest.mark.parametrize("value", [-1, 320, "2", True, [7, None], 1.0])
def test_ids_that_are_no_tokens_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None, value: object
) -> None:
    folder = tiny("llama")
    say(folder, {}, {"eos_token_id": value})
    with pytest.raises(
        CheckpointError, match=r"generation_config\.json: eos_token_id is .* below vocab_size"
    ):
        export_bundle(folder, tmp_path / "b")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"eos_token_id": 7}, "eos_token '<|endoftext|>' is token 0, and a text ends at 7: add it"),
        ({"eos_token_id": None}, "is token 0, and a text ends at no token at all"),
        ({"eos_token_id": [7, 0]}, ""),
    ],
)
def test_an_end_that_only_the_tokenizer_knows_is_said(
    tiny: Callable[[str], Path],
    tmp_path: Path,
    quick_target: None,
    caplog: pytest.LogCaptureFixture,
    config: dict[str, Any],
    told: str,
) -> None:
    folder = tiny("llama")
    say(folder, config, None)
    export_bundle(folder, tmp_path / "b", quant="none")
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)
