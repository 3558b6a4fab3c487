"""Codes that are trained: less divergence, numbers that can be stored, the same again, also from where a run ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from editing import edit_weights, louder, read
from tiny import looped_layer
from trained import INT4, Made

from edgeloop.export import fitted
from edgeloop.export.refine import state, train
from edgeloop.export.refine.state import State
from edgeloop.export.refine.tuned import CodedMatrix, Rates, Tuned
from edgeloop.export.stored import Fitted, write_weights
from edgeloop.quant.gptq import gptq
from edgeloop.quant.pack import storable
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.codec import Grouped
from edgeloop.runtime.model.stored import map_tensors

FIXTURES = Path(__file__).parents[2] / "fixtures" / "parity"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = looped_layer(folder / "looped", max_position_embeddings=32)
    edit_weights(checkpoint, louder)
    return Made(folder, checkpoint)


def same(one: Fitted, other: Fitted) -> bool:
    def arrays(found: Fitted) -> dict[str, list[np.ndarray]]:
        return {
            name: [each.codes, each.scales] if isinstance(each, Grouped) else [np.asarray(each)]
            for name, each in found.items()
        }

    a, b = arrays(one), arrays(other)
    return a.keys() == b.keys() and all(
        np.array_equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True)
    )


def test_divergence_falls_after_every_depth_and_by_the_reference_engine_too(
    made: Made, tmp_path: Path
) -> None:
    found = made.trained(40)
    assert found.gained
    assert len(found.before) == made.program.depths
    assert all(after < 0.95 * before for before, after in zip(found.before, found.after, strict=True)), found
    write_weights(made.reading, INT4, tmp_path / "w", found.fitted)
    values = {name: torch.from_numpy(np.array(x)) for name, x in map_tensors(made.floats).items()}
    engine = ReferenceBackend(made.program, map_tensors(tmp_path / "w"), 32)
    rest = made.ids[-found.held :].reshape(-1, 32)
    total = 0.0
    *_, wanted = train.Forward(made.program)(values, torch.from_numpy(rest))
    for row, logits in zip(rest, wanted, strict=True):
        said = SequentialDecoder(engine, engine.new_cache(1, 32)).prompt(row, rows="all").copy()
        total += float(train.divergence(logits[None].log_softmax(-1), torch.from_numpy(said)[None]))
    assert total / len(rest) == pytest.approx(found.after[-1], rel=1e-3)


def test_what_is_trained_can_be_stored(made: Made) -> None:
    found = made.trained(5)
    for name, each in found.fitted.items():
        if isinstance(each, Grouped):
            scales = torch.from_numpy(each.scales.astype(np.float32))
            assert torch.equal(storable(scales), scales), name
            assert not np.array_equal(each.scales, made.codes[name].scales), name
        elif ".lora_" in name:
            assert isinstance(each, np.ndarray)
            np.testing.assert_array_equal(each, each.astype(np.float16).astype(np.float32))


def test_it_is_the_same_again_and_from_where_it_was_ended(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = made.trained(6)
    assert same(made.trained(6).fitted, wanted.fitted)
    monkeypatch.setattr(state, "EVERY", 0.0)
    step, left = train.Training.step, 4

    def some(self: train.Training, ids: torch.Tensor, share: float) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        step(self, ids, share)

    monkeypatch.setattr(train.Training, "step", some)
    with pytest.raises(KeyboardInterrupt):
        made.trained(6, State(tmp_path / "kept"))
    left, keep = 2, State(tmp_path / "kept")
    assert same(made.trained(6, keep).fitted, wanted.fitted)
    assert keep.resumed == 4
    (tmp_path / "kept").write_bytes(b"damaged")
    left, keep = 6, State(tmp_path / "kept")
    assert same(made.trained(6, keep).fitted, wanted.fitted)
    assert keep.resumed == 0


def test_codes_begin_as_they_were_fitted(made: Made) -> None:
    floats = {name: torch.from_numpy(np.array(value)) for name, value in map_tensors(made.floats).items()}
    begun = Tuned(made.program, INT4, floats, made.codes)
    assert same(begun.coded(), made.codes)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 0), (8, 32)])
def test_a_matrix_whose_rows_end_in_half_a_group(bits: int, group: int) -> None:
    weight = torch.randn(6, 72, generator=torch.Generator().manual_seed(1))
    codes = gptq(weight, torch.eye(72), bits, group)
    matrix = CodedMatrix(weight, codes, group)
    np.testing.assert_array_equal(matrix.values().numpy(), codes.values())
    found = matrix.grouped()
    np.testing.assert_array_equal(found.codes, codes.codes)
    np.testing.assert_array_equal(found.scales, codes.scales)


def test_what_is_no_gain_changes_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Rates, "__init__", lambda self: self.__dict__.update(codes=3.0, scales=0, vectors=1, deltas=0)
    )
    found = made.trained(2)
    assert not found.gained
    assert found.fitted is made.codes


def test_a_model_with_a_router_is_refused() -> None:
    program = read(FIXTURES / "mor_expert_middle_cycle_eager").program
    with pytest.raises(UsageError, match=r"a router decides which depths .* leave --refine away"):
        train.tokens_of(3, program)
    assert train.tokens_of(0, program) == fitted.TOKENS


def test_a_text_that_is_too_short(made: Made) -> None:
    with pytest.raises(UsageError, match=r"has 127 tokens, wanted 128 at least, and better \d+ for 3 steps"):
        made.trained(3, ids=made.ids[:127])


@pytest.mark.parametrize("name", ["relax_lora_middle_cycle", "retrofit_tinyllama", "parcae_diag"])
def test_other_families_are_trained(name: str, tmp_path: Path) -> None:
    model = Made(tmp_path, FIXTURES / name, Recipe.named("int4-mixed", 32))
    found = model.trained(12)
    assert len(found.before) == model.program.depths
    assert found.gained, found
