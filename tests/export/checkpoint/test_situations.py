"""Folders and files that are no checkpoint: each gets one line that says what it is and what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from editing import edit_weights, read
from safetensors.torch import load_file, save_file

from edgeloop.apps.cli import main
from edgeloop.export.checkpoint import Checkpoint, locate
from edgeloop.export.checkpoint.hub_cache import cache_folder, find_model
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.errors import CheckpointError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3087467144\n"
PAGE = "<!DOCTYPE html><html>Sign in</html>" * 20


def _only(path: Path, *files: str) -> None:
    for file in path.iterdir():
        if file.name not in files:
            file.unlink()


def _replace_weights(path: Path, name: str, content: bytes = b"GGUF") -> None:
    (path / "model.safetensors").unlink()
    (path / name).write_bytes(content)


def _adapter(path: Path) -> None:
    _only(path)
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.ones(1)}, path / "adapter_model.safetensors")


def _zipped_as_safetensors(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path / "model.safetensors")


def _safetensors_as_bin(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _dangling(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("../../blobs/0123")


def _dangling_config(path: Path) -> None:
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("../../blobs/4567")


def _below(path: Path) -> None:
    (path / "checkpoint-500").mkdir()
    (path / "config.json").rename(path / "checkpoint-500" / "config.json")


def _cache_root(path: Path) -> None:
    _only(path)
    (path / "models--ByteDance--Ouro-1.4B").mkdir()


def _named_template(path: Path, content: str) -> None:
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text(content)


def _bundle(path: Path) -> None:
    _only(path)
    (path / "manifest.json").write_text('{"edgeloop": "0"}')


def _puzzle(folder: Path) -> None:
    """As the authors' trainer leaves it: weights without an extension, and no config.json."""
    (folder / "config.json").rename(folder / "all_config.yaml")
    (folder / "model.safetensors").rename(folder / "step_100")


FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (_adapter, r"is a PEFT adapter.*edgeloop export BASE --adapter .*ck"),
    (lambda p: (p / "model.safetensors").write_text(POINTER), "model.safetensors is a git-lfs pointer.*git lfs pull"),
    (lambda p: _replace_weights(p, "pytorch_model.bin", POINTER.encode()), "pytorch_model.bin is a git-lfs pointer"),
    (lambda p: (p / "config.json").write_text(POINTER), "config.json is a git-lfs pointer"),
    (lambda p: (p / "tokenizer.json").write_text(POINTER), "tokenizer.json is a git-lfs pointer"),
    (lambda p: (p / "chat_template.jinja").write_text(POINTER), "chat_template.jinja is a git-lfs pointer"),
    (lambda p: _named_template(p, PAGE), "additional_chat_templates/rag.jinja is a web page"),
    (lambda p: (p / "model.safetensors").write_text(PAGE), "model.safetensors is a web page"),
    (lambda p: _replace_weights(p, "pytorch_model.bin", b"  \n<html>"), "pytorch_model.bin is a web page"),
    (lambda p: (p / "config.json").write_text(PAGE), "config.json is a web page"),
    (lambda p: (p / "tokenizer.json").write_text(PAGE), "tokenizer.json is a web page"),
    (lambda p: (p / "model.safetensors").write_text("Invalid username or password."), "an answer of a server"),
    (lambda p: (p / "model.safetensors").write_bytes(bytes(4096)), "begins with zeros"),
    (lambda p: (p / "model.safetensors").write_bytes(b"GGUF" + bytes(64)), "model.safetensors is a GGUF"),
    (lambda p: _replace_weights(p, "model-q4_k_m.gguf"), "model-q4_k_m.gguf: weights as GGUF only"),
    (lambda p: _replace_weights(p, "consolidated.00.pth"), "Meta's own format"),
    (lambda p: _replace_weights(p, "__0_0.distcp"), "sharded FSDP checkpoint"),
    (lambda p: _replace_weights(p, "zero_to_fp32.py"), "DeepSpeed"),
    (lambda p: _replace_weights(p, "tf_model.h5"), "weights of another framework"),
    (lambda p: _replace_weights(p, "model-00001-of-00002.safetensors"), "no model.safetensors.index.json"),
    (lambda p: _replace_weights(p, "pytorch_model-00001-of-00002.bin"), "no pytorch_model.bin.index.json"),
    (lambda p: _replace_weights(p, "weights.safetensors"), "weights under a name of their own"),
    (_puzzle, "a puzzle network of the HRM or TRM code, which fills a grid"),
    (_zipped_as_safetensors, "model.safetensors is a zip archive.*pytorch_model.bin"),
    (_safetensors_as_bin, "pytorch_model.bin is a safetensors file"),
    (_dangling, r"holds model.safetensors, a link to \.\./\.\./blobs/0123, which is not there.*cp -rL"),
    (_dangling_config, r"holds config.json, a link to"),
    (_below, "has no config.json, and folders that have one: checkpoint-500"),
    (_cache_root, "is the Hugging Face cache.*ByteDance/Ouro-1.4B"),
    (_bundle, "is a bundle, exported already"),
    (_only, "is empty"),
    (lambda p: ((p / "config.json").unlink(), (p / "training_args.bin").touch()), "has no config.json; give"),
    (lambda p: ((p / "model.safetensors").unlink(), (p / "optimizer.pt").touch()), "has no weights: wanted"),
]  # fmt: skip


@pytest.mark.parametrize(("become", "message"), FOLDERS)
def test_a_folder_that_is_no_model(
    tiny: Callable[[str], Path], tmp_path: Path, become: Callable[[Path], object], message: str
) -> None:
    folder = tiny("llama").rename(tmp_path / "ck")
    become(folder)
    out = tmp_path / "out" / "bundle"
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(folder, out)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not out.parent.exists() or not any(out.parent.iterdir())


def _link(path: Path) -> Path:
    (path / "link").symlink_to("gone")
    return path / "link"


def _archive(path: Path) -> Path:
    with zipfile.ZipFile(path / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    return path / "model.zip"


def _manifest(path: Path) -> Path:
    (path / "story").mkdir()
    (path / "story" / "manifest.json").write_text('{"format": 4}')
    return path / "story" / "manifest.json"


def _gguf(path: Path) -> Path:
    (path / "model-Q4.gguf").write_bytes(b"GGUF" + bytes(64))
    return path / "model-Q4.gguf"


PATHS: list[tuple[Callable[[Path], Path | str], str]] = [
    (lambda p: p / "llama" / "model.safetensors", "is a file, not a folder; .*such as .*llama$"),
    (_archive, "is an archive; unpack it"),
    (_manifest, "manifest.json is the manifest of a bundle; give the bundle's folder, .*story$"),
    (_gguf, r"model-Q4\.gguf is a GGUF, made from a checkpoint"),
    (_link, "is a link to gone, which is not there"),
    (lambda p: p / "gone", "is not a folder; give one with config.json"),
    (lambda p: "https://huggingface.co/ByteDance/Ouro-1.4B", "is an address.*hf download"),
    (lambda p: "ByteDance/Ouro-1.4B", r"no model in the Hugging Face cache.*hf download ByteDance/Ouro-1\.4B$"),
    (lambda p: os.fsdecode(b"\xff\xfe/model"), r"\\xff\\xfe/model is not UTF-8"),
    (lambda p: p / ("x" * 5000), "cannot be read.*too long"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "message"), PATHS)
def test_a_path_that_is_no_folder(
    tiny: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: Callable[[Path], Path | str],
    message: str,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny("llama")
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(path(tmp_path), tmp_path / "bundle")
    str(caught.value).encode()
    assert not (tmp_path / "bundle").exists()


def test_an_empty_template_is_no_damage(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama")
    (folder / "chat_template.jinja").write_text("")
    Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.model", "has tokenizer.model and no tokenizer.json.*AutoTokenizer"),
        ("vocab.json", "has vocab.json and no tokenizer.json.*AutoTokenizer"),
        (None, "has no tokenizer.json"),
    ],
)
@pytest.mark.usefixtures("quick_target")
def test_a_folder_without_tokenizer_json(
    tiny: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str | None, message: str
) -> None:  # fmt: skip
    folder = tiny("llama")
    (folder / "tokenizer.json").unlink()
    if file:
        (folder / file).write_bytes(b"\x0a\x0e")
    export_bundle(folder, tmp_path / "bundle")
    assert any(re.search(message, line) for line in caplog.messages)
    assert any("token ids, not text" in r for r in caplog.messages)


def test_the_command_that_makes_tokenizer_json_works(
    tiny: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """vocab.json and merges.txt, as GPT-2 has them: the command that the warning names is run as it stands."""
    from edgeloop.export.checkpoint.situations import without_tokenizer

    folder = tiny("llama").rename(tmp_path / "it's here")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    line = without_tokenizer(folder)
    assert len(line) - len(str(folder)) < 300  # longer ones are cut
    command = "python" + line.partition(": python")[2]
    done = subprocess.run(
        command.replace("python", sys.executable, 1),
        shell=True, capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "tokenizer.json").is_file()


WRAPPED = {
    "compiled": lambda n: f"_orig_mod.{n}",
    "compiled layers": lambda n: n.replace("layers.1.", "layers.1._orig_mod."),
    "fsdp": lambda n: "_fsdp_wrapped_module." + n.replace("layers.2.", "layers.2._fsdp_wrapped_module."),
    "checkpointed": lambda n: n.replace("layers.3.", "layers.3._checkpoint_wrapped_module."),
    "ddp": lambda n: f"module.{n}",
    "all": lambda n: "module._orig_mod." + n.replace(".mlp.", "._fsdp_wrapped_module.mlp._orig_mod."),
    "peft": lambda n: f"base_model.model.{n}",
}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_of_wrappers_are_names_only(tiny: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    folder = tiny("llama")
    plain = read(shutil.copytree(folder, tmp_path / "plain"))
    edit_weights(folder, lambda t: [t.update({WRAPPED[how](n): t.pop(n)}) for n in list(t)])
    wrapped = read(folder)
    assert wrapped.program == plain.program
    assert wrapped.used == plain.used
    assert all(torch.equal(wrapped.tensors[n](), plain.tensors[n]()) for n in plain.tensors)


def test_names_that_become_one_without_wrappers(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama")
    edit_weights(folder, lambda t: t.update({"module.model.norm.weight": t["model.norm.weight"] + 1}))
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight and module\.model\.norm\.weight are both"
    ):
        Checkpoint.open(folder)


OTHER_NAMES = {
    "_fsdp_wrapped_module._flat_param": "FSDP's flat parameters",
    "embed_tokens.weight": "a model without its head",
    "transformer.wte.weight": "a GPT-2-like model",
    "blk.0.attn_q.weight": "GGUF's names",
    "tok_embeddings.weight": "Meta's own names",
    "encoder.weight": "no tensor named model.embed_tokens.weight",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_weights_of_other_names(tiny: Callable[[str], Path], name: str) -> None:
    folder = tiny("llama")
    save_file({name: torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=OTHER_NAMES[name]):
        read(folder)


ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"HF_HUB_CACHE": "/a/hub"},
    {"HF_HUB_CACHE": "$HOME/elsewhere"},
    {"HF_HUB_CACHE": "~/hub", "HF_HOME": "/b"},
    {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/b"},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"},
    {"XDG_CACHE_HOME": "/c"},
]


def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for all: the library reads the environment when it is imported."""
    code = (
        "import importlib, json, os, sys\nfrom huggingface_hub import constants\n"
        "for e in json.loads(sys.argv[1]):\n"
        "    [os.environ.pop(n, 0) for n in list(os.environ) if n[:3] in ('HF_', 'XDG', 'HUG')]\n"
        "    os.environ |= e\n"
        "    print(importlib.reload(constants).HF_HUB_CACHE)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(ENVIRONMENTS)],
        capture_output=True, text=True, check=True, env={**os.environ, "HOME": "/home/me"},
    )  # fmt: skip
    for environment, wanted in zip(ENVIRONMENTS, done.stdout.split(), strict=True):
        with monkeypatch.context() as patch:
            for name in [n for n in os.environ if n[:3] in ("HF_", "XDG", "HUG")]:
                patch.delenv(name)
            patch.setenv("HOME", "/home/me")
            for name, value in environment.items():
                patch.setenv(name, value)
            assert str(cache_folder()) == wanted


def cached(folder: Path, cache: Path, name: str, commit: str = "c0ffee") -> Path:
    """``folder`` as ``hf download`` lays it out: links into blobs, refs/main."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for part in ("blobs", "refs"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{commit}{i}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.mark.usefixtures("quick_target")
def test_a_model_of_the_cache_by_its_name(
    tiny: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = cached(tiny("llama"), tmp_path / "hub", "me/tiny-llama_1.0")
    assert find_model("me/tiny-llama_1.0") == snapshot
    report = export_bundle("me/tiny-llama_1.0", tmp_path / "bundle")
    assert report.manifest.program == read(tmp_path / "llama").program
    assert report.manifest.text.tokenizer
    assert main(["show", "me/tiny-llama_1.0"]) == 0
    assert str(snapshot) in capsys.readouterr().out
    assert locate(snapshot.parent.parent) == snapshot  # the repository's own folder
    cached(tmp_path / "llama", tmp_path / "hub", "me/tiny-llama_1.0", "decade")
    assert find_model("me/tiny-llama_1.0") == snapshot.with_name("decade")  # refs/main moved on
    (snapshot.parent.parent / "refs" / "main").unlink()
    with pytest.raises(
        CheckpointError, match=r"refs/main names no snapshot; give one of its snapshots \(.*c0ffee"
    ):
        locate(Path("me/tiny-llama_1.0"))


def test_a_name_says_where_huggingface_hub_looks(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself finds the snapshot where we do."""
    from huggingface_hub import snapshot_download

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = cached(tiny("llama"), tmp_path / "hub", "me/tiny")
    theirs = snapshot_download("me/tiny", cache_dir=tmp_path / "hub", local_files_only=True)
    assert Path(theirs) == find_model("me/tiny") == snapshot


def test_a_folder_here_comes_before_the_cache(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tiny("llama"), tmp_path / "hub", "me/tiny")
    (tmp_path / "me").mkdir()
    tiny("ouro").rename(tmp_path / "me" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.open(Path("me/tiny")).config["model_type"] == "ouro"


def test_a_part_of_a_model_in_the_cache(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tiny("llama")
    (folder / "model.safetensors").unlink()
    cached(folder, tmp_path / "hub", "me/tiny")
    with pytest.raises(
        CheckpointError, match="a part of me/tiny in the Hugging Face cache.*hf download me/tiny"
    ):
        Checkpoint.open(Path("me/tiny"))


@pytest.mark.parametrize("name", ["../up", "a/../b", "a--b/c", "/etc", "a/b/c", ".hidden/x", "a/b\n"])
def test_what_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "c").mkdir(parents=True)
    assert find_model(name) is None


def test_tensors_that_the_index_forgot_are_there(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama-sharded")
    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file(load_file(shard) | {"model.layers.1.mlp.up_proj.bias": torch.ones(96)}, shard)
    with pytest.raises(CheckpointError, match=r"up_proj\.bias is part of a layer"):
        read(folder)
