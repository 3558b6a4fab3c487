"""A depth for each applied layer: the same logits, exits behind every one, drafts, every target; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import forward
import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read
from family_runs import authors, decoded, greedy, stopped

from edgeloop.apps.cli import main
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.family import Reading
from edgeloop.export.overrides import overridden
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.session import Session

NAME = "mobilellm_ls_eager"
BOUND = 2e-5  # measured 2.4e-6
IDS = np.random.default_rng(2).integers(0, 320, 13)


def after_each_layer(reading: Reading, ids: np.ndarray) -> list[np.ndarray]:
    """The logits [S, V] where the model ends behind each layer that is applied, by a plain forward."""
    spec, tensor = spec_of(reading.program), {name: load() for name, load in reading.tensors.items()}
    x, found = tensor["embed.weight"][torch.from_numpy(ids)], []
    for s, segment in enumerate(spec.segments):
        assert segment.layers == 1
        for depth in range(segment.repeats):
            x = forward.block(spec, tensor, s, depth, x, torch.arange(len(ids)), {})
            found.append(forward.readout(spec, tensor, x).numpy())
    return found


@pytest.fixture(scope="module")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("layers") / "bundle"
    export_bundle(checkpoint(NAME), out, targets=["onnx", "native"], quant="none", loop="layers")
    return out


@pytest.mark.parametrize("engine", ["reference", "onnx", "native"])
def test_the_authors_logits_and_an_exit_behind_every_layer(
    bundle: Path, checkpoint: Callable[[str], Path], engine: str
) -> None:
    wanted = authors(checkpoint(NAME))
    ids = wanted["input_ids"]
    with Session.open(bundle, engine=engine) as session:
        assert session.program.loop.schedule == (0, 0, 1, 1, 2, 2)
        assert session.program.kv_slots == 6
        assert np.abs(session.logits(ids) - wanted["logits_use_cache_False"]).max() <= BOUND
        assert np.abs(decoded(session.backend, ids) - wanted["logits_use_cache_False"]).max() <= BOUND
        tokens = greedy(session, ids)
    for depth, logits in enumerate(after_each_layer(read(checkpoint(NAME)), ids)[:-1], 1):
        assert np.abs(stopped(bundle, engine, depth, ids) - logits).max() <= BOUND
    with Session.open(bundle, engine=engine, decode="pipelined") as session:
        assert greedy(session, ids) == tokens


@pytest.mark.parametrize("kind", ["mor-sequence", "mor-middle-sequence"])
def test_other_stacks_whose_layers_repeat_at_once(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """With layers that are applied once, too."""
    folder, out = checkpoint(kind), tmp_path / "bundle"
    export_bundle(folder, out, quant="none", loop="layers")
    wanted = after_each_layer(read(folder), IDS)
    assert Bundle.open(out).program.depths == len(wanted)
    for depth in (1, len(wanted) - 1, len(wanted)):
        assert np.abs(stopped(out, "onnx", depth, IDS) - wanted[depth - 1]).max() <= BOUND


def test_norms_of_each_repeat_are_in_blocks_of_their_own(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-sequence")
    edit(folder / "conf.yaml", recursive__ln_share=False)
    edit_weights(
        folder,
        lambda t: t.update({n: v + 0.01 * torch.randn_like(v) for n, v in t.items() if "layernorm" in n}),
    )
    program = overridden(read(folder), loop="layers").program
    assert not list(problems(program))
    assert program.loop.schedule == tuple(range(6))


@pytest.mark.parametrize("target", ["executorch", "coreml"])
def test_other_targets(checkpoint: Callable[[str], Path], tmp_path: Path, target: str) -> None:
    """Which hold it to the reference engine after every layer at export."""
    pytest.importorskip("executorch" if target == "executorch" else "coremltools")
    source, out = checkpoint(NAME), tmp_path / "bundle"
    manifest = export_bundle(source, out, targets=[target], quant="none", loop="layers").manifest
    assert len(manifest.targets[target].parity.per_depth) == 6


def test_the_command_line(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    command = ["export", str(checkpoint(NAME)), "-o", str(tmp_path / "bundle"), "--loop", "layers"]
    assert main(command) == 0
    assert Bundle.open(tmp_path / "bundle").program.depths == 6


@pytest.mark.parametrize(
    ("kind", "loop", "message"),
    [
        ("ouro", "layers", "the model has a loop of 3 depths already"),
        (NAME, "unrolled", "unknown loop 'unrolled': choose from found, layers"),
    ],
)
def test_refusals(checkpoint: Callable[[str], Path], kind: str, loop: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        overridden(read(checkpoint(kind)), loop=loop)
