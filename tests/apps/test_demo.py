"""The demo model as it ships: small enough, exported by its verb, and as good at every depth as its README says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from edgeloop.apps.cli import main
from edgeloop.apps.demo.model import DemoConfig, DemoModel
from edgeloop.apps.demo.routed import RoutedConfig, RoutedModel
from edgeloop.apps.demo.texts import TEXTS, encode, split_texts, validation_halves
from edgeloop.apps.demo.verb import CHECKPOINT
from edgeloop.runtime import Session

ROUTED = CHECKPOINT.with_name("routed_checkpoint")
README = CHECKPOINT.parent / "README.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "bundle"
    assert main(["export", str(CHECKPOINT), "-o", str(out), "--quant", "none", "--json"]) == 0
    return out


def test_the_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12_000_000


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("routed") / "bundle"
    assert main(["export", str(ROUTED), "-o", str(out), "--quant", "none", "--json"]) == 0
    return out


def test_the_routed_twin_routes_as_it_was_trained(routed: Path) -> None:
    """Against the trained module; each token deciding by itself comes near to choosing the best of the window."""
    assert sum(path.stat().st_size for path in ROUTED.iterdir()) <= 12_000_000
    found = {}
    for rule in ("chunk-topk", "router", "depth:1"):
        with Session.open(routed, exit=rule) as session:
            ids = encode_validation(session)[: 3 * 512 + 1]
            found[rule] = session.evaluate(ids)
    (wanted,) = perplexities(RoutedModel(RoutedConfig()), ROUTED, ids)
    assert found["chunk-topk"].perplexity == pytest.approx(wanted, rel=1e-4)
    assert found["chunk-topk"].mean_depth == (512 + 341 + 170) / 512  # of each window, rounded down
    assert found["router"].perplexity == pytest.approx(found["chunk-topk"].perplexity, rel=0.02)
    assert found["router"].block_share < 0.7
    assert found["depth:1"].perplexity > 1.03 * found["router"].perplexity


def test_the_page_says_what_the_recipe_found() -> None:
    """Perplexity after each depth and the drafts of depth 0; depths and drafts are as good as they are meant to be."""
    page = README.read_text(encoding="utf-8")
    found = json.loads((CHECKPOINT / "training.json").read_text(encoding="utf-8"))["found"]
    rows = [row.split("|")[1:-1] for row in page.splitlines() if row.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert [row[2].strip() for row in rows] == [f"{x:.3f}" for x in found["validation_loss"]]
    assert [row[3].strip() for row in rows] == [f"{x:.1f}" for x in found["validation_perplexity"]]
    assert [row[4].strip() for row in rows[:-1]] == [f"{x:.2f}" for x in found["drafts_greedy"]]
    assert [row[5].strip() for row in rows[:-1]] == [f"{x:.2f}" for x in found["drafts_sampled"]]
    twin = json.loads((ROUTED / "training.json").read_text(encoding="utf-8"))["found"]
    assert f"{twin['validation_loss'][0]:.3f} nats" in page
    first, *_, last = found["validation_perplexity"]
    assert first > 1.15 * last
    assert found["drafts_greedy"][0] >= 0.85
    assert last < 0.95 * 49.3  # of the checkpoint that was shipped before, on the same text


def test_a_conversation(demo: Path) -> None:
    """The bundle has the template, and an answer of the storyteller's ends by itself."""
    with Session.open(demo) as session:
        asked = session.encode_chat([{"role": "user", "content": "Good night."}])
        text = session.tokenizer.decode(asked)
        steps = list(session.generate(asked, 60))
    assert text.endswith("Listener: Good night.\n\nStoryteller:")
    assert steps[-1].finish == "eos"
    assert "".join(step.text for step in steps).strip() == "Good night, and pleasant dreams!"


def test_a_turn_runs_its_own_tokens_only(demo: Path) -> None:
    """The template writes an answer in the tokens that it was generated in."""
    with Session.open(demo) as session:
        session.append([{"role": "user", "content": "Good night."}])
        answer = "".join(step.text for step in session.generate(max_tokens=60))
        before = len(session.ids)
        session.append([{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}])
        list(session.generate(max_tokens=1))
        own = len(session.ids) - 1 - before  # of the line and of what the template puts around it
        assert session.stats.prefill_tokens == own + 1  # the answer's last token was chosen, not run


def test_validation_is_the_end_of_every_file() -> None:
    training, validation = split_texts()
    assert len(validation) / (len(training) + len(validation)) == pytest.approx(0.05, abs=0.003)
    for path in TEXTS.glob("*.txt"):
        if path.name != "README.md":
            last = " ".join(path.read_text(encoding="ascii").split())[-60:]
            assert last in " ".join(validation.split())
            assert last not in " ".join(training.split())


def test_the_halves_are_the_validation_text() -> None:
    """Calibration sees the first, README's numbers are of the second: both hold a piece of every file."""
    _, validation = split_texts()
    halves = validation_halves()
    assert len(halves[0]) == pytest.approx(len(halves[1]), rel=0.01)
    assert sum(map(len, halves)) == pytest.approx(len(validation), rel=0.001)
    for path in TEXTS.glob("*.txt"):
        if path.name != "README.md":
            last = " ".join(path.read_text(encoding="ascii").split())[-60:]
            assert last in " ".join(halves[1].split())
            assert last not in " ".join(halves[0].split())


def test_every_depth_is_an_exit(demo: Path) -> None:
    """Against the module that was trained, on the same windows."""
    with Session.open(demo) as session:
        ids = encode_validation(session)[: 3 * 512 + 1]
        found = session.perplexity(ids)
    assert found.perplexity == found.perplexity_per_depth[-1]
    wanted = perplexities(DemoModel(DemoConfig()), CHECKPOINT, ids)
    assert found.perplexity_per_depth == pytest.approx(wanted, rel=1e-4)


def perplexities(model: DemoModel, checkpoint: Path, ids: npt.NDArray[np.int64]) -> list[float]:
    """What the recipe's own module finds for whole windows of 512 tokens, at each of its read-outs."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(ids, 513)[::512].copy())
    with torch.no_grad():
        losses, _ = model.eval().losses(windows[:, :-1], windows[:, 1:])
    return [math.exp(loss) for loss in losses]


def encode_validation(session: Session) -> Any:
    from tokenizers import Tokenizer

    return encode(Tokenizer.from_file(str(session.bundle.path("tokenizer.json"))), split_texts()[1])


def test_demo(tmp_path: Path, command_json: Callable[..., Any]) -> None:
    found = command_json("demo", "-o", tmp_path / "bundle", "-n", 12)
    assert len(found["tokens"]) == 12
    assert found["bytes"] < found["unrolled_bytes_estimated"]
    assert found["peak_rss_bytes"] > 0
    again = command_json("demo", "-o", tmp_path / "bundle", "-n", 12)
    assert again["tokens"] == found["tokens"]
