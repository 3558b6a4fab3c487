"""Checkpoint → bundle: the table of contents of an export."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType

from msgspec import structs

from ..quant.recipe import Recipe
from ..quant.recipe_file import read_recipe
from ..runtime.bundle.manifest import FORMAT, Manifest, Quantization, Storage, Text, write_manifest
from ..runtime.bundle.signature import SigningKey, sign_bundle
from ..runtime.errors import CheckpointError, UsageError
from ..runtime.model.checks import problems
from ..runtime.model.facts import count_parameters
from ..runtime.model.weights import Weight, tensors
from ..runtime.version import VERSION
from .artifacts import make_artifacts
from .bundle.writer import check_free, describe_files, new_folder
from .checkpoint import Checkpoint
from .codes import Codes
from .families import loop_said_by, read_checkpoint, unused
from .fitted import TOKENS, check_fits, fit, text_ids, write_floats
from .heads import count_heads, write_heads
from .host_text import text_tables, write_text
from .options import ExportRequest
from .overrides import overridden
from .refine.train import refine as train
from .refine.train import tokens_of
from .stored import NEAREST, Fitted, write_weights
from .target import Job, Progress, Target
from .targets import LAYOUTS, TARGETS, open_target, read_options
from .text.ends import warn_of_ends, with_ends
from .text.templates import chat_templates, warn_of_templates
from .text.vocabulary import read_vocabulary


@dataclass(frozen=True)
class Report:
    """The outcome of an export."""

    bundle: Path
    """The folder that was written."""
    manifest: Manifest
    """What its manifest.json says: program, quantization, parity of each target, files."""
    bundle_bytes: int
    """Of all files of the bundle."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the model does not use, by their names there."""
    seconds: float
    """That the export took."""


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    targets: Sequence[str] = ("onnx",),
    layouts: Sequence[str] = ("staged",),
    quant: str = "int4",
    group_size: int = 32,
    recipe: str | Path | None = None,
    calibration: str | None = None,
    refine: int = 0,
    codes: str | Path | None = None,
    context: int | None = None,
    kv: str | None = None,
    window: int | None = None,
    depth: int | None = None,
    loop: str | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
    sign: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda step, fraction: None,
) -> Report:
    """Export the checkpoint folder ``checkpoint``, or a model in the Hugging Face cache, to the bundle folder ``out``.

    - ``adapter``: the folder of a PEFT LoRA on it: what differs between depths stays a delta, the rest is merged.
    - ``targets``: of ``native``, ``onnx``, ``executorch`` and ``coreml``; ``layouts``: ``staged``, for engines that run
      the depth loop, and ``flat``, one graph for hosts that know no loop (executorch). Every pair is exported.
    - ``quant``: ``none`` (float32), ``int8`` or ``int4`` in groups of ``group_size`` (32, 64 or 128) columns with a
      scale each, ``int8-channel`` with a scale a row, ``int4-mixed`` and ``phone``: both; or in place of the two
      ``recipe``, a file of rules (``quant/recipe_file.py``).
    - ``calibration``: a text; codes are those that do best for it (``fitted.py``), by default the nearest ones. Every
      target has to store codes. ``codes``: the folder of such ones that ``quantize_checkpoint`` has made; how
      matrices are stored is what they say, and ``quant`` and ``recipe`` are not read. ``refine``: steps of training
      that follow on ``calibration``: codes, scales, norms and deltas of the depths (``refine/train.py``).
    - ``context``: tokens; shortens the model's context, and with it caches, and the tables of a Core ML package.
    - ``kv`` (``per-depth`` or ``shared``), ``window`` (tokens) and ``depth`` replace the KV policy and sliding window
      of the family, and how often its loop runs where it may run any number of times; ``loop``: ``layers`` makes each
      applied layer of a model without a loop a depth of one.
    - ``options``: what a target may be asked for beside that: ``{"split_weights": True}`` of executorch,
      ``{"coreml_ane": True}`` of coreml (``targets/*/options.py``).
    - ``sign``: the PEM file of an Ed25519 private key to sign the bundle with (``runtime/bundle/signature.py``).
    - ``force``: replace a bundle that is at ``out``, in one step at the end; never another folder.
    - ``progress``: called with what is being done and the share of the work that is behind it, 0 … 1.

    UsageError for what cannot be meant, CheckpointError for a checkpoint that is not understood, ExportError where a
    target is not installed, cannot hold the model or the disk is full, ParityError where an artifact does not compute
    what the checkpoint does; then ``out`` is as it was before.
    """
    start = time.monotonic()
    out = Path(out)
    check_free(out, force)
    key = SigningKey.read(sign) if sign is not None else None
    if codes is not None and calibration is not None:
        raise UsageError("codes are fitted already; give a text to calibrate with, or codes")
    if refine and calibration is None:
        raise UsageError("training needs a text: give --calibrate with --refine, or leave it away")
    made = Codes.open(Path(codes)) if codes is not None else None
    rules = Recipe.named(quant, group_size) if recipe is None else read_recipe(Path(recipe))
    rules = made.recipe if made else rules
    for found, what, table in ((layouts, "layout", LAYOUTS), (targets, "target", TARGETS)):
        if not found:
            raise UsageError(f"no {what}: choose from {', '.join(table)}")
        if isinstance(found, str):
            raise UsageError(f"{what}s is the text {found!r}, wanted a list: [{found!r}]")
    asked = read_options(options, ExportRequest(tuple(targets), tuple(layouts), rules.name))
    chosen = {pair: open_target(*pair, asked.get(pair)) for pair in product(targets, layouts)}
    recipes = {target.name: asked[pair].recipe(rules) for pair, target in chosen.items()}
    if calibration is not None or made:
        check_fits(recipes, "--codes" if made else "--calibrate")
    for name, wanted in recipes.items():
        if made and wanted != made.recipe:
            raise UsageError(
                f"{codes} has {made.recipe.rest}, and target {name} is to have {wanted.rest}; leave --coreml-ane away, "
                "or make such codes with a recipe of tables"
            )

    progress("reading the checkpoint", 0.0)
    source = Checkpoint.open(Path(checkpoint), Path(adapter) if adapter is not None else None)
    reading = overridden(read_checkpoint(source), context, kv, window, depth, loop)
    reading = replace(reading, program=with_ends(reading.program, source.folder))
    if problem := next(problems(reading.program), None):
        raise CheckpointError(f"{source.folder}: {problem}")
    vocabulary = read_vocabulary(source.folder, source.config, reading.program.vocab_size)
    special_tokens = vocabulary.special_tokens if vocabulary else {}
    if vocabulary:
        warn_of_ends(reading.program, vocabulary, source.folder)
    templates = chat_templates(source.folder)
    rules.formats(reading.program.weights)
    for target in chosen.values():
        target.check(reading.program, recipes[target.name])
    added = vocabulary.added_tokens if vocabulary else {}
    warn_of_templates(source.folder, templates, special_tokens, added, reading.program.eos_token_ids)

    with new_folder(out, force) as folder:
        progress("quantizing" if rules.is_fitted else "writing weights", 0.1)
        weights = {each: folder / f"{number}.scratch" for number, each in enumerate({*recipes.values()})}
        for each, path in weights.items():
            fitted: Fitted = made.of(reading) if made else NEAREST
            if calibration is not None:
                ids = text_ids(reading, vocabulary, calibration, tokens_of(refine, reading.program), folder)
                floats = folder / "floats.scratch"
                write_floats(reading, floats)
                fitted = fit(
                    reading, each, ids[:TOKENS], floats, lambda step, part: progress(step, 0.1 + 0.1 * part)
                )
                if refine:
                    fitted = train(
                        reading.program, each, floats, fitted, ids, refine,
                        lambda step, part: progress(step, 0.2 + 0.2 * part),
                    ).fitted  # fmt: skip
                floats.unlink()
            write_weights(reading, each, path, fitted)
        heads = write_heads(reading, folder)
        tokenizer = vocabulary.write(folder) if vocabulary else None
        text = Text(
            tokenizer=tokenizer.name if tokenizer else None,
            special_tokens=special_tokens,
            split_special_tokens=bool(vocabulary and vocabulary.split_special_tokens),
            chat_templates=templates,
        )
        tables = text_tables(tokenizer, text)
        if not all(LAYOUTS[layout][name].has_text for name, layout in chosen):
            text = structs.replace(text, lanes=write_text(folder, reading.program, tables))

        def job(target: Target) -> Job:
            each = recipes[target.name]
            return Job(
                reading.program,
                each,
                weights[each],
                folder,
                lambda step, part: progress(step, 0.4 + 0.5 * part),
                tokenizer,
                tables,
                source.folder.name,
            )

        artifacts = make_artifacts(chosen, job)
        for path in weights.values():
            path.unlink()

        progress("hashing", 0.95)
        stored = rules if rules in weights else next(iter(weights))
        unique, unrolled = count_parameters(reading.program, count_heads(reading))
        manifest = Manifest(
            format=FORMAT,
            edgeloop=VERSION,
            program=reading.program,
            quantization=quantization(stored, reading.program.weights),
            targets=artifacts,
            heads=heads,
            text=text,
            parameters=unique,
            unrolled_parameters=unrolled,
            loop_said_by=loop_said_by(reading.program.family),
            files=describe_files(folder),
        )
        write_manifest(folder, manifest)
        if key is not None:
            sign_bundle(folder, manifest, key)
    progress("done", 1.0)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return Report(out, manifest, size, tuple(unused(source, reading)), time.monotonic() - start)


def quantization(recipe: Recipe, weights: Mapping[str, Weight]) -> Quantization:
    """Return what the manifest says of how ``weights`` are stored."""
    others = {
        name: Storage(storage.bits, storage.group_size, storage.palette)
        for name, storage in recipe.formats(weights).items()
        if storage != recipe.rest
    }
    deltas = any(tensor.kind == "delta" for _, tensor in tensors(weights))
    return Quantization(
        recipe.name,
        recipe.bits,
        recipe.group_size,
        others,
        recipe.deltas.bits if deltas else None,
        recipe.palettized,
    )
