"""``--depth``: how often the verbs run the block of a model that has any number of depths."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import edit, edit_weights
from tiny import VOCAB

from edgeloop.apps.cli import main
from edgeloop.export.synth_tokenizer import write_tokenizer

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]


@pytest.fixture(scope="module")
def open_ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of six depths, made of a checkpoint of five, to which a vocabulary was given."""
    folder = Path(shutil.copytree(PARITY / "huginn_tiny", tmp_path_factory.mktemp("depth") / "checkpoint"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(0)
        for name in ("transformer.wte.weight", "lm_head.weight"):
            del tensors[name]
        tensors["transformer.wte.weight"] = torch.randn(VOCAB, 64) * 0.1

    edit_weights(folder, change)
    edit(folder / "config.json", vocab_size=VOCAB, padded_vocab_size=VOCAB)
    write_tokenizer(folder, VOCAB)
    out = folder.with_name("bundle")
    words = ("export", folder, "-o", out, "--quant", "none", "--depth", 6)
    assert main([*map(str, words), "--json"]) == 0
    return out


def test_every_verb_that_runs_a_model(open_ended: Path, tmp_path: Path, command_json: CommandJson) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a king.")
    for flags, depth in (((), 6), (("--depth", 2), 2), (("--depth", 9), 9)):
        ran = command_json("run", open_ended, "-p", "Once upon", "-n", 4, *flags)
        assert set(ran["depths"]) == {depth}
        assert len(ran["ms_per_depth"]) == depth
        assert len(command_json("eval", open_ended, "--text", text, *flags)["perplexity_per_depth"]) == depth
    sizes = ("--prompt-tokens", 8, "--tokens", 4, "--runs", 1)
    assert len(command_json("bench", open_ended, *sizes, "--depth", 3)["ms_per_depth"]) == 3
    flags = ("--users", "2", "--requests", "2", "--runs", "1", "--depth", "2")
    assert command_json("bench", open_ended, *flags)["users"][0]["users"] == 2


def test_show_says_that_it_may_be_another_number(open_ended: Path, command: Command) -> None:
    shown = command("show", open_ended)[1]
    assert "6 depths or any other number (--depth)" in shown
    assert "64 + 64 (state, entered), MLP 96" in shown


def test_what_cannot_be_is_said_in_a_line(
    open_ended: Path, bundle: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    code, _, err = command("run", bundle, "-p", "Once", "--depth", 4)
    assert (code, err.count("\n")) == (2, 1)
    assert "this model's loop runs 3 times and no other number; leave depth out" in err
    code, _, err = command("export", checkpoint, "-o", tmp_path / "x", "--depth", 4)
    assert (code, err.splitlines()[-1].count("this model's loop runs 3 times")) == (2, 1)
    assert not (tmp_path / "x").exists()
    assert "depth is 9999, wanted 1 to 4096" in command("run", open_ended, "-p", "Once", "--depth", 9999)[2]
    assert command("run", open_ended, "-p", "Once", "--depth", 0)[0] == 2
