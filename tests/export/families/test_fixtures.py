"""Each family against what its authors' code computed on a tiny checkpoint: at once, cached, at each depth, greedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from family_runs import authors, decoded, greedy, states, stopped

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, read_checkpoint, unused
from edgeloop.runtime import Session
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.facts import LayerRun, runs

ENGINES = ("reference", "onnx", "native")
BOUND = 2e-5  # of logits up to 15: measured 8e-6; what a wrong reading would change is 6e-4 at least


@dataclass(frozen=True)
class Fixture:
    """A checkpoint: its family, its layers, the logits of each depth, and rows of hidden_states after each depth."""

    family: str
    runs: list[LayerRun]
    depths: dict[int, str] = field(default_factory=dict)
    hidden: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenEnded:
    """A checkpoint whose loop runs any number of times: its family, its layers, and the numbers that were run."""

    family: str
    runs: list[LayerRun]
    depths: tuple[int, ...] = (1, 2, 4, 8)


ONE_TWO_ONE = [LayerRun(1, 1), LayerRun(2, 2), LayerRun(1, 1)]
LOOPS = {depth: f"logits_after_loop_{depth}" for depth in (1, 2)}
FIXTURES = {
    "nanbeige_loops2": Fixture("nanbeige", [LayerRun(3, 2)], LOOPS),
    "nanbeige_losswts_qknorm_bias": Fixture("nanbeige", [LayerRun(3, 2)], LOOPS),
    "hrm_text_h1l4_noprefix": Fixture(
        "hrm_text", [LayerRun(2, 4), LayerRun(2, 1)], {5: "logits_after_H_cycle_1"}
    ),
    "fold_qwen2": Fixture("qwen", ONE_TWO_ONE, hidden={1: 3, 2: 5}),
    "fold_gemma1": Fixture("gemma", ONE_TWO_ONE, hidden={1: 3, 2: 5}),
    "fold_gemma2": Fixture("gemma", ONE_TWO_ONE, hidden={1: 3, 2: 5}),
    "fold_gemma3": Fixture("gemma", [LayerRun(3, 2)], {1: "exit_logits_after_recursion_1"}, {1: 3}),
    "fold_olmo2": Fixture("olmo2", ONE_TWO_ONE, hidden={1: 3, 2: 5}),
}
OPEN_ENDED = {
    "retrofit_llama32": OpenEnded("retrofit", [LayerRun(1, 1), LayerRun(2, 8), LayerRun(1, 1)]),
    "retrofit_tinyllama": OpenEnded("retrofit", [LayerRun(2, 1), LayerRun(2, 4), LayerRun(2, 1)]),
    "parcae_diag": OpenEnded("parcae", [LayerRun(1, 1), LayerRun(2, 4), LayerRun(1, 1)]),
    "retrofit_olmo2_skip_adapter": OpenEnded("retrofit", [LayerRun(1, 1), LayerRun(2, 8), LayerRun(1, 1)]),
}


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("engine", ENGINES)
def test_logits(
    exported: Callable[..., Path], checkpoint: Callable[[str], Path], engine: str, name: str
) -> None:
    bundle, wanted, fixture = exported(name), authors(checkpoint(name)), FIXTURES[name]
    ids = wanted["input_ids"]
    with Session.open(bundle, engine=engine) as session:
        assert runs(session.program) == fixture.runs
        assert np.abs(session.logits(ids) - wanted["logits_use_cache_False"]).max() <= BOUND
        assert np.abs(decoded(session.backend, ids) - wanted["logits_incremental_prefill9"]).max() <= BOUND
        assert greedy(session, ids) == wanted["greedy_8"].tolist()
        found = states(session.backend, ids)
        for depth, row in fixture.hidden.items():
            assert np.abs(found[depth - 1] - wanted["hidden_states"][row]).max() <= BOUND
    for depth, logits in fixture.depths.items():
        assert np.abs(stopped(bundle, engine, depth, ids) - wanted[logits]).max() <= BOUND


@pytest.mark.parametrize("name", OPEN_ENDED)
@pytest.mark.parametrize("engine", ENGINES)
def test_any_number_of_depths(
    exported: Callable[..., Path], checkpoint: Callable[[str], Path], engine: str, name: str
) -> None:
    """From a state of zeros, at once and cached; pipelined decoding, with lanes at several depths, gives the tokens."""
    bundle, wanted, fixture = exported(name), authors(checkpoint(name)), OPEN_ENDED[name]
    ids = wanted["input_ids"]
    with Session.open(bundle, engine=engine) as session:
        assert runs(session.program) == fixture.runs
        assert np.abs(session.logits(ids) - wanted["logits_use_cache_False"]).max() <= BOUND
    for depth in fixture.depths:
        with Session.open(bundle, engine=engine, depth=depth) as session:
            assert np.abs(session.logits(ids) - wanted[f"logits_full_r{depth}"]).max() <= BOUND
    with Session.open(bundle, engine=engine, depth=4) as session:
        assert np.abs(decoded(session.backend, ids) - wanted["logits_incr_full_r4"]).max() <= BOUND
        assert greedy(session, ids) == wanted["greedy_8_r4"].tolist()
        if "latent_after_4_steps" in wanted:
            latent = states(session.backend, ids)[-1]
            width = wanted["latent_after_4_steps"].shape[-1]
            assert np.abs(latent[:, :width] - wanted["latent_after_4_steps"]).max() <= BOUND
    with Session.open(bundle, engine=engine, depth=4, decode="pipelined") as session:
        assert greedy(session, ids) == wanted["greedy_8_r4"].tolist()


@pytest.mark.parametrize("name", [*FIXTURES, *OPEN_ENDED])
def test_reading(checkpoint: Callable[[str], Path], name: str) -> None:
    """The family is the one that is meant, its program is sound, and no tensor is left over."""
    opened = Checkpoint.open(checkpoint(name))
    assert find_family(opened).name == (FIXTURES | OPEN_ENDED)[name].family
    reading = read_checkpoint(opened)
    assert not list(problems(reading.program))
    assert unused(opened, reading) == []
