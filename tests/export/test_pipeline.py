"""An export from end to end: what is in the bundle, and that nothing is left where one fails."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights
from safetensors.torch import load_file, save_file
from tiny import VOCAB
from tokenizers import Tokenizer

from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.heads import head_shapes, read_heads
from edgeloop.runtime.errors import BundleError, CheckpointError, EdgeloopError, ExportError, UsageError
from edgeloop.runtime.model.facts import count_parameters
from edgeloop.runtime.session import Session

Tiny = Callable[[str], Path]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What a bundle holds


def test_what_is_in_a_bundle(exported: Callable[..., Path], checkpoint: Tiny) -> None:
    out = exported("mor-lora", "int4")
    manifest = Bundle.open(out).manifest
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert set(found) == {"manifest.json", *manifest.files}
    assert set(found) == {
        "manifest.json",
        "tokenizer.json",
        "text.lanes",
        "onnx/weights.safetensors",
        *(f"onnx/{stage}.onnx" for stage in ("prologue", "block", "fill", "epilogue")),
        *(f"onnx/{stage}.packed.onnx" for stage in ("prologue", "block", "epilogue")),
    }
    for name, file in manifest.files.items():
        assert file.bytes == len(found[name])
        assert file.sha256 == hashlib.sha256(found[name]).hexdigest()
    assert found["tokenizer.json"] == (checkpoint("mor-lora") / "tokenizer.json").read_bytes()
    assert spec_of(manifest.program).segments[1].repeats == 3
    assert (manifest.quantization.bits, manifest.quantization.group_size) == (4, 32)
    assert (manifest.parameters, manifest.unrolled_parameters) == count_parameters(manifest.program)


def test_every_changed_file_is_refused(
    tiny: Tiny, tmp_path: Path, quick_target: None, subtests: pytest.Subtests
) -> None:
    out = export_bundle(tiny("mor-lora"), tmp_path / "bundle").bundle
    for name in Bundle.open(out).manifest.files:
        with subtests.test(name):
            path, data = out / name, (out / name).read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(BundleError, match=f"{name} has SHA-256"):
                Session.open(out)
            path.write_bytes(data + b"\0")
            with pytest.raises(BundleError, match=f"{name} has {len(data) + 1} bytes"):
                Session.open(out, verify=False)
            path.unlink()
            with pytest.raises(BundleError, match=f"{name} is missing"):
                Session.open(out)
            path.write_bytes(data)
    Bundle.open(out)


def test_a_changed_graph_is_refused(exported: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    for path in exported("mor-lora", "int4").rglob("*"):
        copy = out / path.relative_to(exported("mor-lora", "int4"))
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    Session.open(out).close()
    block = out / "onnx" / "block.onnx"
    block.write_bytes(block.read_bytes().replace(b"GroupQueryAttention", b"GroupQueryAttentioN"))
    with pytest.raises(BundleError, match=r"onnx/block\.onnx has SHA-256"):
        Session.open(out)


def test_the_same_checkpoint_gives_the_same_bundle(
    exported: Callable[..., Path], checkpoint: Tiny, tmp_path: Path
) -> None:
    again = export_bundle(checkpoint("mobilellm"), tmp_path / "again", quant="int8", group_size=64).manifest
    assert again.files == Bundle.open(exported("mobilellm", "int8", 64)).manifest.files


def test_report_and_progress(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    steps: list[tuple[str, float]] = []
    report = export_bundle(
        str(tiny("ouro")), str(tmp_path / "b"), progress=lambda step, part: steps.append((step, part))
    )
    assert report.bundle == tmp_path / "b"
    assert report.bundle_bytes == sum(p.stat().st_size for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert report.unused == ()
    assert [part for _, part in steps] == sorted(part for _, part in steps)
    assert steps[-1] == ("done", 1.0)


def test_half_precision_weights_are_stored_as_they_are_read(
    tiny: Tiny, tmp_path: Path, quick_target: None
) -> None:
    folder = tiny("llama")
    edit_weights(folder, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    out = export_bundle(folder, tmp_path / "b", quant="none").bundle
    stored = load_file(out / "onnx" / "weights.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    given = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored["embed.weight"], given.float())


# Tokenizer and template


def test_a_broken_tokenizer_is_refused(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    folder = tiny("mor-lora")
    for text in ("", "{", "[]", "{}", '{"model": {"type": "Abacus"}}', "\0\0"):
        (folder / "tokenizer.json").write_text(text)
        said = r"tokenizer\.json (is empty|is not a tokenizer \(.+\)|begins with zeros)"
        with pytest.raises(CheckpointError, match=said) as caught:
            export_bundle(folder, tmp_path / "b")
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"mor-lora"}


def test_a_tokenizer_with_more_tokens_than_the_model(
    tiny: Tiny, tmp_path: Path, quick_target: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("mor-lora")
    engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    export_bundle(folder, tmp_path / "even")
    assert caplog.text == ""
    engine.add_special_tokens(["<pad>"])
    engine.save(str(folder / "tokenizer.json"))
    out = export_bundle(folder, tmp_path / "more").bundle
    assert f"1 tokens beyond the model's {VOCAB}, such as '<pad>'" in caplog.text
    with (
        Session.open(out, engine="reference") as session,
        pytest.raises(UsageError, match=f"token id {VOCAB} is not in the vocabulary"),
    ):
        session.generate("a <pad> in a text")


def test_without_a_tokenizer(
    tiny: Tiny, tmp_path: Path, quick_target: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("mor-lora")
    (folder / "tokenizer.json").unlink()
    manifest = export_bundle(folder, tmp_path / "b").manifest
    assert manifest.text.tokenizer is None
    assert "no tokenizer.json: the bundle takes token ids" in caplog.text


def test_chat_templates(
    tiny: Tiny, tmp_path: Path, quick_target: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("mor-lora")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "shout.jinja").write_text("{{ messages[0].content | shout }}")
    manifest = export_bundle(folder, tmp_path / "b").manifest
    assert manifest.text.chat_templates == {
        "default": TEMPLATE,
        "shout": "{{ messages[0].content | shout }}",
    }
    (told,) = [record.getMessage() for record in caplog.records]
    assert "chat template 'shout' cannot render a user's turn: the chat template failed: " in told
    assert "No filter named 'shout'" in told


# Places


def test_a_checkpoint_of_links(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    """As in a Hugging Face cache, where every file of a snapshot is a link to a blob."""
    folder, snapshot = tiny("llama-sharded"), tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / folder.name / path.name)
    out = export_bundle(snapshot, tmp_path / "b").bundle
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert Bundle.open(out).manifest == export_bundle(folder, tmp_path / "c").manifest


def test_inside_the_checkpoint_folder(tiny: Tiny, quick_target: None) -> None:
    folder = tiny("mor-lora")
    before = names(folder)
    for force in (False, True):
        export_bundle(folder, folder / "bundle", force=force)
    assert names(folder) == {*before, "bundle"}


def test_not_over_the_checkpoint_itself(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    folder = tiny("mor-lora")
    before = names(folder)
    with pytest.raises(UsageError, match="not a bundle"):
        export_bundle(folder, folder, force=True)
    inside = export_bundle(folder, tmp_path / "b").bundle / "checkpoint"
    folder.rename(inside)
    with pytest.raises(UsageError, match="no part of the bundle"):
        export_bundle(inside, tmp_path / "b", force=True)
    assert names(inside) == before


def test_an_existing_bundle(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    folder, out = tiny("mor-lora"), tmp_path / "b"
    export_bundle(folder, out, quant="int8")
    with pytest.raises(UsageError, match="--force"):
        export_bundle(folder, out)
    assert Bundle.open(out).manifest.quantization.bits == 8
    export_bundle(folder, out, force=True)
    assert Bundle.open(out).manifest.quantization.bits == 4
    assert names(tmp_path) == {"mor-lora", "b"}


# Failures

BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nan": (lambda f: edit_weights(f, lambda t: t["model.norm.weight"].fill_(torch.nan)), "NaN or infinite"),
    "late infinity": (
        lambda f: edit_weights(
            f, lambda t: t["model.layers.5.mlp.down_proj.weight"][-1, -1:].fill_(torch.inf)
        ),
        "NaN or infinite",
    ),
    "missing": (
        lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")),
        "no tensor model.norm.weight",
    ),
    "int8": (
        lambda f: edit_weights(
            f, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})
        ),
        "stored as I8",
    ),
    "truncated": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1),
        "not a whole safetensors file",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "wrong config": (lambda f: edit(f / "config.json", hidden_size=128), "hidden_size|shape"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints_leave_nothing(tiny: Tiny, tmp_path: Path, quick_target: None, case: str) -> None:
    folder = tiny("llama")
    damage, message = BAD_CHECKPOINTS[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(folder, tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"llama"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "int2"}, "unknown quantization 'int2'"),
        ({"group_size": 7}, "group size 7"),
        ({"targets": ("abacus",)}, "unknown target 'abacus'"),
        ({"targets": ()}, "no target: choose from onnx"),
        ({"targets": "onnx"}, r"targets is the text 'onnx', wanted a list: \['onnx'\]"),
        ({"layouts": ()}, "no layout: choose from staged, flat"),
        ({"layouts": ("fast",)}, "unknown layout 'fast': choose from staged, flat"),
        ({"layouts": ("flat",)}, "target onnx has no flat layout, only executorch"),
        (
            {"options": {"split_weights": True}},
            "for target executorch in layout staged, found onnx in staged; add",
        ),
        (
            {"options": {"split_weights": True}, "targets": ("executorch",), "layouts": ("flat",)},
            "for target executorch in layout staged, found executorch in flat",
        ),
        ({"options": {"speed": 9}}, "no target has an option 'speed': choose from split_weights, coreml_ane"),
        ({"options": {"coreml_ane": "yes"}}, "option coreml_ane is 'yes', wanted a bool"),
    ],
)
def test_bad_requests(tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(tiny("mor-lora"), tmp_path / "b", **options)
    assert names(tmp_path) == {"mor-lora"}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing a file beyond ``size`` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(checkpoint: Path, out: Path, message: str) -> None:
    with pytest.raises(ExportError, match=f"cannot write {out}: {message}; nothing was changed") as caught:
        export_bundle(checkpoint, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize("size", [0, 20_000, 100_000])
def test_files_that_may_not_grow(tiny: Tiny, tmp_path: Path, quick_target: None, size: int) -> None:
    folder = tiny("mor-lora")
    with largest_file(size):
        refused(folder, tmp_path / "b", "File too large")


@pytest.mark.parametrize(
    "where",
    [
        "edgeloop.export.weights.WeightsWriter.add",
        "edgeloop.export.text.vocabulary.Vocabulary.write",
        "edgeloop.export.pipeline.describe_files",
        "edgeloop.export.pipeline.write_manifest",
    ],
)
def test_a_full_disk(
    tiny: Tiny, tmp_path: Path, quick_target: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(where, full)
    refused(tiny("mor-lora"), tmp_path / "b", "No space left on device")


@pytest.mark.parametrize("where", ["lower.onnx.ir.save", "targets.onnx.target.with_float_activations"])
def test_a_full_disk_in_the_target(
    checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(f"edgeloop.export.{where}", full)
    refused(checkpoint("mor-lora"), tmp_path / "b", "No space left on device")


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_system_without_hard_links(
    checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    out = export_bundle(checkpoint("mor-cycle"), tmp_path / "b").bundle
    Bundle.open(out)


KILLED = """
import os, signal, sys
from pathlib import Path
import edgeloop.export.targets.onnx.target
from edgeloop.export.pipeline import export_bundle

checkpoint, root, *moments = sys.argv[1:]

def progress(step, part):
    if step == moment:
        os.kill(os.getpid(), signal.SIGKILL)

children = []
for i, moment in enumerate(moments):
    if not (child := os.fork()):
        export_bundle(checkpoint, Path(root, str(i)), progress=progress)
        os._exit(0)
    children.append(child)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_killed_exports(checkpoint: Tiny, tmp_path: Path) -> None:
    """Side by side, each at another moment; what they leave is hidden, and gone with the next export."""
    moments = ("quantizing", "onnx: graphs", "hashing")
    command = [sys.executable, "-c", KILLED, str(checkpoint("mor-cycle")), str(tmp_path), *moments]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(moments)
    left = names(tmp_path)
    assert left
    assert all(name.startswith(".edgeloop-partial-") for name in left)
    out = export_bundle(checkpoint("mor-cycle"), tmp_path / "0").bundle
    assert names(tmp_path) == {"0"}
    Bundle.open(out)


def test_a_long_context_costs_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """131,072 positions: the parity step keeps to a short cache, or it would copy gigabytes."""
    folder = tiny("mor-cycle")
    edit(folder / "config.json", max_position_embeddings=131072)
    report = export_bundle(folder, tmp_path / "long")
    assert report.manifest.program.context_length == 131072
    short = export_bundle(folder, tmp_path / "short", context=64)
    changed = {name for name, file in short.manifest.files.items() if report.manifest.files[name] != file}
    assert changed == set()
    with Session.open(report.bundle) as session:
        assert np.isfinite(session.logits([1, 2, 3])).all()


def test_errors_are_ours(tiny: Tiny, tmp_path: Path) -> None:
    """A folder of nonsense is refused like any other."""
    for folder in (tmp_path, tmp_path / "missing", tiny("llama") / "config.json"):
        with pytest.raises(EdgeloopError):
            export_bundle(folder, tmp_path / "b")


def test_weights_that_nobody_reads_are_reported(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    folder = tiny("llama")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra.head": torch.ones(2)}, folder / "model.safetensors")
    assert export_bundle(folder, tmp_path / "b").unused == ("extra.head",)


def test_a_shorter_context(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    program = export_bundle(checkpoint("mor-middle-cycle"), tmp_path / "short", context=16).manifest.program
    assert program.context_length == 16
    with pytest.raises(UsageError, match="context is 100000, wanted 1 to"):
        export_bundle(checkpoint("mor-middle-cycle"), tmp_path / "long", context=100_000)


@pytest.mark.parametrize("kind", ["mor-expert", "mor-token", "edgeloop-routed", "ouro"])
def test_heads_are_beside_the_graphs(tiny: Tiny, tmp_path: Path, quick_target: None, kind: str) -> None:
    report = export_bundle(tiny(kind), tmp_path / "b")
    manifest = report.manifest
    assert manifest.heads == "heads.safetensors"
    assert "heads.safetensors" in manifest.files
    bundle = Bundle.open(report.bundle)
    heads = read_heads(bundle)
    assert heads.keys() == head_shapes(manifest.program).keys()
    stored = load_file(report.bundle / "onnx" / "weights.safetensors")
    assert not [name for name in stored if name.split(".")[0] in ("gate", "router", "auxiliary")]
    sizes = sum(head.size for head in heads.values())
    assert manifest.parameters - count_parameters(manifest.program)[0] == sizes > 0
    assert manifest.unrolled_parameters - count_parameters(manifest.program)[1] == sizes


def test_a_model_without_heads(tiny: Tiny, tmp_path: Path, quick_target: None) -> None:
    report = export_bundle(tiny("mor-lora"), tmp_path / "b")
    assert report.manifest.heads is None
    assert not (report.bundle / "heads.safetensors").exists()


@pytest.mark.parametrize("kind", ["mor-expert", "mor-token"])
def test_graphs_know_nothing_of_routing(checkpoint: Tiny, tmp_path: Path, kind: str) -> None:
    report = export_bundle(checkpoint(kind), tmp_path / "b", quant="none")
    assert report.unused == ()
    assert report.manifest.targets["onnx"].parity.logits < 1e-5
    assert len(report.manifest.targets["onnx"].parity.per_depth) == 3


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        ("mor-middle-cycle", {}, ("per-depth", None)),
        ("mor-middle-cycle", {"kv": "shared"}, ("shared", None)),
        ("mor-shared", {}, ("shared", None)),
        ("mor-shared", {"kv": "per-depth"}, ("per-depth", None)),
        ("mor-expert", {"kv": "per-depth"}, ("per-depth", None)),
        ("mor-expert", {"kv": "shared"}, ("shared", None)),
        ("mor-middle-cycle", {"window": 8}, ("per-depth", 8)),
        ("mor-middle-cycle", {"window": 64}, ("per-depth", None)),
        ("edgeloop-window", {}, ("per-depth", 6)),
        ("edgeloop-window", {"window": 1}, ("per-depth", 1)),
        ("edgeloop-window", {"context": 6}, ("per-depth", None)),
    ],
)
def test_other_kv_than_the_family_declares(
    tiny: Tiny, tmp_path: Path, quick_target: None, kind: str, options: dict[str, Any], found: tuple[str, int]
) -> None:
    program = export_bundle(tiny(kind), tmp_path / "b", **options).manifest.program
    assert ("shared" if program.shares_kv else "per-depth", program.window) == found


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mor-middle-cycle", {"kv": "last"}, "unknown KV policy 'last': choose from per-depth, shared"),
        ("mor-middle-cycle", {"window": 0}, "window is 0, wanted 1 to 64, the context"),
        ("mor-middle-cycle", {"window": 65}, "window is 65, wanted 1 to 64, the context"),
        ("mor-middle-cycle", {"window": 17, "context": 16}, "window is 17, wanted 1 to 16, the context"),
        ("mobilellm", {"kv": "shared"}, "no loop of two depths or more"),
        ("mor-own-attention", {"kv": "shared"}, "--kv shared is not for it"),
    ],
)
def test_kv_that_the_model_cannot_have(
    tiny: Tiny, tmp_path: Path, quick_target: None, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(tiny(kind), tmp_path / "b", **options)
    assert names(tmp_path) == {kind}
