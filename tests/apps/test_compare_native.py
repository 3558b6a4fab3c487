"""``edgeloop compare --target native`` on a tiny model: every measure is there, and the tables tell the truth."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeloop.apps import bench_llama, compare_native
from edgeloop.apps.compare_native import against_peers, summary
from edgeloop.apps.compare_native_tables import Contender, against, block_pass, speeds
from edgeloop.apps.machine import usable_threads
from edgeloop.apps.machine_load import ForeignLoad, busy_seconds
from edgeloop.apps.measure import store
from edgeloop.runtime.engines.native.library import unavailable_reason
from edgeloop.runtime.errors import EngineError

needs_library = pytest.mark.skipif(bool(unavailable_reason()), reason=unavailable_reason())


@needs_library
def test_compare(tiny_once: Callable[[str], Path], command_json: Callable[..., Any], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a small loop that ran three times.")
    flags = ("--group-size", 32, "--rounds", 1, "--tokens", 2, "--prompt-tokens", 8, "--threads", 1)
    found = command_json(
        "compare",
        tiny_once("mor-middle-cycle"),
        "--target",
        "native",
        "--text",
        text,
        "--save",
        tmp_path / "runs",
        *flags,
    )
    rows = {(row["name"], row["kernels"]): row for row in found["contenders"]}
    native, onnx = rows["native", ""], rows["ONNX engine", ""]
    for row in (native, onnx):
        assert list(row["pass_ms"]) == ["1", "2", "3", "4", "8"]
        assert min(row[key] for key in (*compare_native.KEYS, "bytes")) > 0
    assert found["turns"] == len(found["contenders"])
    record = store.read(Path(found["saved"]))
    names = {measure.name for measure in record.measures}
    ours = "native, groups of 32, 1 thread"
    assert {f"decode, {ours}", f"decode, ONNX engine, groups of 32, 1 thread ÷ {ours}"} <= names
    assert f"decode, {ours} ÷ {ours}" not in names
    assert 1 < found["sizes"]["32"]["file_ratio"] < 2
    assert found["sizes"]["32"]["token_bytes"] > 0
    int8, float_ = found["perplexity"]["32"]["int8"], found["perplexity"]["32"]["float"]
    np.testing.assert_allclose(int8, float_, rtol=0.02)
    assert int8 != float_


def contender(name: str, kind: str, path: Path, *turns: tuple[float, float]) -> Contender:
    """With turns of (milliseconds a token, foreign load)."""
    made = Contender(name, kind, path, 32, compare_native.read_bytes(kind, path), 2)
    for ms, foreign in turns:
        rest = {"first_ms": 1.0, "prefill_ms": 10 * ms, "memory_bytes": 100 * ms, "foreign": foreign}
        made.turns.append(
            {"token_ms": ms, "pass_ms": {"1": 2.0, "2": 3.0} if kind != "genai" else {}, **rest}
        )
    return made


def test_disturbed_turns_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "model.lanes").write_bytes(b"x" * 7)
    row = summary(contender("native", "native", tmp_path, (2.0, 0.0), (50.0, 0.3), (4.0, 0.01), (3.0, 0.0)))
    assert (row["token_ms"], row["turns"], row["bytes"]) == (3.0, 3, 7)
    assert row["tokens_per_s"] == [250.0, 1000 / 3, 500.0]
    assert speeds(row, 30)[4:] == ("1.0 ms", "300 B", "1000", "333.3", "250.0 – 500.0")
    assert block_pass(row)[3:] == ("2.00 ms", "1.50×")
    all_disturbed = summary(contender("native", "native", tmp_path, (2.0, 0.5), (4.0, 0.5), (9.0, 0.5)))
    assert (all_disturbed["token_ms"], all_disturbed["turns"]) == (4.0, 0)


def test_ratios_are_over_the_best_peer(tmp_path: Path) -> None:
    ours = contender("native", "native", tmp_path, (2.0, 0.0))
    others = [
        contender("ONNX engine", "onnx", tmp_path, (5.0, 0.0)),
        contender("onnxruntime-genai", "genai", tmp_path, (4.0, 0.0)),
        contender("llama.cpp Q4_0", "llama", tmp_path, (8.0, 0.0)),
    ]
    (found,) = against_peers([summary(one) for one in (ours, *others)])
    assert against(found)[3:] == ("2.00×", "2.00×", "0.50×", "2.50×")


def test_foreign_load_is_not_ours() -> None:
    """Own work counts as busy and not as foreign; so does that of a process that has ended."""
    before, began, load = busy_seconds(), time.monotonic(), ForeignLoad()
    if before is None:
        pytest.skip("this system does not say")
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    if os.fork() == 0:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
    busy, share = (busy_seconds() or 0.0) - before, load.share()
    assert busy > 0.5
    assert share is not None
    # The 0.6 seconds of both are not among the others'; what is counted in ticks may be off by some.
    assert share * (time.monotonic() - began) * usable_threads() < busy - 0.3


def test_a_contender_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="native does not run: "):
        compare_native.measured_json(["native", str(tmp_path), "1", "2", "1", "32"], {})


def test_llama_cpp_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_llama, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"needs llama_cpp, gguf, not installed: .*pip install llama-cpp"):
        bench_llama.need_llama()


def test_a_gguf_holds_the_checkpoint(tmp_path: Path) -> None:
    """Names, shapes, numbers of the header, and q's rows in llama.cpp's order."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import save_file

    config = {
        "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    q = random.standard_normal((64, 64)).astype(np.float16)
    tensors = {
        "model.embed_tokens.weight": random.standard_normal((40, 64)).astype(np.float16),
        "model.norm.weight": np.ones(64, np.float16),
        "model.layers.0.self_attn.q_proj.weight": q,
        "model.layers.0.mlp.down_proj.weight": random.standard_normal((64, 96)).astype(np.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    reader = gguf.GGUFReader(str(bench_llama.write_gguf(tmp_path, tmp_path / "model.gguf")))
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert sorted(found) == [
        "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output_norm.weight", "token_embd.weight",
    ]  # fmt: skip
    assert reader.fields["llama.feed_forward_length"].contents() == 96
    values = gguf.quants.dequantize(
        found["blk.0.attn_q.weight"].data, found["blk.0.attn_q.weight"].tensor_type
    )
    turned = q.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)
    np.testing.assert_allclose(values, turned, atol=0.35)


def test_rows_of_q_in_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert bench_llama._pairs(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
