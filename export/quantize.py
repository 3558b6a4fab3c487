"""Checkpoint and text → a folder of fitted codes; a run that was ended goes on from the matrices that it finished."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..quant.recipe import Recipe
from ..runtime.bundle.folder import sha256_of
from ..runtime.engines.backend import I64
from ..runtime.errors import BundleError, CheckpointError, ExportError, UsageError
from ..runtime.model.checks import problems
from ..runtime.model.stored import map_tensors
from ..runtime.version import VERSION
from .bundle.leftovers import take
from .bundle.staging import staged
from .checkpoint import Checkpoint
from .codes import ABOUT, FORMAT, Codes, coded, ids_hash, read_coded, write_codes
from .families import read_checkpoint
from .family import Reading
from .fitted import TOKENS, fit, text_ids, write_floats
from .overrides import overridden
from .refine.state import State
from .refine.train import Refined, tokens_of
from .refine.train import refine as train
from .stored import Coded, sides
from .target import Progress
from .text.vocabulary import read_vocabulary
from .weights import WeightsWriter

PARTIAL = ".partial"
"""What the folder of a run that is under way is called, behind the name of what it makes."""
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Outcome:
    """What a run of ``quantize`` has made."""

    folder: Path
    codes: Codes
    bytes: int
    """Of the folder's files."""
    resumed: int
    """Matrices that an earlier run had finished."""
    seconds: float
    refined: Refined | None = None
    """What training has made of the codes."""


def quantize_checkpoint(
    checkpoint: str | Path,
    text: str,
    out: str | Path,
    *,
    recipe: Recipe,
    adapter: str | Path | None = None,
    tokens: int = TOKENS,
    refine: int = 0,
    depth: int | None = None,
    loop: str | None = None,
    force: bool = False,
    progress: Progress = lambda step, fraction: None,
) -> Outcome:
    """Fit codes to ``text`` and write them to the folder ``out``, for ``export_bundle(codes=out)``.

    ``recipe``: how matrices are stored. ``tokens``: how many of the text they are fitted to at most. ``refine``: steps
    of training that follow, on as much more of the text as they read (``refine/train.py``). ``adapter``, ``depth`` and
    ``loop`` as in ``export_bundle``. ``force``: replace codes that are at ``out``. What is finished of it is kept in
    ``out`` + ``PARTIAL`` and taken up by the next run with the same weights, recipe and text; of another one it is
    thrown away.

    UsageError for what cannot be meant, CheckpointError for a checkpoint that is not understood, ExportError where the
    disk is full; then ``out`` is as it was before.
    """
    start, out = time.monotonic(), Path(out)
    check_replaceable(out, force)
    if not recipe.is_fitted:
        raise UsageError(
            f"recipe {recipe.name} stores floats alone, so there are no codes to fit; choose another"
        )
    progress("reading the checkpoint", 0.0)
    source = Checkpoint.open(Path(checkpoint), Path(adapter) if adapter is not None else None)
    reading = overridden(read_checkpoint(source), depth=depth, loop=loop)
    if problem := next(problems(reading.program), None):
        raise CheckpointError(f"{source.folder}: {problem}")
    recipe.formats(reading.program.weights)
    vocabulary = read_vocabulary(source.folder, source.config, reading.program.vocab_size)
    with staged(out, lambda: check_replaceable(out, force)) as folder:
        every = text_ids(reading, vocabulary, text, tokens_of(refine, reading.program, tokens), folder)
        ids = every[:tokens]
        floats = folder / "floats.scratch"
        write_floats(reading, floats)
        key = run_key(sha256_of(floats), recipe, ids_hash(ids))
        with partial(out, key) as kept_in:
            keeper = Kept(kept_in, reading, recipe)
            first = 0.2 if refine else 0.95
            codes = fit(reading, recipe, ids, floats, lambda step, part: progress(step, first * part), keeper)
            refined = None
            if refine:
                refined = train(
                    reading.program,
                    recipe,
                    floats,
                    codes,
                    every,
                    refine,
                    lambda step, part: progress(step, 0.2 + 0.75 * part),
                    keeper.training(refine, every),
                )
            floats.unlink()
            progress("writing the codes", 0.95)
            steps = refine if refined and refined.gained else 0
            write_codes(folder, reading, recipe, every, refined.fitted if refined else codes, steps)
    shutil.rmtree(out.with_name(out.name + PARTIAL), ignore_errors=True)
    progress("done", 1.0)
    size = sum(path.stat().st_size for path in out.iterdir())
    return Outcome(out, Codes.open(out), size, keeper.loaded, time.monotonic() - start, refined)


def run_key(floats: str, recipe: Recipe, ids: str) -> str:
    """Return what a run depends on, as a SHA-256: the hashes of the tensors and of the text, the recipe, and what
    computes."""
    return hashlib.sha256(msgspec.json.encode([FORMAT, VERSION, floats, recipe, ids])).hexdigest()


def check_replaceable(out: Path, force: bool) -> None:
    """Raise UsageError where ``out`` is there and may not be replaced: only codes may, and only with ``force``."""
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"{out} exists: choose another folder or pass --force to replace it")
    if not (out / ABOUT).is_file():
        raise UsageError(f"{out} exists and holds no codes: --force replaces codes only")
    if len(list(out.iterdir())) != 2:
        raise UsageError(f"{out} holds more than codes: --force would delete it, move it away")


@contextmanager
def partial(out: Path, key: str) -> Iterator[Path]:
    """Yield the folder where what is finished for ``out`` is kept, by what the run depends on; those of other runs are
    removed.

    UsageError where something else is there, or another process is at work in it.
    """
    place = out.with_name(out.name + PARTIAL)
    try:
        place.mkdir(exist_ok=True)
        if place.is_symlink() or any(not _KEY.fullmatch(found.name) for found in place.iterdir()):
            raise UsageError(
                f"{place} holds what quantize has not put there; move it away or choose another -o"
            )
        try:
            handle = take(place)
        except BlockingIOError as error:
            raise UsageError(f"another process makes {out}; wait for it, or choose another -o") from error
        try:
            for found in place.iterdir():
                if found.name != key:
                    shutil.rmtree(found)
            (place / key).mkdir(exist_ok=True)
            yield place / key
        finally:
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise ExportError(f"cannot write {place}: {error.strerror or error}") from error


class Kept:
    """A Keeper in a folder: a file for each matrix, which gets its name when it is whole and on the disk."""

    def __init__(self, folder: Path, reading: Reading, recipe: Recipe) -> None:
        self.loaded = 0
        """How many matrices were found."""
        self._folder, self._matrices = folder, coded(reading, recipe)
        self._formats = recipe.formats(reading.program.weights)
        for stale in folder.glob("*.new"):
            stale.unlink()

    def load(self, name: str) -> Coded | None:
        """Return the codes of a matrix; None where there are none, or where the file is damaged, which then goes."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            stored = map_tensors(path)
            found = read_coded(stored, name, self._matrices[name], self._formats[name], path)
        except (BundleError, CheckpointError):
            path.unlink()
            return None
        self.loaded += 1
        return found

    def save(self, name: str, codes: Coded) -> None:
        """Keep the codes of a matrix."""
        path = self._path(name)
        fresh = path.with_name(f"{path.name}.new")
        with WeightsWriter(fresh, 2) as writer:
            for side, array in sides(codes).items():
                writer.add(f"{name}.{side}", array)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(path)

    def training(self, steps: int, ids: I64) -> State:
        """Return where so many steps of training on ``ids`` [S] are kept."""
        return State(self._path(f"{steps} steps on {ids_hash(ids)}"))

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"
