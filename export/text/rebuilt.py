"""The classes of transformers 5 that take a tokenizer.json's vocabulary and merges only, and build the rest anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tokenizers import AddedToken

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown
from . import tokenizer_parts as parts
from .named_tokens import Settings, text_of
from .tokenizer_parts import Json

Token = Callable[[str], tuple[str, int]]
"""The name of a special token → its text and id."""

GPT2_END: dict[str, str | None] = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
QWEN_END = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
SENTENCE = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
ROBERTA = SENTENCE | {"sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}
INFILLING = {
    "prefix_token": "▁<PRE>",
    "middle_token": "▁<MID>",
    "suffix_token": "▁<SUF>",
    "eot_token": "▁<EOT>",
    "fill_token": "<FILL_ME>",
}


@dataclass(frozen=True)
class Rebuilt:
    """A class that builds its tokenizer anew.

    ``model``: the kind of vocabulary that it takes. ``parts``: the new parts of tokenizer.json. ``tokens``: the special
    tokens that it has where the files name none (None: not the one of the padding either). ``around``: the
    post-processor, from the one of the file. ``extra``: special tokens without a name, from those that the files name
    in the old way. ``again``: how it gives the tokenizer its special tokens a second time, if it does; the flags are
    then those of the second time.
    """

    model: str
    parts: Callable[[Settings, Json], Json]
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    around: Callable[[Settings, Json | None, Token], Json | None] = lambda s, file, token: file
    extra: Callable[[Settings, tuple[str, ...]], tuple[str, ...]] = lambda s, old: old
    again: Callable[[AddedToken | str], AddedToken] | None = None


def _around(before: tuple[str, ...], after: tuple[str, ...]) -> Callable[..., Json | None]:
    """Return the maker of a template of the special tokens with these names."""

    def around(s: Settings, file: Json | None, token: Token) -> Json:
        return template([token(name) for name in before], [token(name) for name in after])

    return around


def template(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> Json:
    """Return a post-processor that puts tokens (text and id) before and after a text."""

    def text(name: str, kind: int) -> list[Json]:
        return [
            *({"SpecialToken": {"id": token, "type_id": kind}} for token, _ in (before if kind == 0 else [])),
            {"Sequence": {"id": name, "type_id": kind}},
            *({"SpecialToken": {"id": token, "type_id": kind}} for token, _ in after),
        ]

    tokens = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in before + after}
    single = text("A", 0)
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + text("B", 1),
        "special_tokens": tokens,
    }


def _around_roberta(s: Settings, file: Json | None, token: Token) -> Json:
    return {
        "type": "RobertaProcessing",
        "sep": list(token("sep_token")),
        "cls": list(token("cls_token")),
        "trim_offsets": bool(s.flag("trim_offsets", True)),
        "add_prefix_space": bool(s.flag("add_prefix_space", False)),
    }


def _around_code_llama(s: Settings, file: Json | None, token: Token) -> Json | None:
    return None if s.options.get("bos_token", "") is None else template([token("bos_token")], [])


def _around_albert(s: Settings, file: Json | None, token: Token) -> Json:
    return file or template([token("cls_token")], [token("sep_token")])


def _plain(token: AddedToken | str) -> AddedToken:
    return AddedToken(text_of(token), special=True)


def _special(token: AddedToken | str) -> AddedToken:
    return _plain(token) if isinstance(token, str) else token


def _infilling(s: Settings, old: tuple[str, ...]) -> tuple[str, ...]:
    return (*old, *INFILLING.values())


def _sentinels(s: Settings, old: tuple[str, ...]) -> tuple[str, ...]:
    """Return T5's ``<extra_id_N>``, 100 unless the file says how many."""
    count = s.options.get("extra_ids", 100)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 1 << 16:
        raise CheckpointError(f"{s.where}: extra_ids is {shown(count)}; wanted a number of tokens")
    made = tuple(f"<extra_id_{i}>" for i in range(count))
    return old if any("<extra_id_" in token for token in old) else old + made


REBUILT = {
    "GPT2Tokenizer": Rebuilt("BPE", parts.gpt2, GPT2_END | {"pad_token": None}),
    "RobertaTokenizer": Rebuilt("BPE", parts.gpt2, ROBERTA, _around_roberta),
    "GPTNeoXTokenizer": Rebuilt(
        "BPE", parts.neox, GPT2_END | {"pad_token": "<|padding|>"}, lambda s, file, token: None
    ),
    "Qwen2Tokenizer": Rebuilt("BPE", parts.qwen(parts.QWEN2), QWEN_END, again=_plain),
    "Qwen3_5Tokenizer": Rebuilt("BPE", parts.qwen(parts.QWEN3_5), QWEN_END),
    "LlamaTokenizer": Rebuilt("BPE", parts.llama, SENTENCE),
    "CodeLlamaTokenizer": Rebuilt(
        "BPE", parts.code_llama, SENTENCE | INFILLING, _around_code_llama, _infilling
    ),
    "GemmaTokenizer": Rebuilt(
        "BPE",
        parts.gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "CohereTokenizer": Rebuilt(
        "BPE",
        parts.cohere,
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "sep_token": "<SEP>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "mask_token": "<MASK_TOKEN>",
        },
        again=_special,
    ),
    "T5Tokenizer": Rebuilt(
        "Unigram",
        parts.t5,
        {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
        _around((), ("eos_token",)),
        _sentinels,
    ),
    "XLMRobertaTokenizer": Rebuilt(
        "Unigram", parts.xlm_roberta, ROBERTA, _around(("bos_token",), ("eos_token",))
    ),
    "AlbertTokenizer": Rebuilt(
        "Unigram",
        parts.albert,
        {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "unk_token": "<unk>",
            "sep_token": "[SEP]",
            "pad_token": "<pad>",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _around_albert,
    ),
    "BertTokenizer": Rebuilt(
        "WordPiece",
        parts.bert,
        {
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _around(("cls_token",), ("sep_token",)),
    ),
}
"""By class (without ``Fast``), what it builds anew."""
