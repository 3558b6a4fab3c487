"""``edgeloop predict``: how fast a model will be on a device, from its program and the device's profile alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .options import at_least
from .quantities import byte_count, digits
from .show import is_bundle

if TYPE_CHECKING:
    from .predicting.device import Device
    from .predicting.prediction import Prediction, Wanted
    from .predicting.subject import Subject

EXAMPLES = """\
examples:
  edgeloop predict bundle --device raspberry-pi-5
  edgeloop predict checkpoint --quant int4 --group-size 128 --device pixel-8 --context 2048
  edgeloop predict mor-360m-r3 --device oneplus-12 --exit-share 0.4,0.3,0.3
  edgeloop predict mor-360m-r3 --device mine.toml --acceptance 0.8 --kv-bits 8
  edgeloop predict mor-360m-r3 smollm-135m-r3 --sweep --depths 2,3,4 --quant int4,int8 --device raspberry-pi-5
"""


def numbers(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers of 1 or more with commas between them."""
    return tuple(at_least(1)(part) for part in text.split(","))


def shares(text: str) -> tuple[float, ...]:
    """An argparse type: shares with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not shares, as 0.4,0.3,0.3") from None


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a share from 0 to 1")
    return value


def words(text: str) -> tuple[str, ...]:
    """An argparse type: words with commas between them."""
    return tuple(part for part in text.split(",") if part)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the device, what is asked, and what a sweep goes through."""
    parser.description = (
        "Predict tokens a second, the time to the first token and memory of a bundle, a checkpoint or a shape\n"
        "with the lane engine on a device, without running anything; and print how far off that may be."
    )
    parser.usage = "edgeloop predict BUNDLE|CHECKPOINT|SHAPE --device NAME|FILE [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="bundle or checkpoint folder, name of a shape (edgeloop synth --list), or a TOML file of one",
    )
    parser.add_argument(
        "--device",
        required=True,
        metavar="NAME|FILE",
        help="a profile (edgeloop device list), or a file of edgeloop device measure",
    )
    parser.add_argument("--threads", type=at_least(1, 1024), metavar="N", help="threads (the device's cores)")
    parser.add_argument(
        "--prompt-tokens", type=at_least(1), metavar="N", help="tokens to read (128, or the model's context)"
    )
    parser.add_argument(
        "--context",
        type=numbers,
        default=(),
        metavar="N",
        help="tokens behind the one that is written (512, or the model's context)",
    )
    parser.add_argument("--kv-bits", type=numbers, default=(32,), metavar="N", help="32, 16 or 8 (32)")
    group = parser.add_argument_group("a model that is not exported yet")
    group.add_argument(
        "--quant", type=words, default=("int4",), metavar="NAME", help="how matrices are stored (int4)"
    )
    group.add_argument("--group-size", type=numbers, default=(32,), metavar="N", help="32, 64 or 128 (32)")
    group.add_argument(
        "--depths", type=numbers, default=(), metavar="N", help="run the loop N times (as the model says)"
    )
    group.add_argument(
        "--lora-rank", type=at_least(0), default=0, metavar="N", help="per-depth LoRA (MoR shapes)"
    )
    group = parser.add_argument_group("depth")
    group.add_argument(
        "--exit-share",
        type=shares,
        action="append",
        default=[],
        metavar="X,X,X",
        help="of tokens that leave after each depth; may be repeated in a sweep",
    )
    group.add_argument("--exit", metavar="RULE", help="an exit rule that was calibrated for the bundle")
    group.add_argument(
        "--acceptance", type=share, metavar="X", help="pipelined decoding whose drafts are right that often"
    )
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--sweep", action="store_true", help="every combination; options take several values with commas"
    )
    group.add_argument("--svg", type=Path, metavar="FILE", help="draw speed against memory")
    group.add_argument(
        "--jobs", type=at_least(1, 1024), metavar="N", help="processes (one a core, for a large sweep)"
    )
    group.add_argument(
        "--ray", metavar="ADDRESS", help="spread the work over the Ray cluster at ADDRESS, or auto"
    )


def main(args: argparse.Namespace, console: Console) -> None:
    """Print what is predicted of one model, or the table of a sweep; UsageError for what does not go together."""
    from .predicting.device import device

    profile = device(args.device)
    if args.sweep:
        from .predicting.sweep_verb import run_sweep

        run_sweep(args, profile, console)
        return
    lists = ("context", "kv_bits", "quant", "group_size", "depths", "models", "exit_share")
    if several := next((name for name in lists if len(getattr(args, name)) > 1), None):
        raise UsageError(f"several {several.replace('_', '-')}: that is a sweep; add --sweep, or give one")
    if flag := next((name for name in ("svg", "ray", "jobs") if getattr(args, name) is not None), None):
        raise UsageError(f"--{flag} is for a sweep; add --sweep")
    from .predicting.prediction import predict

    subject = found(args)
    wanted = asked(args, subject)
    made = predict(subject, profile, wanted)
    if console.json:
        console.result({"model": subject.name, "device": profile, "exact": _error(profile), **made.data()})
        return
    show(subject, profile, wanted, made, console)


def found(args: argparse.Namespace) -> Subject:
    """The model that is predicted."""
    from .predicting.subject import of_bundle, of_program, program_of

    (given,) = args.models
    if is_bundle(Path(given)):
        if args.depths or args.lora_rank:
            raise UsageError(
                f"{given} is a bundle, whose depths are its own; --depths and --lora-rank are for others"
            )
        return of_bundle(Path(given))
    name, program = program_of(given, args.depths[0] if args.depths else None, args.lora_rank)
    return of_program(name, program, args.quant[0], args.group_size[0])


def asked(args: argparse.Namespace, subject: Subject) -> Wanted:
    """What of it is asked."""
    from .predicting.prediction import CONTEXT, PROMPT, Wanted, shares_of
    from .predicting.subject import BY_LOGITS

    if args.kv_bits[0] not in (32, 16, 8):
        raise UsageError(f"--kv-bits {args.kv_bits[0]}: wanted 32, 16 or 8")
    given: tuple[float, ...] = args.exit_share[0] if args.exit_share else ()
    if args.exit is not None:
        if given:
            raise UsageError("--exit and --exit-share say the same; give one")
        if args.exit not in subject.exits:
            known = ", ".join(subject.exits) or "none: `edgeloop calibrate` writes them"
            raise UsageError(f"--exit {args.exit:.40}: {subject.name} has these calibrated rules: {known}")
        given = shares_of(subject.exits[args.exit], subject.program.depths)
    if given and args.acceptance is not None:
        raise UsageError("--acceptance is about drafts that run every depth; give it without exits")
    return Wanted(
        threads=args.threads,
        prompt=args.prompt_tokens or min(PROMPT, subject.program.context_length),
        context=args.context[0] if args.context else min(CONTEXT, subject.program.context_length),
        kv_bits=args.kv_bits[0],
        shares=given,
        reads=args.exit in BY_LOGITS,
        acceptance=args.acceptance,
    )


def show(subject: Subject, device: Device, wanted: Wanted, made: Prediction, console: Console) -> None:
    """The prediction, for people."""
    from .predicting.prediction import bound

    program = subject.program
    console.facts(
        [
            ("model", f"{subject.name}: {program.depths} depths, {subject.quantization}"),
            ("device", f"{device.name}: {device.chip}; {made.threads} threads"),
            (
                "a token",
                f"{byte_count(made.token_bytes)} read, {made.token_operations / 1e9:.3g} G operations",
            ),
            ("cache", kept(program.depths, device, made)),
            ("memory", memory(device, made)),
        ]
    )
    behind = f"a token behind {wanted.context}"
    phases = [(f"a prompt of {wanted.prompt}", made.prompt, wanted.prompt), (behind, made.token, 1)]
    if made.exits is not None:
        phases.append((f"{behind}, {made.mean_depth:.2f} depths", made.exits, 1))
    if made.drafts is not None:
        phases.append((f"{behind}, drafts right {wanted.acceptance:.0%}", made.drafts, 1))
    if made.unrolled is not None:
        phases.append((f"{behind}, model unrolled", made.unrolled, 1))
    rows = [
        (name, digits(1000 * each.total), digits(count / each.total), digits(device.sustained * count / each.total),
         bound(each))
        for name, each, count in phases
    ]  # fmt: skip
    console.table(("predicted", "#ms", "#tokens/s", "#after minutes", "most of the time"), rows)
    console.note(_error(device))


def kept(depths: int, device: Device, made: Prediction) -> str:
    """What of the weights the last cache keeps, in words."""
    size = f"{device.cache_mb:g} MB"
    if made.kept >= 0.99:
        return f"all that a token reads stays in the {size} from token to token"
    block = f"the block, {byte_count(made.block_bytes)} and {byte_count(made.block_kv_bytes)} of K/V"
    if depths == 1:
        return f"each token reads its weights from memory ({size} of cache)"
    if made.block_kept >= 0.99:
        return f"{block}, stays in the {size} between depths: depth 2 to {depths} read it there"
    if made.block_kept > 0:
        return f"{block}, stays in the {size} between depths for {made.block_kept:.0%}"
    return f"{block}, is more than the {size} keep: every depth reads it from memory"


def memory(device: Device, made: Prediction) -> str:
    """Memory, and whether there is so much."""
    share = made.memory_bytes / (device.memory_gb * 1e9)
    fits = "more than the device has" if share > 1 else f"{share:.1%} of the device's"
    return f"{byte_count(made.memory_bytes)}, of which K/V {byte_count(made.kv_bytes)}: {fits}"


def _error(device: Device) -> str:
    """How exact it is."""
    from .predicting.costs import lane_engine

    costs, derived = lane_engine(), ", ".join(device.derived)
    error, published = costs.error, costs.published
    said = "its error was not measured yet"
    if error is not None:
        said = (
            f"median error {error.median:.0%}, worst {error.worst:.0%}, on {error.points} points of one machine "
            f"({error.machine}, {error.date})"
        )
    if published is not None:
        span = f"{published.least:.2g} to {published.most:.2g}"
        said += f"; {span} times what others published of {published.devices} devices"
    computed = f"; of this profile {derived} are computed, not measured" if derived else ""
    return f"[a model, not a measurement: {said}{computed}; docs/predict.md]"
