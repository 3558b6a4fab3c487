"""``eval --against``: the numbers of two bundles beside torch's and scipy's own, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import looped_layer
from torch.nn import functional

from edgeloop.apps.against import Estimate
from edgeloop.apps.cli import main
from edgeloop.runtime.session import Session

Command = Callable[..., tuple[int, str, str]]
Json = Callable[..., Any]
WINDOW, TOKENS = 40, 161


@pytest.fixture(scope="module")
def floats(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("floats") / "bundle"
    assert main(["export", str(checkpoint), "-o", str(out), "--quant", "none", "--json"]) == 0
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tale.txt"
    path.write_text("There was once a king who had three sons, and the youngest was a fool. " * 10)
    return path


def log_probabilities(bundle: Path, text: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, tokens, V] of all windows, and the tokens that follow [tokens]."""
    found: dict[int, list[torch.Tensor]] = {}
    with Session.open(bundle, context=WINDOW) as session:
        ids = session.tokenizer.encode(text.read_text())[:TOKENS]

        def visit(depth: int, first: int, before: object, after: object, logits: Any) -> None:
            found.setdefault(depth, []).append(torch.from_numpy(logits.astype(np.float64)).log_softmax(-1))

        session.visit_depths(ids[:-1], visit)
    return torch.stack([torch.cat(found[depth]) for depth in sorted(found)]), torch.tensor(ids[1:])


def test_numbers_are_those_of_torch_and_scipy(
    bundle: Path, floats: Path, text: Path, command: Command, command_json: Json
) -> None:
    words = (
        *("eval", bundle, "--against", floats, "--text", text),
        *("--max-tokens", TOKENS, "--context", WINDOW),
    )
    found = command_json(*words)
    (mine, targets), (base, _) = log_probabilities(bundle, text), log_probabilities(floats, text)
    assert (found["tokens"], found["windows"]) == (TOKENS - 1, 4)
    for depth in range(3):
        losses = [
            -one[depth].gather(1, targets[:, None])[:, 0].reshape(4, WINDOW).mean(1) for one in (mine, base)
        ]
        assert found["perplexity_per_depth"][depth] == pytest.approx(float(losses[0].mean().exp()), rel=1e-5)
        change = float((losses[0].mean() - losses[1].mean()).exp()) - 1
        assert found["change_per_depth"][depth] == pytest.approx(change, abs=1e-5)
        wanted = functional.kl_div(mine[depth], base[depth], log_target=True, reduction="none").sum(-1)
        assert found["divergence_per_depth"][depth] == pytest.approx(float(wanted.mean()), rel=1e-3)
        each = wanted.reshape(4, WINDOW).mean(1).numpy()
        interval = stats.ttest_1samp(each, 0).confidence_interval(0.95)  # windows are equally long here
        assert found["divergence_interval_per_depth"][depth] == pytest.approx(list(interval), rel=1e-3)
        likeliest = [one.argmax(-1) for one in (mine, base)]
        agree = float((likeliest[0][depth] == likeliest[1][depth]).double().mean())
        assert found["agree_per_depth"][depth] == pytest.approx(agree)
        kept = [float((one[depth] == one[-1]).double().mean()) for one in likeliest]
        assert found["accepted_per_depth"][depth] == pytest.approx(kept[0])
        assert found["drafts_per_depth"][depth] == pytest.approx(kept[0] - kept[1])
    assert found["perplexity_per_depth"] == pytest.approx(
        command_json(*words[:2], *words[4:])["perplexity_per_depth"], rel=1e-5
    )
    code, out, _ = command(*words)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [[str(d), "of", "3"] for d in (1, 2, 3)]


def test_a_bundle_against_itself(bundle: Path, text: Path, command_json: Json) -> None:
    words = ("eval", bundle, "--against", bundle, "--text", text, "--max-tokens", 51)
    found = command_json(*words, "--context", 50)
    assert found["change_per_depth"] == found["divergence_per_depth"] == found["drafts_per_depth"] == [0] * 3
    assert found["agree_per_depth"] == [1] * 3
    assert found["change_interval_per_depth"] == [None] * 3  # one window shows no spread


def test_a_short_window_weighs_less() -> None:
    tokens = np.array([30, 30, 10])
    even = Estimate.of(0.5 * tokens, tokens)
    assert (even.mean, even.half) == (0.5, 0)
    assert Estimate.of(np.array([15.0, 15.0, 10.0]), tokens).mean == pytest.approx(40 / 70)


def test_what_is_no_other_export_of_the_model(
    bundle: Path, floats: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    words = ("eval", bundle, "--text", text, "--against")
    for more, told in (
        ((tmp_path / "none",), "none"),
        ((floats, "--exit", "depth:1"), "--against compares at full depth"),
        ((floats, "--logprobs", "1"), "--against compares at full depth"),
    ):
        code, out, err = command(*words, *more)
        assert (code != 0, out, err.count("\n")) == (True, "", 1)
        assert told in err
    other = tmp_path / "other"
    code, _, err = command("export", looped_layer(tmp_path / "loop"), "-o", other, "--quant", "none")
    assert code == 0, err
    code, out, err = command(*words, other)
    assert (code, out) == (2, "")
    assert "the two models differ: depths is 3 and 2" in err


def test_a_routed_model_is_compared_as_its_router_decides(
    tiny_once: Callable[[str], Path], text: Path, tmp_path: Path, command: Command, command_json: Json
) -> None:
    """The same text token by token under the router (``eval``) has the perplexity that ``--against`` says."""
    bundles = {}
    for quant in ("none", "int4"):
        bundles[quant] = tmp_path / quant
        command_json("export", tiny_once("edgeloop-routed"), "-o", bundles[quant], "--quant", quant)
    words = ("--text", text, "--max-tokens", TOKENS, "--context", WINDOW)
    found = command_json("eval", bundles["int4"], "--against", bundles["none"], *words)
    alone = {name: command_json("eval", bundle, *words)["perplexity"] for name, bundle in bundles.items()}
    assert found["perplexity_per_depth"] == pytest.approx([alone["int4"]], rel=1e-4)
    assert found["against_perplexity_per_depth"] == pytest.approx([alone["none"]], rel=1e-4)
    assert found["divergence_per_depth"][0] > 0
    itself = command_json("eval", bundles["int4"], "--against", bundles["int4"], *words)
    assert itself["divergence_per_depth"] == itself["change_per_depth"] == [0]
    code, out, _ = command("eval", bundles["int4"], "--against", bundles["none"], *words)
    assert (code, out.splitlines()[1].split()[0]) == (0, "routed")
