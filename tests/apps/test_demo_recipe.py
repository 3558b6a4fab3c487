"""The demo model's recipe: what it minimizes, what it measures, and a run that is killed goes on to the same end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeloop.apps.demo import ablate, report, state
from edgeloop.apps.demo.dialogues import split_dialogues, text_of
from edgeloop.apps.demo.drafts import acceptance, agreement, prompts
from edgeloop.apps.demo.model import DemoConfig, DemoModel
from edgeloop.apps.demo.objective import Objective
from edgeloop.apps.demo.recipe import TrainingRecipe
from edgeloop.apps.demo.texts import END_OF_TEXT, Tokens, split_texts
from edgeloop.apps.demo.train import train
from edgeloop.apps.demo.verb import CHECKPOINT
from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions
from edgeloop.runtime.text.template import DEFAULT

TINY = DemoConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    block_layers=1, lora_rank=2,
)  # fmt: skip
RECIPE = TrainingRecipe(steps=7, batch=2, length=16, every=3)


def tokens() -> Tokens:
    ids = torch.randint(0, 64, (600,), generator=torch.Generator().manual_seed(0))
    return Tokens(None, ids, ids[:200], 500, ids[:40])  # type: ignore[arg-type]


def weights(model: DemoModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are counted over four tokens a text."""
    monkeypatch.setattr(report, "acceptance", partial(acceptance, tokens=4))


def ignore(step: int, row: dict[str, Any] | None) -> None:
    pass


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    """Before the first state was kept, right after it, and between two."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole, log = train(TINY, RECIPE, tokens(), tmp_path / "whole", "cpu", ignore)
    steps: list[int] = []

    def stop(step: int, row: dict[str, Any] | None) -> None:
        steps.append(step)
        if len(steps) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, RECIPE, tokens(), tmp_path / "stopped", "cpu", stop)
    resumed, again = train(TINY, RECIPE, tokens(), tmp_path / "stopped", "cpu", stop)
    assert steps[killed_at] == killed_at // 3 * 3 + 1
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    for one, other in zip(log, again, strict=True):
        assert {**one, "minutes": 0} == {**other, "minutes": 0}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_demo_recipe import RECIPE, TINY, tokens
from edgeloop.apps.demo.train import train
def kill(step, row):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
train(TINY, RECIPE, tokens(), Path(sys.argv[1]), "cpu", kill)
"""


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [state.NAME]
    seen: list[int] = []
    train(TINY, RECIPE, tokens(), tmp_path, "cpu", lambda step, row: seen.append(step))
    assert seen == [4, 5, 6, 7]


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    train(TINY, RECIPE, tokens(), tmp_path, "cpu", ignore)
    with pytest.raises(ValueError, match="is of another recipe"):
        train(TINY, replace(RECIPE, rate=1e-3), tokens(), tmp_path, "cpu", ignore)
    state.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_minimized() -> None:
    """Cross-entropy of every depth at first; at the end that of the last, and the others' distance to it."""
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(5, 8, generator=random) for _ in range(3)]
    targets = torch.arange(5)
    objective = Objective((0.5, 0.25, 1.0), distillation=2.0, temperature=0.5, turn=(0.5, 0.6))
    each, early = objective(logits, targets, 0.2)
    assert [float(x) for x in each] == pytest.approx([float(F.cross_entropy(o, targets)) for o in logits])
    assert float(early) == pytest.approx(float(0.5 * each[0] + 0.25 * each[1] + each[2]))
    p = [(o / 0.5).softmax(-1) for o in logits]
    far = [0.5 * (p[2] - q).abs().sum(-1).mean() for q in p[:2]]
    assert float(objective(logits, targets, 0.9)[1]) == pytest.approx(float(each[2] + far[0] + far[1]))
    divergence = [(p[2] * (p[2] / q).log()).sum(-1).mean() for q in p[:2]]
    late = replace(objective, distance="kl")(logits, targets, 0.9)[1]
    assert float(late) == pytest.approx(float(each[2] + divergence[0] + divergence[1]), rel=1e-5)


def test_the_last_depth_is_not_drawn_to_the_others() -> None:
    logits = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    objective = Objective((0.0, 0.0), distillation=1.0)
    objective(logits, torch.arange(5), 1.0)[1].backward()
    assert logits[0].grad is not None
    assert logits[1].grad is not None
    assert float(logits[0].grad.abs().sum()) > 0
    assert float(logits[1].grad.abs().sum()) == 0


def test_drafts_are_counted_as_decoding_would() -> None:
    """Against a loop over one text and the greedy sampler of the runtime."""
    torch.manual_seed(3)
    model = DemoModel(TINY).eval()
    for name, tensor in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(tensor, std=0.1)  # so that depths differ
    begin = prompts(tokens().training, texts=1, length=6)
    ids, right, sampler = begin[0].tolist(), [0, 0], Sampler(SamplingOptions())
    for _ in range(20):
        with torch.no_grad():
            rows = [o[0, -1].numpy() for o in model(torch.tensor([ids]))]
        chosen = [sampler.choose(row, ids, len(ids)) for row in rows]
        right = [n + (c == chosen[-1]) for n, c in zip(right, chosen, strict=False)]
        ids.append(chosen[-1])
    assert 0 < right[0] < 20
    assert acceptance(model, begin, 0.0, tokens=20) == [n / 20 for n in right]
    sampled = acceptance(model, begin, 0.8, tokens=20)
    assert sampled == acceptance(model, begin, 0.8, tokens=20)
    assert sampled != acceptance(model, begin, 0.8, tokens=20, seed=1)


def test_agreement_is_that_of_whole_windows() -> None:
    model = DemoModel(TINY).eval()
    ids = tokens().validation[:33]
    with torch.no_grad():
        chosen = [torch.stack([o[0].argmax(-1) for o in model(w[None])]) for w in (ids[:16], ids[16:32])]
    wanted = [float(np.mean([(c[d] == c[2]).float().mean() for c in chosen])) for d in (0, 1)]
    assert agreement(model, ids, 16) == pytest.approx(wanted)


def test_bits_a_byte(short_texts: None) -> None:
    found = report.measure(DemoModel(TINY), tokens(), 16)
    nats = found["validation_loss"][-1]
    assert found["bits_per_byte"][-1] == pytest.approx(nats * 200 / 500 / np.log(2), abs=2e-4)


def test_dialogues() -> None:
    """A few hundred, each once, and none of them from the tales' validation text."""
    training, validation = split_texts()
    spoken, held = split_dialogues(training)
    assert 300 < len(spoken) < 600
    assert len(held) / (len(spoken) + len(held)) == pytest.approx(0.05, abs=0.005)
    assert not {*spoken} & {*held}
    for text in (*spoken, *held):
        assert text.startswith(END_OF_TEXT + "Listener: ")
        last = text.rsplit("Storyteller: ", 1)[1]
        assert last not in validation
        text.encode("ascii")


def test_the_template_writes_what_was_trained() -> None:
    from edgeloop.runtime.text.template import ChatTemplates

    source = (CHECKPOINT / "chat_template.jinja").read_text(encoding="utf-8")
    turns = [("Who are you?", "A storyteller."), ("Go on.", "")]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    found = ChatTemplates({DEFAULT: source}, {}).render(messages[:-1])
    assert found == text_of(turns).removesuffix(" ")


def test_ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_texts: None) -> None:
    """Every variant is a recipe that exists, and the table has those that were run."""
    for changes in ablate.VARIANTS.values():
        config = replace(DemoConfig(), **changes.get("config", {}))
        objective = replace(Objective(), **changes.get("objective", {}))
        assert len(objective.weights) == config.num_recursions
        replace(TrainingRecipe(), **changes.get("recipe", {}))
    monkeypatch.setattr(ablate, "read_tokens", lambda size: tokens())
    monkeypatch.setattr(ablate, "DemoConfig", lambda: TINY)
    monkeypatch.setattr(ablate, "TrainingRecipe", lambda **given: replace(RECIPE, **given))
    ablate.run("rank 8", 2, "cpu", tmp_path)
    found = json.loads((tmp_path / "rank 8.json").read_text(encoding="utf-8"))
    line = ablate.table(tmp_path).splitlines()[2]
    assert line.startswith("| rank 8 | ")
    assert f"{found['drafts_greedy'][0]:.2f}" in line
