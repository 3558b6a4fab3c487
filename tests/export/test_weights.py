"""The weights file is plain safetensors, and every place in it is where it says."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from edgeloop.export.weights import WeightsWriter, tensor_spans
from edgeloop.runtime.errors import ExportError


def tensors() -> dict[str, npt.NDArray[np.generic]]:
    random = np.random.default_rng(0)
    return {
        "a.weight": random.standard_normal((3, 5)).astype(np.float32),
        "b.scales": random.standard_normal((7, 1)).astype(np.float16),
        "b.codes": random.integers(0, 256, (2, 3, 16), dtype=np.uint8),
        "one": np.array([4.0], np.float32),
        "none": np.zeros((0, 4), np.float32),
        "turned": random.standard_normal((4, 6)).astype(np.float32).T,
    }


def write(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    given = tensors()
    with WeightsWriter(path, len(given)) as writer:
        for name, array in given.items():
            writer.add(name, array)
    return given


def test_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    given = write(path)
    found = load_file(path)
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(given)


def test_places_are_the_tensors_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    given, data = write(path), path.read_bytes()
    found = tensor_spans(path)
    assert found.keys() == given.keys()
    for name, place in found.items():
        assert data[place.offset : place.offset + place.length] == given[name].tobytes()
    assert max(p.offset + p.length for p in found.values()) == len(data)


def test_tensors_begin_on_a_page(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write(path)
    assert tensor_spans(path)["a.weight"].offset % 4096 == 0


def test_a_header_of_long_names_still_fits(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    names = [f"segments.{i}.layers.{i}.attention_out_norm.weight.with.a.tail" for i in range(100, 400)]
    with WeightsWriter(path, len(names)) as writer:
        for name in names:
            writer.add(name, np.zeros((2, 2, 2), np.float32))
    assert load_file(path).keys() == set(names)


def test_more_tensors_than_there_is_room_for(tmp_path: Path) -> None:
    def write_more_than_announced() -> None:
        with WeightsWriter(tmp_path / "w", 1) as writer:
            for i in range(100):
                writer.add(f"{i}", np.zeros(1, np.float32))

    with pytest.raises(ExportError, match="100 tensors need a header of more than 4088 bytes"):
        write_more_than_announced()


def test_what_was_broken_off_is_not_a_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def break_off() -> None:
        with WeightsWriter(path, 2) as writer:
            writer.add("a", np.ones(4, np.float32))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_off()
    with pytest.raises(SafetensorError):
        load_file(path)


def test_a_full_disk_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, WeightsWriter(Path("/dev/full"), 1) as w:
        w.add("a", np.ones(4, np.float32))
    assert caught.value.errno == errno.ENOSPC


def test_rows_of_a_matrix_are_rows_of_its_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "w.safetensors"
    scales, codes = random.random((64, 2)).astype(np.float16), random.integers(0, 256, (64, 2, 8), np.uint8)
    with WeightsWriter(path, 2) as writer:
        writer.add("m.scales", scales)
        writer.add("m.codes", codes)
    data, found = path.read_bytes(), tensor_spans(path)
    for side, whole, dtype in (("scales", scales, "F16"), ("codes", codes, "U8")):
        assert (found[f"m.{side}"].dtype, found[f"m.{side}"].shape) == (dtype, whole.shape)
        for start, stop in ((0, 32), (32, 64), (5, 6)):
            place = found[f"m.{side}"].rows(start, stop)
            assert place.shape == (stop - start, *whole.shape[1:])
            assert data[place.offset : place.offset + place.length] == whole[start:stop].tobytes()
