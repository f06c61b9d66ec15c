"""A finished item whose content changed on disk is found when it is read, and made anew alone."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.compress import compress
from schemas.errors import RunError, VerificationError
from schemas.request.config import RunConfig
from schemas.result.manifest import Manifest
from schemas.run.moments import backward_tap, forward_tap
from tests.integration.conftest import Reference
from tests.integration.support import KINDS, item_attempts, item_sums, weight_sums
from tests.items import damage, file_of, local
from workers.model.inspection import inspect
from workers.storage.keys import basis_key, factors_key, moment_key, spectrum_key
from workers.storage.store import Store
from workers.storage.tensorfile import entries


@pytest.fixture
def config(reference: Reference, tmp_path: Path) -> RunConfig:
    """The finished run of `reference` in a copy, its checkpoint still to be written."""
    shutil.copytree(reference.config.run_folder, tmp_path / "out.run")
    return reference.config.model_copy(update={"output": tmp_path / "out"})


@pytest.fixture
def remade(config: RunConfig) -> Callable[[], set[str]]:
    """Keys of the items written since the last call."""
    seen = item_attempts(config.run_folder, *KINDS)

    def changed() -> set[str]:
        now = item_attempts(config.run_folder, *KINDS)
        found = {key for key in now if now[key] != seen.get(key)}
        seen.update(now)
        return found

    return changed


def test_a_damaged_item_is_named_and_the_next_start_makes_it_anew(
    config: RunConfig, reference: Reference, remade: Callable[[], set[str]]
) -> None:
    """Each start makes anew what the one before it met, then meets the next."""
    manifest = Manifest.model_validate_json(
        (local(reference.output.path) / "manifest.json").read_bytes()
    )
    ids, store = manifest.identities, Store(config.run_folder)
    rows = [row for row in reference.output.compression.matrices if row.encoding != "dense"]
    first, second = (factors_key(ids, row.name, row.rank or 0) for row in rows[:2])
    (matrix,) = (m for m in inspect(Path(config.model)).matrices if m.name == rows[0].name)
    expected = item_sums(store.root, *KINDS)

    def fails(key: str) -> None:
        damage(file_of(store, key))
        with pytest.raises(RunError, match=rf"{re.escape(key)}: .* start the same command again"):
            compress(config)
        assert store.record(key) is None

    store.forget(first)  # made again, from what is read for it
    inputs = (
        moment_key(ids, forward_tap(matrix, config.truncation)),
        moment_key(ids, backward_tap(matrix, config.truncation)),
        basis_key(ids, matrix.name),
        spectrum_key(ids, matrix.name),
    )
    met: set[str] = set()
    for key in inputs:
        fails(key)
        assert remade() == met
        met = {key}
    fails(second)
    assert remade() == met | {first}

    key = f"outputs/{manifest.output}/model.safetensors"  # as if killed before it was verified
    published = load_file(local(reference.output.path) / "model.safetensors")
    store.commit(key, entries(published))
    damage(file_of(store, key))
    with pytest.raises(VerificationError, match=r"model\.safetensors: changed"):
        compress(config)
    assert remade() == {second}
    assert store.record(key) is None

    compress(config)
    assert remade() == set()
    assert item_sums(store.root, *KINDS) == expected
    assert weight_sums(local(config.output)) == weight_sums(local(reference.output.path))
