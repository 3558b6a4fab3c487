"""What targets say of themselves: every kind checks its numbers and is told to people by itself."""

from __future__ import annotations

import msgspec
import pytest

from edgeloop.apps.quantities import byte_count
from edgeloop.runtime.bundle.manifest import Parity, Target
from edgeloop.runtime.engines.coreml.package import Package
from edgeloop.runtime.engines.details import KINDS
from edgeloop.runtime.engines.executorch.flat import Flat
from edgeloop.runtime.errors import BundleError

PACKAGE = Package("coreml/m", {"embed": "cpuOnly"}, {"block_keys": (6, 2, 96, 16)}, 16, 96, True)
FLAT = Flat({"get_n_layers": 2, "use_kv_cache": True, "get_eos_ids": (1, 2)}, 160)


@pytest.mark.parametrize("said", [PACKAGE, FLAT], ids=["package", "flat"])
def test_it_is_read_as_its_target_wrote_it(said: Package | Flat) -> None:
    target = Target({}, "w", Parity((), 0.0, 0.0), said)
    found = msgspec.json.decode(msgspec.json.encode(target), type=Target)
    assert found == target
    assert KINDS[said.target] is type(said)
    assert found.details_as(type(said)) == said
    other = Flat if isinstance(said, Package) else Package
    with pytest.raises(BundleError, match=f"describes no {other.__name__.lower()}; export"):
        found.details_as(other)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (msgspec.structs.replace(PACKAGE, chunk=0), "here.chunk is 0"),
        (msgspec.structs.replace(PACKAGE, capacity=-1), "here.capacity is -1"),
        (msgspec.structs.replace(PACKAGE, states={"block_keys": (6, 0)}), "here.states.block_keys is 0"),
        (msgspec.structs.replace(FLAT, rows=0), "here.rows is 0"),
    ],
)
def test_a_number_that_cannot_be_meant(said: Package | Flat, told: str) -> None:
    (found,) = said.problems("here")
    assert found.startswith(told)
    assert not list(PACKAGE.problems("here"))
    assert not list(FLAT.problems("here"))


def test_a_flat_program_is_told(maker) -> None:  # type: ignore[no-untyped-def]
    program = maker.program()
    (table,) = FLAT.describe(program, byte_count)
    caches = byte_count(160 * program.kv_bytes_per_token)
    assert table.rows == [
        ("forward", f"tokens, input_pos → logits; caches of 160 tokens, {caches}"),
        ("get_n_layers", "2"),
        ("use_kv_cache", "true"),
        ("get_eos_ids", "1, 2"),
    ]
    assert FLAT.position_bytes(program) == 0


def test_a_package_is_told(maker) -> None:  # type: ignore[no-untyped-def]
    facts, functions, states = PACKAGE.describe(maker.program(), byte_count)
    assert facts.columns == ()
    assert ("its weights", "4-bit indices into tables of 16 values") in facts.rows
    assert functions.rows == [("embed", "cpuOnly")]
    assert states.rows == [("block_keys", "6 × 2 × 96 × 16", byte_count(2 * 6 * 2 * 96 * 16))]
