"""Text to token ids and back, by the tokenizers library, whose errors and panics become one line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BundleError, EdgeloopError, UsageError
from .guard import library_error, stderr_held_back
from .pieces import Pieces
from .stops import AnswerText
from .stream import Detokenizer
from .tokenizer_file import TokenizerFile, read_tokenizer_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

ENOUGH = 1 << 26
"""Characters that a normalizer that expands a text may make of it; the library takes some 17 bytes for each."""


class Tokenizer:
    """A tokenizer.json. Its calls raise EdgeloopErrors of one line, whatever the file made the library do."""

    def __init__(self, engine: Engine, growth: float = 1, split_special: bool = False) -> None:
        """``growth``: characters that one may become (``tokenizer_file.py``). ``split_special``: special tokens in a
        text are text."""
        self._engine = engine
        self._growth = growth
        if split_special:
            engine.encode_special_tokens = True

    @staticmethod
    def open(path: str | Path, split_special: bool = False) -> Tokenizer:
        """Load ``path``; BundleError when it is missing or cannot be read."""
        file = read_tokenizer_file(Path(path))
        return Tokenizer(open_engine(file, path, BundleError), file.growth, split_special)

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self._engine.get_vocab_size()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the token ids of ``text``; with ``special``, also those that the tokenizer puts around a text
        (often BOS).

        UsageError for what is not Unicode text, and for text that the tokenizer has no tokens for.
        """
        return self._encoded(text, None, special)[0]

    def encode_typed(self, text: str, second: str | None = None) -> tuple[list[int], list[int]]:
        """Return the token ids of ``text``, or of a pair of texts, with the tokens around them, and the types of all.

        As transformers' tokenizers do: input_ids and token_type_ids. UsageError as in ``encode``.
        """
        return self._encoded(text, second, True)

    def _encoded(self, text: str, second: str | None, special: bool) -> tuple[list[int], list[int]]:
        for each in (text,) if second is None else (text, second):
            self._check(each)
        try:
            found = self._engine.encode(text, second, add_special_tokens=special)
            return found.ids, found.type_ids
        except BaseException as error:
            message = (
                "the tokenizer cannot encode this text ({reason}); use characters that its vocabulary has"
            )
            raise library_error(error, UsageError, message) from error

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Return the text of ``ids``; special tokens give no text unless ``special``."""
        try:
            return self._engine.decode(list(ids), skip_special_tokens=not special)
        except (OverflowError, TypeError) as error:
            raise UsageError("token ids are whole numbers from 0 to 4294967295; give such a list") from error
        except BaseException as error:
            message = "the bundle's tokenizer cannot decode these tokens ({reason}); export it again"
            raise library_error(error, BundleError, message) from error

    def written(self, token: int | None) -> str:
        """Return the token as it is written in the vocabulary; '' for None or an unknown id."""
        try:
            return ("" if token is None else self._engine.id_to_token(token)) or ""
        except OverflowError:  # no id at all
            return ""

    @cached_property
    def pieces(self) -> Pieces:
        """What single tokens write."""
        return Pieces(self._engine, self.encode, self.decode)

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """Return a new stream of the text that follows the tokens ``prompt``."""
        return Detokenizer(self.decode, self.pieces, prompt)

    def answer_text(self, prompt: Sequence[int], stops: Sequence[str]) -> AnswerText:
        """Return a stream as ``detokenizer`` does, ended by the first of ``stops``."""
        return AnswerText(self.detokenizer(prompt), self.pieces, stops, prompt)

    def _check(self, text: object) -> None:
        if not isinstance(text, str):
            raise UsageError(f"the text is of type {type(text).__name__}; give a str")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            found = ord(text[error.start])
            byte = (
                f", the byte 0x{found - 0xDC00:02X} of what was no UTF-8" if 0xDC80 <= found <= 0xDCFF else ""
            )
            raise UsageError(
                f"character {error.start + 1} of the text is the lone surrogate U+{found:04X}{byte}; "
                "give Unicode text, encoded as UTF-8"
            ) from None
        if self._growth > 8 and size * self._growth > ENOUGH:
            raise UsageError(
                f"the text has {size} bytes, and the tokenizer may make {self._growth:.3g} of each; "
                f"at most {ENOUGH} are worked on: give a shorter text"
            )


def open_engine(file: TokenizerFile, path: str | Path, kind: type[EdgeloopError]) -> Engine:
    """Return the library's tokenizer of ``file``; an error of ``kind`` names ``path`` when it cannot be used."""
    from tokenizers import Tokenizer as Engine

    with stderr_held_back():
        try:
            engine = Engine.from_buffer(file.data)
        except BaseException as error:
            message = f"{path} is not a tokenizer ({{reason}}); copy it again"
            raise library_error(error, kind, message) from error
        try:
            engine.decode(engine.encode("a b").ids)
        except BaseException as error:
            if not isinstance(error, Exception):  # having no token for these letters is none: others may come
                message = f"{path} is a tokenizer that fails on plain text ({{reason}}); copy it again"
                raise library_error(error, kind, message) from error
    return engine
