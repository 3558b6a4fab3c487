"""The ExecuTorch target and engine: lowering takes seconds, so few models are exported, each once, with few rows."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import relist
from pages import page_table
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from trace_events import check_trace
from xnnpack_bytes import code_bytes, delta_bytes

from edgeloop.apps.bench_profile import kind_of
from edgeloop.apps.bench_pte import measure_methods
from edgeloop.apps.cli import main
from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime import Session
from edgeloop.runtime.audit import audit
from edgeloop.runtime.audit.flatbuffers import Schema
from edgeloop.runtime.audit.programs import DATA, PROGRAM
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.errors import BundleError, EdgeloopError, EngineError, ExportError

pytest.importorskip("executorch")
from edgeloop.export.bounds import EXACT, difference
from edgeloop.export.stored import write_weights
from edgeloop.export.targets.executorch.lower import lower, serialize
from edgeloop.export.targets.executorch.methods import build_methods
from edgeloop.export.targets.executorch.options import ExecutorchOptions
from edgeloop.export.targets.executorch.split import delta_keys, split_weights, write_data
from edgeloop.export.targets.executorch.target import ExecutorchTarget
from edgeloop.export.targets.onnx.target import OnnxTarget
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import read_manifest
from edgeloop.runtime.engines.executorch.bridge import Bridge
from edgeloop.runtime.engines.executorch.compiled import SUFFIXES, wheel
from edgeloop.runtime.engines.executorch.engine import ExecutorchBackend
from edgeloop.runtime.engines.executorch.layout import Shapes, read_layout
from edgeloop.runtime.engines.reference.engine import ReferenceBackend

Bundles = Callable[[str], Path]
PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 264]
# Checkpoint, quantization, rows of the largest method, and what is overridden; the weights of "lora" are split off.
MADE: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "float": ("mor-cycle", "none", 2, {}),
    "shared": ("mor-cycle", "none", 1, {"kv": "shared"}),
    "window": ("mor-cycle", "none", 1, {"window": 6}),
    "routed": ("mor-expert", "none", 1, {}),
    "routed-shared": ("mor-expert-shared", "none", 1, {}),
    "lora": ("mor-lora", "int4", 1, {}),
    "ouro": ("ouro", "int8-channel", 1, {}),
    "demo": ("demo", "none", 1, {}),
}
NATIVE = Path(__file__).parents[3] / "apps" / "board" / "native"
DEMO = Path(__file__).parents[3] / "apps" / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """``bundle("lora")``: a bundle of ``MADE``, with chunks of 8; those in float are for onnx too."""
    root = tmp_path_factory.mktemp("executorch")

    def get(name: str) -> Path:
        kind, quant, rows, overrides = MADE[name]
        if not (root / name).exists():
            options = ExecutorchOptions(split_weights=name == "lora")
            targets = {"onnx": OnnxTarget(), "executorch": ExecutorchTarget(Shapes(rows, 8), options)}
            names = list(targets) if quant == "none" else ["executorch"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("edgeloop.export.pipeline.open_target", lambda name, *_: targets[name])
                export_bundle(
                    DEMO if kind == "demo" else checkpoint(kind),
                    root / name,
                    targets=names,
                    quant=quant,
                    **overrides,
                )
        return root / name

    return get


@pytest.mark.parametrize(("name", "bound"), [("float", 1e-5), ("window", 1e-5), ("lora", 0.03)])
def test_a_context_that_grew_and_came_back(bundle: Bundles, tmp_path: Path, name: str, bound: float) -> None:
    """Piece by piece, in caches that grow, forked, and from a file: the logits of one prompt."""
    file = tmp_path / "a.session"
    with Session.open(bundle(name), engine="executorch", threads=1) as session:
        for piece in (PROMPT[:4], PROMPT[4:5], PROMPT[5:10]):
            session.append(piece)
            session._use_context().prefill()
        session.save(file)
        found = []
        for other in (session.fork(), Session.load(bundle(name), file, engine="executorch", threads=1)):
            other.append(PROMPT[10:])
            found.append(other._use_context().prefill()[0][-1].copy())
            other.close()
        session.append(PROMPT[10:])
        found.append(session._use_context().prefill()[0][-1].copy())
        session.reset()
        session.append(PROMPT)
        wanted = session._use_context().prefill()[0][-1]
        for logits in found:
            assert np.abs(logits - wanted).max() <= bound * np.abs(wanted).max()
            np.testing.assert_array_equal(logits, found[-1])


def tokens(path: Path, engine: str, count: int = 12, **policy: str) -> list[int]:
    with Session.open(path, engine=engine, **policy) as session:  # type: ignore[arg-type]
        return [step.token for step in session.generate(PROMPT, count)]


@pytest.mark.parametrize("name", ["float", "shared", "window", "lora", "ouro"])
def test_parity_after_every_depth(bundle: Bundles, name: str) -> None:
    """The export has compared already; here it has to be as good as the goal, int8 activations or not."""
    path = bundle(name)
    with Session.open(path, engine="executorch", threads=1) as session:
        parity = session.bundle.manifest.targets["executorch"].parity
        assert len(parity.per_depth) == session.program.depths
        assert max(*parity.per_depth, parity.logits) < EXACT
        assert np.isfinite(session.logits(PROMPT)).all()


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("float", {}),
        ("float", {"decode": "pipelined"}),
        ("float", {"exit": "confidence:0.004", "skipped_kv": "exact"}),
        ("float", {"exit": "confidence:0.004", "skipped_kv": "propagate"}),
        ("float", {"exit": "confidence:0.004", "skipped_kv": "latest"}),
        ("float", {"exit": "depth:2", "skipped_kv": "skip"}),
        ("float", {"kv": "last"}),
        ("shared", {}),
        ("shared", {"exit": "depth:2"}),
        ("routed", {}),
        ("routed-shared", {}),
        ("window", {}),
        ("window", {"exit": "depth:2", "skipped_kv": "exact"}),
    ],
)
def test_the_same_tokens_as_onnx(bundle: Bundles, name: str, policy: dict[str, str]) -> None:
    path = bundle(name)
    wanted = tokens(path, "onnx", **{k: v for k, v in policy.items() if k != "decode"})
    assert tokens(path, "executorch", **policy) == wanted


def test_chosen_tokens_over_shared_keys_and_values(bundle: Bundles) -> None:
    """A prompt of several chunks, of which each depth runs some tokens, with the K and V of all."""
    path = bundle("routed-shared")
    ids = np.random.default_rng(8).integers(0, 320, 40)
    with Session.open(path, engine="executorch", threads=1) as one, Session.open(path) as other:
        np.testing.assert_allclose(one.logits(ids), other.logits(ids), atol=1e-4)


def test_the_demo_tells_the_same_tale(bundle: Bundles) -> None:
    """All tokens, and the logits after a prompt in chunks to the bound of float arithmetic."""
    path = bundle("demo")
    assert tokens(path, "executorch", 100) == tokens(path, "onnx", 100)
    ids = np.random.default_rng(0).integers(0, 4096, 70)
    with Session.open(path, engine="executorch", threads=1) as one, Session.open(path) as other:
        found, wanted = one.logits(ids), other.logits(ids)
    assert difference(found, wanted) < EXACT


def test_weights_are_stored_once(bundle: Bundles) -> None:
    """For all 13 methods, whose graphs are 0.45 MB, and for the embedding, which is the head."""
    with safe_open(DEMO / "model.safetensors", "np") as file:
        unique = sum(file.get_tensor(name).size * 4 for name in file.keys())  # noqa: SIM118
    assert unique < (bundle("demo") / "executorch/model.pte").stat().st_size < unique + 5e5


def test_a_window_moves_over_the_cache(bundle: Bundles) -> None:
    """More tokens than its cache has rows would fit, in chunks and one by one, forget the oldest."""
    path = bundle("window")
    ids = np.random.default_rng(0).integers(0, 320, 40)
    with Session.open(path, engine="executorch", threads=1) as one, Session.open(path) as other:
        np.testing.assert_allclose(one.logits(ids), other.logits(ids), atol=1e-4)


def test_codes_and_scales_are_ours_bit_for_bit(
    bundle: Bundles, reading: Callable[[str], Reading], tmp_path: Path
) -> None:
    program = (bundle("lora") / "executorch" / "base.ptd").read_bytes()
    write_weights(reading("mor-lora"), Recipe.named("int4", 32), tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    codes = [name for name in stored if name.endswith(".codes")]
    assert len(codes) == 17
    for name in codes:
        for half in code_bytes(stored[name], stored[name.replace("codes", "scales")], 4):
            assert program.count(half) == 1, name  # once for all methods and for the embedding


def test_int8_codes_and_scales_are_ours(
    bundle: Bundles, reading: Callable[[str], Reading], tmp_path: Path
) -> None:
    program = (bundle("ouro") / "executorch" / "model.pte").read_bytes()
    write_weights(reading("ouro"), Recipe.named("int8-channel", 32), tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    names = [name for name in stored if name.endswith(".codes") and not name.startswith("embed")]
    assert len(names) > 8
    for name in names:
        for half in code_bytes(stored[name], stored[name.replace("codes", "scales")], 8):
            assert program.count(half) == 1, name


def test_split_weights(bundle: Bundles, reading: Callable[[str], Reading], tmp_path: Path) -> None:
    """Other deltas change deltas.ptd and the program, and not the base."""
    folder = bundle("lora") / "executorch"
    assert read_layout(folder / "layout.json", reading("mor-lora").program).data == ("base.ptd", "deltas.ptd")
    write_weights(reading("mor-lora"), Recipe.named("int4", 32), tmp_path / "w.safetensors")
    weights = load_torch(tmp_path / "w.safetensors")
    loras = [name for name in weights if ".lora_" in name]
    deltas = (folder / "deltas.ptd").read_bytes()
    assert loras
    for name in loras:
        assert deltas.count(delta_bytes(name, weights[name].numpy())) == 1, name
    small = len(deltas) + (folder / "model.pte").stat().st_size
    assert sum(weights[name].numel() for name in loras) * 4 < len(deltas) < small

    made = []
    for factor in (1, 2):
        changed = {name: w * factor if name in loras else w for name, w in weights.items()}
        program = build_methods(reading("mor-lora").program, changed, Shapes(1, 8))
        methods = {"block_m1": program["block_m1"]}
        edge = split_weights(lower(methods, lambda step: None), delta_keys(methods))
        write_data(serialize(edge), tmp_path)
        made.append([(tmp_path / name).read_bytes() for name in ("base.ptd", "deltas.ptd")])
    assert made[0][0] == made[1][0]
    assert made[0][1] != made[1][1]

    path = tmp_path / "bundle"
    shutil.copytree(bundle("lora"), path)
    (path / "executorch/deltas.ptd").write_bytes(made[1][1])
    with pytest.raises(BundleError, match="executorch/deltas.ptd has"):
        Session.open(path, engine="executorch")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["executorch/deltas.ptd"]["bytes"] = len(made[1][1])
    (path / "manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(
            EngineError, match="wants weights that are not in base.ptd and deltas.ptd; they are of another"
        ),
        Session.open(path, engine="executorch", verify=False) as session,
    ):
        session.logits(PROMPT)


@pytest.mark.parametrize("name", ["base.ptd", "deltas.ptd"])
def test_a_missing_ptd(bundle: Bundles, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle("lora"), path)
    (path / "executorch" / name).unlink()
    with pytest.raises(BundleError, match=f"executorch/{name}"):
        Session.open(path, engine="executorch", verify=False)


NONE_NAMED = """
import sys
from edgeloop.runtime import Session
from edgeloop.runtime.errors import EngineError
try:
    Session.open(sys.argv[1], engine="executorch")
except EngineError as error:
    print(error)
"""


def test_a_layout_that_names_no_ptd(bundle: Bundles, tmp_path: Path, runner: Path) -> None:
    """The program wants weights by name, and is given none: XNNPACK would end the process."""
    path, told = tmp_path / "bundle", "its weights are in .ptd files, and layout.json names none"
    shutil.copytree(bundle("lora"), path)
    layout = json.loads((path / "executorch/layout.json").read_text())
    assert layout["data"]
    (path / "executorch/layout.json").write_text(json.dumps({**layout, "data": []}))
    relist(path, "executorch/layout.json")
    done = subprocess.run([sys.executable, "-c", NONE_NAMED, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.count("\n") == 1
    assert told in done.stdout
    assert told in refusal(runner, path)


@pytest.mark.parametrize(
    ("data", "where"), [([], "model.pte"), (["a.ptd"], "a.ptd"), (["a.ptd", "b.ptd"], "a.ptd and b.ptd")]
)
def test_weights_of_another_export_say_where(
    bundle: Bundles, monkeypatch: pytest.MonkeyPatch, data: list[str], where: str
) -> None:
    bridge = Bridge(bundle("float") / "executorch/model.pte", [], 1)
    monkeypatch.setattr(bridge, "_data", data)
    bridge._message.value = b"method head_m1 does not load: Error::InvalidExternalData"
    assert str(bridge._error()) == (
        f"executorch cannot run model.pte: it wants weights that are not in {where}; they are of another export"
    )


def test_every_method_is_one_delegate(reading: Callable[[str], Reading], tmp_path: Path) -> None:
    """lower refuses anything else; what it is given here has an operator that XNNPACK does not take."""
    write_weights(reading("mor-cycle"), Recipe.named("none", 32), tmp_path / "w.safetensors")
    program = build_methods(
        reading("mor-cycle").program, load_torch(tmp_path / "w.safetensors"), Shapes(1, 8)
    )
    head = program["head_m1"]
    forward = type(head).forward

    class Odd(type(head)):  # type: ignore[misc]
        def forward(self, state):  # type: ignore[no-untyped-def]
            return (forward(self, state)[0].cumsum(-1),)

    head.__class__ = Odd
    with pytest.raises(ExportError, match="XNNPACK did not take the whole method head_m1, but left"):
        lower({"head_m1": head}, lambda step: None)


@pytest.mark.parametrize(
    ("quant", "group", "message"),
    [
        (
            "int8",
            32,
            "XNNPACK has no groups for 8-bit weights; export for target executorch with --quant int8-channel",
        ),
        ("int4", 128, "columns, not a multiple of the group size 128"),
    ],
)
def test_what_xnnpack_gets_wrong_is_refused(
    reading: Callable[[str], Reading], quant: str, group: int, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        ExecutorchTarget().check(reading("mor-lora").program, Recipe.named(quant, group))


def test_a_program_of_another_bundle(bundle: Bundles, tmp_path: Path) -> None:
    """With the manifest's hashes checked, and without."""
    path = tmp_path / "bundle"
    shutil.copytree(bundle("float"), path)
    shutil.copyfile(bundle("ouro") / "executorch/model.pte", path / "executorch/model.pte")
    with pytest.raises(BundleError, match="executorch/model.pte has .* the manifest says"):
        Session.open(path, engine="executorch")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["executorch/model.pte"]["bytes"] = (path / "executorch/model.pte").stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(EdgeloopError, match="from another bundle|no embedding in it"),
        Session.open(path, engine="executorch", verify=False) as session,
    ):
        session.logits(PROMPT)


def test_a_damaged_layout_and_program(bundle: Bundles, tmp_path: Path) -> None:
    folder = tmp_path / "executorch"
    shutil.copytree(bundle("float") / "executorch", folder)
    (folder / "layout.json").write_text(json.dumps({"version": "1.5.1", "sahpes": 1}))
    with pytest.raises(BundleError, match="layout.json"):
        read_layout(folder / "layout.json", read_manifest(bundle("float")).program)
    (folder / "model.pte").write_bytes(b"not a program" * 100)
    with pytest.raises(EngineError, match="executorch cannot run model.pte: it does not load: Error::"):
        Bridge(folder / "model.pte", [], 1)


DAMAGE = """
import random, sys
from pathlib import Path
from edgeloop.runtime.errors import EngineError
from edgeloop.runtime.engines.executorch.bridge import Bridge
folder, scratch, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
files = ("model.pte", "base.ptd", "deltas.ptd")
for each in files:
    (scratch / each).write_bytes((folder / each).read_bytes())
source = (folder / name).read_bytes()
word = lambda at: int.from_bytes(source[at : at + 8], "little")
tables = word(16) if name == "model.pte" else word(16) + word(24)  # the end of what describes the rest
assert 500 < tables < len(source)
chance, refused = random.Random(0), 0
for turn in range(60):
    damaged = bytearray(source)
    for _ in range(1 + turn % 4):
        damaged[chance.randrange(tables)] ^= 1 << chance.randrange(8)
    (scratch / name).write_bytes(damaged if turn % 10 else damaged[: chance.randrange(tables)])
    try:
        bridge = Bridge(scratch / files[0], [scratch / each for each in files[1:]], 1)
        bridge.method("block_m1")
        bridge.method("head_m1")
        bridge.close()
    except EngineError as error:
        assert len(str(error).splitlines()) == 1
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("name", ["model.pte", "base.ptd", "deltas.ptd"])
def test_damaged_files_do_not_end_the_process(bundle: Bundles, tmp_path: Path, name: str) -> None:
    """Bits of the tables, and less than them: an error, or a program that happens to be whole."""
    command = [sys.executable, "-c", DAMAGE, str(bundle("lora") / "executorch"), str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) > 20


OPENED = """
import os, sys
from edgeloop.runtime import Session
from edgeloop.runtime.engines.backend import Lanes
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))
for turn in range(60):
    session = Session.open(sys.argv[1], engine="executorch", verify=False)
    kept = session.generate([3, 141, 59], 3)
    next(kept)
    session.close()  # and what was begun is still referred to
    if turn == 20:
        first = held()
print(held()[0] - first[0], held()[1] - first[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_closed_sessions_hold_nothing(bundle: Bundles) -> None:
    """40 more of them: no file, and less memory than the weights of a quarter of them."""
    path = bundle("float")
    command = [sys.executable, "-c", OPENED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    memory, files = map(int, done.stdout.split())
    assert files <= 0
    assert memory < 10 * (path / "executorch" / "model.pte").stat().st_size


def test_one_pool_of_threads_in_a_process(bundle: Bundles) -> None:
    """Nobody resets what another session runs on; side by side they write what each writes alone."""
    path = bundle("float")
    wanted = tokens(path, "executorch")

    def open_one(threads: int | None) -> Session:
        return Session.open(path, engine="executorch", threads=threads, verify=False)

    with open_one(2) as first, open_one(2) as second, open_one(1) as alone, open_one(None) as any_number:
        with pytest.raises(
            EngineError, match="opened with 3 threads, and another .* has 2, which all of them share"
        ):
            open_one(3)
        found: dict[int, list[list[int]]] = {}

        def write(number: int, session: Session) -> None:
            found[number] = [[step.token for step in session.generate(PROMPT, 12)] for _ in range(5)]

        threads = [
            threading.Thread(target=write, args=pair)
            for pair in enumerate((first, second, alone, any_number))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [wanted] * 5 for number in range(4)}
    with open_one(3) as third:
        assert [step.token for step in third.generate(PROMPT, 12)] == wanted
        with pytest.raises(EngineError, match="has 3, which all of them share"):
            open_one(2)


def test_closed_engines_say_so(bundle: Bundles) -> None:
    backend = ExecutorchBackend.open(Bundle.open(bundle("float")), 1)
    cache = backend.new_cache(1, 8)
    lanes = Lanes.single(0, 0, 1, 0)
    state = np.ones((1, 1, backend.program.width), np.float32)
    backend.block(state, lanes, cache)
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="model.pte was closed; open it again"):
        backend.block(state, lanes, cache)


def test_one_slot_for_all_depths_beyond_the_first_rows(bundle: Bundles) -> None:
    """A prompt in pieces, of which the caches lay out 64 rows at a time."""
    ids = np.random.default_rng(0).integers(0, 4096, 200)
    found = {}
    for engine in ("onnx", "executorch"):
        with Session.open(bundle("demo"), engine=engine, kv="last") as session:
            found[engine] = session.evaluate(ids).perplexity
    assert found["executorch"] == pytest.approx(found["onnx"], rel=1e-4)


def test_a_program_of_another_version(bundle: Bundles, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle("float"), path)
    layout, manifest = path / "executorch/layout.json", json.loads((path / "manifest.json").read_text())
    layout.write_text(layout.read_text().replace('"version": "', '"version": "9'))
    (path / "executorch/model.pte").write_bytes(b"XX" * 500)
    for file in (layout, path / "executorch/model.pte"):
        manifest["files"][f"executorch/{file.name}"]["bytes"] = file.stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match=r"made by executorch 9[\d.]+, and [\d.]+ is installed"):
        Session.open(path, engine="executorch", verify=False)


def test_int8_activations_are_not_nothing(bundle: Bundles, oracle: Callable[..., ReferenceBackend]) -> None:
    """Without them the reference engine differs from the program."""
    from edgeloop.export.parity import trace

    opened = Bundle.open(bundle("lora"))
    plain = trace(oracle("mor-lora", "int4"))
    found = trace(ExecutorchBackend.open(opened, 1))
    assert 1e-3 < difference(found.logits, plain.logits) < 0.2


def refusal(runner: Path, bundle: Path) -> str:
    """The one line with which the runner refuses a bundle."""
    command = [str(runner), str(bundle), "12", *map(str, PROMPT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("executorch-run: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_native_runner_writes_the_same_tokens(bundle: Bundles, tmp_path: Path, runner: Path) -> None:
    path = bundle("lora")
    command = [str(runner), str(path), "12", *map(str, PROMPT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == tokens(path, "executorch")
    early = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "EDGELOOP_DEPTHS": "2"}
    )
    leaves = tokens(path, "executorch", exit="depth:2", skipped_kv="skip")
    assert [int(line) for line in early.stdout.split()] == leaves
    assert leaves != tokens(path, "executorch")
    assert "manifest.json cannot be read; give the folder of a bundle" in refusal(runner, tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("routed", "a router, which decides how deep each token goes"),
        ("shared", "K/V that all depths share"),
        ("window", "a sliding window"),
    ],
)
def test_the_native_runner_refuses_by_name(bundle: Bundles, runner: Path, name: str, what: str) -> None:
    assert f"the model has {what}, and this runner knows none" in refusal(runner, bundle(name))


def test_two_exports_in_one_bundle(bundle: Bundles, tmp_path: Path, runner: Path) -> None:
    """A layout that finds the embedding elsewhere than the file has it is refused by every host."""
    path = tmp_path / "bundle"
    shutil.copytree(bundle("lora"), path)
    place, manifest = path / "executorch/layout.json", path / "manifest.json"
    layout = json.loads(place.read_text())
    layout["embedding"]["values"] += 64
    place.write_text(json.dumps(layout))
    described = json.loads(manifest.read_text())
    described["files"]["executorch/layout.json"]["bytes"] = place.stat().st_size
    manifest.write_text(json.dumps(described))
    told = "the embedding is not where .* has it; they come from two exports"
    assert re.search(told, refusal(runner, path))
    with pytest.raises(BundleError, match=told):
        Session.open(path, engine="executorch", verify=False)
    described["format"] = 2
    manifest.write_text(json.dumps(described))
    assert "bundle format 2, this runner reads format 4" in refusal(runner, path)


def test_a_python_without_executorch(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    command = ["make", "-n", "-C", str(NATIVE), f"PYTHON={tmp_path}/python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert 'has no executorch: pip install "edgeloop[executorch]"' in done.stderr


def test_the_page_for_apps_has_the_inputs_of_methods(bundle: Bundles) -> None:
    """docs/in-your-app.md, of a model with layers before, in and behind its loop, all of which have caches."""
    from executorch.runtime import Runtime

    path = bundle("lora")
    sizes = json.loads((path / "executorch" / "layout.json").read_text())["sizes"]
    keys = {"D": "width", "R": "depths", "K": "kv_heads", "d": "head_dim", "V": "vocab_size"}
    names = {letter: sizes[key] for letter, key in keys.items()}
    layers = {name: len(Bundle.open(path).program.caches(name)) for name in ("prologue", "block", "epilogue")}
    free = max(sizes["context_length"], 41)  # the largest C

    def shapes(cell: str, each: int) -> list[tuple[int, ...]]:
        """Of what a cell lists: sizes as numbers; what it has of each layer, ``each`` times."""
        letters = names | {"1": 1, "C": free, "C + 1": free + 1}
        once, _, more = cell.partition("of each layer")
        parts = [
            [tuple(letters[size] for size in found.split(", ")) for found in re.findall(r"\[(.*?)\]", part)]
            for part in (once, more)
        ]
        return parts[0] + parts[1] * each

    program = Runtime.get().load_program(path / "executorch" / "model.pte")
    table = page_table("in-your-app", "ExecuTorch")
    assert {name for name in program.method_names if name.endswith("_m1")} == set(table)
    for name, (takes, gives) in table.items():
        stage = name.removesuffix("_m1").replace("fill", "block")
        method, each = program.metadata(name), layers.get(stage, 0)
        inputs = [method.input_tensor_meta(i).sizes() for i in range(method.num_inputs())]
        outputs = [method.output_tensor_meta(i).sizes() for i in range(method.num_outputs())]
        assert inputs == shapes(takes, each)
        assert outputs == shapes(gives, each)


def test_profile(bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dump of each method that ran, and what its operators took of it."""
    path = bundle("lora")
    command = [
        "bench",
        str(path),
        "--engine",
        "executorch",
        "--prompt-tokens",
        "9",
        "--tokens",
        "3",
        "--json",
    ]
    assert main([*command, "--profile", str(tmp_path / "new" / "folder")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("record")["mode"] == "profile"
    with Session.open(path, engine="executorch") as session:
        depths = session.program.depths
    assert found["block_m1"]["calls"] == 3 * depths
    assert found["block_prefill"]["calls"] == 2 * depths
    assert found["head_m1"]["calls"] == 4
    assert {path.stem for path in (tmp_path / "new/folder").iterdir()} == set(found)
    for method in found.values():
        assert sum(method["kinds"].values()) == pytest.approx(method["ms"])
        # Counted, not timed: XNNPACK tells whole microseconds, and a fast processor needs none for these.
        assert method["operators"]["matrices"] > 0
        assert method["operators"]["float matrices"] > 0  # the means of norms
    layers = {"block_m1": 2, "prologue_m1": 1, "epilogue_m1": 1, "head_m1": 0}
    for name, count in layers.items():
        # qkv, o, gate and up, down; two products for attention and its softmax.
        assert found[name]["operators"]["matrices"] == max(4 * count, 1)
        assert found[name]["operators"]["attention"] == 3 * count
    assert main([*command, "--profile", str(tmp_path / "new" / "folder")]) == 2
    assert "has dumps of another run" in capsys.readouterr().err
    old = tmp_path / "new" / "folder" / "old_m1.etdp"
    old.write_bytes(b"of another bundle")
    assert main([*command, "--profile", str(tmp_path / "new" / "folder"), "--force"]) == 0
    assert "old_m1" not in json.loads(capsys.readouterr().out)
    assert not old.exists()
    command[3] = "onnx"
    assert main([*command, "--profile", str(tmp_path)]) == 2
    assert "--profile is of ExecuTorch's methods, not of engine onnx" in capsys.readouterr().err


def test_operators_by_depth_and_layer(
    bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of decoded tokens: as many matrices as the layers have that were applied, and a trace that is one."""
    path, trace = bundle("lora"), tmp_path / "trace.json"
    flags = ["--prompt-tokens", "9", "--tokens", "3", "--json"]
    assert main(["bench", str(path), "--engine", "executorch", "--ops", str(trace), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    depths = len(found["stages"]) - 2
    matrices = next(one for one in found["operators"] if one["kind"].startswith("Fully Connected"))
    assert matrices["count"] >= 4 * (1 + 2 * depths + 1)
    layers = {(one["stage"], one["layer"]) for one in found["layers"]}
    assert {(f"block, depth {d + 1}", f"layer {n}") for d in range(depths) for n in (1, 2)} <= layers
    events = check_trace(json.loads(trace.read_text(encoding="utf-8")))
    operators = [event for event in events if event["cat"] == "operator"]
    assert len(operators) == 3 * sum(one["count"] for one in found["operators"])


def test_every_operator_of_a_matrix_has_its_kind() -> None:
    """All that this XNNPACK has, whichever processor it would choose them on."""
    library = (wheel() / "lib" / f"libexecutorch_backend_xnnpack{SUFFIXES[sys.platform]}").read_bytes()
    names = {name.decode() for name in re.findall(rb"[A-Z][A-Za-z ]* \([A-Z0-9_, ]+\)", library)}
    full = {name for name in names if "Fully Connected" in name}
    assert len(full) > 20
    floats = {"NC", "F16", "F32", "PF16", "PF32", "BF16"}
    for name in full:
        plain = set(re.findall(r"[A-Z0-9]+", name.partition("(")[2])) <= floats
        assert kind_of(f"{name} GEMM #3") == ("float matrices" if plain else "matrices"), name
    assert {kind_of(name) for name in names if name.startswith(("Batch Matrix", "Softmax"))} == {"attention"}
    assert kind_of("Convert (NC, F32, QDU8) #1") == kind_of("Multiply (ND) #1") == kind_of("odd") == "other"


def test_methods_are_measured(bundle: Bundles) -> None:
    """All of them, and a pass of each number of rows."""
    found = measure_methods(bundle("float"), passes=1)
    assert found["methods"] == 8
    assert len(found["pass_ms"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lora", "float"])  # split into three files, and one
def test_every_byte_is_accounted_for(bundle: Bundles, kind: str) -> None:
    found = audit(bundle(kind))
    assert found.findings == ()
    for file in found.files:
        assert sum(file.kinds.values()) == file.bytes
        if file.file.endswith((".pte", ".ptd")):
            assert file.kinds["program"] > 0
            assert ("weights" in file.kinds) == (file.file.endswith(".ptd") or kind == "float")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.pte", "float"), ("base.ptd", "lora"), ("deltas.ptd", "lora"), ("model.pte", "lora")],
)
def test_a_payload_in_a_program_or_its_data_is_found(
    bundle: Bundles, tmp_path: Path, name: str, kind: str
) -> None:
    """Behind everything, and between the FlatBuffer and its segments."""
    folder, name = tmp_path / "bundle", f"executorch/{name}"
    shutil.copytree(bundle(kind), folder)
    data = bytearray((folder / name).read_bytes())
    at = 16 if name.endswith(".pte") else 24
    start, base = (int.from_bytes(data[i : i + 8], "little") for i in (at, at + 8))
    start += 0 if name.endswith(".pte") else int.from_bytes(data[16:24], "little")
    size = len(data)
    data += b"payload"
    if base > start:
        data[base - 1] = 1
    (folder / name).write_bytes(data)
    relist(folder, name)
    found = {(f.start, f.bytes, f.what) for f in audit(folder).findings}
    assert (size, 7, "nothing in the file refers to it") in found
    assert ((start, base - start, "padding that is not zero") in found) == (base > start)


def test_weights_that_no_method_asks_for_are_found(bundle: Bundles, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle("lora"), folder)
    path = folder / "executorch" / "base.ptd"
    data = path.read_bytes()
    key = min(re.findall(rb"[0-9a-f]{64}", data))
    path.write_bytes(data.replace(key, b"f" * 64, 1))
    relist(folder, "executorch/base.ptd")
    ((size, what),) = [(f.bytes, f.what) for f in audit(folder).findings]
    assert what == f"weights {'f' * 40}, which no method uses"
    assert size > 0
    # A letter that is in every program is not asked for either.
    path.write_bytes(data.replace(b"\x40\0\0\0" + key, b"\x01\0\0\0" + key[:1] + bytes(63), 1))
    relist(folder, "executorch/base.ptd")
    assert f"weights {key[:1].decode()}, which no method uses" in [f.what for f in audit(folder).findings]


@pytest.mark.parametrize(("schema", "file"), [(PROGRAM, "program"), (DATA, "flat_tensor")])
def test_the_schemas_are_those_of_executorch(schema: Schema, file: str) -> None:
    place = importlib.util.find_spec("executorch")
    assert place is not None
    (text,) = {
        path.read_text()
        for path in Path(next(iter(place.submodule_search_locations or ()))).rglob(f"{file}.fbs")
    }
    text = re.sub(r"//.*|\(force_align: \d+\)", "", text)
    sizes = {"byte": "1", "ubyte": "1", "uint8": "1", "bool": "1", "int": "4", "uint": "4", "int32": "4"}
    sizes |= {"uint32": "4", "long": "8", "int64": "8", "uint64": "8", "double": "8", "string": "text"}
    sizes |= dict.fromkeys(re.findall(r"enum (\w+) *: *byte", text), "1") | {"ScalarType": "1"}
    unions = {
        name: re.findall(r"\w+", body) for name, body in re.findall(r"union (\w+) \{(.*?)\}", text, re.DOTALL)
    }
    ours = {
        "ContainerMetadata": "Container",
        "AllocationDetails": "Allocation",
        "SubsegmentOffsets": "Subsegments",
    }
    ours |= {"BackendDelegateDataReference": "DataReference", "NonConstBufferDevice": "BufferDevice"}
    ours |= {"Buffer": "Bytes", "BackendDelegateInlineData": "Bytes"}

    def word(kind: str) -> str:
        inner = kind.removeprefix("[").removesuffix("]").rpartition(".")[2]
        short = "|".join(unions[inner]) if inner in unions else sizes.get(inner) or ours.get(inner, inner)
        return f"[{short}]" if kind.startswith("[") else short

    theirs = {
        ours.get(name, name): tuple(word(kind) for kind in re.findall(r"\w+ *: *([\w.\[\]]+)", body))
        for name, body in re.findall(r"table (\w+) \{(.*?)\}", text, re.DOTALL)
    }
    assert theirs == dict(schema)
