"""Weight files, written from the items of a run."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.result.output import FactorSource, OutputFile, OutputTensor
from workers.output import write_file
from workers.storage.store import Item, Store
from workers.storage.tensorfile import NAMES, entries


def test_the_factors_of_a_matrix_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although their row order is wider than they are."""
    store, expected, planned = Store(tmp_path), {}, []
    for key in ("factors/q", "factors/k"):
        factors = {
            "down": torch.randn(4, 6).bfloat16(),
            "up": torch.randn(8, 4).bfloat16(),
            "order": torch.randperm(8),
        }
        store.commit(key, entries(factors))
        for tail, tensor in factors.items():
            name, source = f"{key}.{tail}", FactorSource(key=key, tensor=tail)
            kind, shape = NAMES[tensor.dtype], tuple(tensor.shape)
            planned.append(OutputTensor(name=name, dtype=kind, shape=shape, factors=source))
            expected[name] = tensor
    read = Counter[str]()

    def load(store: Store, key: str) -> Item:
        read[key] += 1
        return loaded(store, key)

    loaded = Store.load
    monkeypatch.setattr(Store, "load", load)
    reader: Any = None
    plan = OutputFile(name="model.safetensors", tensors=tuple(planned))
    found = load_file(tmp_path / write_file(store, reader, "outputs/it", plan).file)
    assert read == {"factors/q": 1, "factors/k": 1}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
