"""Safetensors files written as a stream, read back by safetensors itself."""

import hashlib
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from workers.storage.tensorfile import DTYPES, NAMES, Entry, entries, size_in_file, write_tensors


def random_tensor(dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    write_tensors(path, entries(tensors))
    return path


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (0, 4)])
def test_every_dtype_and_shape_comes_back(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = random_tensor(dtype, *shape)
    loaded = load_file(write(tmp_path / "file", {"a.b": tensor}))["a.b"]
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(loaded, tensor)


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_have_safetensors_own_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "file", {"a": random_tensor(DTYPES[name], 2)})
    with safe_open(path, framework="pt") as file:
        assert file.get_slice("a").get_dtype() == name
    assert NAMES[DTYPES[name]] == name


def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path: Path) -> None:
    tensors = {
        "halves": random_tensor(torch.bfloat16, 5, 3),
        "order": random_tensor(torch.int64, 7),
    }
    path = write(tmp_path / "file", tensors)
    assert size_in_file(entries(tensors)) == path.stat().st_size


def test_tensors_of_odd_sizes_are_aligned(tmp_path: Path) -> None:
    """Bytes first would leave the doubles at an odd offset, which safetensors refuses to map."""
    tensors = {
        "bytes": random_tensor(torch.uint8, 3),
        "halves": random_tensor(torch.bfloat16, 5),
        "doubles": random_tensor(torch.float64, 7),
        "flags": random_tensor(torch.bool, 1),
        "integers": random_tensor(torch.int64, 2),
    }
    path = write(tmp_path / "file", tensors)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0


def test_the_metadata_is_what_transformers_expects(tmp_path: Path) -> None:
    path = write(tmp_path / "file", {"a": torch.zeros(2)})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_without_tensors_can_be_read(tmp_path: Path) -> None:
    assert load_file(write(tmp_path / "file", {})) == {}


def test_views_and_leaves_are_written_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.T,
        "slice": base[:, 1:3],
        "expanded": base[:1].expand(5, 4),
        "element": base[1:2, 2],
        "column": base[1:2, 2:3].T,
        "row": base[2],
        "leaf": torch.nn.Parameter(base.clone()),
    }
    loaded = load_file(write(tmp_path / "file", tensors))
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_what_is_returned_is_what_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = entries({"a": torch.ones(100), "b": torch.ones(3, dtype=torch.uint8)})
    written = write_tensors(path, content)
    assert written.bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(100), "b": torch.ones(3, dtype=torch.uint8)}
    first, second = (write(tmp_path / name, tensors).read_bytes() for name in ("1", "2"))
    assert first == second


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """When a loader is called, what the one before it gave is no longer held."""
    alive: set[int] = set()
    most: list[int] = []

    def load() -> Tensor:
        values = np.ones(4, dtype=np.float32)  # lives as long as a tensor that shares its memory
        number = len(most)
        alive.add(number)
        weakref.finalize(values, alive.remove, number)
        most.append(len(alive))
        return torch.from_numpy(values)

    content = [Entry(f"t{i}", torch.float32, (4,), load) for i in range(5)]
    write_tensors(tmp_path / "file", content)
    assert most == [1] * 5


def test_every_loader_is_called_once_and_widest_first(tmp_path: Path) -> None:
    calls: list[str] = []

    def entry(name: str, dtype: torch.dtype) -> Entry:
        def load() -> Tensor:
            calls.append(name)
            return torch.zeros(2, dtype=dtype)

        return Entry(name, dtype, (2,), load)

    content = [entry("narrow", torch.int8), entry("wide", torch.float64), entry("w2", torch.int64)]
    write_tensors(tmp_path / "file", content)
    assert calls == ["wide", "w2", "narrow"]


def test_nothing_is_loaded_before_the_header_is_written(tmp_path: Path) -> None:
    sizes: list[bool] = []

    def load() -> Tensor:
        sizes.append((tmp_path / "file").exists())
        return torch.zeros(2)

    write_tensors(tmp_path / "file", [Entry("a", torch.float32, (2,), load)])
    assert sizes == [True]


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_a_tensor_that_is_not_as_promised_is_refused(tmp_path: Path, tensor: Tensor) -> None:
    content = [Entry("layer.weight", torch.float32, (2,), lambda: tensor)]
    with pytest.raises(ValueError, match=r"layer\.weight: expected torch\.float32 \(2,\), got"):
        write_tensors(tmp_path / "file", content)
