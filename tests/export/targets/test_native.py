"""The native target from checkpoint to logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import relist
from forward import AUTHORS
from safetensors.numpy import load_file

from edgeloop.apps.cli import main
from edgeloop.export.families.llama_program import program_of
from edgeloop.export.families.llama_spec import Segment, Spec
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.targets.native import target as native
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.audit import audit
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import read_manifest
from edgeloop.runtime.engines.native import repacked, tables
from edgeloop.runtime.engines.native.cache import NativeCache
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import LanesFile
from edgeloop.runtime.engines.native.format import HEADER, Storage
from edgeloop.runtime.engines.native.layout import Stored, layout
from edgeloop.runtime.engines.native.library import Activations
from edgeloop.runtime.engines.native.tiles import BITS
from edgeloop.runtime.engines.table import usual_engine
from edgeloop.runtime.errors import BundleError, ExportError, ParityError, UsageError
from edgeloop.runtime.model import ops
from edgeloop.runtime.model.weights import Matrix, tensors
from edgeloop.runtime.session import Session

pytestmark = pytest.mark.usefixtures("lane_engine")
Bundles = Callable[..., Path]
MAPS = Path("/proc/self/maps")
KINDS = ("matrix", "vector", "delta")
IDS = np.random.default_rng(5).integers(0, 320, 24)
QUANTIZED = [
    ("mor-lora", "int4", 32),
    ("mobilellm", "int8", 64),
    ("mor-lora", "int8-channel", 32),
    ("ouro", "int4", 128),
]


@pytest.fixture(scope="module")
def packed(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """``packed("ouro", "int4", 64)``: a bundle of the native target, shared. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("native")

    def get(kind: str, quant: str = "none", group_size: int = 32) -> Path:
        out = root / f"{kind}-{quant}-{group_size}"
        if not out.exists():
            export_bundle(checkpoint(kind), out, targets=["native"], quant=quant, group_size=group_size)
        return out

    return get


def changed(bundle: Path, copy: Path, lanes: bytes) -> None:
    """A copy of ``bundle`` with another file, whose hash is right."""
    shutil.copytree(bundle, copy)
    (copy / "native/model.lanes").write_bytes(lanes)
    relist(copy, "native/model.lanes")


@pytest.mark.parametrize("name", AUTHORS)
def test_authors_logits(packed: Bundles, parity_folder: Path, name: str) -> None:
    """At once, and token by token to the same bits."""
    reference = load_file(parity_folder / name / "reference.safetensors")
    ids = reference["input_ids"][0]
    with Session.open(packed(name)) as session:
        assert session.backend is not None
        assert session.backend.name == "native"
        found = session.logits(ids)
    assert np.abs(found - reference[AUTHORS[name]][0]).max() <= 1e-4


@pytest.mark.parametrize(("kind", "quant", "group"), QUANTIZED)
def test_quantized_logits(packed: Bundles, exported: Bundles, kind: str, quant: str, group: int) -> None:
    """With float activations those of the reference engine; as it ships near them, and parity says how near."""
    path = packed(kind, quant, group)
    with Session.open(exported(kind, quant, group), engine="reference") as session:
        wanted = session.logits(IDS)
    bundle = Bundle.open(path)
    target = bundle.manifest.targets["native"]
    lanes = bundle.path(target.weights)
    exact = NativeBackend(bundle.program, lanes, activations=Activations.FLOAT)
    with Session(bundle, exact) as session:
        np.testing.assert_allclose(session.logits(IDS), wanted, atol=1e-4 * np.abs(wanted).max())
    with Session.open(path) as session:
        near = np.abs(session.logits(IDS) - wanted).max()
    assert 0 < near <= 0.1 * np.abs(wanted).max()
    assert max(*target.parity.per_depth, target.parity.logits) < 1e-4
    assert 0 < target.parity.shipped <= target.parity.bound < 0.3  # type: ignore[operator]


@pytest.mark.skipif(not MAPS.is_file(), reason="only Linux says what is mapped")
def test_the_stored_weights_do_not_stay_beside_the_file(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model both together would be the most that an export has in memory."""
    mapped: list[set[str]] = []

    def opened(*args: Any, **options: Any) -> NativeBackend:
        lines = MAPS.read_text(encoding="utf-8").splitlines()
        mapped.append({line.rpartition("/")[2] for line in lines if str(tmp_path) in line})
        return NativeBackend(*args, **options)

    monkeypatch.setattr(native, "NativeBackend", opened)
    export_bundle(checkpoint("mor-lora"), tmp_path / "bundle", targets=["native"])
    assert mapped == [set(), set()]  # before either engine maps the file


def test_a_bundle_is_accounted_for(packed: Bundles) -> None:
    """Every byte; and one that is changed where tiles are filled up is found."""
    path = packed("mor-lora", "int4")
    found = audit(path)
    assert not found.findings
    (account,) = (file for file in found.files if file.file == "native/model.lanes")
    assert account.kinds["tensors"] > 0.8 * account.bytes


def test_what_fills_up_is_looked_at(packed: Bundles, tmp_path: Path) -> None:
    """In float16 deltas of rank 4, whose tiles have 16 rows."""
    bundle = tmp_path / "bundle"
    export = packed("mor-lora", "int4")
    name = "native/model.lanes"
    file = LanesFile(export / name, read_manifest(export).program)
    section = next(s for s in file.layout.sections if s.tensor.endswith("lora_a") and s.blocks[0] % 16)
    data = bytearray((export / name).read_bytes())
    data[section.offset + 30] ^= 1  # the last row of the first column
    changed(export, bundle, data)
    (finding,) = audit(bundle).findings
    assert finding.file == name
    assert section.tensor in finding.what


def test_the_file_is_as_large_as_its_weights() -> None:
    """At the shape of MoR's 360M model, with deltas: 1.02 times what a bundle stores, at most."""
    deltas = {"q_proj": 16, "v_proj": 16, "down_proj": 16}
    segments = Segment(1), Segment(10, repeats=3, lora=deltas), Segment(1)
    program = program_of(
        Spec(
            family="mor",
            segments=segments,
            vocab_size=49152,
            hidden_size=960,
            intermediate_size=2560,
            heads=15,
            kv_heads=5,
            head_dim=64,
            norm_eps=1e-5,
            rope_theta=1e4,
            context_length=2048,
            tied_embedding=True,
        )
    )
    numbers = {kind: sum(t.numbers for _, t in tensors(program.weights) if t.kind == kind) for kind in KINDS}
    for storage, group in ((Storage.I4, 32), (Storage.I4, 128), (Storage.I8, 64), (Storage.F32, 0)):
        kind = Storage.F16 if group else Storage.F32
        matrices = {
            n: Stored(storage, group, kind) for n, w in program.weights.items() if isinstance(w, Matrix)
        }
        size = BITS[storage] / 8 + (2 / group if group else 0)
        stored = size * numbers["matrix"] + 4 * numbers["vector"] + BITS[kind] / 8 * numbers["delta"]
        assert stored < layout(program, matrices).file_bytes <= 1.02 * stored


def test_an_export_is_the_same_bytes_again(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        export_bundle(checkpoint("mor-lora"), folder, targets=["native"])
    one, two = ((folder / "native/model.lanes").read_bytes() for folder in folders)
    assert one == two


def test_other_numbers_are_found(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one tensor of the file that was written."""
    write = native.write_lanes

    def wrong(path: Path, *given: object) -> object:
        made = write(path, *given)  # type: ignore[arg-type]
        data = bytearray(path.read_bytes())
        data[made.sections[0].offset] ^= 1
        path.write_bytes(data)
        return made

    monkeypatch.setattr(native, "write_lanes", wrong)
    with pytest.raises(ParityError, match="holds other numbers than were stored in embed"):
        export_bundle(checkpoint("mor-lora"), tmp_path / "out", targets=["native"])
    assert not (tmp_path / "out").exists()


def test_an_op_that_is_not_there_is_refused_by_name(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(tables.FIELDS, ops.Rotate)  # type: ignore[misc]
    with pytest.raises(ExportError, match="target native does not take rotate"):
        export_bundle(checkpoint("mor-lora"), tmp_path / "out", targets=["native"])
    assert list(tmp_path.iterdir()) == []


def test_palettes_are_refused() -> None:
    with pytest.raises(ExportError, match="tables of values, which target native does not hold"):
        native.NativeTarget().check(None, Recipe.palettes())  # type: ignore[arg-type]


def test_a_file_of_another_model_is_refused(packed: Bundles, tmp_path: Path) -> None:
    other = (packed("mobilellm", "int8", 64) / "native/model.lanes").read_bytes()
    changed(packed("mor-lora", "int4"), tmp_path / "b", other)
    with pytest.raises(BundleError, match="13 matrices, the manifest has 17"):
        Session.open(tmp_path / "b")


def test_a_bundle_of_onnx_only(
    exported: Bundles, packed: Bundles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Packed once, with the tables and tensors of the target's own file; anew when it is damaged; the oldest goes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = exported("mor-lora", "int4")
    bundle = Bundle.open(path)
    assert usual_engine(bundle) == "onnx"
    with Session.open(path, engine="native") as session:
        found = session.logits(IDS)
    (kept,) = (tmp_path / "cache/edgeloop/lanes").glob("*.lanes")
    whole, own = kept.read_bytes(), (packed("mor-lora", "int4") / "native/model.lanes").read_bytes()
    assert whole[HEADER.itemsize :] == own[HEADER.itemsize : len(whole)]  # which has a text section, too
    with Session.open(packed("mor-lora", "int4")) as session:
        np.testing.assert_array_equal(session.logits(IDS), found)
    made = kept.stat().st_ino
    assert repacked.repacked(bundle) == kept
    assert kept.stat().st_ino == made
    data = bytearray(kept.read_bytes())
    data[-100] ^= 1
    kept.write_bytes(data)
    repacked.repacked(bundle)
    assert kept.read_bytes() != bytes(data)
    monkeypatch.setattr(repacked, "MOST_BYTES", kept.stat().st_size + 1)
    other = repacked.repacked(Bundle.open(exported("mobilellm", "int8", 64)))
    assert other.is_file()
    assert not kept.exists()
    assert len(list(kept.parent.iterdir())) == 2  # the other file, and its hash


def test_verbs(packed: Bundles, exported: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine is native where the bundle has it; K and V in 16 bits; others say what they keep."""
    path = str(packed("mor-lora", "int4"))
    assert main(["run", path, "-p", "a b c", "-n", "4", "--kv-bits", "16", "--threads", "2", "--json"]) == 0
    assert main(["show", path]) == 0
    assert "native" in capsys.readouterr().out
    assert main(["run", str(exported("mor-lora", "int4")), "-p", "a", "--kv-bits", "16"]) != 0
    assert "K/V in 16 bits, and engine onnx keeps them in 32" in capsys.readouterr().err
    with pytest.raises(UsageError, match="keeps them in 32 or 16 or 8 or 4"):
        Session.open(path, kv_bits=3)


def test_a_session_that_grew_is_one_that_was_run_at_once(packed: Bundles) -> None:
    """The same bits, token by token."""
    bundle = Bundle.open(packed("mor-lora", "int4"))
    engine = NativeBackend.open(bundle)
    from edgeloop.runtime.decode.sequential import SequentialDecoder

    def logits(chunk: int) -> np.ndarray:
        cache = engine.new_cache(1, 32)
        assert isinstance(cache, NativeCache)
        return SequentialDecoder(engine, cache, chunk=chunk).prompt(IDS, rows="all").copy()

    np.testing.assert_array_equal(logits(128), logits(1))
    engine.close()
