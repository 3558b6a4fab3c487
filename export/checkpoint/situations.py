"""Recognises files and folders that are not what was wanted: one table of files, one of folders, one of paths.

Each line says what was found, and what to do about it. Recognisers look at names and first bytes only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

HEAD = 512  # bytes of a file that are looked at
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""JSON files beside config.json and the weights that an export reads if they are there."""

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
"""Files that are read too, and may be empty."""

PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head)", re.IGNORECASE)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".7z", ".zst")

_File = Callable[[Path, bytes], bool]
FILES: tuple[tuple[_File, str], ...] = (
    (lambda path, head: not head, "is empty; copy or download it again"),
    (
        lambda path, head: head.startswith(b"version https://git-lfs"),
        "is a git-lfs pointer, not the file that it stands for; run `git lfs install && git lfs pull` in the "
        "repository, or download the file by itself",
    ),
    (
        lambda path, head: PAGE.match(head) is not None,
        "is a web page that was saved under this name, often one to sign in at; download the file again, with an "
        "access token where the model asks for one",
    ),
    (
        lambda path, head: head.startswith(b"GGUF"),
        "is a GGUF, made from a checkpoint and quantized; give the checkpoint itself: config.json and safetensors",
    ),
    (
        lambda path, head: head[:4] == b"PK\x03\x04" and path.suffix == ".safetensors",
        "is a zip archive, such as torch.save writes; name it pytorch_model.bin, or save it as safetensors",
    ),
    (
        lambda path, head: head[8:9] == b"{" and path.suffix == ".bin",
        "is a safetensors file by another name; call it model.safetensors",
    ),
    (
        lambda path, head: head[:2] == b"\x1f\x8b",
        "is a gzip archive; unpack it, and give the folder with config.json that is in it",
    ),
    (
        lambda path, head: not any(head),
        "begins with zeros, as a download that was cut off leaves it; download it again",
    ),
    (
        lambda path, head: re.match(rb"(Invalid|Entry not|Access to|Repository not|Not Found)", head) is not None,
        "is an answer of a server that did not send the file; download it again, with an access token where the "
        "model asks for one",
    ),
)  # fmt: skip
"""Files by their first bytes: the first recogniser that fits describes the file."""


def what_file(path: Path) -> str | None:
    """Return what the file ``path`` is instead of what its name says, in one line; None where nothing strange is
    seen."""
    line = _content(path)
    return line and f"{path} {line}"


def _content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return next((line for fits, line in FILES if fits(path, head)), None)


def strange_companion(folder: Path) -> str | None:
    """Return what one of ``COMPANIONS`` or ``TEMPLATES`` is instead of a text file, in one line; None where all are."""
    there = [path for name in COMPANIONS if (path := folder / name).is_file()]
    templates = (path for pattern in TEMPLATES for path in sorted(folder.glob(pattern)) if path.is_file())
    there += [path for path in templates if path.stat().st_size]
    return next((line for path in there if (line := what_file(path))), None)


def _dangling(folder: Path, names: Sequence[str]) -> str | None:
    links = (n for n in names if (folder / n).is_symlink() and not (folder / n).exists())
    if name := next(links, None):
        return (
            f"holds {name}, a link to {(folder / name).readlink()}, which is not there; copy the folder with "
            "`cp -rL`, or download it again"
        )
    return None


def _adapter(folder: Path, names: Sequence[str]) -> str | None:
    if "adapter_config.json" not in names and not set(names) & set(ADAPTER_WEIGHTS):
        return None
    return (
        "is a PEFT adapter without the model that it belongs to; give that model's folder, and the adapter beside "
        f"it: edgeloop export BASE --adapter {shlex.quote(str(folder))}"
    )


def _cache(folder: Path, names: Sequence[str]) -> str | None:
    models = [n.removeprefix("models--").replace("--", "/") for n in names if n.startswith("models--")]
    return (
        f"is the Hugging Face cache with all its models; name one of them, such as {models[0]}"
        if models
        else None
    )


def _snapshot(folder: Path, names: Sequence[str]) -> str | None:
    repository = folder.absolute().parent.parent.name
    if folder.absolute().parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    name = repository.removeprefix("models--").replace("--", "/")
    return f"is a part of {name} in the Hugging Face cache; get the rest: hf download {name}"


def _below(folder: Path, names: Sequence[str]) -> str | None:
    inside = [name for name in names if (folder / name / "config.json").is_file()]
    if not inside or "config.json" in names:
        return None
    return f"has no config.json, and folders that have one: {', '.join(inside[:5])}; give one of these"


def _no_index(folder: Path, names: Sequence[str]) -> str | None:
    shards = [n for n in names if re.fullmatch(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", n)]
    kind = "pytorch_model.bin" if shards and shards[0].startswith("pytorch") else "model.safetensors"
    index = f"{kind}.index.json"
    if not shards or index in names:
        return None
    return f"has {len(shards)} pieces of weights and no {index}, which says what is in them; download it too"


def _puzzle(folder: Path, names: Sequence[str]) -> str | None:
    if "all_config.yaml" not in names or "config.json" in names:
        return None
    return (
        "holds all_config.yaml: a puzzle network of the HRM or TRM code, which fills a grid at once, halts by a head "
        "and has no next token; no family reads it"
    )


_FORMATS = (
    (r".*\.gguf", "weights as GGUF only", "edgeloop reads the checkpoint that it was made from"),
    (
        r"(consolidated.*|.*\.\d\d)\.pth",
        "weights in Meta's own format",
        "transformers' convert_llama_weights_to_hf converts them",
    ),
    (
        r".*\.distcp",
        "a sharded FSDP checkpoint",
        "torch.distributed.checkpoint.format_utils dcp_to_torch makes one file of it",
    ),
    (r"zero_to_fp32\.py|global_step\d+", "a DeepSpeed checkpoint", "its zero_to_fp32.py writes the weights"),
    (r".*\.(h5|msgpack|ot)", "weights of another framework", "save the model with PyTorch's save_pretrained"),
    (
        r".*\.(onnx|pte|tflite|mlpackage)",
        "a model that is exported already",
        "give the checkpoint that it was made from",
    ),
    (r"model_index\.json", "a diffusion pipeline", "edgeloop exports language models whose layers repeat"),
    (
        r".*\.(pt|pth|ckpt)",
        "a training checkpoint",
        "save the model with save_pretrained, or its state_dict as safetensors",
    ),
    (
        r".*\.(safetensors|bin)",
        "weights under a name of their own",
        "call them model.safetensors or pytorch_model.bin",
    ),
    (r".*(\.incomplete|\.part|\.crdownload|\.aria2)", "a download that was cut off", "go on with it"),
)
"""File names of other formats: what they are, and what to do."""


_PLAIN = re.compile(
    r"((model|pytorch_model)(-\d+-of-\d+)?|training_args|(optimizer|scheduler|rng_state).*)\.\w+"
)
"""What a whole checkpoint, or a trainer's, has beside the rest: it explains nothing."""


def _other_format(folder: Path, names: Sequence[str]) -> str | None:
    names = [name for name in names if not _PLAIN.fullmatch(name)]
    for pattern, what, remedy in _FORMATS:
        if found := next((n for n in names if re.fullmatch(pattern, n)), None):
            return f"holds {found}: {what}; {remedy}"
    return None


FOLDERS: tuple[Callable[[Path, Sequence[str]], str | None], ...] = (
    _dangling,
    lambda folder, names: (
        "is a bundle, exported already; edgeloop run, show and eval take it"
        if "manifest.json" in names and "config.json" not in names
        else None
    ),
    _adapter,
    _cache,
    _below,
    _no_index,
    _puzzle,
    _other_format,
    _snapshot,
    lambda folder, names: (
        None if names else "is empty; give the folder with config.json that save_pretrained wrote"
    ),
)
"""Folders by what they hold: the first recogniser that answers describes the folder."""


def what_folder(folder: Path, lack: str) -> str:
    """Return what the folder is, which lacks a part of a checkpoint: ``lack`` where nothing is recognised."""
    names = sorted(path.name for path in folder.iterdir())
    lines = (line for recognise in FOLDERS if (line := recognise(folder, names)))
    return f"{folder} {next(lines, lack)}"


_Path = Callable[[Path, str], str | None]
PATHS: tuple[_Path, ...] = (
    lambda path, config: (
        f"is a link to {path.readlink()}, which is not there"
        if path.is_symlink() and not path.exists()
        else None
    ),
    lambda path, config: (
        f"is an archive; unpack it, and give the folder with {config}"
        if path.is_file() and path.suffix in ARCHIVES
        else None
    ),
    lambda path, config: _content(path) if path.is_file() else None,
    lambda path, config: (
        f"is the manifest of a bundle; give the bundle's folder, {path.parent}"
        if path.is_file() and path.name == "manifest.json"
        else None
    ),
    lambda path, config: (
        f"is a file, not a folder; give the one with {config}, such as {path.parent}"
        if path.exists()
        else None
    ),
    lambda path, config: (
        "is an address; give the model's name there, OWNER/NAME, once `hf download OWNER/NAME` has fetched it"
        if re.match(r"https?:/", str(path))
        else None
    ),
)
"""Paths that are no folder: the first recogniser that answers describes the path. ``config``: what the folder should
hold."""


def what_path(path: Path, config: str) -> str:
    """Return what the path is, which is no folder with a ``config``."""
    lines = (line for recognise in PATHS if (line := recognise(path, config)))
    return f"{path} {next(lines, f'is not a folder; give one with {config}')}"


NAMES = (
    (
        r"(^|\.)_?flat_param",
        "FSDP's flat parameters; save the whole state_dict (FULL_STATE_DICT), or merge it: accelerate merge-weights",
    ),
    (r"^embed_tokens\.weight$", "a model without its head; save the one of the class ...ForCausalLM"),
    (r"^transformer\.(wte|h\.)", "a GPT-2-like model; edgeloop reads Llama-like layers"),
    (r"^(token_embd|blk\.0)\.", "GGUF's names; give the checkpoint that the GGUF was made from"),
    (
        r"^tok_embeddings\.weight$",
        "Meta's own names; transformers' convert_llama_weights_to_hf converts them",
    ),
)
"""Names of tensors by which other models are recognised: what they are, and what to do."""


def what_names(names: Collection[str]) -> str | None:
    """Return what tensors of such names are, where they are not Llama's."""
    for pattern, line in NAMES:
        if found := min((name for name in names if re.search(pattern, name)), default=None):
            return f"holds {found}: {line}"
    return None


CONVERT = (
    """python -c 'from transformers import AutoTokenizer as T; T.from_pretrained(".").save_pretrained(".")'"""
)
TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


def without_tokenizer(folder: Path) -> str:
    """Return what a folder without tokenizer.json means for the bundle, and how to get one where it has another
    kind."""
    if other := next((name for name in TOKENIZERS if (folder / name).is_file()), None):
        return (
            f"{folder} has {other} and no tokenizer.json: the bundle takes token ids, not text. transformers, with "
            f"sentencepiece and protobuf, writes one; in that folder: {CONVERT}"
        )
    return f"{folder} has no tokenizer.json: the bundle takes token ids, not text"
