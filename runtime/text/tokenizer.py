"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BundleError
from .stream import Detokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine


class Tokenizer:
    """A tokenizer.json."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @staticmethod
    def open(path: str | Path) -> Tokenizer:
        """Load ``path``; BundleError when it is missing or cannot be read."""
        from tokenizers import Tokenizer as Engine

        try:
            return Tokenizer(Engine.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error

    @property
    def vocab_size(self) -> int:
        """Ids, added tokens included."""
        return self._engine.get_vocab_size()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``special``, what the tokenizer puts around a text (often BOS) too."""
        return self._engine.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ``ids``; special tokens give no text unless ``special``."""
        return self._engine.decode(list(ids), skip_special_tokens=not special)

    def written(self, token: int | None) -> str:
        """The token as it is written in the vocabulary; '' for None or an unknown id."""
        return ("" if token is None else self._engine.id_to_token(token)) or ""

    def detokenizer(self) -> Detokenizer:
        """A new stream of text."""
        return Detokenizer(self.decode)
