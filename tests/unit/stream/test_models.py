"""Checkpoints whose layers are streamed, as every node finds them."""

import contextlib
from pathlib import Path

import pytest

from pipeline.evaluate import local_folder
from pipeline.stream.models import model_of
from schemas.location import Url, kept_at_home
from schemas.request.evaluation import EvaluationConfig
from workers.checkpoint.fetching import resolve
from workers.storage.places import upload


def test_every_node_reads_weights_in_a_store_from_there(
    model: Path, url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has the small files in its own home: the driver's are seen by no other node."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in model.iterdir():
        upload(path, url / path.name)
    config = EvaluationConfig(checkpoint=str(url), streamed=True)
    with contextlib.ExitStack() as copies:
        folder = local_folder(config.checkpoint, None, copies, kept_at_home())
    assert not list(folder.glob("*.safetensors"))
    found = model_of(config.checkpoint, folder, config)
    assert found.source.spec.weights == url
    assert resolve(*found.source[:2], found.source.fetched) == folder
    assert found.stored() == model_of(str(model), model, config).stored()
