"""A loop that is run another number of times than its bundle was exported for: fewer, and more than it was trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgeloop.export.calibration.collect import collect
from edgeloop.export.calibration.write import write_exits, write_probes
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import Exit
from edgeloop.runtime.engines import table as backends
from edgeloop.runtime.engines.onnx.session import open_session
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

ENGINES = ("onnx", "reference", "native")
NAME = "huginn_tiny"
IDS = np.random.default_rng(3).integers(0, 97, 40)
PROMPT = IDS[:12].tolist()


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Path:
    """A model of any number of depths, five by default."""
    return exported(NAME)


@pytest.fixture(scope="module")
def deep(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, seven by default."""
    out = tmp_path_factory.mktemp("deep") / "bundle"
    export_bundle(checkpoint(NAME), out, quant="none", depth=7)
    return out


@pytest.fixture
def calibrated(bundle: Path, tmp_path: Path) -> Path:
    """With thresholds and probes for five depths."""
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    found = Exit(
        thresholds=(0.1,) * 4,
        skipped_kv="exact",
        goal="+1%",
        tokens=100,
        perplexity=9.0,
        full_perplexity=9.0,
        agreement=1.0,
        mean_depth=3.0,
    )
    write_probes(out, np.zeros((4, 64), np.float32), np.zeros(4, np.float32))
    write_exits(out, {"kl": found, "probe": found})
    return out


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_fewer_depths_give_the_authors_logits(
    bundle: Path, checkpoint: Callable[[str], Path], engine: str, depth: int
) -> None:
    reference = load_file(checkpoint(NAME) / "reference.safetensors")
    with Session.open(bundle, engine=engine, depth=depth) as session:
        found = session.logits(reference["input_ids"][0])
        assert len(session.perplexity(IDS).perplexity_per_depth) == depth
    np.testing.assert_allclose(found, reference[f"logits_full_r{depth}"][0], atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_depths_are_those_of_a_model_that_was_exported_with_them(
    bundle: Path, deep: Path, engine: str
) -> None:
    def run(path: Path, depth: int | None) -> tuple[npt.NDArray[np.float32], list[tuple[int, int]], int]:
        with Session.open(path, engine=engine, depth=depth) as session:
            steps = [(step.token, step.depth) for step in session.generate(PROMPT, 20)]
            slots = session.stats.kv_bytes_per_token
            return session.logits(IDS), steps, slots

    wanted, found = run(deep, None), run(bundle, 7)
    np.testing.assert_array_equal(found[0], wanted[0])
    assert found[1:] == wanted[1:]
    assert {depth for _, depth in found[1]} == {7}
    assert np.abs(run(bundle, None)[0] - wanted[0]).max() > 0.1
    back = run(deep, 5)
    np.testing.assert_array_equal(back[0], run(bundle, None)[0])


def test_graphs_are_the_same_whatever_the_depth(bundle: Path, deep: Path) -> None:
    """They take no depth where nothing differs between depths."""
    graphs = sorted((bundle / "onnx").glob("*.onnx"))
    assert len(graphs) == 7
    for graph in graphs:
        assert graph.read_bytes() == (deep / "onnx" / graph.name).read_bytes()
    inputs = {value.name for value in open_session(bundle / "onnx" / "block.onnx").get_inputs()}
    assert "state" in inputs
    assert "depth" not in inputs


@pytest.mark.parametrize("depth", [2, 9])
@pytest.mark.parametrize(
    "options", [{}, {"exit": "latent:0.9"}, {"exit": "kl:0.2", "skipped_kv": "propagate"}]
)
def test_every_way_to_decode_gives_the_same_text(bundle: Path, depth: int, options: dict[str, str]) -> None:
    with Session.open(bundle, depth=depth, **options) as session:  # type: ignore[arg-type]
        wanted = [(step.token, step.depth) for step in session.generate(PROMPT, 20)]
    assert max(ran for _, ran in wanted) == depth
    with BatchServer.open(bundle, depth=depth, **options) as engine:  # type: ignore[arg-type]
        served = engine.submit(PROMPT, 20).result(60)
    assert list(zip(served.tokens, served.depths, strict=True)) == wanted
    if not options:
        with Session.open(bundle, depth=depth, decode="pipelined") as session:
            assert [(step.token, step.depth) for step in session.generate(PROMPT, 20)] == wanted


def test_cached_decode_at_another_depth_is_the_full_forward(bundle: Path) -> None:
    with Session.open(bundle, depth=8) as session:
        wanted = session.logits(IDS)
        loop = session._start(len(IDS))
        found = [loop.prompt(IDS[i : i + 1]).copy() for i in range(len(IDS))]
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=2e-5)


def test_thresholds_are_those_of_the_depths_that_they_were_found_for(calibrated: Path) -> None:
    for rule in ("kl", "probe", "probe:0.9"):
        Session.open(calibrated, exit=rule).close()
    for rule in ("kl", "probe"):
        with pytest.raises(
            UsageError, match=f"'{rule}': its thresholds were found for 5 depths, .* run at 8"
        ):
            Session.open(calibrated, depth=8, exit=rule)
    with pytest.raises(UsageError, match="'probe:0.9': the model has no probes"):
        Session.open(calibrated, depth=8, exit="probe:0.9")
    with pytest.raises(UsageError, match="4 thresholds, wanted 1 or 7"):
        Session.open(calibrated, depth=8, exit="kl:1,2,3,4")
    with Session.open(calibrated, depth=8, exit="kl:0.5") as session:
        assert len(session.policy.rule.thresholds) == 7  # type: ignore[union-attr]


def test_an_exit_sees_the_state_and_no_other_carry(bundle: Path) -> None:
    """How far a state moved is a share of its own length; the prologue's output, which goes along, does not count."""
    states: list[npt.NDArray[np.float32]] = []
    with Session.open(bundle) as session:
        scores = collect(session, IDS.tolist(), ["latent"]).scores["latent"]
        loop = session._start(len(IDS))
        loop.observe = lambda depth, state: states.append(state[0, :, :64].copy())
        loop.prompt(IDS)
    before = [np.zeros_like(states[0]), *states]
    moved = [
        np.linalg.norm(b - a, axis=1) / np.linalg.norm(b, axis=1)
        for a, b in zip(before[:-1], states, strict=True)
    ]
    np.testing.assert_allclose(scores, np.array(moved)[:4, : len(IDS) - 1], rtol=1e-4)
    middle = np.sort(scores[1:].ravel())[40:80]
    gap = np.diff(middle).argmax()
    threshold = float(middle[gap : gap + 2].mean())  # rounding takes no score to its other side
    passes = np.vstack([scores[:, :-1] <= threshold, np.ones(len(IDS) - 2, bool)])
    with Session.open(bundle, exit=f"latent:{threshold}") as session:
        found = session.evaluate(IDS[:-1]).mean_depth
    assert found == pytest.approx(np.mean(passes.argmax(axis=0) + 1))


def test_a_loop_of_a_fixed_number_of_depths_has_no_other(exported: Callable[..., Path]) -> None:
    path = exported("ouro_tiny")
    Session.open(path, depth=4).close()
    with pytest.raises(UsageError, match="this model's loop runs 4 times and no other number"):
        Session.open(path, depth=5)


@pytest.mark.parametrize("depth", [0, -1, 5000, pytest.param(10**5000, id="long"), "3", 2.0])
def test_numbers_of_depths_that_there_are_not(bundle: Path, depth: int) -> None:
    with pytest.raises(UsageError, match="depth is .*, wanted (1 to 4096|a whole number)$"):
        Session.open(bundle, depth=depth)


def test_an_engine_whose_program_has_its_depths_inside_says_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = backends.ENGINES["reference"]
    fixed = replace(engine, can=replace(engine.can, any_depth=False))
    monkeypatch.setitem(backends.ENGINES, "reference", fixed)
    backends.open_backend("reference", Bundle.open(bundle).at_depth(5))
    with pytest.raises(UsageError, match="depth is 3, and engine reference runs a bundle at the depth .* 5;"):
        backends.open_backend("reference", Bundle.open(bundle).at_depth(3))
