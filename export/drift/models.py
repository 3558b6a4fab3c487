"""The models that drift compares: bundles on an engine, checkpoints as a recipe stores them on the reference engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...quant.recipe import Recipe
from ...runtime.bundle.folder import Bundle
from ...runtime.decode.encoding import check_encoder
from ...runtime.engines.backend import Backend
from ...runtime.engines.table import open_backend
from ...runtime.errors import UsageError
from ...runtime.text.tokenizer import Tokenizer
from ..checkpoint import Checkpoint
from ..families import read_checkpoint
from ..overrides import overridden
from ..reference import reference_engine
from ..stored import write_weights
from ..text.vocabulary import read_vocabulary

Tokens = Callable[[str], list[int]]
FLOAT = Recipe.named("none", 32)


@dataclass(frozen=True)
class Model:
    """A model that can be run. ``trained``: depths without ``--depth``. ``encode``: a text → its tokens, or None."""

    name: str
    backend: Backend
    trained: int
    encode: Tokens | None


def open_bundle(
    path: Path, depth: int | None, engine: str | None, threads: int | None, kv_bits: int
) -> Model:
    """Open the bundle at ``path``; errors as of ``Bundle.open`` and ``open_backend``, UsageError for an encoder."""
    bundle = Bundle.open(path)
    check_encoder(bundle.program, path, False)
    deeper = bundle.at_depth(depth)
    backend = open_backend(engine, deeper, threads, kv_bits=kv_bits)
    text, stored = bundle.manifest.text, bundle.manifest.quantization
    encode = None
    if text.tokenizer:
        encode = Tokenizer.open(bundle.path(text.tokenizer), text.split_special_tokens).encode
    name = f"{path.name or path}: {stored.scheme}, {backend.name}"
    return Model(name, backend, bundle.program.depths, encode)


class CheckpointModels:
    """The models that recipes make of a checkpoint, on the reference engine."""

    def __init__(self, path: Path, depth: int | None, folder: Path) -> None:
        """``folder`` has room for the weights of each. Errors as of an export, UsageError for an encoder."""
        source = Checkpoint.open(path)
        as_trained = overridden(read_checkpoint(source))
        check_encoder(as_trained.program, path, False)
        self._trained = as_trained.program.depths
        self._reading = overridden(as_trained, depth=depth)
        self._path, self._folder, self._made = path, folder, 0
        vocabulary = read_vocabulary(source.folder, source.config, as_trained.program.vocab_size)
        self._encode: Tokens | None = None
        if vocabulary:
            self._encode = Tokenizer.open(vocabulary.write(folder), vocabulary.split_special_tokens).encode

    def open(self, recipe: Recipe) -> Model:
        """Store the weights as ``recipe`` says and open them; UsageError where it does not fit the model."""
        program = self._reading.program
        recipe.formats(program.weights)
        self._made += 1
        weights = self._folder / f"{self._made}.weights"
        write_weights(self._reading, recipe, weights)
        groups = f" in groups of {recipe.group_size}" if recipe.group_size else ""
        name = f"{recipe.name}{groups}" if recipe.has_codes else "float"
        return Model(name, reference_engine(program, weights, recipe), self._trained, self._encode)


def encoded(models: list[Model], text: str, most: int | None) -> list[int]:
    """Return the first ``most`` tokens of ``text``.

    UsageError where no model has a tokenizer, there are no tokens, or one is beyond the models' vocabulary.
    """
    encode = next((model.encode for model in models if model.encode), None)
    if encode is None:
        raise UsageError(
            "the model has no tokenizer; give --random N for so many random tokens in place of a text"
        )
    ids = encode(text)[:most]
    if not ids:
        raise UsageError("the text has no tokens; give some hundreds")
    if (largest := max(ids)) >= (known := models[0].backend.program.vocab_size):
        raise UsageError(f"the text has token {largest}, and the float model knows {known}; give twins")
    return ids
