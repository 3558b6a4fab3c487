"""The tokens and switches that the files beside tokenizer.json name, read in the order in which transformers does.

tokenizer_config.json comes first. Where it lists ``added_tokens_decoder`` the list is complete; folders of older
versions leave it out, and then special_tokens_map.json, added_tokens.json and tokenizer.json itself are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown
from ..checkpoint.weight_files import read_json

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that have a name of their own in transformers; every other key ``*_token`` names one too."""

EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Settings:
    """The contents of the files.

    ``options`` are all keys of tokenizer_config.json, named tokens included; a token that is null there is none,
    even where its class has a default. ``added`` are tokens by id. ``specific``: named tokens of this model alone,
    such as ``image_token``.
    """

    options: Mapping[str, Any]
    added: Mapping[int, AddedToken]
    specific: Mapping[str, AddedToken | str]
    extra: tuple[AddedToken | str, ...] | None
    """Special tokens without a name; None: no list of them is given, and a class may have its own."""
    old_extra: tuple[AddedToken | str, ...]
    """The same from special_tokens_map.json, whose key has an older name; they count where ``extra`` is None."""
    where: str

    def named(self, defaults: Mapping[str, str | None]) -> dict[str, AddedToken | str]:
        """Return the named special tokens, ``defaults`` of a class included, in the order in which transformers adds
        them."""
        found: dict[str, AddedToken | str] = {}
        by_text = {token.content: token for token in self.added.values()}
        for name in NAMED:
            value = self.options.get(name, defaults.get(name))
            if value is not None:
                token = _token(value, f"{self.where}: {name}")
                found[name] = by_text.get(text_of(token), token) if name in self.options else token
        found |= {name: token for name, token in defaults.items() if token and name not in NAMED}
        strays = {n: v for n, v in self.options.items() if n.endswith("_token") and n not in NAMED}
        found |= {n: _token(v, f"{self.where}: {n}") for n, v in strays.items() if isinstance(v, dict | str)}
        return found | {name: token for name, token in self.specific.items() if name not in NAMED}

    def flag(self, name: str, default: bool | None) -> bool | None:
        """Return a switch: true, false, or null for the default of the class."""
        value = self.options.get(name, default)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {name} is {shown(value)}; wanted true, false or null")
        return value


def read_settings(folder: Path, tokenizer: Mapping[str, Any]) -> Settings:
    """Return the settings in ``folder``, whose tokenizer.json is ``tokenizer``; CheckpointError names a malformed
    key."""
    options = _read(folder, "tokenizer_config.json")
    where = str(folder / "tokenizer_config.json")
    # Beside a tokenizer.json these switches are not read: its post-processor says what is put around a text.
    for switch in ("add_bos_token", "add_eos_token"):
        options.pop(switch, None)
    if OLD_EXTRA in options and not options.get(EXTRA):
        options[EXTRA] = options.pop(OLD_EXTRA)
    specific = {
        name: _token(options.pop(name), f"{where}: {name}")
        for name, value in list(options.items())
        if name.endswith("_token") and name not in NAMED and isinstance(value, str)
    }
    if isinstance(options.get(EXTRA), dict):
        specific |= _all_tokens(options.pop(EXTRA), f"{where}: {EXTRA}")
    _tokens(options.get(EXTRA), f"{where}: {EXTRA}")
    if "added_tokens_decoder" in options:
        listed = options.pop("added_tokens_decoder")
        added = _listed(listed, f"{where}: added_tokens_decoder")
    else:
        old = _read(folder, "special_tokens_map.json")
        _merge(options, specific, old, str(folder / "special_tokens_map.json"))
        added = _older(folder, options, where) | _own(tokenizer, str(folder / "tokenizer.json"))
    extra = options.pop(EXTRA, None)
    old_extra = _tokens(options.pop(OLD_EXTRA, None), f"{where}: {OLD_EXTRA}")
    given = None if extra is None else _tokens(extra, f"{where}: {EXTRA}")
    return Settings(options, added, specific, given, old_extra, where)


def text_of(token: AddedToken | str) -> str:
    """Return the text of a token."""
    return token if isinstance(token, str) else token.content


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _merge(options: dict[str, Any], specific: dict[str, Any], old: Mapping[str, Any], where: str) -> None:
    """Add special_tokens_map.json, which wins over tokenizer_config.json, but for lists, which are joined."""
    for name, value in old.items():
        if name == EXTRA and isinstance(value, list):
            joined = list(options.get(EXTRA) or [])
            listed = [{**token, "special": True} if isinstance(token, dict) else token for token in value]
            options[name] = joined + [token for token in listed if token not in joined]
        elif isinstance(value, dict) and name != EXTRA:
            options[name] = value | {"special": True}
        else:
            options[name] = value
    if isinstance(options.get(EXTRA), dict):
        specific |= _all_tokens(options.pop(EXTRA), where)
    _tokens(options.get(EXTRA), f"{where}: {EXTRA}")


def _older(folder: Path, options: Mapping[str, Any], where: str) -> dict[int, AddedToken]:
    """Return the tokens of added_tokens.json by id. Special ones are those that another file names, without flags."""
    path = str(folder / "added_tokens.json")
    others = [(name, options[name]) for name in NAMED if options.get(name)]
    others += [(EXTRA, value) for value in options.get(EXTRA) or []]
    plain = [(name, each) for name, each in others if not (isinstance(each, dict) and "__type" in each)]
    special = {text_of(_token(each, f"{where}: {name}")) for name, each in plain}
    found = {}
    for text, number in _read(folder, "added_tokens.json").items():
        is_special = text in special
        found[_id(number, path)] = AddedToken(
            _text(text, path), normalized=not is_special, special=is_special
        )
    return found


def _own(tokenizer: Mapping[str, Any], where: str) -> dict[int, AddedToken]:
    """Return the added tokens of tokenizer.json by id."""
    tokens = tokenizer.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise CheckpointError(f"{where}: added_tokens is {shown(tokens)}; wanted a list of tokens")
    return {
        _id(token.get("id"), where): _added(token, where)
        if isinstance(token, dict)
        else _refused(token, where)
        for token in tokens
    }


def _listed(listed: object, where: str) -> dict[int, AddedToken]:
    if not isinstance(listed, dict):
        raise CheckpointError(f"{where} is {shown(listed)}; wanted an object of tokens by id")
    found = {}
    for number, token in listed.items():
        if not (number.isascii() and number.isdigit()) or not isinstance(token, dict):
            raise CheckpointError(f"{where} has {shown(number)}: {shown(token)}; wanted an id and a token")
        found[_id(int(number), where)] = _added(token, where)
    return found


def _tokens(values: object, where: str) -> tuple[AddedToken | str, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise CheckpointError(f"{where} is {shown(values)}; wanted a list of tokens")
    return tuple(_token(value, where) for value in values)


def _all_tokens(values: Mapping[str, Any], where: str) -> dict[str, AddedToken | str]:
    return {name: _token(value, f"{where}: {name}") for name, value in values.items()}


def _token(value: object, where: str) -> AddedToken | str:
    """Return a token, given as text or as an object with flags."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return _text(value, where)
    # With a type it is as AddedToken takes it; without, as older versions write special tokens.
    special = {"special": not (isinstance(value, dict) and "__type" in value)}
    return _added(special | value, where) if isinstance(value, dict) else _refused(value, where)


def _added(value: Mapping[str, Any], where: str) -> AddedToken:
    flags = {name: value[name] for name in FLAGS if name in value}
    text = value.get("content")
    if not isinstance(text, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        _refused(value, where)
    return AddedToken(_text(text, where), **flags)


def _text(value: str, where: str) -> str:
    """Return ``value``; CheckpointError when it is no text: JSON can hold halves of surrogate pairs."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _refused(value, where)
    return value


def _refused(value: object, where: str) -> NoReturn:
    raise CheckpointError(f"{where}: {shown(value)} is no token; wanted its text, or an object with content")


def _id(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise CheckpointError(f"{where}: {shown(value)} is no token id; wanted a whole number")
    return value
