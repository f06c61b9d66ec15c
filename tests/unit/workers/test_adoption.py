"""A finished checkpoint read as a dense model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from schemas.model.spec import Factors
from tests.contract import CPU, Subject
from workers.adoption import tensors_of
from workers.checkpoint.tensors import TensorReader
from workers.model.layers import Decoder


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("gpt2", "plain"),  # parts of one matrix, transposed, with biases
        ("gpt2", "pivoted"),
        ("llama", "pivoted"),  # by rows and by columns
    ],
)
@torch.no_grad()
def test_the_dense_model_is_what_the_checkpoint_computes(
    kind: str, factors: Factors, tmp_path: Path
) -> None:
    subject = Subject(kind, tmp_path)
    cut = tuple(m for m in subject.spec.matrices if m.path != "attn.c_attn.1")
    subject.spec = subject.spec.model_copy(update={"matrices": cut})
    folder, _ = subject.compressed(factors, 0.3)
    config = subject.config(tmp_path / "next", factors).model_copy(update={"adopt": folder})

    reader = tensors_of(config, subject.base, subject.spec, CPU)

    dense = Decoder(subject.base, subject.spec, torch.float32, CPU, reader)
    model = dense.part(range(subject.spec.layers))
    tokens = subject.tokens[:2]
    hidden = model.embed(tokens)
    for index in range(subject.spec.layers):
        hidden = model.layer(index, hidden)
    expected = subject.load(folder)(input_ids=tokens).logits
    torch.testing.assert_close(model.tail(hidden), expected, rtol=1e-4, atol=1e-4)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(reader.read(name), tensor)  # its own tensors, by their own names
    base = TensorReader(subject.base, subject.spec)
    by_name = {t.name: t for t in subject.spec.tensors if t.role != "tied"}
    for name, facts in by_name.items():
        assert reader.read(name).shape == base.read(name).shape == facts.shape
        assert reader.file(name).name.endswith(".safetensors")
        cut_here = name.endswith(".weight") and any(m.stored in name for m in cut)
        assert torch.equal(reader.read(name), base.read(name)) != cut_here
