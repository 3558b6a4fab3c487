"""HRM-Text: several slow cycles and prompts that see themselves against transformers, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read
from family_runs import decoded, states
from transformers import HrmTextConfig, HrmTextForCausalLM

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import CheckpointError, UsageError
from edgeloop.runtime.model.facts import stored_layers
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Step

BOUND = 5e-5  # of logits up to 12


@pytest.fixture
def copy(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_folder / "hrm_text_h1l4_noprefix", tmp_path / "model"))


class Authors:
    """The model in transformers, with prompts marked by token types; and a bundle of it."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = HrmTextForCausalLM(
            HrmTextConfig(
                vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                head_dim=8, max_position_embeddings=256, initializer_range=0.2, H_cycles=2, L_cycles=2,
                attn_implementation="eager",
            )
        ).eval()  # fmt: skip
        with torch.no_grad():
            self.model.model.z_L_init.normal_()
        self.model.save_pretrained(folder / "model")
        self.bundle = folder / "bundle"
        with pytest.MonkeyPatch.context() as patch:  # a .pte of fewer methods, with a limit that is met
            patch.setattr("edgeloop.runtime.engines.executorch.layout.MOST_ROWS", 2)
            patch.setattr("edgeloop.runtime.engines.executorch.layout.MOST_PREFIX", MOST)
            export_bundle(folder / "model", self.bundle, quant="none", targets=TARGETS)

    def logits(self, ids: Sequence[int], prompt: int) -> np.ndarray:
        """[S, V] of ids [S], the first ``prompt`` of which see each other."""
        types = torch.arange(len(ids))[None] < prompt
        with torch.no_grad():
            return self.model(torch.tensor([ids]), token_type_ids=types.long()).logits[0].numpy()

    def states(self, ids: Sequence[int], prompt: int) -> list[np.ndarray]:
        """[S, D] that each run of a stack gives, in the order of the runs."""
        found: list[np.ndarray] = []
        stacks = self.model.model.L_module, self.model.model.H_module
        hooks = [
            stack.register_forward_hook(lambda stack, given, out: found.append(out[0].numpy()))
            for stack in stacks
        ]
        self.logits(ids, prompt)
        for hook in hooks:
            hook.remove()
        return found

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        while len(ids) < len(prompt) + count:
            ids.append(int(self.logits(ids, len(prompt))[-1].argmax()))
        return ids[len(prompt) :]


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Authors:
    return Authors(tmp_path_factory.mktemp("hrm"))


IDS: list[int] = np.random.default_rng(0).integers(0, 60, 180).tolist()
WITH_PTE = find_spec("executorch") is not None
TARGETS = ["onnx", "native", *["executorch"] * WITH_PTE]
PTE = pytest.param("executorch", marks=pytest.mark.skipif(not WITH_PTE, reason="executorch is not installed"))
ENGINES = ("reference", "onnx", "native", PTE)
MOST = 180  # tokens of a prompt for a .pte


def tokens(steps: Iterable[Step]) -> list[int]:
    return [step.token for step in steps]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_whose_tokens_see_each_other(authors: Authors, lane_engine: Path, engine: str) -> None:
    """Longer than any piece of a text; what follows it is causal, as is a text without a prompt."""
    with Session.open(authors.bundle, engine=engine) as session:
        assert session.program.loop.schedule == (0, 0, 1, 0, 0, 1)
        assert stored_layers(session.program) == 4
        for prompt in (0, 1, 2, 9, 150, 180):
            assert np.abs(session.logits(IDS, prompt) - authors.logits(IDS, prompt)).max() <= BOUND
        wanted = authors.greedy(IDS[:150], 8)
        assert wanted != authors.greedy(IDS[:1], 8)
        assert tokens(session.generate(IDS[:150], max_tokens=8)) == wanted
        assert (
            np.abs(decoded(session.backend, np.array(IDS[:20])) - authors.logits(IDS[:20], 9)).max() <= BOUND
        )
        depths, stacks = session.program.loop.schedule, authors.states(IDS[:90], 90)
        for found, stack, wanted_state in zip(
            states(session.backend, np.array(IDS[:90])), depths, stacks, strict=True
        ):
            slow, fast = np.split(found, 2, 1)
            assert np.abs((slow if stack else fast) - wanted_state).max() <= BOUND
    with Session.open(authors.bundle, engine=engine, decode="pipelined") as session:
        assert tokens(session.generate(IDS[:150], max_tokens=8)) == wanted


@pytest.mark.parametrize("engine", ENGINES)
def test_contexts_of_such_a_prompt(authors: Authors, lane_engine: Path, tmp_path: Path, engine: str) -> None:
    """Whatever was done before, an answer is that to the whole prompt."""
    first, longer = authors.greedy(IDS[:20], 6), [*IDS[:20], *IDS[30:40]]
    other = authors.greedy(longer, 6)
    with Session.open(authors.bundle, engine=engine) as session:
        assert tokens(session.generate(IDS[:20], max_tokens=3)) == first[:3]
        session.save(tmp_path / "saved")
        with (
            Session.load(authors.bundle, tmp_path / "saved", engine=engine) as loaded,
            session.fork() as fork,
        ):
            session.score(IDS[50:90])  # and is run again
            for each in (session, fork, loaded):
                assert tokens(each.generate(max_tokens=3)) == first[3:]
        assert tokens(session.regenerate(max_tokens=6, sampling=SamplingOptions())) == first
        assert tokens(session.generate(longer, max_tokens=6, reuse=True)) == other
        session.truncate(len(longer))
        assert tokens(session.generate(max_tokens=6)) == other
        session.truncate(20)
        assert tokens(session.generate(max_tokens=6)) == first
        session.truncate(20)
        session.append(IDS[30:40])
        assert tokens(session.generate(max_tokens=6)) == other
        session.append([7, 8])
        assert tokens(session.generate(max_tokens=4)) == authors.greedy([*longer, *other, 7, 8], 4)


@pytest.mark.parametrize("engine", ["onnx", "native", PTE])
def test_many_such_prompts(authors: Authors, lane_engine: Path, engine: str) -> None:
    """Each goes in whole, whatever another one that begins alike has run."""
    prompts = [IDS[:150], IDS[:40], IDS[3:9], IDS[:150]]
    with BatchServer.open(authors.bundle, engine=engine, sequences=3) as server:
        answers = [
            tokens(server.submit(prompt, 6)) for prompt in prompts
        ]  # one after the other, and together
        assert [tokens(each) for each in [server.submit(prompt, 6) for prompt in prompts]] == answers
    assert answers == [authors.greedy(prompt, 6) for prompt in prompts]
    with pytest.raises(
        UsageError, match="max_stall is 5 ms, and the tokens of this model's prompts see each other"
    ):
        BatchServer.open(authors.bundle, engine=engine, max_stall=5)


@pytest.mark.skipif(not WITH_PTE, reason="executorch is not installed")
def test_a_prompt_that_is_longer_than_a_call_of_a_pte(authors: Authors) -> None:
    """Refused, and the next one is answered; a text without a prompt may be as long as the context."""
    longer = [*IDS, *IDS[:20]]
    with Session.open(authors.bundle, engine="executorch") as session:
        with pytest.raises(
            UsageError, match="200 tokens at once, and the model was exported for 180 at most"
        ):
            tokens(session.generate(longer, max_tokens=2))
        assert tokens(session.generate(IDS, max_tokens=4)) == authors.greedy(IDS, 4)
        assert np.abs(session.logits(longer) - authors.logits(longer, 0)).max() <= BOUND


def test_how_well_a_text_is_predicted(authors: Authors) -> None:
    """From tokens that come before: nothing sees what it is to predict, unless it is a prompt, which has no score."""
    ids, steps = IDS[:40], torch.log_softmax(torch.from_numpy(authors.logits(IDS[:40], 0)), 1).numpy()
    causal = [steps[i, token] for i, token in enumerate(ids[1:])]
    prompted = torch.log_softmax(torch.from_numpy(authors.logits(ids, 15)), 1).numpy()
    with Session.open(authors.bundle, engine="onnx") as session:
        assert session.score(ids).total == pytest.approx(sum(causal), rel=1e-5)
        found = session.score(ids, prompt=15)
        assert found.tokens[:15] == (None,) * 15
        assert found.total == pytest.approx(sum(prompted[i, ids[i + 1]] for i in range(14, 39)), rel=1e-5)
        wanted = float(np.exp(-np.mean(causal)))
        assert session.perplexity(ids).perplexity == pytest.approx(wanted, rel=1e-5)
        assert session.evaluate(ids).perplexity == pytest.approx(wanted, rel=1e-5)
        assert session.evaluate(ids).full_perplexity == pytest.approx(wanted, rel=1e-5)


def test_a_prompt_that_was_read_cannot_be_cut(authors: Authors) -> None:
    with Session.open(authors.bundle, engine="onnx") as session:
        decoder = session._new_decoder(64)
        decoder.prompt(np.array(IDS[:20]))
        decoder.step(5)
        decoder.truncate(20)
        with pytest.raises(UsageError, match="part of a prompt whose tokens see each other"):
            decoder.truncate(19)


def test_embedding_scale_of_initializer_range(copy: Path) -> None:
    edit(copy / "config.json", embedding_scale=None, initializer_range=0.05)
    assert [op.scale for op in read(copy).program.prologue.ops if hasattr(op, "table")] == [20.0]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"H_cycles": None}, "has no H_cycles; wanted a positive integer"),
    ({"L_cycles": 0}, "L_cycles is 0"),
    ({"H_cycles": 400}, "H_cycles 400, L_cycles 4, .* stacks of 2 layers"),
    ({"num_layers_per_stack": 3}, "num_layers_per_stack 3, .* stacks of 2 layers"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"prefix_lm": "yes"}, "prefix_lm is 'yes'; wanted true or false"),
    ({"head_dim": 16}, "gqkv_proj.weight has shape"),
    ({"halt_max_steps": 4, "act_layers": 2}, "act_layers is 2, and this family does not know the key"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(copy)
    assert "\n" not in str(caught.value)


def test_a_norm_with_weights_is_refused(copy: Path) -> None:
    edit_weights(copy, lambda t: t.update({"model.H_module.layers.0.norm.weight": torch.ones(32)}))
    with pytest.raises(
        CheckpointError, match=r"H_module\.layers\.0\.norm\.weight is part of a layer and not"
    ):
        read(copy)
