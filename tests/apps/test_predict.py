"""``edgeloop predict`` and ``device``: predictions that add up, profiles that are whole, wrong input in one line."""

from __future__ import annotations

import json
import socket
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny
from msgspec import structs
from pages import ROOT, blocks

from edgeloop.apps.cli import main
from edgeloop.apps.compare_native import work_of_a_token
from edgeloop.apps.predicting import bare_models, measure, sweep
from edgeloop.apps.predicting.costs import lane_engine, text
from edgeloop.apps.predicting.device import (
    DERIVED,
    FIGURES,
    UNCHECKED,
    Device,
    Rate,
    device,
    named,
    parsed,
    written,
)
from edgeloop.apps.predicting.prediction import Wanted, predict, shares_of
from edgeloop.apps.predicting.subject import Subject, file_bytes, of_bundle, of_program
from edgeloop.export.synth_program import program_of_shape
from edgeloop.export.synth_shapes import SHAPES
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import Exit, read_manifest, write_manifest
from edgeloop.runtime.engines.native.file import LanesFile
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.work import stage_work

Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]
PI = "raspberry-pi-5"


@pytest.fixture(scope="session")
def large() -> Subject:
    """A model of 87 MB, whose block is more than the Raspberry Pi's cache."""
    return of_program("mor-360m-r3", program_of_shape(SHAPES["mor-360m-r3"]), "int4", 128)


@pytest.fixture(scope="session")
def lanes(checkpoint: Path, lane_engine: Path) -> Path:
    """A bundle of target native."""
    out = checkpoint.with_name("lanes")
    words = ["export", str(checkpoint), "-o", str(out), "--target", "native", "--quant", "int4", "--json"]
    assert main(words) == 0
    return out


# What is counted


def test_the_file_has_the_size_that_is_predicted(lanes: Path) -> None:
    """To the byte: matrices, scales, deltas, norms and tables; behind them is the bundle's text."""
    subject, file = of_bundle(lanes), lanes / "native" / "model.lanes"
    text = LanesFile(file, subject.program).text
    assert (
        file_bytes(subject.program, subject.storage) + len(text) == file.stat().st_size == subject.file_bytes
    )


def test_bytes_and_products_of_a_token(bundle: Path) -> None:
    """As ``edgeloop compare`` counts them, which leaves the deltas out."""
    subject, said = of_bundle(bundle), work_of_a_token(Bundle.open(bundle))
    program, stored = subject.program, subject.stored
    head = stage_work(program, "head", stored)
    works = [head, *(stage_work(program, name, stored) for name in ("prologue", "epilogue"))]
    works += [stage_work(program, "block", stored, depth) for depth in range(program.depths)]
    plain = [product for work in works for product in work.products if product.bits != 16]
    assert sum(product.bytes for product in plain) == pytest.approx(said["token_bytes"], rel=1e-6)
    products = sum(product.products for product in plain) - head.row_products
    assert 2 * products == said["token_ops"]


# What a prediction says


def test_a_bundle(bundle: Path, command: Command, command_json: CommandJson) -> None:
    found = command_json("predict", bundle, "--device", PI, "--context", 32, "--prompt-tokens", 16)
    parts = found["seconds"]["token"]
    assert found["decode_tokens_per_s"] == pytest.approx(1 / sum(parts.values()))
    assert found["prefill_tokens_per_s"] == pytest.approx(16 / sum(found["seconds"]["prompt"].values()))
    assert found["threads"] == 4
    assert found["mean_depth"] == 3
    code, out, err = command("predict", bundle, "--device", PI, "--context", 32)
    assert code == 0
    assert "stays in the 2 MB from token to token" in out
    assert "a token behind 32, model unrolled" in out
    assert "not a measurement" in err
    assert "int8_gops, float_gops, sustained are computed, not measured" in err


def test_a_block_that_stays_in_the_cache_is_said(large: Subject, command: Command) -> None:
    code, out, _ = command("predict", "smollm-135m-r3", "--device", "iphone-15-pro", "--context", 64)
    assert code == 0
    assert "stays in the 24 MB between depths: depth 2 to 3 read it there" in " ".join(out.split())
    here = predict(large, device(PI), Wanted())
    assert (here.block_kept, here.kept) == (0, 0)
    assert here.unrolled == here.token  # nothing is kept, so nothing is gained
    wide = structs.replace(device(PI), cache_mb=90)
    there = predict(large, wide, Wanted())
    assert there.block_kept == 1
    assert there.unrolled is not None
    assert there.token.total < there.unrolled.total == pytest.approx(here.token.total, rel=0.3)


def test_more_of_anything_is_no_slower(large: Subject) -> None:
    one = device(PI)
    base = predict(large, one, Wanted(threads=1))
    rates = ("read_gb_s", "cache_gb_s", "int8_gops", "float_gops")
    doubled = {name: Rate(2 * getattr(one, name).one, 2 * getattr(one, name).all) for name in rates}
    fast = predict(large, structs.replace(one, **doubled), Wanted(threads=1))
    assert fast.token.total == pytest.approx(base.token.total / 2)
    assert fast.prompt.total == pytest.approx(base.prompt.total / 2)
    many = predict(large, one, Wanted(threads=4))
    assert many.token.total < base.token.total
    assert many.prompt.total < base.prompt.total / 2
    near = predict(large, one, Wanted(context=16))
    assert near.token.total < predict(large, one, Wanted(context=1024)).token.total
    eight = predict(large, one, Wanted(context=1024, kv_bits=8))
    assert eight.kv_bytes * 4 == predict(large, one, Wanted(context=1024)).kv_bytes


def test_exits_and_drafts(large: Subject) -> None:
    one = device(PI)
    full = predict(large, one, Wanted(shares=(0.0, 0.0, 1.0)))
    assert full.exits is not None
    assert full.exits.total == pytest.approx(full.token.total)
    some = predict(large, one, Wanted(shares=(0.5, 0.25, 0.25)))
    looked = predict(large, one, Wanted(shares=(0.5, 0.25, 0.25), reads=True))
    assert some.exits is not None
    assert looked.exits is not None
    assert some.mean_depth == 1.75
    assert some.exits.total < looked.exits.total < full.exits.total * 1.2
    right, wrong = (predict(large, one, Wanted(acceptance=a)).drafts for a in (1.0, 0.0))
    assert right is not None
    assert wrong is not None
    assert right.total < full.token.total < wrong.total
    assert shares_of(1.75, 3) == (0.25, 0.75, 0.0)
    assert shares_of(3.0, 3) == (0.0, 0.0, 1.0)
    assert shares_of(1.0, 3) == (1.0, 0.0, 0.0)


def test_the_rule_of_a_bundle(
    bundle: Path, tmp_path: Path, command: Command, command_json: CommandJson
) -> None:
    """A calibrated rule brings its mean depth; one that is not there is named."""
    import shutil

    folder = tmp_path / "calibrated"
    shutil.copytree(bundle, folder)
    rule = Exit(
        thresholds=(0.5, 0.5), skipped_kv="propagate", goal="agree 0.9", tokens=100, perplexity=2.0,
        full_perplexity=2.0, agreement=1.0, mean_depth=1.5,
    )  # fmt: skip
    write_manifest(folder, structs.replace(read_manifest(folder), exits={"confidence": rule}))
    found = command_json("predict", folder, "--device", PI, "--context", 32, "--exit", "confidence")
    assert found["mean_depth"] == 1.5
    assert sum(found["seconds"]["exits"].values()) < sum(found["seconds"]["token"].values())
    code, _, err = command("predict", folder, "--device", PI, "--exit", "probe")
    assert (code, "these calibrated rules: confidence" in err) == (2, True)


def test_the_shape_of_the_page(tmp_path: Path, command_json: CommandJson) -> None:
    (block,) = blocks(ROOT / "docs" / "predict.md", "toml")
    (tmp_path / "mine.toml").write_text(block)
    found = command_json("predict", tmp_path / "mine.toml", "--device", PI)
    assert found["model"] == "mine"
    deeper = command_json("predict", tmp_path / "mine.toml", "--device", PI, "--depths", 3)
    assert deeper["block_bytes"] > found["block_bytes"]


# Profiles


def test_the_profiles_are_whole() -> None:
    assert len(named()) >= 15
    for name in named():
        one = device(name)
        assert parsed(written(one), name) == one
        assert set(one.sources) == set(FIGURES)
        for figure in FIGURES:
            said = one.sources[figure]
            assert said.startswith((DERIVED, UNCHECKED, "http")), (name, figure)
        for smaller, larger in (("read_gb_s", "cache_gb_s"), ("float_gops", "int8_gops")):
            assert getattr(one, smaller).all <= getattr(one, larger).all


WRONG = {
    "colour = 1": "unknown field `colour`",
    'cores = "four"': "Expected `int`",
    "cores = 0": "cores is 0, wanted 1 to 1024",
    "memory_gb = nan": "memory_gb is nan",
    "read_gb_s = { one = 1e9, all = 1e9 }": "read_gb_s.one is 1000000000",
    "int8_gops = { one = 500, all = 100 }": "int8_gops.one is 500, and all cores together 100",
    "sustained = 7": "sustained is 7",
    "cores = ": "is no device profile",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_profile_is_one_line(line: str, tmp_path: Path, command: Command) -> None:
    figures, heading, sources = written(device(PI)).partition("[sources]")
    key, file = line.partition(" ")[0], tmp_path / "bad.toml"
    kept = [each for each in figures.splitlines() if each.partition(" ")[0] != key]
    file.write_text("\n".join([line, *kept, heading]) + sources)
    code, out, err = command("predict", "mor-360m-r3", "--device", file)
    assert (code, out) == (2, "")
    assert WRONG[line] in err
    assert err.count("\n") == 1


def test_a_figure_without_a_source(tmp_path: Path) -> None:
    bare = {name: said for name, said in device(PI).sources.items() if name != "cores"}
    with pytest.raises(UsageError, match="nothing about cores"):
        parsed(written(structs.replace(device(PI), sources=bare)), "x")
    with pytest.raises(UsageError, match="'weight', which is no figure"):
        parsed(written(structs.replace(device(PI), sources={**device(PI).sources, "weight": "1"})), "x")


def test_list_and_show(command: Command, command_json: CommandJson) -> None:
    assert set(command_json("device", "list")["devices"]) == set(named())
    code, out, _ = command("device", "show", PI)
    assert code == 0
    assert "Cortex-A76" in out
    assert command_json("device", "show", PI)["device"]["cores"] == 4


@pytest.mark.usefixtures("lane_engine")
def test_this_computer_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, command_json: CommandJson
) -> None:
    """With small matrices. What is written is read again, and predicts."""
    monkeypatch.setattr(measure, "_MOST_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "SPELLS", 1)
    monkeypatch.setattr(measure, "last_cache_bytes", lambda: 1 << 19)
    monkeypatch.setattr(measure, "_INNER", 64)
    monkeypatch.setattr(measure, "CONTEXT", bare_models.CHUNK)
    out = tmp_path / "mine.toml"
    found = command_json("device", "measure", "-o", out, "--name", "mine")["device"]
    one: Device = device(str(out))
    assert one.name == "mine"
    assert one.read_gb_s.one == found["read_gb_s"]["one"] > 0
    assert one.int8_gops.all >= one.int8_gops.one > 0
    assert one.derived == ("sustained",)
    code, _, err = command("device", "measure", "-o", out)
    assert (code, "exists" in err) == (2, True)
    assert command_json("predict", "smollm-135m-r3", "--device", out)["decode_tokens_per_s"] > 0


def test_the_lane_engines_numbers_are_read_as_written() -> None:
    costs = lane_engine()
    again = msgspec.toml.decode(text(costs), type=type(costs))
    assert structs.asdict(again.fitted) == pytest.approx(structs.asdict(costs.fitted), rel=1e-3)
    assert all(value > 0 for value in structs.asdict(costs.fitted).values())


# Sweeps


def test_a_sweep(tmp_path: Path, command: Command, command_json: CommandJson) -> None:
    words = ("predict", "smollm-135m-r3", "mor-360m-r3", "--device", PI, "--sweep", "--depths", "2,3")
    words += ("--quant", "int4,int8", "--kv-bits", "32,8", "--exit-share", "0.4,0.3,0.3")
    found = [sweep.Found(**each) for each in command_json(*words)["combinations"]]
    assert len(found) == 2 * 2 * 2 * 2 + 2 * 2 * 2  # exits of three depths, too
    keys = [(one.decode, -one.memory, one.bits_met) for one in found]
    for one, key in zip(found, keys, strict=True):
        better = any(other != key and all(a >= b for a, b in zip(other, key, strict=True)) for other in keys)
        assert one.best is not better
    assert any(one.best for one in found)
    lone = command_json("predict", "mor-360m-r3", "--device", PI, "--depths", 2, "--kv-bits", 8)
    same = next(
        one for one in found
        if (one.model, one.depths, one.quant, one.kv_bits) == ("mor-360m-r3", 2, "int4", 8)
    )  # fmt: skip
    assert lone["decode_tokens_per_s"] == pytest.approx(same.decode)
    code, out, err = command(*words, "--svg", tmp_path / "made.svg")
    assert code == 0
    assert "combinations that no other one beats" in err
    assert "smollm-135m-r3" in out
    drawn = (tmp_path / "made.svg").read_text()
    assert "mor-360m-r3, 2 depths" in drawn
    assert "tokens/s" in drawn


def test_processes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sweep.Grid(("int4",), (32,), (32,), (64,), ((),), 16, 2, 0)
    tasks = [sweep.Task("smollm-135m-r3", depths, grid, device(PI)) for depths in (2, 4)]
    assert sweep.sweep(tasks, 2) == sweep.sweep(tasks, 1)


def test_ray_gets_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of Ray, by a stand-in that runs it here."""
    grid = sweep.Grid(("int4",), (32,), (32,), (64,), ((),), 16, 2, 0)
    tasks = [sweep.Task("smollm-135m-r3", None, grid, device(PI))]
    asked: list[Any] = []
    ray = types.ModuleType("ray")
    ray.__dict__.update(
        init=lambda **how: asked.append(how),
        remote=lambda function: types.SimpleNamespace(remote=lambda task: lambda: function(task)),
        get=lambda parts: [part() for part in parts],
        shutdown=lambda: asked.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert sweep.sweep(tasks, 1, "auto") == sweep.sweep(tasks, 1)
    (how, shutdown) = asked
    assert (how["address"], how["log_to_driver"], shutdown) == ("auto", False, "shutdown")


def test_a_cluster_that_does_not_answer_is_one_line_at_once(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))  # it is not asked for anything
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{one.getsockname()[1]}"  # bound, and nobody listens
        for address in (free, f"ray://{free}", "127.0.0.1:99999999"):
            code, out, err = command("predict", "mor-360m-r3", "--device", PI, "--sweep", "--ray", address)
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert f"nothing answers at {address}" in err


REFUSED = {
    ("mor-360m-r3", "--device", "rasberry-pi"): "did you mean raspberry-pi",
    ("mor-360m-r3", "--device", "qqq"): "`edgeloop device list`",
    ("nothing-here", "--device", PI): "is no folder, no file and no shape",
    ("mor-360m-r3", "--device", PI, "--context", "999999"): "has a context of 2048",
    ("mor-360m-r3", "--device", PI, "--exit-share", "0.5,0.5"): "wanted 3 that add up to 1",
    ("mor-360m-r3", "--device", PI, "--exit-share", "0.9,0.9,0.9"): "wanted 3 that add up to 1",
    ("mor-360m-r3", "--device", PI, "--exit-share", "1,0,0", "--acceptance", "1"): "without exits",
    ("mor-360m-r3", "--device", PI, "--exit", "probe"): "calibrated rules: none",
    ("mor-360m-r3", "--device", PI, "--kv-bits", "7"): "wanted 32, 16 or 8",
    ("mor-360m-r3", "--device", PI, "--quant", "int4,int8"): "that is a sweep",
    ("mor-360m-r3", "--device", PI, "--quant", "int5"): "unknown quantization 'int5'",
    ("mor-360m-r3", "--device", PI, "--svg", "x.svg"): "--svg is for a sweep",
    ("mor-360m-r3", "--device", PI, "--depths", "40"): "leave none for the block",
    ("mobilellm-ls-125m", "--device", PI, "--acceptance", "0.5"): "has one depth",
    ("mor-360m-r3", "--device", PI, "--sweep", "--exit", "probe"): "a sweep takes --exit-share",
    ("mor-360m-r3", "--device", PI, "--sweep", "--exit-share", "1"): "",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_wrong_request_is_one_line(words: tuple[str, ...], command: Command) -> None:
    code, out, err = command("predict", *words)
    if not REFUSED[words]:  # shares that fit no model are left out of a sweep, all the rest is there
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert REFUSED[words] in err
    assert err.count("\n") == 1


def test_ray_is_not_installed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = command("predict", "mor-360m-r3", "--device", PI, "--sweep", "--ray", "auto")
    assert (code, err) == (
        1,
        "edgeloop: --ray needs Ray, which is not installed: pip install 'edgeloop[ray]'\n",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wheels": 4}, "a shape has no 'wheels'"),
        ({"heads": 5}, "no multiple of kv_heads"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"layers": "many"}, "is no shape"),
        ({"family": "gpt5"}, "is no family"),
    ],
)
def test_a_wrong_shape_is_one_line(
    change: dict[str, Any], said: str, tmp_path: Path, command: Command
) -> None:
    fields = {k: v for k, v in vars(replace(tiny.MOR)).items() if v is not None and not isinstance(v, bool)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in {**fields, **change}.items()]
    (tmp_path / "bad.toml").write_text("\n".join(lines))
    code, _, err = command("predict", tmp_path / "bad.toml", "--device", PI)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
