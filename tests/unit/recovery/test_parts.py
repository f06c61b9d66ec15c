"""What is trained if a linear layer holds several matrices."""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from schemas.result.output import MatrixResult
from tests.contract import IDS, Subject
from workers.model.layers import Decoder
from workers.recovery.models import build_student
from workers.recovery.updates import whole
from workers.storage.keys import factors_key
from workers.storage.store import Store


@torch.no_grad()
def test_the_student_is_the_checkpoint_that_keeps_a_part_as_it_is(
    alone: DeviceMesh, tmp_path: Path
) -> None:
    subject = Subject("gpt2", tmp_path)
    cut = tuple(m for m in subject.spec.matrices if m.path != "attn.c_attn.1")
    subject.spec = subject.spec.model_copy(update={"matrices": cut})
    folder, results = subject.compressed("pivoted", 0.3)
    rows, store = {result.name: result for result in results}, Store(tmp_path / "run")

    def factors(name: str) -> dict[str, Tensor]:
        return store.load(factors_key(IDS, name, rows[name].rank or 0)).tensors

    student = build_student(subject.decoder, subject.spec, rows, factors, alone)

    tokens = subject.tokens[:2]
    hidden = student.model.embed(tokens)
    for index in range(subject.spec.layers):
        hidden = student.model.layer(index, hidden)
    expected = subject.load(folder)(input_ids=tokens).logits
    assert torch.equal(student.model.tail(hidden), expected)
    layer = {name.partition(".0.")[2] for name in student.trained if ".h.0." in name}
    assert {f"attn.c_attn.{part}.down.weight" for part in (0, 2)} < layer
    assert not any("c_attn.1" in name for name in layer)


def test_what_lacks_neurons_keeps_its_own_bias_in_the_dtype_that_computes(
    alone: DeviceMesh, tmp_path: Path
) -> None:
    subject, kept = Subject("gpt2", tmp_path), 20
    writer, reader = (m for m in subject.spec.matrices if m.neurons and m.layer == 0)
    subject.spec = subject.spec.model_copy(update={"matrices": (writer, reader)})
    results = {"predicted_loss": 0.0, "achieved_loss": 0.0, "energy": None}
    rows = {
        m.name: MatrixResult(
            name=m.name,
            shape=(m.out_features, m.in_features),
            encoding=m.pruned,
            rank=kept,
            parameters=m.stored_parameters(m.pruned, kept),
            **results,
        )
        for m in (writer, reader)
    }
    own = torch.randn(kept)
    stored = {
        writer.name: {"dense.weight": torch.randn(kept, 32), "dense.bias": own},
        reader.name: {"dense.weight": torch.randn(32, kept)},
    }
    decoder = Decoder(subject.base, subject.spec, torch.bfloat16, torch.device("cpu"))
    student = build_student(decoder, subject.spec, rows, stored.__getitem__, alone)
    hidden = student.model.layer(0, student.model.embed(subject.tokens[:2]))
    assert hidden.dtype == torch.bfloat16
    [bias] = [
        parameter
        for name, parameter in student.model.layers[0].named_parameters()
        if name.endswith(f"{writer.path}.dense.bias")
    ]
    assert torch.equal(whole(bias), own.bfloat16())
