"""Exits, routing and KV policies of exported bundles, against the authors' logits and against full depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import routed_forward
import torch
from editing import read
from msgspec import json
from safetensors.numpy import load_file

from edgeloop.export.families.llama_program import spec_of
from edgeloop.runtime.decode.exits import ExitRule
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.session import Session

ENGINES = ("onnx", "reference")
IDS = np.random.default_rng(5).integers(0, 90, 40)


def reference(folder: Path, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    tensors = load_file(folder / "reference.safetensors")
    return tensors["input_ids"][0], tensors[name][0]


@pytest.fixture(scope="module")
def opened(exported: Callable[..., Path]) -> Iterator[Callable[..., Session]]:
    sessions: list[Session] = []

    def get(kind: str, **options: str) -> Session:
        sessions.append(Session.open(exported(kind), **options))  # type: ignore[arg-type]
        return sessions[-1]

    yield get
    for session in sessions:
        session.close()


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
@pytest.mark.parametrize("threshold", ["0.3", "0.5", "0.7", "0.9"])
def test_ouros_gate_is_its_authors(
    opened: Callable[..., Session], checkpoint: Callable[[str], Path], engine: str, threshold: str
) -> None:
    """They compute every depth and then select: ``exact`` has to give the same token by token."""
    folder = checkpoint("ouro_tiny")
    ids, wanted = reference(folder, f"logits_exit_threshold_{threshold}")
    steps = json.decode((folder / "reference.json").read_bytes())["exit_steps"][threshold][0]
    session = opened("ouro_tiny", engine=engine, exit=f"gate:{threshold}", skipped_kv="exact")
    np.testing.assert_allclose(session.logits(ids), wanted, atol=2e-5)
    found = session.evaluate(ids)
    assert found.mean_depth == pytest.approx(np.mean(steps[:-1]) + 1)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_fixed_depth_is_the_authors_exit_step(
    opened: Callable[..., Session], checkpoint: Callable[[str], Path], depth: int
) -> None:
    ids, wanted = reference(checkpoint("ouro_tiny"), f"logits_exit_at_step_{depth - 1}")
    np.testing.assert_allclose(opened("ouro_tiny", exit=f"depth:{depth}").logits(ids), wanted, atol=2e-5)


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
@pytest.mark.parametrize(
    ("kind", "rule"), [("mor_expert_middle_cycle_eager", "chunk-topk"), ("mor_token_middle_cycle", "router")]
)
def test_routing_is_the_authors_forward(
    opened: Callable[..., Session], checkpoint: Callable[[str], Path], engine: str, kind: str, rule: str
) -> None:
    ids, wanted = reference(checkpoint(kind), "logits_use_cache_False")
    np.testing.assert_allclose(opened(kind, engine=engine, exit=rule).logits(ids), wanted, atol=2e-5)


def test_token_choice_is_causal(opened: Callable[..., Session], checkpoint: Callable[[str], Path]) -> None:
    """Nine tokens, then one by one, as the authors decode; the slots hold who was there."""
    folder = checkpoint("mor_token_middle_cycle")
    ids, wanted = reference(folder, "logits_incremental_prefill9")
    session = opened("mor_token_middle_cycle")
    _, ran = routed_forward.logits(
        read(folder), torch.from_numpy(ids[:-1])
    )  # the last one has nothing to predict
    assert session.evaluate(ids).block_share == pytest.approx(sum(map(len, ran)) / ((len(ids) - 1) * 3))
    steps = list(session.generate(ids[:9], 3))
    assert steps[0].token == wanted[8].argmax()
    assert all(1 <= step.depth <= 3 for step in steps)
    assert session.stats.kv_bytes < session.stats.kv_bytes_per_token * 11


def test_kv_sharing_is_the_authors(opened: Callable[..., Session], checkpoint: Callable[[str], Path]) -> None:
    ids, wanted = reference(checkpoint("rec_cycle_kvshare"), "logits_use_cache_True")
    session = opened("rec_cycle_kvshare")
    np.testing.assert_allclose(session.logits(ids), wanted, atol=2e-5)
    assert (session.policy.kv, session.policy.skipped_kv) == ("shared", "shared")
    leaving = opened("rec_cycle_kvshare", exit="depth:3").logits(ids)  # the same, token by token
    np.testing.assert_allclose(leaving, wanted, atol=2e-5)


@pytest.mark.parametrize("kind", ["edgeloop", "mor-norms"])
@pytest.mark.parametrize("skipped_kv", ["exact", "propagate", "latest", "skip"])
def test_engines_agree_where_tokens_leave(opened: Callable[..., Session], kind: str, skipped_kv: str) -> None:
    for rule in ("depth:2", "latent:0.9", "entropy:4.4"):
        found, wanted = (
            opened(kind, engine=engine, exit=rule, skipped_kv=skipped_kv).evaluate(IDS) for engine in ENGINES
        )
        assert found.perplexity == pytest.approx(wanted.perplexity, rel=1e-4)
        assert found.mean_depth == wanted.mean_depth


def test_exact_brings_a_deep_token_what_full_depth_would(opened: Callable[..., Session]) -> None:
    """Rules that let most tokens leave, and the last one not: it must not notice."""
    full = opened("edgeloop").logits(IDS)
    session = opened("edgeloop", exit="depth:1", skipped_kv="exact")
    decoder = session._start(len(IDS))
    for token in IDS[:-1]:
        decoder.step(int(token))
        assert decoder.depth == 1
    assert decoder.filled[0] > decoder.filled[1]
    decoder.sequence.rule = ExitRule("depth", session.program.depths)
    logits = decoder.step(int(IDS[-1]))
    assert decoder.depth == session.program.depths
    np.testing.assert_allclose(logits[0], full[-1], atol=2e-5)
    assert set(decoder.filled) == {len(IDS)}


def test_waiting_states_are_bounded(opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody goes deep for long, those that wait run by themselves; nothing else changes."""
    session = opened("mor-norms", exit="depth:1", skipped_kv="exact")
    assert session.evaluate(IDS).block_share == pytest.approx(1 / 3)
    monkeypatch.setattr("edgeloop.runtime.decode.skipped_kv.LIMIT", 5)
    bounded = opened("mor-norms", exit="depth:1", skipped_kv="exact").evaluate(IDS)
    assert bounded.block_share > 0.9
    assert bounded.mean_depth == 1


def test_those_that_wait_at_two_depths_go_deep_together(
    opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Almost as many as may wait at each of two depths, then a deep token: all of them run the last depth at once."""
    monkeypatch.setattr("edgeloop.runtime.decode.skipped_kv.LIMIT", 16)
    ids = IDS[:31]
    full = opened("edgeloop").logits(ids)
    session = opened("edgeloop", exit="depth:1", skipped_kv="exact")
    decoder, depths = session._start(len(ids)), session.program.depths
    assert depths > 2
    for i, token in enumerate(ids[:-1]):
        decoder.sequence.rule = ExitRule("depth", 2 if i < 15 else 1)
        decoder.step(int(token))
    assert (decoder.filled[1], decoder.filled[2]) == (15, 0)
    decoder.sequence.rule = ExitRule("depth", depths)
    logits = decoder.step(int(ids[-1]))
    np.testing.assert_allclose(logits[0], full[-1], atol=2e-5)
    assert set(decoder.filled) == {len(ids)}


def test_what_left_is_filled_in_when_a_deep_token_comes(
    opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for all that left, and the K and V are those of one call for each of them."""
    session = opened("edgeloop", exit="depth:1", skipped_kv="propagate")
    found = []
    for limit in (64, 1):  # 1: nobody waits
        monkeypatch.setattr("edgeloop.runtime.decode.skipped_kv.LIMIT", limit)
        decoder = session._start(len(IDS))
        for token in IDS[:-1]:
            decoder.step(int(token))
        behind = decoder.filled[-1]
        decoder.sequence.rule = ExitRule("depth", session.program.depths)
        found.append(decoder.step(int(IDS[-1])).copy())
        assert set(decoder.filled) == {len(IDS)}
        assert behind == (0 if limit == 64 else len(IDS) - 2)  # the newest is filled in by the next
    np.testing.assert_allclose(found[0], found[1], atol=2e-5)


def test_the_last_depths_slot_serves_all(opened: Callable[..., Session]) -> None:
    """A prompt runs with a slot a depth; then one slot is left, a third of the block's bytes."""
    wide, narrow = opened("mor-norms"), opened("mor-norms", kv="last")
    np.testing.assert_array_equal(narrow.logits(IDS), wide.logits(IDS))
    first = [next(iter(s.generate(IDS, 1))).token for s in (wide, narrow)]
    assert first[0] == first[1]
    depths = wide.program.depths
    block = sum(spec_of(wide.program).segments[i].layers for i in spec_of(wide.program).stages.block)
    around = wide.program.applied_layers - block * depths
    assert narrow.stats.kv_bytes * (block * depths + around) == wide.stats.kv_bytes * (block + around)
    assert narrow.evaluate(IDS).perplexity != pytest.approx(wide.evaluate(IDS).perplexity, rel=1e-6)


def test_all_exits_off_is_bit_for_bit_full_depth(opened: Callable[..., Session]) -> None:
    plain = [s.token for s in opened("edgeloop").generate(IDS[:5], 20)]
    for skipped_kv in ("exact", "propagate", "latest", "skip"):
        session = opened("edgeloop", exit="never", skipped_kv=skipped_kv)
        assert [s.token for s in session.generate(IDS[:5], 20)] == plain
        np.testing.assert_array_equal(session.logits(IDS), opened("edgeloop").logits(IDS))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("edgeloop", {"exit": "gate:0.5"}, "has no exit gate"),
        ("edgeloop", {"exit": "probe:0.5"}, "fit them with `edgeloop calibrate`"),
        ("edgeloop", {"exit": "confidence:1.5"}, "threshold 1.5, wanted 0 to 1"),
        ("edgeloop", {"exit": "confidence:nan"}, "threshold nan"),
        ("edgeloop", {"exit": "confidence"}, "has no threshold"),
        ("edgeloop", {"exit": "depth:9"}, "wanted depth:1 to depth:"),
        ("edgeloop", {"exit": "router"}, "the model has no router; known: never, depth:N"),
        ("edgeloop", {"kv": "shared"}, "export the model with --kv shared"),
        ("edgeloop", {"skipped_kv": "shared"}, "choose exact, propagate, latest or skip"),
        ("mor_expert_middle_cycle_eager", {"exit": "confidence:0.5"}, "a router decides in this model"),
        ("mor_expert_middle_cycle_eager", {"skipped_kv": "exact"}, "trained with depths that do not see"),
        ("mor_token_middle_cycle", {"exit": "chunk-topk"}, "token choice"),
        ("rec_cycle_kvshare", {"kv": "per-depth"}, "depths of this model share K/V"),
        ("edgeloop-window", {"skipped_kv": "latest"}, "a window of .* moves them; choose exact or skip"),
    ],
)
def test_what_a_model_has_not_is_refused(
    opened: Callable[..., Session], kind: str, options: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        opened(kind, **options)
