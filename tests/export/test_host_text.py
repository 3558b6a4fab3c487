"""text.lanes: which bundles have it, what it depends on, and that its texts are those of the bundle's tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from editing import relist
from native_texts import made
from tokenizers import Tokenizer, normalizers
from update_bundles import contents

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.audit import audit
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import read_manifest
from edgeloop.runtime.engines.native.file import LanesFile
from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.engines.native.text_format import Tag, tables
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.update.apply import apply_update
from edgeloop.runtime.update.diff import make_update

Tiny = Callable[[str], Path]
NAME = "text.lanes"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def export(folder: Path, out: Path, targets: str = "onnx", quant: str = "int4") -> Path:
    return export_bundle(folder, out, targets=targets.split(), quant=quant).bundle


def parts(data: bytes) -> dict[int, bytes]:
    """A section's tables by their tags."""
    return {tag: data[first:last] for tag, (first, last) in tables(data).items()}


def test_texts_are_those_of_the_bundles_tokenizer(lane_engine: Path, exported: Callable[..., Path]) -> None:
    bundle = exported("mor-lora", "int4")
    engine = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    text = NativeText(bundle / NAME, alone=True)
    for words in made(100, 7):
        ids = engine.encode(words).ids
        assert text.encode(words) == ids
        assert text.decode(ids) == engine.decode(ids)
    assert text.ends() == list(read_manifest(bundle).program.eos_token_ids)
    text.close()


def test_it_is_beside_every_target_but_native(lane_engine: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Whose model.lanes has the same, and more."""
    folder = tiny("mor-lora")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    alone = export(folder, tmp_path / "native", "native")
    assert NAME not in read_manifest(alone).files
    assert read_manifest(alone).text.lanes is None
    both = export(folder, tmp_path / "both", "onnx native")
    assert read_manifest(both).text.lanes == NAME
    for bundle in alone, both:
        native = parts(LanesFile(bundle / "native/model.lanes", read_manifest(bundle).program).text)
        found = parts((both / NAME).read_bytes())
        assert set(native) - set(found) == {Tag.EXITS}
        assert [tag for tag in found if found[tag] != native[tag]] == [Tag.ABOUT]


def test_other_weights_do_not_change_it(tiny: Tiny, tmp_path: Path) -> None:
    """So that an update to new deltas leaves it alone."""
    folder = tiny("mor-lora")
    first, second = export(folder, tmp_path / "a"), export(folder, tmp_path / "b", quant="int8")
    assert (first / NAME).read_bytes() == (second / NAME).read_bytes()


def test_a_tokenizer_that_is_not_read_is_one_warning(
    lane_engine: Path, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many targets there are."""
    folder = tiny("mor-lora")
    engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine.normalizer = normalizers.ByteLevel()
    engine.save(str(folder / "tokenizer.json"))
    bundle = export(folder, tmp_path / "bundle", "onnx native")
    assert [r.getMessage() for r in caplog.records if "hosts in C" in r.getMessage()] == [
        "hosts in C and C++ take token ids only: of the tokenizer, its normalizer is ByteLevel; Python hosts read it"
    ]
    assert not (bundle / NAME).exists()
    assert not audit(bundle).findings
    (folder / "tokenizer.json").unlink()
    assert read_manifest(export(folder, tmp_path / "bare")).text.lanes is None


def test_it_is_audited(exported: Callable[..., Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(exported("mor-lora", "int4"), tmp_path / "bundle"))
    found = {each.file: each for each in audit(path).files}[NAME]
    assert not found.findings
    assert {"text", "text rules", "text about"} <= set(found.kinds)
    data = (path / NAME).read_bytes()
    (path / NAME).write_bytes(data + b"payload")
    relist(path, NAME)
    assert [f.file for f in audit(path).findings] == [NAME]
    (path / NAME).write_bytes(data[:-1] + b"x")
    with pytest.raises(BundleError, match=NAME):
        Bundle.open(path)


def test_updates_bring_it(tiny: Tiny, tmp_path: Path) -> None:
    """To a bundle that had none, and with other turns."""
    folder = tiny("mor-lora")
    old = export(folder, tmp_path / "old")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    new = export(folder, tmp_path / "new")
    assert {"text turns"} < set({each.file: each for each in audit(new).files}[NAME].kinds)
    change = make_update(old, new, tmp_path / "update")
    assert set(change.changed) == {NAME, "manifest.json"}
    wanted = contents(new)
    apply_update(old, tmp_path / "update")
    assert contents(old) == wanted
