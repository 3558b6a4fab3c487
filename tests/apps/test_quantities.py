"""Numbers as people read them, and the estimate of the unrolled size."""

import msgspec
import pytest

from edgeloop.apps.quantities import (
    bundle_bytes,
    byte_count,
    count,
    deltas,
    digits,
    layout,
    shorter_context,
    table_bytes,
    unrolled_bytes,
    with_target,
)
from edgeloop.export.families.llama_program import program_of
from edgeloop.export.families.llama_spec import Segment, Spec
from edgeloop.runtime.bundle.manifest import (
    FORMAT,
    File,
    Manifest,
    Parity,
    Quantization,
    Target,
    Text,
)
from edgeloop.runtime.engines.coreml.package import Package
from edgeloop.runtime.model.facts import delta_parameters
from edgeloop.runtime.model.program import Program


def program(*segments: Segment) -> Program:
    return program_of(
        Spec(
            family="tiny",
            segments=segments,
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            heads=4,
            kv_heads=2,
            head_dim=8,
            norm_eps=1e-5,
            rope_theta=1e4,
            context_length=64,
            tied_embedding=True,
        )
    )


LOOPED = program(
    Segment(1), Segment(3, 3, per_repeat_norms=True, lora={"q_proj": 2, "k_proj": 2}), Segment(1)
)


@pytest.mark.parametrize(
    ("n", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (11_370_000, "11.4 MB"),
        (999_600, "1 MB"),
        (123_456, "123 kB"),
        (5e15, "5000 TB"),
    ],
)
def test_byte_count(n: float, written: str) -> None:
    assert byte_count(n) == written


def test_count() -> None:
    assert (count(512), count(7_680_000)) == ("512", "7.68 M")


def test_layout() -> None:
    assert layout(LOOPED) == "1 + 3×3 + 1"
    assert layout(program(*[Segment(1, 2)] * 15)) == "15 of 1×2"
    assert layout(program(Segment(24, 4))) == "24×4"


def test_deltas() -> None:
    assert deltas(LOOPED) == "LoRA of rank 2 on q, k; own norms"
    assert deltas(program(Segment(2, 2))) == "none"
    # 3 layers × 3 depths × rank 2 × ((32 + 32) for q + (32 + 16) for k)
    assert delta_parameters(LOOPED) == 3 * 3 * 2 * (64 + 48)


def test_the_unrolled_estimate_repeats_matrices_and_merges_deltas() -> None:
    matrices = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    manifest = Manifest(
        format=FORMAT,
        edgeloop="0",
        program=LOOPED,
        quantization=Quantization("int4", 4, 32),
        targets={"onnx": Target({}, "w", Parity((), 0.0, 0.0))},
        text=Text(),
        parameters=50_000,
        unrolled_parameters=50_000 + 6 * matrices,
        files={"w": File(30_000, "")},
    )
    assert unrolled_bytes(manifest) == 30_000 + 6 * matrices * 4.5 / 8 - 2 * delta_parameters(LOOPED)


def packaged(context: int, rest: int) -> Manifest:
    """A Core ML bundle of ``rest`` bytes, and 20 for each position: cos, sin and its number."""
    package = Package("p", {}, {}, 16, context)
    return Manifest(
        format=FORMAT,
        edgeloop="0",
        program=msgspec.structs.replace(LOOPED, context_length=context),
        quantization=Quantization("int4", 4, 32),
        targets={"coreml": Target({}, "w", Parity((), 0.0, 0.0), package)},
        text=Text(),
        parameters=1,
        unrolled_parameters=1,
        files={"w": File(rest + 20 * context, "")},
    )


def test_a_shorter_context_is_proposed_where_its_tables_weigh() -> None:
    long, rest = packaged(100_000, 4_000_000), 4_000_000
    assert table_bytes(long) == 2_000_000
    context, saved = shorter_context(long) or (0, 0)
    assert context == 16384  # 328 kB; twice as long would be more than a tenth of 4 MB
    assert bundle_bytes(long) - saved == bundle_bytes(packaged(context, rest))
    assert shorter_context(packaged(context, rest)) is None
    assert shorter_context(packaged(22_000, rest)) is None
    assert shorter_context(packaged(23_000, rest)) == (16384, 20 * (23_000 - 16384))


def test_other_targets_store_nothing_for_a_position() -> None:
    long = msgspec.structs.replace(
        packaged(1 << 18, 1), targets={"onnx": Target({}, "w", Parity((), 0.0, 0.0))}
    )
    assert (table_bytes(long), shorter_context(long)) == (0, None)


def test_digits_have_no_exponent() -> None:
    assert [digits(n) for n in (11036.2, 36.34, 0.48513, 0.0)] == ["11000", "36.3", "0.485", "0"]
    assert digits(22249.6, 4) == "22250"


def test_a_target_alone_has_the_text_once() -> None:
    """In its own file, or in one beside it."""
    parity = Parity((), 0.0, 0.0)
    both = msgspec.structs.replace(
        packaged(1, 1),
        targets={"native": Target({}, "native/model.lanes", parity), "onnx": Target({}, "onnx/w", parity)},
        text=Text(tokenizer="tokenizer.json", lanes="text.lanes"),
        files=dict.fromkeys(("native/model.lanes", "onnx/w", "text.lanes", "tokenizer.json"), File(1, "")),
    )
    native, onnx = with_target(both, "native"), with_target(both, "onnx")
    assert (set(native.files), native.text.lanes) == ({"native/model.lanes", "tokenizer.json"}, None)
    assert (set(onnx.files), onnx.text) == ({"onnx/w", "text.lanes", "tokenizer.json"}, both.text)
