"""The tokenizer.json that ships: one whose ids are, in any host, those of transformers' AutoTokenizer for the folder.

The files of the folder (``named_tokens.py``) and the class that they name (``tokenizer_classes.py``) decide what the
tokenizer is; here it is put together, and written as one file that needs no other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from ...runtime.errors import CheckpointError
from ...runtime.text.guard import library_error
from ...runtime.text.tokenizer import open_engine
from ...runtime.text.tokenizer_file import TokenizerFile, bounded, read_tokenizer_file
from ...runtime.wording import reason
from ..checkpoint.situations import without_tokenizer
from ..checkpoint.weight_files import read_json
from .named_tokens import Settings, read_settings, text_of
from .rebuilt import REBUILT, Rebuilt
from .tokenizer_classes import choose_class
from .tokenizer_parts import Json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

log = logging.getLogger(__name__)

PARTS = ("normalizer", "pre_tokenizer", "decoder")
NOT_READ = ("fast_tokenizer_files", "fix_mistral_regex")
"""Keys of tokenizer_config.json by which transformers would take other files, or another pattern."""

TIDY = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'")]
TIDY += [(f" {short}", short) for short in ("n't", "'m", "'s", "'ve", "'re")]
"""What clean_up_tokenization_spaces does to decoded text, in this order."""


@dataclass(frozen=True)
class Vocabulary:
    """``data``: the tokenizer.json of the bundle. ``special_tokens``: the text of each by name, as a chat template
    sees them. ``split_special_tokens``: in a text they are text like any other. ``eos_id``: the id of ``eos_token``."""

    data: bytes
    special_tokens: dict[str, str]
    split_special_tokens: bool
    eos_id: int | None

    @property
    def added_tokens(self) -> dict[str, int]:
        """The ids of the tokens that are written as they are, by their texts."""
        return {token["content"]: token["id"] for token in json.loads(self.data).get("added_tokens") or ()}

    def write(self, folder: Path) -> Path:
        """Write tokenizer.json to ``folder`` and return its path."""
        path = folder / "tokenizer.json"
        path.write_bytes(self.data)
        return path


def read_vocabulary(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Vocabulary | None:
    """Return the tokenizer of a checkpoint folder, or None with a warning; CheckpointError when it cannot be read.

    ``config`` is config.json. Tokens that the model does not have are warned about only: a padding token that was
    added later and never learned is common, and no text holds it. Where a text does, the runtime refuses it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        log.warning("%s", without_tokenizer(folder))
        return None
    source = read_tokenizer_file(path, CheckpointError)
    engine = open_engine(source, path, CheckpointError)
    file: Json = json.loads(source.data)
    original: Json = json.loads(path.read_bytes())
    settings = read_settings(folder, file)
    for key in NOT_READ:
        if settings.options.get(key):
            log.warning("%s: %s is not read; compare the ids of a few texts", settings.where, key)
    if original["model"].get("dropout"):
        log.warning("%s splits words at random (dropout), which is for training: it is off", path)
    rules = _rules(config, folder, file, settings.where)
    if rules:
        engine = _rebuilt(rules, settings, file, path)
    named = settings.named(_defaults(rules, original))
    _add(engine, settings, named, _extra(rules, settings), rules.again if rules else None, path)

    shipped = json.loads(engine.to_str())
    for token in shipped["added_tokens"]:
        token["special"] = token["special"] or _is_hidden(engine, token["id"], path)
    # As the file has them: hosts differ in which of the two ways to write merges they read.
    shipped["model"] |= {key: file["model"][key] for key in ("vocab", "merges") if key in shipped["model"]}
    shipped["post_processor"] = _around(rules, settings, named, file, engine)
    shipped["decoder"] = _tidy(shipped, settings)
    data = path.read_bytes() if shipped == original else json.dumps(shipped, ensure_ascii=False).encode()
    _check(data, engine, path)
    _warn_beyond(engine, vocab_size, path)
    tokens = {name: text_of(token) for name, token in named.items()}
    eos = engine.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    return Vocabulary(data, tokens, bool(settings.flag("split_special_tokens", False)), eos)


def _rules(config: Mapping[str, Any], folder: Path, file: Json, where: str) -> Rebuilt | None:
    """Return the class that the folder names, if it builds anything anew."""
    path = folder / "tokenizer_config.json"
    options = read_json(path) if path.is_file() else {}
    name = choose_class(config, options, '"ByteLevel"' in json.dumps(_without_words(file)), where)
    rules, found = REBUILT.get(name), file["model"].get("type")
    if rules and found not in (None, rules.model):
        log.warning(
            "%s: tokenizer_class %s wants a %s vocabulary, and tokenizer.json has %s: it is taken as it is",
            where,
            name,
            rules.model,
            found,
        )
        return None
    return rules


def _without_words(file: Json) -> Json:
    return {key: value for key, value in file.items() if key not in ("model", "added_tokens")}


def _rebuilt(rules: Rebuilt, settings: Settings, file: Json, path: Path) -> Engine:
    parts = rules.parts(settings, file)
    kept = {key: file["model"].get(key) or [] for key in ("vocab", "merges") if key in file["model"]}
    parts["model"] = parts["model"] | kept
    empty = {"version": "1.0", "added_tokens": [], "post_processor": None} | dict.fromkeys(PARTS)
    made = _bounded(json.dumps(empty | parts).encode(), path)
    return open_engine(made, path, CheckpointError)


def _defaults(rules: Rebuilt | None, original: Json) -> dict[str, str | None]:
    """Return special tokens that no file names: those of the class, and the one that tokenizer.json pads with."""
    found: dict[str, str | None] = dict(rules.tokens) if rules else {}
    padding = original.get("padding")
    if isinstance(padding, dict) and isinstance(padding.get("pad_token"), str):
        found.setdefault("pad_token", padding["pad_token"])
    return found


def _extra(rules: Rebuilt | None, settings: Settings) -> tuple[AddedToken | str, ...]:
    """Return special tokens without a name."""
    if settings.extra is not None:
        return settings.extra
    if rules is None:
        return settings.old_extra
    known = {text_of(token): token for token in settings.old_extra}
    return tuple(known.get(text, text) for text in rules.extra(settings, tuple(known)))


def _add(
    engine: Engine,
    settings: Settings,
    named: Mapping[str, AddedToken | str],
    extra: tuple[AddedToken | str, ...],
    again: Callable[[AddedToken | str], AddedToken] | None,
    path: Path,
) -> None:
    """Add the tokens that the files name to the tokenizer; one that it has gets their flags."""
    names = {text_of(token) for token in named.values()}
    tokens = [token for _, token in sorted(settings.added.items())]
    known = {token.content for token in (*tokens, *engine.get_added_tokens_decoder().values())}
    new: list[AddedToken | str] = []
    for each in (*named.values(), *extra):
        if text_of(each) not in known and each not in new:
            new.append(each)
    tokens += [AddedToken(each, special=True) if isinstance(each, str) else each for each in new]
    for token in tokens:
        token.special = token.special or token.content in names
    try:
        engine.add_tokens(tokens)
        engine.add_special_tokens([again(token) for token in (*named.values(), *extra)] if again else [])
    except BaseException as error:
        raise library_error(error, CheckpointError, f"{path}: tokens cannot be added ({{reason}})") from error


def _is_hidden(engine: Engine, number: int, path: Path) -> bool:
    """Return whether the token is left out of a text.

    A token that was special once stays so, even where its flag says otherwise now.
    """
    try:
        shown, hidden = (engine.decode([number], skip_special_tokens=skip) for skip in (False, True))
    except BaseException as error:
        raise library_error(
            error, CheckpointError, f"{path}: its decoder fails ({{reason}}); copy it again"
        ) from error
    return shown != hidden


def _around(
    rules: Rebuilt | None,
    settings: Settings,
    named: Mapping[str, AddedToken | str],
    file: Json,
    engine: Engine,
) -> Json | None:
    """Return the post-processor: the tokens that are put around a text."""
    own: Json | None = file.get("post_processor")
    if rules is None:
        return own

    def token(name: str) -> tuple[str, int]:
        text = text_of(named[name]) if name in named else ""
        number = engine.token_to_id(text) if text else None
        if number is None:
            raise CheckpointError(
                f"{settings.where} names no {name}, which its tokenizer_class puts around a text"
            )
        return text, number

    return rules.around(settings, own, token)


def _tidy(shipped: Json, settings: Settings) -> Json | None:
    """Return the decoder, without spaces before punctuation where the files say so and the model is no BPE."""
    decoder: Json | None = shipped["decoder"]
    forced = settings.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    wanted = settings.flag("clean_up_tokenization_spaces", False)
    if not wanted or decoder is None or (shipped["model"]["type"] == "BPE" and not forced):
        return decoder
    rules = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in TIDY]
    return {"type": "Sequence", "decoders": [decoder, {"type": "Fuse"}, *rules]}


def _check(data: bytes, engine: Engine, path: Path) -> None:
    """Raise CheckpointError unless the file, read again, has the tokens that it was made with."""
    again = open_engine(_bounded(data, path), path, CheckpointError)
    if again.get_vocab() != engine.get_vocab():
        raise CheckpointError(f"{path}: its added tokens have ids that no tokenizer.json can give them")


def _bounded(data: bytes, path: Path) -> TokenizerFile:
    """Return the file as a bundle's is read: what the other files add must not be too much either."""
    try:
        return bounded(data)
    except ValueError as error:
        raise CheckpointError(
            f"{path}, with the files beside it, is no tokenizer ({reason(error)})"
        ) from error


def _warn_beyond(engine: Engine, vocab_size: int, path: Path) -> None:
    beyond = sorted(token for token, number in engine.get_vocab().items() if number >= vocab_size)
    if beyond:
        log.warning(
            "%s has %d tokens beyond the model's %d, such as %r: a text that holds one is refused",
            path,
            len(beyond),
            vocab_size,
            beyond[0],
        )
